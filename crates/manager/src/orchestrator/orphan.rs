//! Gives up the tasks of a node that has been down for longer than [`ORPHAN_AFTER`], or has left the cluster.

use std::sync::Arc;

use flota_api::defaults::ORPHAN_AFTER;
use flota_api::model::{NodeState, Task, TaskStatus};
use flota_api::object::{Kind, Object};
use flota_api::state::TaskState;
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key, keyed_by};
use crate::home;
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are ids of nodes.
#[derive(Debug, Default)]
pub(crate) struct Orphan;

impl ControlLoop for Orphan {
    fn name(&self) -> &'static str {
        "orphan"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.nodes().map(|node| Key::of(&node.id)).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        let no_longer_waits = match event {
            // The reason for which its tasks waited for their nodes may no longer hold.
            Event::Removed(Object::Service(service)) => Some(&service.id),
            Event::Updated { old: Object::Service(old), new: Object::Service(new) } if old.spec != new.spec => {
                Some(&new.id)
            }
            _ => None,
        };
        if let Some(service) = no_longer_waits {
            return on_dead_nodes(view.tasks_of_service(service), view);
        }
        match event {
            Event::Removed(Object::Volume(volume)) | Event::Updated { new: Object::Volume(volume), .. } => {
                let nodes = volume.places.iter().filter_map(|place| view.node(&place.node_id));
                nodes.filter(|node| node.state == NodeState::Down).map(|node| Key::of(&node.id)).collect()
            }
            _ => keyed_by!(event, Node node => vec![Key::of(&node.id)]),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(node) = view.node(key.id).filter(|node| node.state == NodeState::Down) else { return plan };
        let due = node.state_since + ORPHAN_AFTER;
        // A node that left stops its tasks and never reports their ends.
        if due > cx.now && !node.has_left() {
            plan.retry_at(due);
            return plan;
        }
        let error = match node.has_left() {
            true => "its node has left the cluster".to_owned(),
            false => format!("its node has been down since {}", node.state_since),
        };
        // What waits for its node is not given up: it may still run there.
        let waits = |task: &Task| home::waits_for_node(task, view);
        // A node that is back reports for itself.
        plan.expect(Kind::Node, &node.id);
        let unfinished = view.tasks_of_node(&node.id).filter(|task| !task.status.state.is_terminal() && !waits(task));
        for task in unfinished.take(cx.room) {
            let error = error.clone();
            let status = TaskStatus { state: TaskState::Orphaned, at: cx.now, error, ..task.status.clone() };
            plan.put(Task { status, ..task.as_ref().clone() });
        }
        plan
    }
}

/// Returns the nodes that are down and have some of these tasks, which have not ended.
fn on_dead_nodes<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>, view: &Tables) -> Vec<Key> {
    let unfinished = tasks.filter(|task| !task.status.state.is_terminal());
    let nodes = unfinished.filter_map(|task| view.node_of(task)).filter(|node| node.state == NodeState::Down);
    nodes.map(|node| Key::of(&node.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Node, NodeStateReason, Service, ServiceSpec, Volume, VolumePlace};
    use flota_api::object::StoreObject;
    use flota_api::version::Timestamp;

    fn planned(state_reason: NodeStateReason, now: Timestamp) -> Plan {
        planned_for(ServiceSpec::default(), state_reason, now)
    }

    /// Plans for a node that went down at the time 1,000, with one task of a service that runs.
    fn planned_for(spec: ServiceSpec, state_reason: NodeStateReason, now: Timestamp) -> Plan {
        let (state, state_since) = (NodeState::Down, Timestamp(1_000));
        let node = Node { id: "n".into(), state, state_since, state_reason: Some(state_reason), ..Node::default() };
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let (id, node_id, service_id) = ("t".into(), Some("n".into()), "s".into());
        let task = Task { id, node_id, service_id, spec_version: 1, status, ..Task::default() };
        let mut view = Tables::default();
        let service = Service { id: "s".into(), spec: spec.into(), spec_version: 1, ..Service::default() };
        view.put(service.into_object());
        view.put(node.into_object());
        view.put(task.into_object());
        Orphan.plan(&Key::of("n"), &view, &mut PlanContext::at(now))
    }

    #[test]
    fn tasks_of_a_node_that_left_are_given_up_at_once_and_those_of_a_lost_node_later() {
        let now = Timestamp(2_000);
        assert_eq!(planned(NodeStateReason::Left, now).changes.len(), 1);
        assert_eq!(planned(NodeStateReason::HeartbeatsStopped, now).changes.len(), 0);
        assert_eq!(planned(NodeStateReason::HeartbeatsStopped, now + ORPHAN_AFTER).changes.len(), 1);
    }

    #[test]
    fn a_task_that_waits_for_its_node_is_given_up_only_when_that_has_left() {
        let keeps = ServiceSpec { keep_on_node_loss: true, ..ServiceSpec::default() };
        let later = Timestamp(2_000) + ORPHAN_AFTER * 30;
        assert_eq!(planned_for(keeps.clone(), NodeStateReason::HeartbeatsStopped, later).changes.len(), 0);
        assert_eq!(planned_for(keeps, NodeStateReason::Left, later).changes.len(), 1);
    }

    #[test]
    fn what_waits_for_a_dead_node_is_looked_at_when_it_may_wait_no_more() {
        let mut view = Tables::default();
        view.put(Node { id: "n".into(), state: NodeState::Down, ..Node::default() }.into_object());
        view.put(Node { id: "m".into(), state: NodeState::Ready, ..Node::default() }.into_object());
        for (id, node) in [("t", "n"), ("u", "m")] {
            view.put(
                Task { id: id.into(), service_id: "s".into(), node_id: Some(node.into()), ..Task::default() }
                    .into_object(),
            );
        }
        let service = |keep_on_node_loss| {
            let spec = ServiceSpec { keep_on_node_loss, ..ServiceSpec::default() };
            Service { id: "s".into(), spec: spec.into(), ..Service::default() }.into_object()
        };
        let dirtied = |event: Event| Orphan.dirtied_by(&event, &view);
        assert_eq!(dirtied(Event::Removed(service(true))), [Key::of("n")]);
        assert_eq!(dirtied(Event::Updated { old: service(true), new: service(false) }), [Key::of("n")]);
        assert_eq!(dirtied(Event::Updated { old: service(true), new: service(true) }), []);
        let places = ["n", "m"].map(|node| VolumePlace { slot: None, node_id: node.into() }).into();
        let volume = Volume { id: "v".into(), places, ..Volume::default() }.into_object();
        assert_eq!(dirtied(Event::Removed(volume)), [Key::of("n")]);
    }
}
