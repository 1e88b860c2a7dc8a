//! Reports the progress of a service or an image as it changes, so that a user can wait for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use flota_api::id::{ServiceId, is_id};
use flota_api::model::{CronRun, Image, Node, NodeState, PendingReason, Service, Task, UpdateStatus};
use flota_api::naming::task_name;
use flota_api::object::{Kind, Object};
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::{Event, Tables};

use super::error::ControlError;
use super::reference::resolve;
use super::{Control, Member};
use crate::dependencies::{Watched, sentence, stop_waits, waits};
use crate::home;
use crate::images::{good_holders, wanted_holders};
use crate::orchestrator::is_given_up;
use crate::wanted::{self, Eligibility};

/// Reports that may wait for a reader; with more, the watch waits.
const QUEUE: usize = 16;

/// The reports of a watch.
pub(crate) type Watch<T> = mpsc::Receiver<Result<T, ControlError>>;

/// Progress of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceProgress {
    /// Number of running tasks of its newest spec; for a removed service, number of remaining tasks.
    pub(crate) running: u64,
    /// Number of tasks that its spec asks for.
    pub(crate) desired: u64,
    /// Whether the service has exactly the tasks that its spec asks for.
    pub(crate) converged: bool,
    /// Number of tasks that an update has not replaced yet.
    pub(crate) outdated: u64,
    /// Number of tasks of a job that have done their work; `None` for other services.
    pub(crate) done: Option<u64>,
    /// Whether a job has ended without success: no task of it runs any more, and some have failed for good.
    pub(crate) has_failed: bool,
    /// Tasks that should run and do not.
    pub(crate) hanging: Vec<HangingTask>,
    /// How far its last update has come.
    pub(crate) update: UpdateStatus,
    /// Whether the service was removed and has no tasks left.
    pub(crate) removed: bool,
    /// What it waits for because of other services, in a sentence.
    pub(crate) waits: Option<String>,
}

/// A task that should run and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HangingTask {
    /// Its name, such as `web.2`.
    pub(crate) name: String,
    /// Its state.
    pub(crate) state: TaskState,
    /// Why it is in this state.
    pub(crate) cause: Cause,
}

/// Why a task does not run. It is displayed as users read it, which is empty if nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It, or the last task of its slot, has failed with this error.
    Failed(String),
    /// It has no node.
    Pending(PendingReason),
    /// The task that it replaces has not stopped.
    Predecessor,
    /// It waits for its turn in the update.
    Update,
    /// Its service is removed, and it has not stopped.
    Stopping,
    /// Its service is removed, and others stop first.
    Dependents(String),
    /// Its worker is busy with this.
    Working(String),
    /// It has an earlier spec, and its node, which keeps it, is lost.
    NodeLost(String),
    /// Nothing is known.
    Unknown,
}

impl Cause {
    /// Returns whether the task fails or fits nowhere, so that it is not expected to run unless something changes.
    pub(crate) fn is_stuck(&self) -> bool {
        match self {
            Self::Failed(_) | Self::NodeLost(_) => true,
            // The update makes the room, or the tasks that were told to stop do.
            Self::Pending(reason) => !reason.needs_room() && reason.claim().is_none(),
            Self::Predecessor
            | Self::Update
            | Self::Stopping
            | Self::Dependents(_)
            | Self::Working(_)
            | Self::Unknown => false,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) | Self::Working(text) | Self::Dependents(text) => f.write_str(text),
            Self::Pending(reason) => reason.fmt(f),
            Self::Predecessor => f.write_str("the task that it replaces has not stopped yet"),
            Self::Update => f.write_str("it is next in the update"),
            Self::Stopping => f.write_str("it has not stopped yet"),
            Self::NodeLost(node) => {
                write!(f, "node {node}, which keeps it, is down: it is updated when the node is back")
            }
            Self::Unknown => Ok(()),
        }
    }
}

/// Progress of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageProgress {
    /// Number of nodes that hold it.
    pub(crate) holders: u64,
    /// Number of nodes that should hold it.
    pub(crate) wanted: u64,
    /// Whether enough nodes hold it.
    pub(crate) converged: bool,
}

