//! Tasks: their rows, with the names of the objects that a task refers to, and their removal.

use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{Node, NodeState, Service, ServiceMode, ServiceSpec, Task};
use flota_api::naming::task_name;
use flota_api::state::DesiredState;
use flota_raft_store::{Tables, View, WriteTx};

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::reference::{Referable, resolve, resolve_running};
use super::{Control, Freshness, Listing, Member};

/// A task with the names of the objects that it refers to.
#[derive(Clone, Debug)]
pub(crate) struct TaskSummary {
    /// The task as the store holds it.
    pub(crate) task: Arc<Task>,
    /// Name of its service.
    pub(crate) service_name: String,
    /// Name of its node.
    pub(crate) node_name: String,
    /// Reference of its image.
    pub(crate) image: String,
    /// Why its state may be outdated: its node does not answer. Empty otherwise.
    pub(crate) doubt: String,
}

impl TaskSummary {
    fn of(task: &Arc<Task>, view: &Tables) -> Self {
        let spec = view.spec_of(task);
        let node = view.node_of(task);
        Self {
            service_name: spec.map(|spec| spec.name.clone()).unwrap_or_default(),
            node_name: node.map(|it| it.description.hostname.clone()).unwrap_or_default(),
            image: spec.map(|spec| spec.image.clone()).unwrap_or_default(),
            doubt: node.map(|node| doubt(task, node)).unwrap_or_default(),
            task: Arc::clone(task),
        }
    }

    /// Why the task is not in its desired state; empty if no reason is known.
    fn error(&self) -> String {
        match &self.task.pending_reason {
            _ if !self.doubt.is_empty() => self.doubt.clone(),
            Some(reason) => reason.to_string(),
            None => self.task.status.error.clone(),
        }
    }
}

/// Returns since when the task's state may be outdated, if its node does not answer; empty otherwise.
fn doubt(task: &Task, node: &Node) -> String {
    if node.state == NodeState::Ready || task.status.state.is_terminal() {
        return String::new();
    }
    format!("its node {} is {} since {}", node.description.hostname, node.state, node.state_since)
}

const FIELDS: &[Field<TaskSummary>] = &[
    ("id", |row| Some(row.task.id.to_string())),
    ("name", |row| Some(task_name(&row.service_name, row.task.slot))),
    ("service", |row| Some(row.service_name.clone())),
    ("slot", |row| Some(row.task.slot.to_string())),
    ("node", |row| Some(row.node_name.clone())),
    ("image", |row| Some(row.image.clone())),
    ("desiredState", |row| Some(row.task.desired_state.to_string())),
    ("state", |row| Some(row.task.status.state.to_string())),
    ("health", |row| row.task.status.health.as_ref().map(|it| it.state.to_string())),
    ("paused", |row| Some(row.task.paused.to_string())),
    ("attempt", |row| Some(row.task.status.attempt.to_string())),
    ("restarts", |row| Some(row.task.restarts().to_string())),
    ("exitCode", |row| row.task.status.exit_code.map(|code| code.to_string())),
    ("error", |row| Some(row.error())),
];

/// Selects the tasks of a list by references of services and of nodes; empty lists select all.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskScope {
    /// Only tasks of one of these services.
    pub(crate) services: Vec<String>,
    /// Only tasks on one of these nodes.
    pub(crate) nodes: Vec<String>,
}

impl TaskScope {
    fn tasks<'a>(&self, view: &'a Tables) -> Result<Vec<&'a Arc<Task>>, ControlError> {
        let services = ids::<Service, ServiceId>(view, &self.services, |service| service.id.clone())?;
        let nodes = ids::<Node, NodeId>(view, &self.nodes, |node| node.id.clone())?;
        let on_node =
            |task: &&Arc<Task>| nodes.is_empty() || task.node_id.as_ref().is_some_and(|id| nodes.contains(id));
        if services.is_empty() && !nodes.is_empty() {
            return Ok(nodes.iter().flat_map(|id| view.tasks_of_node(id)).collect());
        }
        if services.is_empty() {
            return Ok(view.tasks().collect());
        }
        Ok(services.iter().flat_map(|id| view.tasks_of_service(id)).filter(on_node).collect())
    }
}

