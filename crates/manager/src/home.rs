//! Tasks that belong to one node, and wait for it if it is lost.

use flota_api::id::NodeId;
use flota_api::model::{Availability, Service, Task};
use flota_raft_store::Tables;

/// Whether the task stays with its node when that is lost: no other node can have it, or its service keeps its tasks where
/// they are. That ends when a person drains the node, or it leaves the cluster.
pub(crate) fn waits_for_node(task: &Task, view: &Tables) -> bool {
    let (Some(service), Some(node)) = (view.service(&task.service_id), view.node_of(task)) else { return false };
    let belongs = task.pinned_to.is_some() || is_bound(service, task, &node.id, view);
    belongs && node.spec.availability != Availability::Drain && !node.has_left()
}

/// Whether users want the task on this node and no other: its service keeps its tasks where they are, or has its data there.
pub(crate) fn is_bound(service: &Service, task: &Task, node: &NodeId, view: &Tables) -> bool {
    service.spec.keep_on_node_loss || has_data_on(task, node, view)
}

/// Whether the node has the data of a volume that the task uses.
fn has_data_on(task: &Task, node: &NodeId, view: &Tables) -> bool {
    let Some(spec) = view.spec_of(task) else { return false };
    let mut volumes = spec.volumes().filter_map(|name| view.volume_by_name(name));
    volumes.any(|volume| volume.nodes_with(volume.data_slot(spec.mode.is_global(), task.slot)).any(|it| it == node))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use flota_api::model::{
        Mount, MountSource, Node, NodeSpec, ServiceSpec, Volume, VolumeMount, VolumePlace, VolumeSpec,
    };
    use flota_api::object::StoreObject;

    /// Whether a task on the node `a` waits for it, given changes of its service, its task and its node.
    fn waits(spec: ServiceSpec, pinned_to: Option<&str>, availability: Availability) -> bool {
        let mut view = Tables::default();
        let spec = Arc::new(ServiceSpec { name: "db".into(), ..spec });
        view.put(Service { id: "db".into(), spec, spec_version: 1, ..Service::default() }.into_object());
        let node = NodeSpec { availability, ..NodeSpec::default() };
        view.put(Node { id: "a".into(), spec: node, ..Node::default() }.into_object());
        let places = vec![VolumePlace { slot: None, node_id: "a".into() }];
        let here = VolumeSpec { name: "here".into(), ..VolumeSpec::default() };
        view.put(Volume { id: "v1".into(), spec: here, places, ..Volume::default() }.into_object());
        let places = vec![VolumePlace { slot: None, node_id: "b".into() }];
        let elsewhere = VolumeSpec { name: "elsewhere".into(), ..VolumeSpec::default() };
        view.put(Volume { id: "v2".into(), spec: elsewhere, places, ..Volume::default() }.into_object());
        let task = Task { id: "t".into(), service_id: "db".into(), spec_version: 1, ..Task::default() };
        let task = Task { node_id: Some("a".into()), pinned_to: pinned_to.map(Into::into), ..task };
        view.put(task.clone().into_object());
        waits_for_node(&task, &view)
    }

    #[test]
    fn a_task_that_no_other_node_can_have_waits_for_its_own_until_a_person_decides() {
        let with = |volume: &str| {
            let source = MountSource::Volume(VolumeMount { name: Some(volume.into()), ..VolumeMount::default() });
            let mounts = vec![Mount { target: "/data".into(), read_only: false, source }];
            ServiceSpec { mounts, ..ServiceSpec::default() }
        };
        let keeps = ServiceSpec { keep_on_node_loss: true, ..ServiceSpec::default() };
        for (expected, spec, pinned_to) in [
            (false, ServiceSpec::default(), None),
            (true, keeps, None),
            (true, ServiceSpec::default(), Some("a")),
            (true, with("here"), None),
            (false, with("elsewhere"), None),
            (false, with("unknown"), None),
        ] {
            assert_eq!(waits(spec.clone(), pinned_to, Availability::Active), expected, "{spec:?}");
            assert!(!waits(spec, pinned_to, Availability::Drain));
        }
    }
}
