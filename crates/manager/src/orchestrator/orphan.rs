//! Gives up the tasks of a node that has been down for longer than [`ORPHAN_AFTER`].

use flota_api::defaults::ORPHAN_AFTER;
use flota_api::model::{NodeState, Task, TaskStatus};
use flota_api::state::TaskState;
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, keyed_by};
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are ids of nodes.
#[derive(Debug, Default)]
pub(crate) struct Orphan;

impl ControlLoop for Orphan {
    fn name(&self) -> &'static str {
        "orphan"
    }

    fn all(&self, view: &Tables) -> Vec<String> {
        view.nodes().map(|node| node.id.to_string()).collect()
    }

    fn dirtied_by(&self, event: &Event, _: &Tables) -> Vec<String> {
        keyed_by!(event, Node node => vec![node.id.to_string()])
    }

    fn plan(&mut self, key: &str, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(node) = view.node(key).filter(|node| node.state == NodeState::Down) else { return plan };
        let due = node.state_since + ORPHAN_AFTER;
        if due > cx.now {
            plan.retry_at(due);
            return plan;
        }
        for task in view.tasks_of_node(&node.id).filter(|task| !task.status.state.is_terminal()) {
            let error = format!("its node has been down since {}", node.state_since);
            let status = TaskStatus { state: TaskState::Orphaned, at: cx.now, error, ..task.status.clone() };
            plan.put(Task { status, ..task.as_ref().clone() });
        }
        plan
    }
}