/// Returns the ids that the references identify, without duplicates.
fn ids<T: Referable, I: Ord>(
    view: &Tables,
    references: &[String],
    id: impl Fn(&T) -> I,
) -> Result<std::collections::BTreeSet<I>, ControlError> {
    references.iter().map(|reference| resolve::<T>(view, reference).map(|object| id(object))).collect()
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
fn logged<'a>(view: &'a Tables, source: &LogSource) -> Result<Vec<&'a Arc<Task>>, ControlError> {
    let service: &Arc<Service> = match source {
        LogSource::Task(reference) => return Ok(vec![resolve_running(view, reference)?]),
        LogSource::Service(reference) => resolve(view, reference)?,
    };
    // A replaced task on a node that is down has no logs to offer, so its node is not waited for.
    let is_lost = |task: &Task| view.node_of(task).is_none_or(|it| it.state == NodeState::Down);
    let has_logs = |task: &&Arc<Task>| task.node_id.is_some() && (task.is_live() || !is_lost(task));
    Ok(view.tasks_of_service(&service.id).filter(has_logs).collect())
}

impl<M: Member> Control<M> {
    /// Returns the task that `reference` identifies, where a service stands for its first running task, and the view
    /// with it.
    pub(crate) async fn get_running_task(&self, reference: &str) -> Result<(View, Arc<Task>), ControlError> {
        let view = self.proven_view().await?;
        let task = resolve_running(&view, reference)?.clone();
        Ok((view, task))
    }

    /// Returns the tasks whose logs `source` selects, and the view with them.
    pub(crate) async fn list_logged_tasks(&self, source: &LogSource) -> Result<(View, Vec<Arc<Task>>), ControlError> {
        let view = self.proven_view().await?;
        let tasks = logged(&view, source)?.into_iter().cloned().collect();
        Ok((view, tasks))
    }

    /// Returns the task that `reference` identifies.
    pub(crate) async fn get_task(&self, reference: &str) -> Result<TaskSummary, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, reference).map(|task| TaskSummary::of(task, &view))
    }

    /// Returns the tasks in `scope` that pass every filter.
    pub(crate) async fn list_tasks(
        &self,
        freshness: Freshness,
        scope: &TaskScope,
        filters: &[Filter],
    ) -> Result<Listing<TaskSummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        let rows = scope.tasks(&view)?.into_iter().map(|task| TaskSummary::of(task, &view)).collect();
        Ok(Listing { rows: filter::keep(rows, filters, FIELDS)?, age })
    }

    /// Stops the task; its slot gets a new one. With `shrink`, the service loses the slot and one replica instead.
    pub(crate) async fn remove_task(
        &self,
        request_id: &str,
        reference: &str,
        shrink: bool,
    ) -> Result<(), ControlError> {
        let removed = self.write_once(request_id, |view| {
            let task: &Arc<Task> = resolve(&view, reference)?;
            let mut tx = WriteTx::new(view.clone(), request_id);
            match view.service(&task.service_id).filter(|_| shrink) {
                Some(service) => take_slot(&mut tx, &view, service, task.slot),
                None => {
                    let desired_state = task.desired_state.max(DesiredState::Shutdown);
                    tx.update(Task { desired_state, ..task.as_ref().clone() });
                }
            }
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}

/// Removes a slot and one replica from the service.
fn take_slot(tx: &mut WriteTx, view: &Tables, service: &Service, slot: u64) {
    let ServiceMode::Replicated { replicas } = service.spec.mode;
    let mode = ServiceMode::Replicated { replicas: replicas.saturating_sub(1) };
    let spec = Arc::new(ServiceSpec { mode, ..service.spec.as_ref().clone() });
    tx.update(Service { spec, ..service.clone() });
    for task in view.tasks_of_service(&service.id).filter(|task| task.slot == slot) {
        tx.update(Task { desired_state: DesiredState::Remove, ..task.as_ref().clone() });
    }
}
