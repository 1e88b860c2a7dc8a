//! The tasks that a user's connection may go to, and those whose logs a user reads.

use std::sync::Arc;

use flota_api::model::{Service, Task};
use flota_raft_store::Tables;

use super::super::error::ControlError;
use super::super::reference::{Place, resolve, resolve_place, resolve_running};

/// Largest number of tasks that are tried for one connection. Those of a node that has just failed do not answer.
const TRIES: usize = 3;

/// Returns the tasks to try for a connection, in order. Of a service they are running tasks, and each `turn` begins with
/// the next one.
pub(super) fn connected<'a>(view: &'a Tables, reference: &str, turn: u64) -> Result<Vec<&'a Arc<Task>>, ControlError> {
    let service = match resolve_place(view, reference)? {
        Place::Task(task) => return Ok(vec![task]),
        Place::Service(service) => service,
    };
    let all = view.tasks_of_service(&service.id);
    let mut tasks: Vec<_> = all.filter(|task| task.is_serving() && !view.is_lost(task)).collect();
    let Some(first) = usize::try_from(turn).unwrap_or_default().checked_rem(tasks.len()) else {
        return Err(ControlError::NoRunningTask { service: service.spec.name.clone() });
    };
    tasks.sort_by_key(|task| (task.slot, &task.id));
    tasks.rotate_left(first);
    tasks.truncate(TRIES);
    Ok(tasks)
}

/// The tasks whose logs are requested.
#[derive(Clone, Debug)]
pub(crate) enum LogSource {
    /// One task, by its reference or by that of its service, which stands for its first running task.
    Task(String),
    /// Every task of a service.
    Service(String),
}

/// Returns the tasks whose logs `source` selects.
pub(super) fn logged<'a>(view: &'a Tables, source: &LogSource) -> Result<Vec<&'a Arc<Task>>, ControlError> {
    let service: &Arc<Service> = match source {
        LogSource::Task(reference) => return Ok(vec![resolve_running(view, reference)?]),
        LogSource::Service(reference) => resolve(view, reference)?,
    };
    // A replaced task on a node that is down has no logs to offer, so its node is not waited for.
    let has_logs = |task: &&Arc<Task>| task.node_id.is_some() && (task.is_live() || !view.is_lost(task));
    Ok(view.tasks_of_service(&service.id).filter(has_logs).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Node, NodeState, Service, ServiceSpec, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::state::{DesiredState, TaskState};

    /// Returns a view with the service `web`, whose tasks 1 to `tasks` run on the node `n`.
    fn running(tasks: u64) -> Tables {
        let spec = Arc::new(ServiceSpec { name: "web".into(), ..ServiceSpec::default() });
        let mut view = Tables::default();
        view.put(Service { id: "s".into(), spec, spec_version: 1, ..Service::default() }.into_object());
        view.put(Node { id: "n".into(), state: NodeState::Ready, ..Node::default() }.into_object());
        (1..=tasks).for_each(|slot| view.put(task(slot).into_object()));
        view
    }

    fn task(slot: u64) -> Task {
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let (id, node_id) = (format!("t{slot}").into(), Some("n".into()));
        Task { id, service_id: "s".into(), spec_version: 1, slot, node_id, status, ..Task::default() }
    }

    fn slots(view: &Tables, reference: &str, turn: u64) -> Vec<u64> {
        connected(view, reference, turn).expect("a task runs").iter().map(|task| task.slot).collect()
    }

    #[test]
    fn connections_to_a_service_go_to_its_running_tasks_in_turn() {
        let view = running(4);
        assert_eq!(slots(&view, "web", 0), [1, 2, 3]);
        assert_eq!(slots(&view, "web", 1), [2, 3, 4]);
        assert_eq!(slots(&view, "web", 3), [4, 1, 2]);
        assert_eq!(slots(&view, "web", 4), [1, 2, 3]);
        assert_eq!(slots(&running(1), "web", u64::MAX), [1]);
    }

    #[test]
    fn a_task_that_stops_or_does_not_run_or_is_on_a_lost_node_gets_no_connection() {
        let mut view = running(4);
        view.put(Node { id: "down".into(), state: NodeState::Down, ..Node::default() }.into_object());
        let status = TaskStatus { state: TaskState::Preparing, ..TaskStatus::default() };
        let others = [
            Task { desired_state: DesiredState::Shutdown, ..task(1) },
            Task { status, ..task(2) },
            Task { node_id: Some("down".into()), ..task(3) },
        ];
        others.into_iter().for_each(|task| view.put(task.into_object()));
        assert_eq!(slots(&view, "web", 0), [4]);
        view.put(Task { desired_state: DesiredState::Shutdown, ..task(4) }.into_object());
        let refused = connected(&view, "web", 0).expect_err("no task runs");
        assert_eq!(refused.to_string(), "service `web` has no running task");
        assert_eq!(slots(&view, "web.2", 7), [2], "a task is what the user asks for");
        assert!(matches!(connected(&view, "none", 0), Err(ControlError::NotFound { .. })));
    }
}
