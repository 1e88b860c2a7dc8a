//! The rules for what services depend on among those that exist, which are judged in the transaction that sets the specs.
//! Those for one spec by itself are in [`flota_api::validate`].

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::Violation;
use flota_api::model::{Cluster, Dependency, DependencyCondition, ServiceSpec};
use flota_api::object::Kind;
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use crate::dependencies::circles;

fn field(index: usize) -> String {
    format!("depends_on[{index}]")
}

/// Returns the rules that the new specs break together with each other and with the services of the view, each with the
/// name of the service. Those of a spec by itself are not repeated. The names of other services are told as far as the caller
/// `sees` them.
pub(super) fn among<'a>(
    new: &'a [ServiceSpec],
    view: &'a Tables,
    sees: &dyn Fn(&str) -> bool,
) -> Vec<(&'a str, Violation)> {
    let shown = |name: &str| if sees(name) { format!("`{name}`") } else { "a service of others".to_owned() };
    let specs: BTreeMap<&str, &ServiceSpec> = new.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    let spec_of = |name: &str| specs.get(name).copied().or_else(|| Some(view.service_by_name(name)?.spec.as_ref()));
    let mut found = Vec::new();
    for spec in new {
        for (index, dependency) in spec.depends_on.iter().enumerate().filter(|(_, it)| it.service != spec.name) {
            if let Some(on) = spec_of(&dependency.service).filter(|on| !can_be(dependency, on)) {
                let why = format!("{} never completes: {}", shown(&on.name), never(on));
                found.push((spec.name.as_str(), Violation { field: field(index), why }));
            }
        }
        for (index, way) in circles(spec, spec_of) {
            // A circle is told once, for the first of the new specs in it.
            let is_first = way.iter().all(|name| !specs.contains_key(name) || *name >= spec.name.as_str());
            if way.len() > 1 && is_first {
                let names: Vec<String> = way.iter().map(|name| shown(name)).collect();
                let why =
                    format!("it closes a circle: `{}` depends on {}", spec.name, names.join(", which depends on "));
                found.push((spec.name.as_str(), Violation { field: field(index), why }));
            }
        }
        if !spec.can_complete() {
            let present = view.dependents(&spec.name).filter_map(|id| view.service(id));
            let waits = |it: &ServiceSpec| it.depends_on.iter().any(|it| it.service == spec.name && !can_be(it, spec));
            let others = present.filter(|it| !specs.contains_key(it.spec.name.as_str()) && waits(&it.spec));
            for other in others {
                let why = format!("{} waits until `{}` has completed", shown(&other.spec.name), spec.name);
                found.push((spec.name.as_str(), Violation { field: "restart.condition".into(), why }));
            }
        }
    }
    found
}

/// Whether the service can ever be as the dependency asks.
fn can_be(dependency: &Dependency, on: &ServiceSpec) -> bool {
    on.mode.cron().is_none() && (dependency.condition != DependencyCondition::Completed || on.can_complete())
}

fn never(on: &ServiceSpec) -> &'static str {
    match on.mode.is_global() {
        _ if on.mode.cron().is_some() => "it runs by a schedule, and nothing can wait for it",
        true => "it has a task on each node that runs on; only a job completes",
        false => "its tasks are started again whenever they end (restart condition any)",
    }
}

/// Refuses a service's new spec that breaks a rule together with the services that exist. The transaction fails if one of
/// those on which it depends, directly or through others, changes meanwhile.
pub(super) fn claim(tx: &mut WriteTx, spec: &ServiceSpec, sees: &dyn Fn(&str) -> bool) -> Result<(), ControlError> {
    let view = Arc::clone(tx.view());
    let found: Vec<Violation> = among(std::slice::from_ref(spec), &view, sees).into_iter().map(|(_, it)| it).collect();
    if !found.is_empty() {
        return Err(ControlError::Invalid(found));
    }
    expect_all(tx, spec);
    Ok(())
}

/// Makes the transaction fail if a service on which this one depends, directly or through others, changes meanwhile: the
/// two changes together could close a circle. One that does not exist may be created meanwhile, so all changes that depend on
/// such ones change the cluster.
pub(super) fn expect_all(tx: &mut WriteTx, spec: &ServiceSpec) {
    let view = Arc::clone(tx.view());
    let mut left: Vec<&str> = spec.depends_on.iter().map(|it| it.service.as_str()).collect();
    let mut seen = std::collections::BTreeSet::new();
    while let Some(name) = left.pop() {
        if let Some(on) = view.service_by_name(name).filter(|it| seen.insert(it.id.clone())) {
            tx.expect(Kind::Service, &on.id);
            left.extend(on.spec.depends_on.iter().map(|it| it.service.as_str()));
        } else if view.service_by_name(name).is_none()
            && name != spec.name
            && let Some(cluster) = view.cluster()
        {
            tx.touch(Cluster::clone(cluster));
        }
    }
}

