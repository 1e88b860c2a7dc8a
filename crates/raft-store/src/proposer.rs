//! The seam between those who plan and consensus.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use crate::store::Store;
use crate::transaction::{Conflict, Entry, Outcome, Transaction};
use flota_api::version::{Timestamp, Version};

/// Why a proposal came to nothing, or may have.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// An object was not as expected: plan again.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// This manager does not lead; nothing was done.
    #[error("this manager does not lead")]
    NotLeader,
    /// No quorum answered in time, or leadership was lost: it may still happen. A retry with the same request id is safe.
    #[error("no quorum of managers answered in time")]
    Unknown,
    /// Nothing was done: the present state would refuse the request, but only a leader knows the present state.
    #[error("this manager could not prove that it leads")]
    Unproven,
    /// Larger than an entry may be.
    #[error("the change has {actions} actions or {bytes} bytes; {most_actions} and {most_bytes} are the most", most_actions = crate::ACTIONS_BOUND, most_bytes = crate::raft::ENTRY_BOUND)]
    TooLarge {
        /// Actions in it.
        actions: usize,
        /// Its size when encoded.
        bytes: usize,
    },
}

/// Gets transactions committed and applied.
pub trait Proposer: Send + Sync + 'static {
    /// Proposes one entry; answers when it is applied here, with each transaction's outcome.
    /// An error means that none of them was refused by itself: all or nothing reached the log.
    fn propose_entry(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Result<Vec<Outcome>, ProposeError>>;

    /// Proposes one transaction.
    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Result<Version, ProposeError>> {
        Box::pin(async move {
            let mut outcomes = self.propose_entry(vec![transaction]).await?;
            outcomes.pop().ok_or(ProposeError::Unknown)?.map_err(ProposeError::Conflict)
        })
    }
}

/// Applies at once, without Raft: for tests of what stands above the store.
#[derive(Clone, Debug)]
pub struct LocalProposer {
    store: Store,
    index: Arc<AtomicU64>,
    clock: Arc<Mutex<Timestamp>>,
}

impl LocalProposer {
    /// Applies to `store`.
    pub fn new(store: Store) -> Self {
        Self { store, index: Arc::default(), clock: Arc::default() }
    }

    /// Sets what the next entries' clock shows.
    pub fn set_clock(&self, now: Timestamp) {
        *self.clock.lock().expect("no holder panics") = now;
    }
}

impl Proposer for LocalProposer {
    fn propose_entry(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Result<Vec<Outcome>, ProposeError>> {
        let index = self.index.fetch_add(1, Ordering::SeqCst) + 1;
        let at = *self.clock.lock().expect("no holder panics");
        Box::pin(async move { Ok(self.store.apply(index, Entry { at, transactions, ..Entry::default() })) })
    }
}
