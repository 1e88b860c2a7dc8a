//! The interface between code that plans changes and consensus.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use crate::store::Store;
use crate::transaction::{Conflict, Entry, Outcome, Transaction};
use flota_api::version::{Timestamp, Version};

/// Why a proposal failed, or may have failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// An object was not as expected. The caller must plan again.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// This manager does not lead. Nothing was changed.
    #[error("this manager does not lead")]
    NotLeader,
    /// No quorum answered in time, or leadership was lost. The change may still commit; a retry with the same request
    /// id is safe.
    #[error("no quorum of managers answered in time")]
    Unknown,
    /// The current state refuses the request, but this manager could not prove that it still leads and so knows the
    /// current state. Nothing was changed.
    #[error("this manager could not prove that it leads")]
    Unproven,
    /// An earlier try of the request was refused, so it is not carried out any more.
    #[error("an earlier try of this request was refused")]
    Refused,
    /// The change is larger than an entry may be. Nothing was changed.
    #[error("the change has {actions} actions or {bytes} bytes; {most_actions} and {most_bytes} are the most", most_actions = crate::ACTIONS_BOUND, most_bytes = crate::raft::ENTRY_BOUND)]
    TooLarge {
        /// Number of its actions.
        actions: usize,
        /// Its encoded size in bytes.
        bytes: usize,
    },
}

/// Commits and applies transactions.
pub trait Proposer: Send + Sync + 'static {
    /// Proposes one entry and waits until it is applied here. Returns the outcome of each transaction. An error applies
    /// to the whole entry: either all or none of its transactions reached the log.
    fn propose_entry(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Result<Vec<Outcome>, ProposeError>>;

    /// Proposes one transaction.
    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Result<Version, ProposeError>> {
        Box::pin(async move {
            let mut outcomes = self.propose_entry(vec![transaction]).await?;
            outcomes.pop().ok_or(ProposeError::Unknown)?.map_err(ProposeError::Conflict)
        })
    }
}

/// Applies transactions at once, without Raft, for tests of code above the store.
#[derive(Clone, Debug)]
pub struct LocalProposer {
    store: Store,
    index: Arc<AtomicU64>,
    clock: Arc<Mutex<Timestamp>>,
}

impl LocalProposer {
    /// Creates a proposer that applies to `store`.
    pub fn new(store: Store) -> Self {
        Self { store, index: Arc::default(), clock: Arc::default() }
    }

    /// Sets the time of the following entries.
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
