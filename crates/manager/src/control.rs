//! The Control API: what users may ask of a cluster, as functions from domain types to a domain answer or a
//! [`ControlError`].
//!
//! ```text
//!   grpc.rs (a front: converts, nothing else) ──▶ Control: one file for each noun ──▶ write.rs ──▶ the store
//! ```
//!
//! Another front stands beside `grpc.rs` and calls the same functions. Every request reaches the leader (see
//! [`crate::forward`]). References are resolved here ([`reference`]), so that a lookup and what follows from it see one
//! state. Reads are linearizable unless the caller asks for [`Freshness::Stale`].

mod cluster;
mod error;
mod filter;
mod grpc;
mod images;
mod nodes;
mod progress;
mod reference;
mod registries;
mod services;
mod stacks;
mod tasks;
#[cfg(test)]
mod tests;
mod validate;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::Random;
use flota_raft_store::raft::RaftNode;
use flota_raft_store::{Store, Transaction, View};

use crate::replica::Replica;
use crate::term_clock::TermClock;
use crate::write::{self, Consensus};
use reference::{Referable, resolve};

pub(crate) use error::ControlError;
pub use grpc::ControlService;

/// How old the answer to a read may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// It shows everything that was acknowledged before the request.
    Linearizable,
    /// It shows what this manager has, without a round to the others.
    Stale,
}

/// How old the answer to a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// It shows everything that was acknowledged before the request.
    Current,
    /// Since this manager last knew itself complete; `None`: it has not been since it started.
    Stale(Option<Duration>),
}

/// Rows, and how old they are.
#[derive(Clone, Debug)]
pub(crate) struct Listing<T> {
    /// In the order of their ids.
    pub(crate) rows: Vec<T>,
    /// How old all of them are.
    pub(crate) age: Age,
}

/// This manager as a member of the consensus, as far as operations need it.
pub(crate) trait Member: Consensus + Clone + Send + Sync + 'static {
    /// The Raft id of this manager.
    fn id(&self) -> u64;
    /// The Raft id of the leader, where one is known.
    fn leader(&self) -> Option<u64>;
    /// Since this manager last knew itself complete; `None`: it has not been since it started.
    fn age(&self) -> Option<Duration>;
    /// Brings the age down, where the leader answers at once.
    fn freshen(&self) -> impl Future<Output = ()> + Send;
}

impl Member for RaftNode {
    fn id(&self) -> u64 {
        Self::id(self)
    }

    fn leader(&self) -> Option<u64> {
        self.leadership().borrow().leader
    }

    fn age(&self) -> Option<Duration> {
        Self::age(self)
    }

    async fn freshen(&self) {
        Self::freshen(self).await;
    }
}

/// The operations of the Control API on one manager; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Control<M> {
    store: Store,
    member: M,
    clock: TermClock,
    random: Random,
    /// Ends with this manager's leadership; `None` while it does not lead.
    leading: watch::Receiver<Option<CancellationToken>>,
}

impl Control<RaftNode> {
    /// The operations on this manager's replica of the store.
    pub(crate) fn new(replica: &Replica) -> Self {
        Self {
            store: replica.store.clone(),
            member: replica.raft.clone(),
            clock: replica.clock.clone(),
            random: replica.random.clone(),
            leading: replica.leading.clone(),
        }
    }
}

impl<M: Member> Control<M> {
    /// A view that shows everything that was acknowledged before the call.
    async fn proven_view(&self) -> Result<View, ControlError> {
        self.member.read_barrier().await?;
        Ok(self.store.view())
    }

    /// A view as fresh as the caller wants it, and how old it is.
    async fn view(&self, freshness: Freshness) -> Result<(View, Age), ControlError> {
        match freshness {
            Freshness::Linearizable => Ok((self.proven_view().await?, Age::Current)),
            Freshness::Stale => {
                self.member.freshen().await;
                // Taken before the view, which is then at least as new as its age says.
                let age = self.member.age();
                Ok((self.store.view(), Age::Stale(age)))
            }
        }
    }

    /// Writes for the request with this id; see [`write::write_once`]. `None`: it was done before.
    async fn write_once<T>(
        &self,
        request_id: &str,
        plan: impl FnMut(View) -> Result<(Transaction, T), ControlError>,
    ) -> Result<Option<T>, ControlError> {
        write::write_once(&self.store, &self.member, request_id, plan).await
    }

    /// What `look` finds in the store; see [`write::read`].
    async fn read<T>(&self, look: impl Fn(&View) -> Result<T, ControlError>) -> Result<T, ControlError> {
        write::read(&self.store, &self.member, look).await
    }

    /// The object that a request has just changed: by its id, or, for a retry of a request that was done, by the
    /// reference.
    async fn changed<T: Referable>(&self, reference: &str, id: Option<&str>) -> Result<Arc<T>, ControlError> {
        let removed = || ControlError::RemovedMeanwhile { kind: T::KIND, reference: reference.to_owned() };
        let look = |view: &View| match id {
            Some(id) => view.get::<T>(id).cloned().ok_or_else(removed),
            None => resolve(view, reference).cloned().map_err(|_| removed()),
        };
        self.read(look).await
    }
}
