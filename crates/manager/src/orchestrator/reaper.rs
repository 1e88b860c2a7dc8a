//! Deletes tasks whose removal was requested and that have ended, tasks of removed nodes, and old history. The history
//! of a slot is its newest task and its last failure.

use std::sync::Arc;

use flota_api::id::ServiceId;
use flota_api::model::Task;
use flota_api::object::{Kind, Object};
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are services and slots.
#[derive(Debug, Default)]
pub(crate) struct Reaper;

impl ControlLoop for Reaper {
    fn name(&self) -> &'static str {
        "reaper"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.services_with_tasks().map(Key::of).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            Event::Removed(Object::Node(node)) => view.tasks_of_node(&node.id).map(|task| Key::slot_of(task)).collect(),
            // A new task makes an older one history.
            Event::Created(Object::Task(task)) => vec![Key::slot_of(task)],
            Event::Updated { old: Object::Task(old), new: Object::Task(new) }
                if old.desired_state != new.desired_state
                    || old.status.state.is_terminal() != new.status.state.is_terminal() =>
            {
                vec![Key::slot_of(new)]
            }
            _ => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let service = ServiceId::from(key.id);
        let tasks: Vec<&Arc<Task>> = match key.slot {
            Some(slot) => view.tasks_of_slot(&service, slot).collect(),
            None => view.tasks_of_service(&service).collect(),
        };
        for slot in tasks.chunk_by(|left, right| left.slot == right.slot) {
            reap(slot, view, &mut plan);
            if plan.is_full(cx) {
                break;
            }
        }
        plan
    }
}

/// Removes what is not needed of the tasks of one slot.
fn reap(slot: &[&Arc<Task>], view: &Tables, plan: &mut Plan) {
    // The newest task decides whether its slot gets another one.
    let newest = slot.iter().max_by_key(|task| task.meta.order()).map(|task| &task.id);
    let failures = slot.iter().filter(|task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected));
    let last_failure = failures.max_by_key(|task| task.meta.order()).map(|task| &task.id);
    for task in slot {
        let unassigned = task.node_id.is_none();
        let ended = task.status.state.is_terminal() || unassigned;
        let nowhere = !unassigned && view.node_of(task).is_none();
        let unwanted =
            task.desired_state == DesiredState::Remove || (unassigned && task.desired_state == DesiredState::Shutdown);
        let kept = [newest, last_failure].contains(&Some(&task.id)) || !task.status.state.is_terminal();
        if nowhere || (unwanted && ended) || !kept {
            plan.remove(Kind::Task, &task.id);
        }
    }
}
