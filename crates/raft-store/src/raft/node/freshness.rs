//! How old what this manager shows may be.
//!
//! It asks the leader for its commit index, which the leader gives after a quorum has confirmed it, and waits until
//! that is applied here. From then on this manager knows that it had everything that was committed when it asked: the
//! age counts from the question, so neither the way of a message nor a clock can make it too small.

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

/// A question that has no answer by then is given up.
const WAIT: Duration = Duration::from_millis(200);

/// What this manager knows of its own age. Clones share it.
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

    /// `None`: it never knew itself complete.
    pub(super) fn age(&self) -> Option<Duration> {
        self.complete_at.lock().expect("no holder panics").map(|at| at.elapsed())
    }

    /// Asks the leader, for a moment at most; whether it answered, and what it said is applied here.
    pub(super) async fn freshen(&self) -> bool {
        let asked = Instant::now();
        if !tokio::time::timeout(WAIT, self.catch_up()).await.unwrap_or(false) {
            return false;
        }
        let mut complete_at = self.complete_at.lock().expect("no holder panics");
        *complete_at = (*complete_at).max(Some(asked));
        true
    }

    /// Whether everything that was committed at the call is applied here.
    async fn catch_up(&self) -> bool {
        let leader = self.leadership.borrow().leader;
        let Some(leader) = leader else { return false };
        if leader == self.own_id {
            return self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok();
        }
        let committed = self.peers.call::<_, Option<LogId>>(leader, Method::ReadIndex, &(), WAIT).await;
        let Ok(committed) = committed else { return false };
        let index = committed.map_or(0, |id| id.index);
        let mut progress = self.progress.clone();
        progress.wait_for(|progress| progress.applied >= index).await.is_ok()
    }
}
