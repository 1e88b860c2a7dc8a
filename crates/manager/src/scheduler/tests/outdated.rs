//! Tasks go only to nodes that know all of their spec.

use super::*;
use flota_api::model::{BindMount, Mount, MountSource, ValueUse, VolumeMount};

#[test]
fn a_task_goes_only_to_a_node_whose_build_knows_all_of_its_spec() {
    let placed = |spec: ServiceSpec| {
        let nodes = [("one", 1), ("two", 2), ("three", 3), ("four", 4), ("five", 5)].map(|(id, feature_level)| {
            let mut node = node(id);
            node.description.feature_level = feature_level;
            node.description.allow.bind_mounts = vec!["/".to_owned()];
            node.into_object()
        });
        let objects = nodes.into_iter().chain([service("s", spec).into_object()]).chain(pending(3));
        planned(&view(objects.collect()), "s")
    };
    let on = |nodes: [&str; 3]| [1, 2, 3].map(|task| format!("p{task}@{}", nodes[task - 1]));
    assert_eq!(placed(ServiceSpec::default()), on(["five", "four", "one"]));
    assert_eq!(placed(ServiceSpec { tty: true, ..ServiceSpec::default() }), on(["five", "four", "three"]));
    let with_secret = ServiceSpec { secrets: vec![ValueUse::of("db")], ..ServiceSpec::default() };
    assert_eq!(placed(with_secret), on(["five", "four", "three"]));
    let with_config = ServiceSpec { configs: vec![ValueUse::of("db")], ..ServiceSpec::default() };
    assert_eq!(placed(with_config), on(["five", "four", "three"]));
    let mounting = |source| {
        let mounts = vec![Mount { target: "/x".into(), read_only: true, source }];
        placed(ServiceSpec { mounts, ..ServiceSpec::default() })
    };
    let image = MountSource::Image { reference: "data".into(), subpath: None };
    assert_eq!(mounting(image), on(["five", "four", "five"]));
    let part = |subpath: Option<&str>| {
        let (name, subpath) = (None, subpath.map(str::to_owned));
        MountSource::Volume(VolumeMount { name, subpath, ..VolumeMount::default() })
    };
    assert_eq!(mounting(part(Some("a"))), on(["five", "five", "five"]));
    assert_eq!(mounting(part(None)), on(["five", "four", "three"]));
    let bind =
        |create_source| MountSource::Bind(BindMount { source: "/a".into(), create_source, ..BindMount::default() });
    assert_eq!(mounting(bind(true)), on(["five", "five", "five"]));
    assert_eq!(mounting(bind(false)), on(["five", "four", "three"]));
}
