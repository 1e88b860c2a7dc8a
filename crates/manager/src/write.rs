//! Writes and reads of a leader. This is the only place that decides which facts of a view are certain.
//!
//! A success is proved by its commit. A refusal (not found, exists already, has changed) is not: this manager may have
//! lost leadership, and its view may be old. A refusal is therefore final only if the plan or the look repeats it after
//! a read barrier. [`crate::replica::Replica`] calls this for every request.

use std::future::Future;

use flota_raft_store::raft::RaftNode;
use flota_raft_store::{ProposeError, Proposer, Store, Transaction, View, faults};

/// The operations of consensus that writes and reads need.
pub(crate) trait Consensus: Sync {
    /// Commits and applies one transaction.
    fn propose(&self, transaction: Transaction) -> impl Future<Output = Result<(), ProposeError>> + Send;
    /// Waits until a view shows everything that was acknowledged before the call.
    fn read_barrier(&self) -> impl Future<Output = Result<(), ProposeError>> + Send;
}

impl Consensus for RaftNode {
    async fn propose(&self, transaction: Transaction) -> Result<(), ProposeError> {
        Proposer::propose(self, transaction).await.map(drop)
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        if faults::is_on(faults::Fault::EarlyRead) {
            return Ok(());
        }
        RaftNode::read_barrier(self).await
    }
}

/// Proves that this manager leads and that its view is complete.
///
/// # Errors
/// [`ProposeError::Unproven`] for any cause: the caller should try the next manager.
async fn prove(consensus: &impl Consensus) -> Result<(), ProposeError> {
    consensus.read_barrier().await.map_err(|_| ProposeError::Unproven)
}

/// Proposes the transaction that `plan` builds over a fresh view, and plans again if a concurrent change conflicts with
/// it.
///
/// # Errors
/// The error of `plan` for a view that is proved complete, or why the change can't be committed.
pub(crate) async fn write<T, E: From<ProposeError>>(
    store: &Store,
    consensus: &impl Consensus,
    mut plan: impl FnMut(View) -> Result<(Transaction, T), E>,
) -> Result<T, E> {
    /// Each loss means that another write won. Ten in a row indicate a bug.
    const TRIES: usize = 10;
    let mut last = ProposeError::Unknown;
    for _ in 0..TRIES {
        let planned = plan(store.view());
        let (transaction, value) = match planned {
            Ok(planned) => planned,
            Err(_) => {
                prove(consensus).await?;
                plan(store.view())?
            }
        };
        match consensus.propose(transaction).await {
            Ok(()) => return Ok(value),
            Err(ProposeError::Conflict(conflict)) => last = ProposeError::Conflict(conflict),
            Err(other) => return Err(other.into()),
        }
    }
    Err(last.into())
}

/// Plans and commits a user's request. Returns `None` if the request with this id was carried out before, by this
/// leader or an earlier one. A retry is then not judged by the changes of the first try, and a later read shows those
/// changes.
///
/// A refusal is committed as well. Another try of the request may still be on its way, held up by a slow manager, and
/// would else be carried out after the user was told that it is refused.
///
/// # Errors
/// As [`write`], or [`ProposeError::Refused`] if another try was refused.
pub(crate) async fn write_once<T, E: From<ProposeError>>(
    store: &Store,
    consensus: &impl Consensus,
    request_id: Option<&str>,
    mut plan: impl FnMut(View) -> Result<(Transaction, T), E>,
) -> Result<Option<T>, E> {
    let planned = |view: View| match request_id.filter(|id| view.answered(id)) {
        None => plan(view).map_err(Stop::Refused),
        Some(id) if view.refused(id) => Err(plan(view).map_or_else(Stop::Refused, |_| ProposeError::Refused.into())),
        Some(_) => Err(Stop::Needless),
    };
    match (write(store, consensus, planned).await, request_id) {
        (Err(Stop::Refused(refusal)), Some(id)) => {
            match consensus.propose(Transaction::refusal(id)).await {
                Ok(()) => Err(refusal),
                // Another try was carried out meanwhile.
                Err(ProposeError::Conflict(_)) => Ok(None),
                Err(other) => Err(other.into()),
            }
        }
        (written, _) => unless_needless(written),
    }
}

/// Plans and commits a change, as [`write`] does, or returns `None` if the plan finds nothing to change.
///
/// # Errors
/// Why the change can't be committed, or that this manager can't prove that there is nothing to change.
pub(crate) async fn write_if_needed<T>(
    store: &Store,
    consensus: &impl Consensus,
    mut plan: impl FnMut(View) -> Option<(Transaction, T)>,
) -> Result<Option<T>, ProposeError> {
    unless_needless(write(store, consensus, |view| plan(view).ok_or(Stop::Needless)).await)
}

/// Why no transaction is proposed.
enum Stop<E> {
    /// There is nothing to change.
    Needless,
    /// The plan refuses.
    Refused(E),
    /// The change can't be committed.
    Failed(E),
}

impl<E: From<ProposeError>> From<ProposeError> for Stop<E> {
    fn from(error: ProposeError) -> Self {
        Self::Failed(error.into())
    }
}

fn unless_needless<T, E>(written: Result<T, Stop<E>>) -> Result<Option<T>, E> {
    match written {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Needless) => Ok(None),
        Err(Stop::Refused(error) | Stop::Failed(error)) => Err(error),
    }
}

/// Returns the result of `look` on the store.
///
/// # Errors
/// The error of `look` for a view that is proved complete, or [`ProposeError::Unproven`].
pub(crate) async fn read<T, E: From<ProposeError>>(
    store: &Store,
    consensus: &impl Consensus,
    look: impl Fn(&View) -> Result<T, E>,
) -> Result<T, E> {
    let found = look(&store.view());
    match found {
        Ok(found) => Ok(found),
        Err(_) => {
            prove(consensus).await?;
            look(&store.view())
        }
    }
}

#[cfg(test)]
mod tests;