/// Says which services a new one waits for that do not exist.
pub(super) fn warnings(spec: &ServiceSpec, view: &Tables) -> Vec<String> {
    let missing = spec.depends_on.iter().filter(|it| it.required && view.service_by_name(&it.service).is_none());
    missing.map(|it| format!("`{}` waits for service `{}`, which does not exist", spec.name, it.service)).collect()
}

#[cfg(test)]
mod tests {
    use flota_api::model::{RestartCondition, Service, ServiceMode};
    use flota_api::object::StoreObject;

    use super::*;

    /// A spec from `name: dependency dependency*`, where a star stands for the condition `completed`.
    fn spec(text: &str) -> ServiceSpec {
        let (name, dependencies) = text.split_once(':').expect("a name");
        let depends_on = dependencies.split_whitespace().map(|it| {
            let condition =
                if it.ends_with('*') { DependencyCondition::Completed } else { DependencyCondition::Started };
            Dependency { service: it.trim_end_matches('*').into(), condition, required: true }
        });
        ServiceSpec {
            name: name.into(),
            image: "web".into(),
            depends_on: depends_on.collect(),
            ..ServiceSpec::default()
        }
    }

    fn view(texts: &[&str]) -> Tables {
        let mut view = Tables::default();
        for text in texts {
            let spec = Arc::new(spec(text));
            view.put(
                Service { id: spec.name.as_str().into(), spec, spec_version: 1, ..Service::default() }.into_object(),
            );
        }
        view
    }

    fn found(new: &[&str], present: &[&str]) -> Vec<String> {
        let specs: Vec<ServiceSpec> = new.iter().map(|text| spec(text)).collect();
        let view = view(present);
        let all = among(&specs, &view, &|_| true).into_iter();
        all.map(|(name, it)| format!("{name} {}: {}", it.field, it.why)).collect()
    }

    #[test]
    fn names_that_the_caller_does_not_see_are_not_told() {
        let why = |new: &str, present: &[&str]| {
            let (specs, view) = ([spec(new)], view(present));
            among(&specs, &view, &|name| name.starts_with('a')).pop().map(|(_, it)| it.why)
        };
        let circle = "it closes a circle: `a` depends on a service of others, which depends on `a`";
        assert_eq!(why("a: b", &["b: a"]).as_deref(), Some(circle));
        assert_eq!(why("a:", &["b: a*"]).as_deref(), Some("a service of others waits until `a` has completed"));
    }

    #[test]
    fn circles_are_found_among_new_and_present_services_and_each_is_told_once() {
        let circle = |first: &str, index: usize, way: &str| {
            vec![format!("{first} depends_on[{index}]: it closes a circle: `{first}` depends on {way}")]
        };
        let none = Vec::<String>::new();
        for (new, present, expected) in [
            (&["web: db", "db:"][..], &[][..], none.clone()),
            (&["web: db queue", "db: disk", "queue: disk", "disk:"], &[], none.clone()),
            (&["web: db", "db: web"], &[], circle("db", 0, "`web`, which depends on `db`")),
            (
                &["web: x db"],
                &["db: disk", "disk: web"],
                circle("web", 1, "`db`, which depends on `disk`, which depends on `web`"),
            ),
            // What exists counts only as far as it does not change.
            (&["web: db", "db:"], &["db: web"], none.clone()),
            (&["web: gone"], &[], none.clone()),
            (&["web: web"], &[], none),
        ] {
            assert_eq!(found(new, present), expected, "{new:?} {present:?}");
        }
        assert_eq!(found(&["a: b", "b: a c", "c: b"], &[]).len(), 2);
    }

    #[test]
    fn only_what_can_end_can_have_completed() {
        let why = "`db` never completes: its tasks are started again whenever they end (restart condition any)";
        assert_eq!(found(&["web: db*", "db:"], &[]), [format!("web depends_on[0]: {why}")]);
        assert_eq!(found(&["web: db*"], &["db:"]), [format!("web depends_on[0]: {why}")]);
        assert_eq!(found(&["web: db*"], &[]), <[String; 0]>::default());
        let expected = ["db restart.condition: `web` waits until `db` has completed"];
        assert_eq!(found(&["db:"], &["web: db*"]), expected);
        let mut once = spec("db:");
        once.restart.condition = RestartCondition::OnFailure;
        for (mode, count) in
            [(ServiceMode::Replicated { replicas: 2 }, 0), (ServiceMode::Global {}, 1), (ServiceMode::GlobalJob {}, 0)]
        {
            let specs = [spec("web: db*"), ServiceSpec { mode: mode.clone(), ..once.clone() }];
            assert_eq!(among(&specs, &Tables::default(), &|_| true).len(), count, "{mode:?}");
        }
    }
}
