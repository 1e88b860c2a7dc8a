//! Validates on which services a service depends.

use crate::model::ServiceSpec;
use crate::naming;

/// Largest number of services on which one may depend. It bounds the search for circles.
const BOUND: usize = 64;

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    let count = spec.depends_on.len();
    check(
        "depends_on",
        (count <= BOUND).then_some(()).ok_or(format!("{count} services are over the bound of {BOUND}")),
    );
    for (index, dependency) in spec.depends_on.iter().enumerate() {
        let name = &dependency.service;
        let is_known = || spec.depends_on[..index].iter().any(|it| it.service == *name);
        let result = match naming::check(name) {
            Err(error) => Err(error.to_string()),
            Ok(()) if *name == spec.name => Err("a service can't depend on itself".into()),
            Ok(()) if is_known() => Err(format!("`{name}` is named twice")),
            Ok(()) => Ok(()),
        };
        check(&format!("depends_on[{index}]"), result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Dependency, DependencyCondition};

    /// The spec of `web`, which depends on these services.
    fn spec(names: &str) -> ServiceSpec {
        let on =
            |name: &str| Dependency { service: name.into(), condition: DependencyCondition::Started, required: true };
        let depends_on = names.split_whitespace().map(on).collect();
        ServiceSpec { name: "web".into(), image: "web".into(), depends_on, ..ServiceSpec::default() }
    }

    #[test]
    fn a_spec_names_each_of_a_few_other_services_once() {
        let judged = |text: &str| {
            let mut found = Vec::new();
            judge(&spec(text), &mut |field, result| found.extend(result.err().map(|why| format!("{field}: {why}"))));
            found
        };
        assert_eq!(judged("db queue"), <[String; 0]>::default());
        let expected = ["depends_on[0]: a service can't depend on itself", "depends_on[2]: `db` is named twice"];
        assert_eq!(judged("web db db"), expected);
        assert!(judged("d/b")[0].starts_with("depends_on[0]: "), "{:?}", judged("d/b"));
        let many: String = (0..65).map(|number| format!(" s{number}")).collect();
        assert_eq!(judged(&many), ["depends_on: 65 services are over the bound of 64"]);
    }
}