impl<M: Member> Control<M> {
    /// Reports the progress of the service until it has what its spec asks for, or its update is paused. With an id,
    /// also that of a removed service, until it has no tasks left.
    pub(crate) async fn watch_service(&self, reference: &str) -> Result<Watch<ServiceProgress>, ControlError> {
        // The view must show everything acknowledged before: the service and its newest spec.
        let view = self.proven_view().await?;
        let id = match resolve::<Service>(&view, reference) {
            Ok(service) => service.id.clone(),
            // A removed service. Whoever is limited has seen it as long as its tasks were there.
            Err(ControlError::NotFound { .. }) if is_id(reference) && self.may_have_removed(&reference.into()) => {
                reference.into()
            }
            Err(error) => return Err(error),
        };
        let watched = id.clone();
        // Others for which it waits, as of the last report.
        let others = Arc::new(Mutex::new(Watched::of(&id, &view)));
        let known = Arc::clone(&others);
        let concerns = move |event: &Event| match event {
            _ if known.lock().is_ok_and(|others| others.has(event)) => true,
            Event::Created(object) | Event::Updated { new: object, .. } | Event::Removed(object) => match object {
                Object::Service(service) => service.id == watched,
                Object::Task(task) => task.service_id == watched,
                Object::Node(_) => true,
                _ => false,
            },
            Event::Committed(_) => false,
            Event::Reset => true,
        };
        let caller = self.caller.clone();
        let progress = move |view: &Tables| {
            let limited = caller.is_limited().then(|| view.limited(|name| caller.sees(name)));
            let view = limited.as_ref().unwrap_or(view);
            let now = service(view, &id);
            if let Ok(mut others) = others.lock() {
                *others = Watched::of(&id, view);
            }
            let is_last = now.converged || now.has_failed || now.update.is_paused();
            (now, is_last)
        };
        Ok(self.watch(progress, concerns))
    }

    /// Whether a service that the caller does not see may be one that was removed, and not one that belongs to others.
    fn may_have_removed(&self, id: &ServiceId) -> bool {
        let view = self.store.view();
        let is_seen = |task: &Arc<Task>| view.spec_of(task).is_some_and(|spec| self.caller.sees(&spec.name));
        !self.caller.is_limited() || view.service(id).is_none() && view.tasks_of_service(id).all(is_seen)
    }

    /// Reports the progress of the image until enough nodes hold it. With a digest, it waits until the name refers to
    /// that image. The image need not exist yet: the node that imported it reports it to the leader by itself.
    pub(crate) async fn watch_image(
        &self,
        reference: String,
        digest: Option<String>,
    ) -> Result<Watch<ImageProgress>, ControlError> {
        self.proven_view().await?;
        let progress = move |view: &Tables| {
            let now = image(view, &reference, digest.as_deref());
            (now, now.converged)
        };
        let concerns = |event: &Event| match event {
            Event::Created(object) | Event::Updated { new: object, .. } | Event::Removed(object) => {
                matches!(object.kind(), Kind::Image | Kind::Node)
            }
            Event::Committed(_) => false,
            Event::Reset => true,
        };
        Ok(self.watch(progress, concerns))
    }

    /// Sends the result of `progress` on the store, at once and whenever it has changed after an event that concerns it,
    /// until a report is marked as the last, the receiver is dropped, or leadership ends.
    fn watch<T: PartialEq + Clone + Send + 'static>(
        &self,
        progress: impl Fn(&Tables) -> (T, bool) + Send + 'static,
        concerns: impl Fn(&Event) -> bool + Send + Sync + 'static,
    ) -> Watch<T> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (store, scope) = (self.store.clone(), self.leading.borrow().clone());
        tokio::spawn(async move {
            let mut sent = None;
            while let Some(scope) = scope.as_ref().filter(|scope| !scope.is_cancelled()) {
                let (view, mut events) = store.view_and_watch();
                let (now, is_last) = progress(&view);
                // A view that is held keeps all replaced objects in memory.
                drop(view);
                if sent.as_ref() != Some(&now) && sender.send(Ok(now.clone())).await.is_err() || is_last {
                    return;
                }
                sent = Some(now);
                tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    () = scope.cancelled() => {}
                    () = until_concerned(&mut events, &concerns) => {}
                }
            }
            // It fails only if the receiver was dropped.
            let _ = sender.send(Err(ControlError::LeadershipMoved)).await;
        });
        receiver
    }
}

/// Waits for an event that concerns a watch. A lag ends the wait, because an event may have been missed.
async fn until_concerned(events: &mut flota_raft_store::Watch, concerns: &impl Fn(&Event) -> bool) {
    while let Ok(events) = events.next().await {
        if events.iter().any(concerns) {
            return;
        }
    }
}

