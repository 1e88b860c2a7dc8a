//! How far a service or an image is, told as it changes, so that `ctl` can wait for it.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::Status;

use flota_api::model::{NodeState, Task};
use flota_api::naming::task_name;
use flota_api::proto::control as pc;
use flota_api::state::TaskState;
use flota_raft_store::Tables;

use super::services::is_running;
use crate::images::{good_holders, wanted_holders};
use crate::replica::Replica;

/// Sends what `progress` makes of the store, at once and whenever it is another, until it says that it is done,
/// the receiver has gone, or leadership ends.
pub(super) fn watch<T: PartialEq + Clone + Send + 'static>(
    replica: &Replica,
    progress: impl Fn(&Tables) -> Result<(T, bool), Status> + Send + 'static,
) -> mpsc::Receiver<Result<T, Status>> {
    let (sender, receiver) = mpsc::channel(16);
    let (store, scope) = (replica.store.clone(), replica.leader_scope());
    tokio::spawn(async move {
        let Some(scope) = scope else {
            let _ = sender.send(Err(Status::unavailable("leadership has just moved; try again"))).await;
            return;
        };
        let (mut view, mut events) = store.view_and_watch();
        let mut told = None;
        loop {
            match progress(&view) {
                Ok((now, done)) => {
                    if told.as_ref() != Some(&now) && sender.send(Ok(now.clone())).await.is_err() {
                        return;
                    }
                    told = Some(now);
                    if done {
                        return;
                    }
                }
                Err(status) => {
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            }
            tokio::select! {
                biased;
                () = sender.closed() => return,
                () = scope.cancelled() => {
                    let _ = sender.send(Err(Status::unavailable("leadership has moved; try again"))).await;
                    return;
                }
                _ = events.next() => {}
            }
            (view, events) = store.view_and_watch();
        }
    });
    receiver
}

/// Of a service that may be gone already: then until its last task is.
pub(super) fn service(view: &Tables, id: &flota_api::id::ServiceId) -> pc::ServiceProgress {
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(id).collect();
    let Some(service) = view.service(id.as_str()) else {
        // A node that is down says no more: what is left of the task goes when it is back, or removed.
        let down = |task: &Task| view.node(task.node_id.as_str()).is_none_or(|node| node.state == NodeState::Down);
        let left: Vec<_> = tasks.iter().filter(|task| !down(task)).collect();
        let hanging = left.iter().filter(|task| !task.status.state.is_terminal()).map(|task| {
            let spec = view.spec_of(task);
            let name = spec.map_or_else(|| task.id.to_string(), |spec| task_name(&spec.name, task.slot));
            format!("{name} is still {}", task.status.state)
        });
        return pc::ServiceProgress {
            running: left.len() as u64,
            removed: left.is_empty(),
            converged: left.is_empty(),
            hanging: hanging.collect(),
            ..Default::default()
        };
    };
    let current = |task: &&&Arc<Task>| task.spec_version == service.spec_version;
    let running = tasks.iter().filter(current).filter(|task| is_running(task)).count() as u64;
    let stopping = tasks.iter().any(|task| {
        let reachable = view.node(task.node_id.as_str()).is_some_and(|node| node.state != NodeState::Down);
        task.desired_state.is_stopping() && !task.status.state.is_terminal() && reachable
    });
    let outdated = tasks.iter().any(|task| task.is_live() && task.spec_version != service.spec_version);
    let hanging = tasks.iter().filter(|task| task.is_live() && !is_running(task)).map(|task| {
        let reasons = [&task.status.error, &task.pending_reason, &task.status.message];
        let reason = reasons.into_iter().find(|it| !it.is_empty()).map_or("", String::as_str);
        let last = tasks.iter().filter(|it| it.slot == task.slot && !it.status.error.is_empty());
        let last = last.max_by_key(|it| it.meta.order()).map_or("", |it| it.status.error.as_str());
        let reason = if reason.is_empty() { last } else { reason };
        format!(
            "{} is {}{}{reason}",
            task_name(&service.spec.name, task.slot),
            task.status.state,
            if reason.is_empty() { "" } else { ": " }
        )
    });
    // Slots that stay down say why as well.
    let slots: std::collections::BTreeSet<u64> = tasks.iter().map(|task| task.slot).collect();
    let given_up = slots.into_iter().filter_map(|slot| {
        let in_slot = || tasks.iter().filter(move |task| task.slot == slot);
        let last = in_slot().max_by_key(|task| task.meta.order())?;
        let failed = matches!(last.status.state, TaskState::Failed | TaskState::Rejected);
        let name = task_name(&service.spec.name, slot);
        (failed && !in_slot().any(|task| task.is_live()))
            .then(|| format!("{name} is {}: {}", last.status.state, last.status.error))
    });
    pc::ServiceProgress {
        running,
        desired: service.spec.replicas,
        converged: running == service.spec.replicas && !stopping && !outdated,
        hanging: hanging.chain(given_up).collect(),
        update_paused: service.update_paused.clone(),
        removed: false,
    }
}

pub(super) fn image(view: &Tables, text: &str, digest: &str) -> Result<pc::ImageProgress, Status> {
    let image = super::find::find_image(view, text)?;
    if !digest.is_empty() && image.digest != digest {
        return Err(Status::not_found("the name still means another image"));
    }
    let (holders, wanted) = (good_holders(image, view) as u64, wanted_holders(view) as u64);
    Ok(pc::ImageProgress { holders, wanted, converged: holders >= wanted })
}
