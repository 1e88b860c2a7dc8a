//! The rules for the secrets and configs of a service.

use crate::model::{ServiceSpec, ValueKind, clashes};

/// Largest number of secrets and configs of a service.
const VALUES_BOUND: usize = 100;

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    let count = spec.secrets.len() + spec.configs.len();
    if count > VALUES_BOUND {
        return check("secrets", Err(format!("{count} secrets and configs are over the bound of {VALUES_BOUND}")));
    }
    let field = |index: usize, field: &str| match index.checked_sub(spec.secrets.len()) {
        None => format!("secrets[{index}].{field}"),
        Some(index) => format!("configs[{index}].{field}"),
    };
    for (index, (kind, it)) in spec.values().enumerate() {
        for (name, why) in it.violations(kind) {
            check(&field(index, name), Err(why));
        }
        let path = it.path(kind);
        if let Some(mount) = spec.mounts.iter().find(|mount| path.as_deref() == Some(&mount.target)) {
            check(&field(index, "target"), Err(format!("a mount is at `{}` already", mount.target)));
        }
        let sets = |variable: &String| variable.split('=').next() == it.env.as_deref();
        if it.env.is_some() && spec.env.iter().any(sets) {
            check(&field(index, "env"), Err("the variable is set by `env` already".into()));
        }
    }
    for (index, name, why) in clashes(spec.values()) {
        check(&field(index, name), Err(why));
    }
}

/// Returns the texts of these fields, which count towards the size of a spec.
pub(super) fn texts(spec: &ServiceSpec) -> impl Iterator<Item = &String> {
    let texts = |(_, it): (ValueKind, _)| {
        let it: &crate::model::ValueUse = it;
        [Some(&it.source), it.target.as_ref(), it.env.as_ref(), it.signal.as_ref()].into_iter().flatten()
    };
    spec.values().flat_map(texts)
}

#[cfg(test)]
mod tests {
    use crate::model::{Mount, MountSource, TmpfsMount, ValueUse};

    use super::*;
    use crate::validate::violations;

    #[test]
    fn a_secret_has_a_place_of_its_own() {
        let found = |change: &dyn Fn(&mut ServiceSpec)| {
            let mut spec = ServiceSpec { name: "web".into(), image: "web".into(), ..ServiceSpec::default() };
            spec.secrets = vec![ValueUse::of("db")];
            change(&mut spec);
            violations(&spec).iter().map(|it| it.field.clone()).collect::<Vec<_>>().join(" ")
        };
        let at = |target: &str| ValueUse { target: Some(target.into()), ..ValueUse::of("cf") };
        let variable = || ValueUse { env: Some("A".into()), ..ValueUse::of("db") };
        let mount = |target: &str| {
            let source = MountSource::Tmpfs(TmpfsMount::default());
            vec![Mount { target: target.into(), read_only: false, source }]
        };
        assert_eq!(found(&|_| ()), "");
        assert_eq!(found(&|it| it.secrets.push(ValueUse::of("db"))), "secrets[1].target");
        assert_eq!(found(&|it| it.configs = vec![at("/run/secrets/db")]), "configs[0].target");
        assert_eq!(found(&|it| it.configs = vec![at("/a/../b")]), "configs[0].target");
        assert_eq!(found(&|it| it.mounts = mount("/run/secrets/db")), "secrets[0].target");
        assert_eq!(found(&|it| (it.secrets, it.env) = (vec![variable()], vec!["A=1".into()])), "secrets[0].env");
        assert_eq!(found(&|it| it.secrets = vec![ValueUse::of("a\nb")]), "secrets[0].source");
        assert_eq!(found(&|it| it.secrets = (0..101).map(|n| ValueUse::of(format!("s{n}"))).collect()), "secrets");
    }
}