/// Returns the progress of a service. For a removed service, it is complete when the last task is gone.
fn service(view: &Tables, id: &ServiceId) -> ServiceProgress {
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(id).collect();
    let Some(service) = view.service(id) else { return removal(view, id, &tasks) };
    if service.spec.mode.cron().is_some() {
        return of_runs(service, &tasks, view);
    }
    let is_current = |task: &&&Arc<Task>| task.spec_version == service.spec_version;
    let running = tasks.iter().filter(is_current).filter(|task| task.is_serving()).count() as u64;
    let stopping = tasks
        .iter()
        .any(|task| task.desired_state.is_stopping() && !task.status.state.is_terminal() && !view.is_lost(task));
    let outdated = tasks.iter().copied();
    let outdated = outdated.filter(|task| task.is_live() && task.spec_version != service.spec_version);
    // A task on a node that takes none now keeps its spec until the node does.
    let eligible = Eligibility::of(service, view);
    let (waiting, outdated): (Vec<_>, Vec<_>) = outdated.partition(|task| {
        let takes = |node: &Arc<Node>| eligible.takes(node);
        task.pinned_to.as_ref().is_some_and(|id| !view.node(id).is_some_and(takes))
    });
    let outdated = outdated.len();
    let waiting = waiting.iter().filter(|task| !view.is_lost(task)).count() as u64;
    let desired = wanted::tasks(service, view).saturating_sub(waiting);
    let has_no_node = service.spec.mode.is_global() && !service.spec.stopped && desired == 0;
    let done = service.spec.mode.is_job().then(|| wanted::done(service, view).count() as u64);
    let is_complete = match done {
        Some(done) => running == 0 && (done == desired || service.spec.stopped),
        None => running == desired,
    };
    ServiceProgress {
        running,
        desired,
        outdated: outdated as u64,
        converged: is_complete && !stopping && outdated == 0 && !service.update.is_active(),
        done,
        has_failed: service.spec.mode.is_job() && !is_complete && has_failed(service, &tasks, desired),
        hanging: hanging(service, &tasks, view),
        update: service.update.clone(),
        removed: false,
        waits: sentence(&waits(service, view))
            .or_else(|| has_no_node.then(|| "waits for a node that takes its tasks".into())),
    }
}

/// Returns the progress of a service of the mode cron. There is nothing to wait for but the end of its tasks if it is
/// stopped.
fn of_runs(service: &Service, tasks: &[&Arc<Task>], view: &Tables) -> ServiceProgress {
    let live: Vec<_> =
        tasks.iter().copied().filter(|task| service.cron.run_of(task).is_some_and(CronRun::is_live)).collect();
    let has_ended = |task: &&&Arc<Task>| task.status.state.is_terminal() || view.is_lost(task);
    ServiceProgress {
        running: live.iter().filter(|task| task.is_serving()).count() as u64,
        desired: wanted::tasks(service, view),
        converged: !service.spec.stopped || tasks.iter().all(|task| has_ended(&task)),
        done: Some(wanted::done(service, view).count() as u64),
        hanging: hanging(service, &live, view),
        ..ServiceProgress::default()
    }
}

/// Whether every slot of a job has done its work or was given up.
fn has_failed(service: &Service, tasks: &[&Arc<Task>], desired: u64) -> bool {
    let mut newest: BTreeMap<u64, &Arc<Task>> = BTreeMap::new();
    for task in tasks {
        let last = newest.entry(task.slot).or_insert(task);
        if task.meta.order() > last.meta.order() {
            *last = task;
        }
    }
    let is_over = |task: &Arc<Task>| task.has_done_its_work() || is_given_up(service, task);
    newest.len() as u64 >= desired
        && newest.values().all(|task| wanted::is_of_present_run(service, task) && is_over(task))
        && newest.values().any(|task| is_given_up(service, task))
}

