//! Measures how old this manager's data may be.
//!
//! This manager asks the leader for its commit index, which the leader returns after a quorum has confirmed it, and
//! waits until that entry is applied here. Then this manager had every entry that was committed at the time of the
//! request. The age counts from the request, so neither message delay nor clock skew can make it too small.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::ReadPolicy;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Leadership;
use crate::raft::Raft;
use crate::raft::state_machine::Progress;
use crate::raft::transport::{Method, Peers};
use crate::raft::type_config::LogId;

/// Time limit of one request to the leader, including the wait until the entry is applied.
const WAIT: Duration = Duration::from_millis(200);

/// The age of this manager's data. Clones share it.
#[derive(Clone)]
pub(super) struct Freshness {
    own_id: u64,
    raft: Raft,
    peers: Peers,
    leadership: watch::Receiver<Leadership>,
    progress: watch::Receiver<Progress>,
    complete_at: Arc<Mutex<Option<Instant>>>,
}

impl Freshness {
    pub(super) fn new(
        own_id: u64,
        raft: Raft,
        peers: Peers,
        leadership: watch::Receiver<Leadership>,
        progress: watch::Receiver<Progress>,
    ) -> Self {
        Self { own_id, raft, peers, leadership, progress, complete_at: Arc::default() }
    }

    /// Time since this manager last knew that it was complete; `None` if it never did.
    pub(super) fn age(&self) -> Option<Duration> {
        self.complete_at.lock().expect("no holder panics").map(|at| at.elapsed())
    }

    /// Asks the leader for its commit index. Returns whether it answered and that entry is applied here; waits up to
    /// `WAIT`.
    pub(super) async fn freshen(&self) -> bool {
        let asked = Instant::now();
        if !tokio::time::timeout(WAIT, self.catch_up()).await.unwrap_or(false) {
            return false;
        }
        let mut complete_at = self.complete_at.lock().expect("no holder panics");
        *complete_at = (*complete_at).max(Some(asked));
        true
    }

    /// Returns whether everything that was committed at the time of the call is applied here.
    async fn catch_up(&self) -> bool {
        let leader = self.leadership.borrow().leader;
        let Some(leader) = leader else { return false };
        if leader == self.own_id {
            return self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok();
        }
        let committed = self.peers.call::<_, LogId>(leader, Method::ReadIndex, &(), WAIT).await;
        let Ok(committed) = committed else { return false };
        let mut progress = self.progress.clone();
        progress.wait_for(|progress| progress.applied >= committed.index).await.is_ok()
    }
}
