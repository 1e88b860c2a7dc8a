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

/// A task with the objects that it refers to. They are shared with the store, so a row is small until it is sent.
#[derive(Clone, Debug)]
pub(crate) struct TaskSummary {
    /// The task as the store holds it.
    pub(crate) task: Arc<Task>,
    spec: Option<Arc<ServiceSpec>>,
    node: Option<Arc<Node>>,
}

impl TaskSummary {
    fn of(task: &Arc<Task>, view: &Tables) -> Self {
        Self { task: Arc::clone(task), spec: view.spec_of(task).cloned(), node: view.node_of(task).cloned() }
    }

    /// Name of its service.
    pub(crate) fn service_name(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.name)
    }

    /// Name of its node; empty if it has none.
    pub(crate) fn node_name(&self) -> &str {
        self.node.as_ref().map_or("", |node| &node.description.hostname)
    }

    /// Reference of its image.
    pub(crate) fn image(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.image)
    }

    /// Why its state may be outdated: its node does not answer. Empty otherwise.
    pub(crate) fn doubt(&self) -> String {
        self.node.as_ref().map(|node| doubt(&self.task, node)).unwrap_or_default()
    }

    /// Why the task is not in its desired state; empty if no reason is known.
    fn error(&self) -> String {
        match (self.doubt(), &self.task.pending_reason) {
            (doubt, _) if !doubt.is_empty() => doubt,
            (_, Some(reason)) => reason.to_string(),
            (_, None) => self.task.status.error.clone(),
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
    ("name", |row| Some(task_name(row.service_name(), row.task.slot))),
    ("service", |row| Some(row.service_name().to_owned())),
    ("slot", |row| Some(row.task.slot.to_string())),
    ("node", |row| Some(row.node_name().to_owned())),
    ("image", |row| Some(row.image().to_owned())),
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
    /// Returns the tasks in this scope that may pass the filters. What an index finds is not looked for among all tasks.
    fn tasks<'a>(&self, view: &'a Tables, filters: &[Filter]) -> Result<Vec<&'a Arc<Task>>, ControlError> {
        let services = ids::<Service, ServiceId>(view, &self.services, |service| service.id.clone())?;
        let nodes = ids::<Node, NodeId>(view, &self.nodes, |node| node.id.clone())?;
        let on_node =
            |task: &&Arc<Task>| nodes.is_empty() || task.node_id.as_ref().is_some_and(|id| nodes.contains(id));
        if services.is_empty() && !nodes.is_empty() {
            return Ok(nodes.iter().flat_map(|id| view.tasks_of_node(id)).collect());
        }
        if services.is_empty() {
            return Ok(named(view, filters).unwrap_or_else(|| view.tasks().collect()));
        }
        Ok(services.iter().flat_map(|id| view.tasks_of_service(id)).filter(on_node).collect())
    }
}

/// Returns the tasks that can pass a filter by id, service or node; `None` if there is none of these.
fn named<'a>(view: &'a Tables, filters: &[Filter]) -> Option<Vec<&'a Arc<Task>>> {
    let value = |key: &str| filters.iter().find(|filter| filter.key == key).map(|filter| filter.value.as_str());
    if let Some(id) = value("id") {
        return Some(view.task(id).into_iter().collect());
    }
    if let Some(name) = value("service") {
        // A service that was removed may still have tasks. All versions of its spec have the same name.
        let spec = |id: &ServiceId| view.tasks_of_service(id).next().and_then(|task| view.spec_of(task));
        let services = view.services_with_tasks().filter(|id| spec(id).is_some_and(|spec| spec.name == name));
        return Some(services.flat_map(|id| view.tasks_of_service(id)).collect());
    }
    let nodes = value("node").map(|name| view.nodes().filter(move |node| node.description.hostname == name))?;
    Some(nodes.flat_map(|node| view.tasks_of_node(&node.id)).collect())
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
        let rows = scope.tasks(&view, filters)?.into_iter().map(|task| TaskSummary::of(task, &view));
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

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::NodeDescription;
    use flota_api::object::StoreObject;

    /// Three services with four tasks each, on four nodes.
    fn view() -> Tables {
        let mut view = Tables::default();
        for number in 0..4 {
            let description = NodeDescription { hostname: format!("w{number}"), ..NodeDescription::default() };
            view.put(Node { id: format!("n{number}").into(), description, ..Node::default() }.into_object());
        }
        for service in 0..3 {
            let spec = ServiceSpec { name: format!("web{service}"), ..ServiceSpec::default() }.into();
            let service_id = ServiceId::from(format!("s{service}"));
            view.put(Service { id: service_id.clone(), spec, ..Service::default() }.into_object());
            for slot in 0..4 {
                let (id, node_id) = (format!("t{service}{slot}").into(), Some(format!("n{slot}").into()));
                view.put(Task { id, service_id: service_id.clone(), slot, node_id, ..Task::default() }.into_object());
            }
        }
        view.remove(flota_api::object::Kind::Service, "s2");
        view
    }

    #[test]
    fn tasks_by_id_by_service_and_by_node_are_found_without_a_look_at_the_others() {
        let view = view();
        let looked_at = |filters: &[(&str, &str)]| {
            let filter = |(key, value): &(&str, &str)| Filter { key: (*key).into(), value: (*value).into() };
            let filters: Vec<_> = filters.iter().map(filter).collect();
            let tasks = TaskScope::default().tasks(&view, &filters).expect("it names nothing");
            tasks.iter().map(|task| task.id.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(looked_at(&[("state", "new"), ("id", "t12")]), "t12");
        assert_eq!(looked_at(&[("service", "web1")]), "t10 t11 t12 t13");
        assert_eq!(looked_at(&[("service", "web2")]), "t20 t21 t22 t23", "it was removed");
        assert_eq!(looked_at(&[("node", "w3"), ("slot", "7")]), "t03 t13 t23");
        assert_eq!(looked_at(&[("node", "w9")]), "");
        assert_eq!(looked_at(&[("slot", "1")]).split(' ').count(), 12);
    }
}
