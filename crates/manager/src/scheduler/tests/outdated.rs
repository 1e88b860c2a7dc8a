//! Tasks go only to nodes that know all of their spec.

use super::*;
use flota_api::model::{Mount, MountSource, ValueUse};

#[test]
fn a_task_goes_only_to_a_node_whose_build_knows_all_of_its_spec() {
    let placed = |spec: ServiceSpec| {
        let nodes = [("one", 1), ("two", 2), ("three", 3), ("four", 4)].map(|(id, feature_level)| {
            let mut node = node(id);
            node.description.feature_level = feature_level;
            node.into_object()
        });
        let objects = nodes.into_iter().chain([service("s", spec).into_object()]).chain(pending(3));
        planned(&view(objects.collect()), "s")
    };
    let on = |nodes: [&str; 3]| [1, 2, 3].map(|task| format!("p{task}@{}", nodes[task - 1]));
    assert_eq!(placed(ServiceSpec::default()), on(["four", "one", "three"]));
    assert_eq!(placed(ServiceSpec { tty: true, ..ServiceSpec::default() }), on(["four", "three", "two"]));
    let with_secret = ServiceSpec { secrets: vec![ValueUse::of("db")], ..ServiceSpec::default() };
    assert_eq!(placed(with_secret), on(["four", "three", "four"]));
    let with_config = ServiceSpec { configs: vec![ValueUse::of("db")], ..ServiceSpec::default() };
    assert_eq!(placed(with_config), on(["four", "three", "four"]));
    let source = MountSource::Image { reference: "data".into(), subpath: None };
    let mounts = vec![Mount { target: "/x".into(), read_only: true, source }];
    assert_eq!(placed(ServiceSpec { mounts, ..ServiceSpec::default() }), on(["four", "four", "four"]));
}
