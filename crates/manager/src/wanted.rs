//! How many tasks a service should have, and on which nodes.

use flota_api::model::{Availability, Node, NodeState, Service, ServiceMode, ServiceSpec};
use flota_raft_store::Tables;

/// Whether a global service of this spec keeps its task on the node. Also a node that is down keeps it: no other node can
/// have it instead.
pub(crate) fn keeps(spec: &ServiceSpec, node: &Node) -> bool {
    !spec.stopped
        && node.spec.availability != Availability::Drain
        && spec.constraints.iter().all(|constraint| node.satisfies(constraint))
}

/// Whether a global service of this spec gets a task on the node if it has none there.
pub(crate) fn takes(spec: &ServiceSpec, node: &Node) -> bool {
    keeps(spec, node) && node.state == NodeState::Ready && node.spec.availability == Availability::Active
}

/// Returns how many tasks of the service should run now.
pub(crate) fn tasks(service: &Service, view: &Tables) -> u64 {
    let spec = &service.spec;
    let has_task = |node: &Node| view.live_tasks(&service.id, &node.id) > 0;
    let runs = |node: &Node| node.state != NodeState::Down && keeps(spec, node) && has_task(node);
    match spec.mode {
        _ if spec.stopped => 0,
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global {} => view.nodes().filter(|node| takes(spec, node) || runs(node)).count() as u64,
    }
}
