//! How far a service or an image is, reported as it changes, so that a user can wait for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use flota_api::id::{ServiceId, is_id};
use flota_api::model::{Image, NodeState, Service, Task};
use flota_api::naming::task_name;
use flota_api::state::TaskState;
use flota_raft_store::Tables;

use super::error::ControlError;
use super::reference::resolve;
use super::services::is_running;
use super::{Control, Member};
use crate::images::{good_holders, wanted_holders};

/// Reports that wait for a reader; behind them the watch waits.
const QUEUE: usize = 16;

/// What is watched, as it changes.
pub(crate) type Watch<T> = mpsc::Receiver<Result<T, ControlError>>;

/// How far a service is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceProgress {
    /// Tasks of its newest spec that run; for a service that was removed, tasks that are left.
    pub(crate) running: u64,
    /// Tasks that its spec asks for.
    pub(crate) desired: u64,
    /// Whether the service has what its spec asks for, and nothing else.
    pub(crate) converged: bool,
    /// Tasks that do not get on: the name of each, and why.
    pub(crate) hanging: Vec<String>,
    /// Why the update waits for the user; `None` while it goes on.
    pub(crate) update_paused: Option<String>,
    /// Whether the service was removed and no task of it is left.
    pub(crate) removed: bool,
}

/// How far an image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageProgress {
    /// Nodes that hold it.
    pub(crate) holders: u64,
    /// Nodes that are to hold it.
    pub(crate) wanted: u64,
    /// Whether enough nodes hold it.
    pub(crate) converged: bool,
}

impl<M: Member> Control<M> {
    /// Reports the progress of the service until it has what its spec asks for, or its update is paused. By id also
    /// that of a service that was removed, until no task of it is left.
    pub(crate) async fn watch_service(&self, reference: &str) -> Result<Watch<ServiceProgress>, ControlError> {
        // What was acknowledged before must not be missed: neither the service nor its newest spec.
        let view = self.proven_view().await?;
        let id = match resolve::<Service>(&view, reference) {
            Ok(service) => service.id.clone(),
            Err(ControlError::NotFound { .. }) if is_id(reference) => reference.into(),
            Err(error) => return Err(error),
        };
        Ok(self.watch(move |view| {
            let now = service(view, &id);
            let is_last = now.converged || now.update_paused.is_some();
            (now, is_last)
        }))
    }

    /// Reports the progress of the image until enough nodes hold it. With a digest: once the name stands for that
    /// image. It need not exist yet: the node that imported it reports it to the leader by itself.
    pub(crate) async fn watch_image(
        &self,
        reference: String,
        digest: Option<String>,
    ) -> Result<Watch<ImageProgress>, ControlError> {
        self.proven_view().await?;
        Ok(self.watch(move |view| {
            let now = image(view, &reference, digest.as_deref());
            (now, now.converged)
        }))
    }

    /// Sends what `progress` makes of the store, at once and whenever it has changed, until it says that this is the
    /// last report, the receiver is dropped, or leadership ends.
    fn watch<T: PartialEq + Clone + Send + 'static>(
        &self,
        progress: impl Fn(&Tables) -> (T, bool) + Send + 'static,
    ) -> Watch<T> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (store, scope) = (self.store.clone(), self.leading.borrow().clone());
        tokio::spawn(async move {
            let mut sent = None;
            while let Some(scope) = scope.as_ref().filter(|scope| !scope.is_cancelled()) {
                let (view, mut events) = store.view_and_watch();
                let (now, is_last) = progress(&view);
                if sent.as_ref() != Some(&now) && sender.send(Ok(now.clone())).await.is_err() || is_last {
                    return;
                }
                sent = Some(now);
                tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    () = scope.cancelled() => {}
                    // Also after events that were missed: the whole view is looked at anyway.
                    _ = events.next() => {}
                }
            }
            // A receiver that was dropped needs no reason.
            let _ = sender.send(Err(ControlError::LeadershipMoved)).await;
        });
        receiver
    }
}