fn removal(view: &Tables, id: &ServiceId, tasks: &[&Arc<Task>]) -> ServiceProgress {
    let waits = sentence(&stop_waits(id, view));
    let left: Vec<_> = tasks.iter().filter(|task| !view.is_lost(task)).collect();
    let hanging = left.iter().filter(|task| !task.status.state.is_terminal()).map(|task| {
        let spec = view.spec_of(task);
        let name = spec.map_or_else(|| task.id.to_string(), |spec| task_name(&spec.name, task.slot));
        let held = waits.as_ref().filter(|_| !task.desired_state.is_stopping());
        let cause = held.map_or(Cause::Stopping, |waits| Cause::Dependents(waits.clone()));
        HangingTask { name, state: task.status.state, cause }
    });
    ServiceProgress {
        running: left.len() as u64,
        removed: left.is_empty(),
        converged: left.is_empty(),
        hanging: hanging.collect(),
        waits: waits.clone().filter(|_| left.iter().any(|task| task.desired_state != DesiredState::Remove)),
        ..ServiceProgress::default()
    }
}

/// Returns the tasks that should run and do not.
fn hanging(service: &Service, tasks: &[&Arc<Task>], view: &Tables) -> Vec<HangingTask> {
    let mut slots: BTreeMap<u64, Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        slots.entry(task.slot).or_default().push(task);
    }
    slots.values().flat_map(|slot| hanging_in(service, slot, view)).collect()
}

/// Returns the tasks of one slot that should run and do not; if the slot has been given up, its last one.
fn hanging_in(service: &Service, slot: &[&Task], view: &Tables) -> Vec<HangingTask> {
    let hangs = |task: &Task, cause: Cause| {
        let name = task_name(&service.spec.name, task.slot);
        HangingTask { name, state: task.status.state, cause }
    };
    let live = slot.iter().filter(|task| task.is_live());
    if live.clone().next().is_some() {
        let kept_by = |task: &Task| {
            let is_outdated = task.spec_version != service.spec_version && !service.spec.mode.is_job();
            let waits = is_outdated && home::waits_for_node(task, view);
            view.node_of(task).filter(|node| waits && node.state == NodeState::Down)
        };
        let hanging = live.filter_map(|task| match kept_by(task) {
            Some(node) => Some(hangs(task, Cause::NodeLost(node.description.hostname.clone()))),
            None => (!task.is_serving()).then(|| hangs(task, cause(task, slot))),
        });
        return hanging.collect();
    }
    let last = slot.iter().max_by_key(|task| task.meta.order());
    let failed = last.filter(|task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected));
    failed.map(|task| hangs(task, Cause::Failed(task.status.error.clone()))).into_iter().collect()
}

/// Returns why a task does not run yet.
fn cause(task: &Task, slot: &[&Task]) -> Cause {
    match &task.pending_reason {
        _ if !task.status.error.is_empty() => Cause::Failed(task.status.error.clone()),
        Some(reason) => Cause::Pending((**reason).clone()),
        None if task.status.state == TaskState::Ready && task.desired_state == DesiredState::Ready => {
            let is_stopping = |it: &&Task| it.desired_state.is_stopping() && !it.status.state.is_terminal();
            if slot.iter().any(is_stopping) { Cause::Predecessor } else { Cause::Update }
        }
        None if !task.status.message.is_empty() => Cause::Working(task.status.message.clone()),
        None => {
            let last = slot.iter().filter(|it| !it.status.error.is_empty()).max_by_key(|it| it.meta.order());
            last.map_or(Cause::Unknown, |it| Cause::Failed(it.status.error.clone()))
        }
    }
}

