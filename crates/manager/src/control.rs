//! The Control API: the requests of users, as functions from domain types to a domain answer or a [`ControlError`].
//!
//! ```text
//!   grpc.rs (a front: converts, nothing else) ──▶ Control: one file for each noun ──▶ write.rs ──▶ the store
//! ```
//!
//! Another front can stand beside `grpc.rs` and call the same functions. Every request reaches the leader (see
//! [`crate::forward`]). References are resolved here ([`reference`]), so that a lookup and the change that follows see
//! the same state. Reads are linearizable unless the caller asks for [`Freshness::Stale`].

mod ca;
mod claims;
mod cluster;
mod dependencies;
mod error;
mod events;
mod faults;
mod filter;
mod grpc;
mod images;
mod limits;
mod networks;
mod nodes;
mod pins;
mod progress;
mod reference;
mod registries;
mod roles;
mod services;
mod stacks;
mod streams;
mod tasks;
#[cfg(test)]
mod tests;
mod users;
mod values;
mod volumes;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use flota_api::clock::Random;
use flota_raft_store::raft::{self, RaftNode};
use flota_raft_store::{ProposeError, Store, Tables, Transaction, View};

use crate::caller::{self, Caller};
use crate::departure::Quorum;
use crate::dispatcher::Programmed;
use crate::replica::Replica;
use crate::resolver::Resolver;
use crate::streams::StreamBroker;
use crate::term_clock::TermClock;
use crate::write::{self, Consensus};
use limits::OpenStreams;
use reference::{Referable, resolve};

pub use cluster::check_certificate_life;
pub(crate) use error::ControlError;
pub use grpc::ControlService;

/// How old the answer to a read may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// It shows everything that was acknowledged before the request.
    Linearizable,
    /// It shows this manager's own state, without a round of messages to the others.
    Stale,
}

/// How old the answer to a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// It shows everything that was acknowledged before the request.
    Current,
    /// It shows this manager's own state. The time counts since this manager last knew that it was complete; `None` if
    /// it has not known so since it started.
    Stale(Option<Duration>),
}

/// The rows of a list, and their age.
#[derive(Clone, Debug)]
pub(crate) struct Listing<T> {
    /// Sorted by id.
    pub(crate) rows: Vec<T>,
    /// Age of all rows.
    pub(crate) age: Age,
}

/// This manager as a member of the consensus, with the parts that operations need.
pub(crate) trait Member: Consensus + Clone + Send + Sync + 'static {
    /// The Raft id of this manager.
    fn id(&self) -> u64;
    /// The Raft id of the leader, where one is known.
    fn leader(&self) -> Option<u64>;
    /// Time since this manager last knew that it was complete; `None` if it has not known so since it started.
    fn age(&self) -> Option<Duration>;
    /// Renews the age, if the leader answers at once.
    fn freshen(&self) -> impl Future<Output = ()> + Send;
    /// Asks the voters whether they follow.
    fn quorum(&self) -> impl Future<Output = Quorum> + Send;
    /// Waits until a manager does not vote any more.
    fn gone(&self, raft_id: u64) -> impl Future<Output = Result<(), ProposeError>> + Send;
    /// The managers that Raft has.
    fn members(&self) -> Vec<raft::Member>;
    /// Asks one of these managers, by its Raft id, to lead. Returns before it leads.
    fn hand_over(&self, to: BTreeSet<u64>) -> impl Future<Output = ()> + Send;
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

    async fn quorum(&self) -> Quorum {
        Quorum::of(self).await
    }

    async fn gone(&self, raft_id: u64) -> Result<(), ProposeError> {
        // The change of the set goes on, and a retry waits for it again.
        Self::gone(self, raft_id).await.map_err(|_| ProposeError::Unknown)
    }

    fn members(&self) -> Vec<raft::Member> {
        Self::members(self)
    }

    async fn hand_over(&self, to: BTreeSet<u64>) {
        if Self::hand_over(self, |id| to.contains(&id)).await.is_none() {
            tracing::warn!("no manager answers that could lead instead of this one");
        }
    }
}

/// The operations of the Control API on one manager; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Control<M> {
    store: Store,
    member: M,
    clock: TermClock,
    random: Random,
    resolver: Resolver,
    programmed: Programmed,
    streams: StreamBroker,
    /// Cancelled when this manager's leadership ends; `None` while it does not lead.
    leading: watch::Receiver<Option<CancellationToken>>,
    /// As many permits as there may be streams of events.
    event_streams: Arc<Semaphore>,
    /// What users have open.
    places: OpenStreams,
    /// Who asks.
    caller: Caller,
}

