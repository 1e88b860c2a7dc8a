//! Tasks go only to nodes that know all of their spec.

use super::*;
use flota_api::model::ValueUse;

#[test]
fn a_task_goes_only_to_a_node_whose_build_knows_all_of_its_spec() {
    let placed = |spec: ServiceSpec| {
        let nodes = [("one", 1), ("two", 2), ("three", 3)].map(|(id, feature_level)| {
            let mut node = node(id);
            node.description.feature_level = feature_level;
            node.into_object()
        });
        let objects = nodes.into_iter().chain([service("s", spec).into_object()]).chain(pending(3));
        planned(&view(objects.collect()), "s")
    };
    let on = |nodes: [&str; 3]| [1, 2, 3].map(|task| format!("p{task}@{}", nodes[task - 1]));
    assert_eq!(placed(ServiceSpec::default()), on(["one", "three", "two"]));
    assert_eq!(placed(ServiceSpec { tty: true, ..ServiceSpec::default() }), on(["three", "two", "three"]));
    let with_secret = ServiceSpec { secrets: vec![ValueUse::of("db")], ..ServiceSpec::default() };
    assert_eq!(placed(with_secret), on(["three", "three", "three"]));
    let with_config = ServiceSpec { configs: vec![ValueUse::of("db")], ..ServiceSpec::default() };
    assert_eq!(placed(with_config), on(["three", "three", "three"]));
}
