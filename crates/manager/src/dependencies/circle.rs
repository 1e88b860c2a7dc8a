//! Circles of services that depend on each other, of which none could ever start.

use std::collections::{BTreeMap, VecDeque};

use flota_api::model::ServiceSpec;

/// Returns the names on the shortest way along dependencies from the service of the name `from` to that of the name `to`,
/// both included; `None` if there is none. `spec_of` returns the spec that the service of a name has, or is to have.
fn way<'a>(from: &'a str, to: &str, spec_of: impl Fn(&str) -> Option<&'a ServiceSpec>) -> Option<Vec<&'a str>> {
    // Each name that was reached, with the one before it.
    let mut reached: BTreeMap<&str, Option<&str>> = BTreeMap::from([(from, None)]);
    let mut left = VecDeque::from([from]);
    while let Some(name) = left.pop_front() {
        if name == to {
            let mut names: Vec<&str> =
                std::iter::successors(Some(name), |it| reached.get(it).copied().flatten()).collect();
            names.reverse();
            return Some(names);
        }
        for next in spec_of(name).into_iter().flat_map(|spec| &spec.depends_on) {
            let next = next.service.as_str();
            if !reached.contains_key(next) {
                reached.insert(next, Some(name));
                left.push_back(next);
            }
        }
    }
    None
}

/// Returns the names in the circles that the dependencies of this spec close, each as the way from one of them, which has
/// this place among the dependencies, back to the service.
pub(crate) fn circles<'a>(
    spec: &'a ServiceSpec,
    spec_of: impl Fn(&str) -> Option<&'a ServiceSpec>,
) -> impl Iterator<Item = (usize, Vec<&'a str>)> {
    let dependencies = spec.depends_on.iter().enumerate();
    dependencies.filter_map(move |(index, it)| Some((index, way(&it.service, &spec.name, &spec_of)?)))
}
