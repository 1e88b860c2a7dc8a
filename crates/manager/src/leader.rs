//! What a leader does, in one scope: begun when leadership is certain, ended as a whole when it is lost.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use flota_raft_store::raft::RaftNode;
use flota_raft_store::{ProposeError, Proposer, faults};

use crate::control_loop::{ControlLoop, Driver};
use crate::manager::Manager;
use crate::{dispatcher, images, orchestrator, roles, scheduler};

/// Between two tries to prove that this manager leads.
const PROOF_RETRY: Duration = Duration::from_millis(20);

/// The planning jobs, in the order in which a pass runs them.
fn pipeline() -> Vec<Box<dyn ControlLoop>> {
    vec![
        Box::new(orchestrator::replicated::Replicated),
        Box::new(scheduler::Scheduler),
        Box::new(images::Images),
        Box::new(orchestrator::orphan::Orphan),
        Box::new(orchestrator::reaper::Reaper),
    ]
}

/// Follows Raft's leadership until `shutdown`: starts the leader's scope, and ends it.
pub(crate) async fn follow(
    manager: Manager,
    leading: watch::Sender<Option<CancellationToken>>,
    shutdown: CancellationToken,
    fatal: CancellationToken,
) {
    tokio::select! {
        biased;
        // Sees the shutdown first, and ends the leader's scope.
        () = follow_terms(&manager, &leading, &shutdown) => {}
        () = shutdown.cancelled() => return,
    }
    if !shutdown.is_cancelled() {
        tracing::error!("the Raft core has stopped: this manager can't go on");
        fatal.cancel();
    }
}

async fn follow_terms(
    manager: &Manager,
    leading: &watch::Sender<Option<CancellationToken>>,
    shutdown: &CancellationToken,
) {
    let mut leadership = manager.raft.leadership();
    loop {
        let term = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            state = leadership.wait_for(|state| state.is_self) => match state {
                Ok(state) => state.term,
                Err(_) => return,
            },
        };
        if prove_term(&manager.raft).await.is_err() {
            tokio::time::sleep(PROOF_RETRY).await;
            continue;
        }
        tracing::info!(raft.term = term, "this manager leads");
        let scope = CancellationToken::new();
        let mut work = begin(manager, &scope);
        leading.send_replace(Some(scope.clone()));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            _ = leadership.wait_for(|state| !state.is_self || state.term != term) => {}
            () = quorum_lost(manager) => tracing::warn!("no quorum follows any more"),
            broken = work.join_next() => report(broken),
        }
        leading.send_replace(None);
        scope.cancel();
        while let Some(ended) = work.join_next().await {
            report(Some(ended));
        }
        tracing::info!(raft.term = term, "this manager leads no more");
    }
}

/// Waits until an entry of this leader's own term is committed and applied: before that, what earlier terms have
/// acknowledged may be missing here, or not be committed yet (Raft §8).
async fn prove_term(raft: &RaftNode) -> Result<(), ProposeError> {
    if faults::is_on(faults::Fault::EarlyRead) {
        return Ok(());
    }
    raft.read_barrier().await?;
    raft.propose_entry(Vec::new()).await.map(drop)
}

fn begin(manager: &Manager, scope: &CancellationToken) -> JoinSet<()> {
    let mut work = JoinSet::new();
    let view = manager.store.view();
    manager.clock.begin(view.time);
    manager.liveness.begin(&view);
    let (clock, rng) = (manager.clock.clone(), manager.random.fork());
    let driver = Driver::new(manager.store.clone(), manager.proposer(), (clock, rng), pipeline());
    work.spawn(driver.run(scope.clone()));
    work.spawn(dispatcher::judge_nodes(manager.clone(), scope.clone()));
    work.spawn(roles::run(manager.clone(), scope.clone()));
    work
}

/// Until a quorum has not answered this leader for so long that the others may have chosen another: then its workers
/// must not be kept from looking for that one.
async fn quorum_lost(manager: &Manager) {
    let patience = manager.raft.patience();
    loop {
        tokio::time::sleep(patience / 4).await;
        if manager.raft.quorum_age().is_none_or(|age| age > patience / 2) {
            // The age is that of the library's metrics, which may be older than the last answer.
            match tokio::time::timeout(patience / 2, manager.raft.read_barrier()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// What panicked ends the whole scope, and is said.
fn report(ended: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(error)) = ended {
        tracing::error!(%error, "a part of the leader's work broke off");
    }
}
