//! Deletes tasks whose removal was requested and that have ended, tasks of removed nodes, and old history.

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::defaults::TASK_HISTORY;
use flota_api::model::Task;
use flota_api::object::Kind;
use flota_api::state::DesiredState;
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, keyed_by};
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are ids of services.
#[derive(Debug, Default)]
pub(crate) struct Reaper;

impl ControlLoop for Reaper {
    fn name(&self) -> &'static str {
        "reaper"
    }

    fn all(&self, view: &Tables) -> Vec<String> {
        view.tasks()
            .map(|task| task.service_id.to_string())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<String> {
        if let Event::Removed(flota_api::object::Object::Node(node)) = event {
            return view.tasks_of_node(&node.id).map(|task| task.service_id.to_string()).collect();
        }
        keyed_by!(event, Task task => vec![task.service_id.to_string()])
    }

    fn plan(&mut self, key: &str, view: &Tables, _: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let mut history: BTreeMap<u64, Vec<&Arc<Task>>> = BTreeMap::new();
        for task in view.tasks_of_service(&key.into()) {
            let unassigned = task.node_id.is_none();
            let ended = task.status.state.is_terminal() || unassigned;
            let nowhere = !unassigned && view.node_of(task).is_none();
            let unwanted = task.desired_state == DesiredState::Remove
                || (unassigned && task.desired_state == DesiredState::Shutdown);
            if nowhere || (unwanted && ended) {
                plan.remove(Kind::Task, task.id.as_str());
            } else if task.status.state.is_terminal() {
                history.entry(task.slot).or_default().push(task);
            }
        }
        for mut tasks in history.into_values() {
            // The newest task decides whether its slot gets another one, so it always stays.
            tasks.sort_by_key(|task| std::cmp::Reverse(task.meta.order()));
            for task in tasks.into_iter().skip(TASK_HISTORY) {
                plan.remove(Kind::Task, task.id.as_str());
            }
        }
        plan
    }
}
