//! Tasks: their rows, with the names of the objects that a task refers to, and their removal.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{
    Health, HealthState, Node, NodeState, Service, ServiceMode, ServiceSpec, StreamKind, Task, TaskFrame,
};
use flota_api::naming::task_name;
use flota_api::state::DesiredState;
use flota_api::version::Timestamp;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Tables, WriteTx};
use futures::StreamExt;

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::reference::{Referable, resolve};
use super::{Control, Freshness, Listing, Member};
use crate::dependencies::{sentence, waits};
use crate::streams::StreamBroker;

/// How long a node has to say how healthy a container is.
const HEALTH_WAIT: Duration = Duration::from_secs(1);

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

    /// Labels of its container.
    pub(crate) fn container_labels(&self) -> BTreeMap<String, String> {
        self.spec.as_ref().map(|spec| spec.container_labels.clone()).unwrap_or_default()
    }

    /// Whether it is to be started again after the programs of its slot have ended again and again.
    pub(crate) fn is_in_crash_loop(&self) -> bool {
        self.task.is_live() && !self.task.is_serving() && self.task.restarts_so_far().is_crash_loop()
    }

    /// Why the task is not in its desired state, or why its state may be outdated; empty if no reason is known.
    pub(crate) fn error(&self) -> String {
        let doubt = self.node.as_ref().and_then(|node| Doubt::of(&self.task, node));
        match (doubt, &self.task.pending_reason) {
            (Some(doubt), _) => doubt.to_string(),
            (None, Some(reason)) => reason.to_string(),
            (None, None) => self.task.preemption().unwrap_or_else(|| self.task.status.error.clone()),
        }
    }

    /// Health of the task; `None` if it has no check or has ended.
    pub(crate) fn health(&self) -> Option<HealthState> {
        let status = &self.task.status;
        status.health.as_ref().map(|it| it.state).filter(|_| !status.state.is_terminal())
    }
}

/// Why a task's state may be outdated: its node does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Doubt<'a> {
    node: &'a str,
    state: NodeState,
    since: Timestamp,
}

impl<'a> Doubt<'a> {
    fn of(task: &Task, node: &'a Node) -> Option<Self> {
        let is_in_doubt = node.state != NodeState::Ready && !task.status.state.is_terminal();
        is_in_doubt.then_some(Self { node: &node.description.hostname, state: node.state, since: node.state_since })
    }
}

impl fmt::Display for Doubt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its node {} is {} since {}", self.node, self.state, self.since)
    }
}

