//! Autoscaling: lets the number of tasks of a service follow their load, while this manager leads.
//!
//! Workers measure the tasks (`worker/usage.rs`), and the dispatcher has their last reports. [`decide`] says what they
//! mean; the result is written beside the spec, and the orchestrator starts and stops tasks. What was seen before is kept
//! in memory, so a new leader watches for a whole window before it stops a task.

mod decide;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use flota_api::defaults::MEASURE_INTERVAL;
use flota_api::id::ServiceId;
use flota_api::model::{ScaleDecision, Service, TaskUsage};
use flota_api::version::Timestamp;
use flota_raft_store::{Tables, Transaction, View, WriteTx};

use crate::dispatcher::Usage;
use crate::replica::Replica;
use decide::{Needs, Window};

/// Decides at each interval until leadership ends.
pub(crate) async fn run(replica: Replica, usage: Usage, scope: CancellationToken) {
    let mut windows: BTreeMap<ServiceId, Window> = BTreeMap::new();
    let mut looks = tokio::time::interval(MEASURE_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = scope.cancelled() => return,
            _ = looks.tick() => {}
        }
        // One time for both: a window of no length has what was seen at this look.
        let (now, at) = (Instant::now(), replica.clock.now());
        look(&replica.store.view(), &usage, &mut windows, now);
        let write = replica.write_if_needed(|view| decided(view, &windows, now, at));
        let written = tokio::select! {
            biased;
            () = scope.cancelled() => return,
            written = write => written,
        };
        if let Err(error) = written {
            tracing::info!(%error, "a decision of autoscaling was not stored, and is made again");
        }
    }
}

/// Adds what is measured now to the windows, and forgets the services that are not scaled by their load any more.
fn look(view: &Tables, usage: &Usage, windows: &mut BTreeMap<ServiceId, Window>, now: Instant) {
    windows.retain(|id, _| view.service(id).is_some_and(is_scaled));
    for service in view.services().filter(|service| is_scaled(service)) {
        let (Some(policy), Some(current)) = (&service.spec.scale, service.replicas()) else { continue };
        let window = windows.entry(service.id.clone()).or_default();
        if let Some(needs) = Needs::of(policy, current, &measured(service, view, usage)) {
            window.add(now, needs, policy);
        }
    }
}

fn is_scaled(service: &Arc<Service>) -> bool {
    service.spec.scale.is_some() && !service.spec.stopped
}

/// Returns what the tasks use that serve, as far as it is known.
fn measured(service: &Service, view: &Tables, usage: &Usage) -> Vec<TaskUsage> {
    let serving = view.tasks_of_service(&service.id).filter(|task| task.is_serving());
    serving.filter_map(|task| usage.of(task.node_id.as_ref()?, &task.id)).collect()
}

/// Returns the change of every service whose number of tasks is to be another one.
fn decided(
    view: View,
    windows: &BTreeMap<ServiceId, Window>,
    now: Instant,
    at: Timestamp,
) -> Option<(Transaction, ())> {
    let mut changed = Vec::new();
    for (id, window) in windows {
        let Some(service) = view.service(id).filter(|service| is_scaled(service)) else { continue };
        let (Some(policy), Some(current)) = (&service.spec.scale, service.replicas()) else { continue };
        let Some((to, reason)) = window.decide(policy, current, now) else { continue };
        tracing::info!(service = service.spec.name, from = current, to, reason, "autoscaling");
        let scale = service.scale.decided(ScaleDecision { at, from: current, to, reason });
        changed.push(Service { scale, ..service.as_ref().clone() });
    }
    if changed.is_empty() {
        return None;
    }
    let mut tx = WriteTx::new(view, None);
    changed.into_iter().for_each(|service| tx.update(service));
    Some((tx.finish(), ()))
}