fn image(view: &Tables, reference: &str, digest: Option<&str>) -> ImageProgress {
    match resolve::<Image>(view, reference) {
        Ok(image) if digest.is_none_or(|digest| image.digest == digest) => {
            let (holders, wanted) = (good_holders(image, view) as u64, wanted_holders(image, view) as u64);
            ImageProgress { holders, wanted, converged: wanted > 0 && holders >= wanted }
        }
        _ => ImageProgress::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Availability, Filter, NodeSpec, ServiceMode, ServiceSpec, TaskStatus};
    use flota_api::object::StoreObject;

    fn hanging(tasks: Vec<Task>) -> Vec<String> {
        let spec = Arc::new(ServiceSpec { name: "web".into(), ..ServiceSpec::default() });
        let mut view = Tables::default();
        view.put(Service { id: "s".into(), spec, spec_version: 2, ..Service::default() }.into_object());
        for (index, task) in tasks.into_iter().enumerate() {
            let id = format!("t{index}").into();
            view.put(Task { id, service_id: "s".into(), spec_version: 2, ..task }.into_object());
        }
        let show = |it: HangingTask| {
            format!("{} {}: {}{}", it.name, it.state, it.cause, if it.cause.is_stuck() { "!" } else { "" })
        };
        service(&view, &"s".into()).hanging.into_iter().map(show).collect()
    }

    fn task(state: TaskState, message: &str) -> Task {
        let status = TaskStatus { state, message: message.into(), ..TaskStatus::default() };
        Task { status, node_id: Some("n".into()), ..Task::default() }
    }

    #[test]
    fn a_task_that_fits_nowhere_or_fails_is_stuck_and_one_that_gets_on_is_not() {
        assert_eq!(hanging(vec![task(TaskState::Preparing, "pulling")]), ["web.1 preparing: pulling"]);
        let reason = Some(PendingReason::NoNode);
        let pending = Task { pending_reason: reason.map(Box::new), node_id: None, ..task(TaskState::Pending, "") };
        assert_eq!(hanging(vec![pending.clone()]), ["web.1 pending: there is no node!"]);
        let needs_room = Some(PendingReason::NeedsRoom([(Filter::Memory, 1)].into()));
        let needs_room = Task { pending_reason: needs_room.map(Box::new), ..pending };
        assert_eq!(hanging(vec![needs_room.clone()]), ["web.1 pending: no node fits: 1 of 1 without enough memory"]);
        let refused = [(Filter::Memory, 1)].into();
        let awaits = PendingReason::AwaitsRoom { node_id: "n".into(), node: "w1".into(), refused };
        let awaits = hanging(vec![Task { pending_reason: Some(Box::new(awaits)), ..needs_room }]);
        assert!(awaits.len() == 1 && !awaits[0].ends_with('!'), "{awaits:?}");
        let mut failed = task(TaskState::Failed, "");
        failed.status.error = "exit code 1".into();
        assert_eq!(hanging(vec![failed.clone()]), ["web.1 failed: exit code 1!"]);
        assert_eq!(hanging(vec![failed, task(TaskState::Starting, "")]), ["web.1 starting: exit code 1!"]);
    }

    #[test]
    fn a_task_that_an_update_has_prepared_says_what_it_waits_for() {
        let prepared = || Task { desired_state: DesiredState::Ready, ..task(TaskState::Ready, "waits for its turn") };
        assert_eq!(hanging(vec![prepared()]), ["web.1 ready: it is next in the update"]);
        let old = Task { desired_state: DesiredState::Shutdown, ..task(TaskState::Running, "") };
        assert_eq!(hanging(vec![old, prepared()]), ["web.1 ready: the task that it replaces has not stopped yet"]);
    }
    #[test]
    fn a_task_of_an_earlier_spec_says_that_its_lost_node_keeps_it() {
        let spec = ServiceSpec { name: "db".into(), keep_on_node_loss: true, ..ServiceSpec::default() };
        let shown = |state, spec_version| {
            let mut view = Tables::default();
            let service =
                Service { id: "s".into(), spec: Arc::new(spec.clone()), spec_version: 2, ..Service::default() };
            view.put(service.into_object());
            let mut node = Node { id: "n".into(), state, ..Node::default() };
            node.description.hostname = "w1".into();
            view.put(node.into_object());
            let task = Task { id: "t".into(), service_id: "s".into(), spec_version, ..task(TaskState::Running, "") };
            view.put(task.into_object());
            let progress = super::service(&view, &"s".into());
            let reason = progress.hanging.first().map(|it| (it.cause.to_string(), it.cause.is_stuck()));
            (progress.converged, reason)
        };
        let why = "node w1, which keeps it, is down: it is updated when the node is back";
        assert_eq!(shown(NodeState::Down, 1), (false, Some((why.into(), true))));
        assert_eq!(shown(NodeState::Ready, 1), (false, None), "the update goes on");
        assert_eq!(shown(NodeState::Ready, 2), (true, None));
    }

    #[test]
    fn a_service_that_runs_on_each_node_says_that_no_node_takes_it() {
        let waits = |availability| {
            let spec = ServiceSpec { mode: ServiceMode::Global {}, ..ServiceSpec::default() };
            let mut view = Tables::default();
            view.put(Service { id: "s".into(), spec: spec.into(), ..Service::default() }.into_object());
            let spec = NodeSpec { availability, ..NodeSpec::default() };
            view.put(Node { id: "n".into(), state: NodeState::Ready, spec, ..Node::default() }.into_object());
            service(&view, &"s".into()).waits
        };
        assert_eq!(waits(Availability::Active), None);
        assert_eq!(waits(Availability::Drain).as_deref(), Some("waits for a node that takes its tasks"));
    }
}