/// The fields as `ctl` shows them.
const FIELDS: &[Field<TaskSummary>] = &[
    ("id", |row| Some(row.task.id.to_string())),
    ("name", |row| Some(task_name(row.service_name(), row.task.slot))),
    ("service", |row| Some(row.service_name().to_owned())),
    ("slot", |row| Some(row.task.slot.to_string())),
    ("run", |row| row.task.run.map(|run| run.to_string())),
    ("node", |row| Some(row.node_name().to_owned())),
    ("image", |row| Some(row.image().to_owned())),
    ("desiredState", |row| Some(row.task.desired_state.to_string())),
    ("state", |row| Some(row.task.status.state.to_string())),
    ("health", |row| row.health().map(|health| health.to_string())),
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

    /// Returns what the services that are named wait for because of others. They may have no task that could say it.
    pub(super) fn notes(&self, view: &Tables) -> Vec<String> {
        let services = self.services.iter().filter_map(|name| resolve::<Service>(view, name).ok());
        services.filter_map(|it| Some(format!("{} {}", it.spec.name, sentence(&waits(it, view))?))).collect()
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

impl<M: Member> Control<M> {
    /// Returns the task that `reference` identifies, with its health as its node knows it now. If the node does not answer,
    /// it is that of the last change of its state.
    pub(crate) async fn get_task(&self, reference: &str) -> Result<TaskSummary, ControlError> {
        let view = self.proven_view().await?;
        let mut row = TaskSummary::of(resolve(&view, reference)?, &view);
        let asked = tokio::time::timeout(HEALTH_WAIT, health_now(&self.streams, &row.task, &view));
        if let Ok(Some(health)) = asked.await {
            Arc::make_mut(&mut row.task).status.health = Some(Box::new(health));
        }
        Ok(row)
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

    /// Stops the task, or forgets that it has done its work; its slot gets a new one. With `shrink`, the service loses the slot and one replica instead.
    pub(crate) async fn remove_task(
        &self,
        request_id: Option<&str>,
        reference: &str,
        shrink: bool,
    ) -> Result<(), ControlError> {
        let reference = &self.own::<Task>(reference).await?;
        let removed = self.write_once(request_id, |view| {
            let task: &Arc<Task> = resolve(&view, reference)?;
            let mut tx = WriteTx::new(view.clone(), request_id);
            match view.service(&task.service_id).filter(|_| shrink) {
                Some(service) => take_slot(&mut tx, &view, service, task.slot)?,
                None => {
                    // What a task has done stays done as long as there is the task.
                    let is_result = task.has_done_its_work();
                    let stopped = if is_result { DesiredState::Remove } else { DesiredState::Shutdown };
                    let desired_state = task.desired_state.max(stopped);
                    tx.update(Task { desired_state, ..task.as_ref().clone() });
                }
            }
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}

/// Asks the node of a task for the health of its container; `None` if it has no check, is about to end, or its node does not
/// answer.
async fn health_now(streams: &StreamBroker, task: &Task, view: &Tables) -> Option<Health> {
    let runs = task.is_live() && view.node_of(task).is_some_and(|node| node.state == NodeState::Ready);
    task.status.health.as_ref().filter(|_| runs)?;
    let mut worker = streams.open(task, view, StreamKind::Health).await.ok()?;
    match worker.inbox.next().await? {
        Ok(TaskFrame::Health(health)) => Some(health),
        _ => None,
    }
}

/// Removes a slot and one replica from the service.
fn take_slot(tx: &mut WriteTx, view: &Tables, service: &Service, slot: u64) -> Result<(), ControlError> {
    let (ServiceMode::Replicated { .. }, Some(replicas)) = (&service.spec.mode, service.replicas()) else {
        let why = format!(
            "service `{}` is {}, and only a replicated one has replicas to take",
            service.spec.name,
            service.spec.mode.as_str()
        );
        return Err(ControlError::WrongState(why));
    };
    // A slot that goes already has been taken from the replicas.
    if view.tasks_of_slot(&service.id, slot).all(|task| task.desired_state == DesiredState::Remove) {
        return Ok(());
    }
    let replicas = replicas.saturating_sub(1);
    if let Some(policy) = service.spec.scale.as_ref().filter(|it| it.bounded(replicas) != replicas) {
        let why = format!("service `{}` keeps at least {} tasks: see `--scale-min`", service.spec.name, policy.min);
        return Err(ControlError::WrongState(why));
    }
    let spec = Arc::new(ServiceSpec { mode: ServiceMode::Replicated { replicas }, ..service.spec.as_ref().clone() });
    tx.update(Service { spec, scale: service.scale.set_by_user(), ..service.clone() });
    let goes = |task: &&Arc<Task>| task.slot == slot && !faults::is_on(Fault::WrongShrink);
    for task in view.tasks_of_service(&service.id).filter(goes) {
        tx.update(Task { desired_state: DesiredState::Remove, ..task.as_ref().clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{NodeDescription, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::state::TaskState;

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
    fn a_task_that_has_ended_has_no_health_and_no_doubt() {
        let health = Some(Health { state: HealthState::Healthy, ..Health::default() });
        let node = Node { state: NodeState::Unknown, ..Node::default() };
        let row = |state: TaskState| {
            let status = TaskStatus {
                state,
                health: health.clone().map(Box::new),
                error: "exit code 1".into(),
                ..Default::default()
            };
            let task = Task { status, ..Task::default() };
            TaskSummary { task: Arc::new(task), spec: None, node: Some(Arc::new(node.clone())) }
        };
        let is_found = |row: TaskSummary, key: &str, value: &str| {
            let filter = Filter { key: key.into(), value: value.into() };
            !filter::keep([row], &[filter], FIELDS).expect("the key is known").is_empty()
        };
        let (running, ended) = (row(TaskState::Running), row(TaskState::Failed));
        assert_eq!((running.health(), ended.health()), (Some(HealthState::Healthy), None));
        assert!(running.error().starts_with("its node  is unknown since "), "{}", running.error());
        assert!(is_found(running, "health", "healthy"));
        assert!(!is_found(ended.clone(), "health", "healthy"), "its row shows none");
        assert!(is_found(ended, "error", "exit code 1"));
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