impl Control<RaftNode> {
    /// Creates the operations on this manager's replica of the store. Registries are asked through `resolver`, and
    /// workers are reached through `streams`.
    pub(crate) fn new(replica: &Replica, resolver: Resolver, programmed: Programmed, streams: StreamBroker) -> Self {
        Self {
            store: replica.store.clone(),
            member: replica.raft.clone(),
            clock: replica.clock.clone(),
            random: replica.random.clone(),
            resolver,
            programmed,
            streams,
            leading: replica.leading.clone(),
            event_streams: events::permits(),
            places: OpenStreams::default(),
            caller: Caller::nobody(),
        }
    }
}

impl<M: Member> Control<M> {
    /// Returns the same operations for this caller.
    pub(crate) fn by(&self, caller: Caller) -> Self {
        Self { caller, ..self.clone() }
    }

    /// Returns what the caller sees of a view. Every read goes through here. Writes use it only to find what a name stands for:
    /// who is limited changes a part of a whole, and rules such as that nothing in use is removed are about the whole.
    pub(super) fn seen(&self, view: View) -> View {
        if self.caller.is_limited() { Arc::new(view.limited(|name| self.caller.sees(name))) } else { view }
    }

    /// Returns a view that shows everything that was acknowledged before the call, as far as the caller sees it.
    async fn proven_view(&self) -> Result<View, ControlError> {
        Ok(self.seen(self.proven_whole_view().await?))
    }

    /// As [`Self::proven_view`], with what the caller does not see.
    async fn proven_whole_view(&self) -> Result<View, ControlError> {
        self.member.read_barrier().await?;
        Ok(self.store.view())
    }

    /// Returns a view of the requested freshness, and its age.
    async fn view(&self, freshness: Freshness) -> Result<(View, Age), ControlError> {
        match freshness {
            Freshness::Linearizable => Ok((self.proven_view().await?, Age::Current)),
            Freshness::Stale => {
                self.member.freshen().await;
                // The age is read before the view, so that the view is at least that new.
                let age = self.member.age();
                Ok((self.seen(self.store.view()), Age::Stale(age)))
            }
        }
    }

    /// Writes once for the request with this id, if it has one; see [`write::write_once`]. Returns `None` if the
    /// request was carried out before.
    async fn write_once<T>(
        &self,
        request_id: Option<&str>,
        mut plan: impl FnMut(View) -> Result<(Transaction, T), ControlError>,
    ) -> Result<Option<T>, ControlError> {
        let planned = |view: View| {
            let (transaction, value) = plan(Arc::clone(&view)).map_err(|error| self.shown(error))?;
            self.check_limits(&view, &transaction)?;
            Ok((self.signed(&view, transaction), value))
        };
        write::write_once(&self.store, &self.member, request_id, planned).await
    }

    /// Refuses the request with this id for good, so that an earlier try of it that is still on its way changes nothing.
    async fn refuse_once<T>(&self, request_id: Option<&str>, error: ControlError) -> Result<Option<T>, ControlError> {
        if matches!(error, ControlError::Propose(_) | ControlError::LeadershipMoved) {
            return Err(error);
        }
        // `None`: another try was carried out meanwhile.
        write::write_once(&self.store, &self.member, request_id, |_| Err(error.clone())).await
    }

    /// Returns the transaction with who asks for it.
    fn signed(&self, view: &Tables, transaction: Transaction) -> Transaction {
        caller::signed(view, transaction, self.caller.actor(), &self.caller.method)
    }

    /// Returns the result of `look` on what the caller sees of the store; see [`write::read`].
    async fn read<T>(&self, look: impl Fn(&View) -> Result<T, ControlError>) -> Result<T, ControlError> {
        write::read(&self.store, &self.member, |view| look(&self.seen(Arc::clone(view)))).await
    }

    /// Returns the object that a request has just changed: by its id, or by the reference if the request is a retry of
    /// one that was carried out before.
    async fn changed<T: Referable>(&self, reference: &str, id: Option<&str>) -> Result<Arc<T>, ControlError> {
        let removed = || ControlError::RemovedMeanwhile { kind: T::KIND, reference: reference.to_owned() };
        let look = |view: &View| match id {
            Some(id) => view.get::<T>(id).cloned().ok_or_else(removed),
            None => resolve(view, reference).cloned().map_err(|_| removed()),
        };
        self.read(look).await
    }
}
