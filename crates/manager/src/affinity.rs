//! Services whose tasks run beside each other, or never on the same node.

use flota_api::id::ServiceId;
use flota_api::model::{Node, Service, ServiceSpec, Task};
use flota_raft_store::Tables;

/// Whether a task of the service with this name runs, or is to run, on the node.
pub(crate) fn has_task_of(name: &str, node: &Node, view: &Tables) -> bool {
    view.service_by_name(name).is_some_and(|service| view.live_tasks(&service.id, &node.id) > 0)
}

/// Whether a task on the node rules out tasks of the spec: because its own anti-affinity names the other service, or
/// the other way round. A task that is being stopped counts until it has ended, and one that waits for room there
/// counts for those that are not more important.
pub(crate) fn is_kept_apart(spec: &ServiceSpec, node: &Node, view: &Tables) -> bool {
    let named = spec.anti_affinity.iter().filter_map(|name| view.service_by_name(name)).map(|service| &service.id);
    named
        .chain(view.averse_to(&spec.name))
        .any(|id| holds_task_of(id, node, view) || waits_there(id, node, spec.priority, view))
}

/// Whether a task on this node is of a service from which this one keeps apart, as its users have said while both were
/// there. If both say it, the tasks of the older one stay.
pub(crate) fn must_part(service: &Service, node: &Node, view: &Tables) -> bool {
    let others = service.spec.anti_affinity.iter().filter_map(|name| view.service_by_name(name));
    let age = |service: &Service| (service.meta.order(), service.id.clone());
    let gives_way =
        |other: &Service| !other.spec.anti_affinity.contains(&service.spec.name) || age(other) < age(service);
    others.filter(|other| gives_way(other)).any(|other| view.live_tasks(&other.id, &node.id) > 0)
}

/// Whether a task of the service, which has this priority or a higher one, waits for room on the node.
fn waits_there(id: &ServiceId, node: &Node, priority: i32, view: &Tables) -> bool {
    view.claims_on(&node.id).any(|task| task.service_id == *id) && view.priority_of(id) >= priority
}

fn holds_task_of(id: &ServiceId, node: &Node, view: &Tables) -> bool {
    let holds = |task: &Task| task.service_id == *id && task.holds_resources();
    view.live_tasks(id, &node.id) > 0 || view.tasks_of_node(&node.id).any(|task| holds(task))
}
