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

/// How long a user's request waits for a small age.
pub(super) const REQUEST_WAIT: Duration = Duration::from_millis(200);
/// How long the regular renewal waits: more than two round trips on a slow link.
pub(super) const RENEWAL_WAIT: Duration = Duration::from_secs(1);

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

    /// Asks the leader for its commit index. Returns whether it answered and that entry is applied here, all within `wait`.
    pub(super) async fn freshen(&self, wait: Duration) -> bool {
        let asked = Instant::now();
        if !tokio::time::timeout(wait, self.catch_up(wait)).await.unwrap_or(false) {
            return false;
        }
        let mut complete_at = self.complete_at.lock().expect("no holder panics");
        *complete_at = (*complete_at).max(Some(asked));
        true
    }

    /// Returns whether everything that was committed at the time of the call is applied here.
    async fn catch_up(&self, wait: Duration) -> bool {
        let leader = self.leadership.borrow().leader;
        let Some(leader) = leader else { return false };
        if leader == self.own_id {
            return self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok();
        }
        let committed = self.peers.call::<_, LogId>(leader, Method::ReadIndex, &(), wait).await;
        let Ok(committed) = committed else { return false };
        let mut progress = self.progress.clone();
        progress.wait_for(|progress| progress.applied >= committed.index).await.is_ok()
    }
}