/// Of a service that may have been removed: then until its last task is gone.
fn service(view: &Tables, id: &ServiceId) -> ServiceProgress {
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(id).collect();
    let Some(service) = view.service(id.as_str()) else { return removal(view, &tasks) };
    let is_current = |task: &&&Arc<Task>| task.spec_version == service.spec_version;
    let running = tasks.iter().filter(is_current).filter(|task| is_running(task)).count() as u64;
    let stopping = tasks
        .iter()
        .any(|task| task.desired_state.is_stopping() && !task.status.state.is_terminal() && !is_node_lost(view, task));
    let outdated = tasks.iter().any(|task| task.is_live() && task.spec_version != service.spec_version);
    let desired = service.spec.mode.wanted_tasks();
    ServiceProgress {
        running,
        desired,
        converged: running == desired && !stopping && !outdated,
        hanging: late(service, &tasks).chain(given_up(service, &tasks)).collect(),
        update_paused: service.update.pause_reason().map(str::to_owned),
        removed: false,
    }
}

/// A node that is down reports nothing: what is left of the task goes when the node is back, or removed.
fn is_node_lost(view: &Tables, task: &Task) -> bool {
    view.node_of(task).is_none_or(|node| node.state == NodeState::Down)
}

fn removal(view: &Tables, tasks: &[&Arc<Task>]) -> ServiceProgress {
    let left: Vec<_> = tasks.iter().filter(|task| !is_node_lost(view, task)).collect();
    let hanging = left.iter().filter(|task| !task.status.state.is_terminal()).map(|task| {
        let spec = view.spec_of(task);
        let name = spec.map_or_else(|| task.id.to_string(), |spec| task_name(&spec.name, task.slot));
        format!("{name} is still {}", task.status.state)
    });
    ServiceProgress {
        running: left.len() as u64,
        removed: left.is_empty(),
        converged: left.is_empty(),
        hanging: hanging.collect(),
        ..ServiceProgress::default()
    }
}

/// Tasks that are to run and do not yet, each with its own reason, else that of the slot's last failure.
fn late(service: &Service, tasks: &[&Arc<Task>]) -> impl Iterator<Item = String> {
    tasks.iter().filter(|task| task.is_live() && !is_running(task)).map(move |task| {
        let pending = task.pending_reason.as_ref().map(ToString::to_string).unwrap_or_default();
        let own = [&task.status.error, &pending, &task.status.message];
        let failed = tasks.iter().filter(|it| it.slot == task.slot && !it.status.error.is_empty());
        let last = failed.max_by_key(|it| it.meta.order()).map(|it| &it.status.error);
        let reason = own.into_iter().chain(last).find(|it| !it.is_empty());
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{} is {}{reason}", task_name(&service.spec.name, task.slot), task.status.state)
    })
}

/// Slots whose last task failed for good, and why.
fn given_up(service: &Service, tasks: &[&Arc<Task>]) -> impl Iterator<Item = String> {
    let slots: BTreeSet<u64> = tasks.iter().map(|task| task.slot).collect();
    slots.into_iter().filter_map(move |slot| {
        let in_slot = || tasks.iter().filter(move |task| task.slot == slot);
        let last = in_slot().max_by_key(|task| task.meta.order())?;
        let failed = matches!(last.status.state, TaskState::Failed | TaskState::Rejected);
        let name = task_name(&service.spec.name, slot);
        (failed && !in_slot().any(|task| task.is_live()))
            .then(|| format!("{name} is {}: {}", last.status.state, last.status.error))
    })
}

fn image(view: &Tables, reference: &str, digest: Option<&str>) -> ImageProgress {
    match resolve::<Image>(view, reference) {
        Ok(image) if digest.is_none_or(|digest| image.digest == digest) => {
            let (holders, wanted) = (good_holders(image, view) as u64, wanted_holders(view) as u64);
            ImageProgress { holders, wanted, converged: wanted > 0 && holders >= wanted }
        }
        _ => ImageProgress::default(),
    }
}
