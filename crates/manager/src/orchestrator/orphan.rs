//! Gives up the tasks of a node that has been down for longer than [`ORPHAN_AFTER`].

use flota_api::defaults::ORPHAN_AFTER;
use flota_api::model::{NodeState, Task, TaskStatus};
use flota_api::state::TaskState;
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key, keyed_by};
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

    fn dirtied_by(&self, event: &Event, _: &Tables) -> Vec<Key> {
        keyed_by!(event, Node node => vec![Key::of(&node.id)])
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(node) = view.node(&key.id).filter(|node| node.state == NodeState::Down) else { return plan };
        let due = node.state_since + ORPHAN_AFTER;
        if due > cx.now {
            plan.retry_at(due);
            return plan;
        }
        let unfinished = view.tasks_of_node(&node.id).filter(|task| !task.status.state.is_terminal());
        for task in unfinished.take(cx.room) {
            let error = format!("its node has been down since {}", node.state_since);
            let status = TaskStatus { state: TaskState::Orphaned, at: cx.now, error, ..task.status.clone() };
            plan.put(Task { status, ..task.as_ref().clone() });
        }
        plan
    }
}
