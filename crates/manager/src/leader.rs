//! The leader's work, in one scope: it begins when leadership is proved, and ends as a whole when leadership is lost.
//! The manager starts [`follow`] once; a new control loop is a line in [`pipeline`].

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use flota_raft_store::raft::{RaftNode, Threads};
use flota_raft_store::{ProposeError, Proposer, faults};

use crate::control_loop::{ControlLoop, Driver, LoopCounters};
use crate::dispatcher::Dispatcher;
use crate::replica::Replica;
use crate::{allocator, autoscaler, ca_rotation, images, orchestrator, roles, scheduler, stack_values, volumes};

/// The pause between two attempts to prove that this manager leads.
const PROOF_RETRY: Duration = Duration::from_millis(20);

/// Returns the control loops, in the order in which a pass runs them.
pub(crate) fn pipeline() -> Vec<Box<dyn ControlLoop>> {
    vec![
        Box::new(scheduler::Rebalance),
        Box::new(orchestrator::service_tasks::ServiceTasks::default()),
        Box::new(allocator::Networks),
        Box::new(allocator::Services),
        Box::new(allocator::Addresses),
        Box::new(scheduler::Scheduler),
        Box::new(images::Images),
        Box::new(volumes::Volumes),
        Box::new(stack_values::StackValues),
        Box::new(orchestrator::orphan::Orphan),
        Box::new(orchestrator::reaper::Reaper),
        Box::new(ca_rotation::CaRotations),
    ]
}

/// The parts of the manager that work while it leads.
pub(crate) struct Parts {
    pub(crate) replica: Replica,
    pub(crate) dispatcher: Dispatcher,
    /// Where the control loops plan.
    pub(crate) threads: Threads,
    /// Count what the control loops do.
    pub(crate) counters: LoopCounters,
}

/// Follows Raft's leadership until `shutdown`: begins the leader's scope, publishes it in `leading`, and ends it. Cancels
/// `fatal` when the Raft core has stopped by itself.
pub(crate) async fn follow(
    parts: Parts,
    leading: watch::Sender<Option<CancellationToken>>,
    shutdown: CancellationToken,
    fatal: CancellationToken,
) {
    // This also happens if the task panics, because a manager that does not follow leadership must stop.
    let ended = fatal.drop_guard();
    tokio::select! {
        biased;
        // This branch sees the shutdown first, and ends the leader's scope.
        () = follow_terms(&parts, &leading, &shutdown) => {}
        () = shutdown.cancelled() => {}
    }
    if shutdown.is_cancelled() {
        ended.disarm();
    } else {
        tracing::error!("the Raft core has stopped: this manager stops too");
    }
}

async fn follow_terms(parts: &Parts, leading: &watch::Sender<Option<CancellationToken>>, shutdown: &CancellationToken) {
    let replica = &parts.replica;
    let mut leadership = replica.raft.leadership();
    loop {
        let term = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            state = leadership.wait_for(|state| state.is_self) => match state {
                Ok(state) => state.term,
                Err(_) => return,
            },
        };
        if prove_term(&replica.raft).await.is_err() {
            tokio::time::sleep(PROOF_RETRY).await;
            continue;
        }
        tracing::info!(raft.term = term, "this manager leads");
        let scope = CancellationToken::new();
        // If this future is dropped, the thread that plans must end, too, because the runtime waits for it.
        let ended = scope.clone().drop_guard();
        let mut work = begin(parts, &scope);
        leading.send_replace(Some(scope.clone()));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            _ = leadership.wait_for(|state| !state.is_self || state.term != term) => {}
            () = quorum_lost(&replica.raft) => tracing::warn!("no quorum follows any more"),
            broken = work.join_next() => report(broken),
        }
        leading.send_replace(None);
        if faults::is_on(faults::Fault::LingeringLoops) {
            drop(ended.disarm());
            work.detach_all();
            continue;
        }
        scope.cancel();
        while let Some(ended) = work.join_next().await {
            report(Some(ended));
        }
        tracing::info!(raft.term = term, "this manager no longer leads");
    }
}

/// Waits until an entry of this leader's own term is committed and applied. Before that, entries that earlier terms
/// have acknowledged may not be committed or applied here yet (Raft §8).
async fn prove_term(raft: &RaftNode) -> Result<(), ProposeError> {
    if faults::is_on(faults::Fault::EarlyRead) {
        return Ok(());
    }
    raft.read_barrier().await?;
    raft.propose_entry(Vec::new()).await.map(drop)
}

fn begin(Parts { replica, dispatcher, threads, counters }: &Parts, scope: &CancellationToken) -> JoinSet<()> {
    let Replica { store, clock, random, .. } = replica;
    clock.begin(store.view().time);
    dispatcher.begin_term();
    let driver = Driver::new(store.clone(), replica.proposer(), (clock.clone(), random.fork()), pipeline());
    let driver = driver.counted_by(counters.clone()).with_usage(dispatcher.usage().clone());
    let mut work = JoinSet::new();
    match threads {
        Threads::Current => drop(work.spawn(driver.run(scope.clone()))),
        // A pass over much work takes a while, and must not delay heartbeats.
        Threads::Own => drop(work.spawn_blocking(plan_until_end(driver, scope.clone()))),
    }
    work.spawn(dispatcher.clone().run(scope.clone()));
    work.spawn(autoscaler::run(replica.clone(), dispatcher.usage().clone(), scope.clone()));
    work.spawn(roles::run(replica.clone(), scope.clone()));
    work
}

/// Returns the work of a thread of its own that runs the driver.
fn plan_until_end(driver: Driver, scope: CancellationToken) -> impl FnOnce() {
    move || match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime.block_on(driver.run(scope)),
        // The end of this part ends the leader's scope, and another manager may lead.
        Err(error) => tracing::error!(%error, "failed to start the thread that plans"),
    }
}

/// Waits until no quorum has answered this leader for so long that the others have probably elected another. Workers
/// must then be able to look for the new leader.
async fn quorum_lost(raft: &RaftNode) {
    let patience = raft.patience();
    loop {
        tokio::time::sleep(patience / 4).await;
        if raft.quorum_age().is_none_or(|age| age > patience / 2) {
            // The age comes from the library's metrics, which may lag behind the last answer.
            match tokio::time::timeout(patience / 2, raft.read_barrier()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// Logs that a part of the leader's work panicked. The end of that part has ended the whole scope.
fn report(ended: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(error)) = ended {
        tracing::error!(%error, "a part of the leader's work broke off");
    }
}

#[cfg(test)]
mod tests;
