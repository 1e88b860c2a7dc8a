//! This manager's replica of the store, with its part in Raft: the core that every other part of the manager stands on.
//!
//! It offers a view of the tables ([`Replica::proven_view`], [`Replica::read`]), writes that are planned against a fresh
//! view and committed through Raft ([`Replica::write`] and its variants), and who leads. It knows nothing of the parts
//! above it: control API, dispatcher, CA, control loops.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::Random;
use flota_raft_store::raft::{Leadership, RaftNode};
use flota_raft_store::{ProposeError, Proposer, Store, Transaction, View};

use crate::term_clock::TermClock;
use crate::write::{self, Consensus};

/// A manager's copy of the store and its part in Raft. Clones are the same replica.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// The tables, as far as this manager has applied the log.
    pub(crate) store: Store,
    /// This manager's part in Raft.
    pub(crate) raft: RaftNode,
    /// The clock that stamps entries, and that planners decide by.
    pub(crate) clock: TermClock,
    /// The source of new ids and secrets.
    pub(crate) random: Random,
    /// The scope of this manager's leadership; `None` while it does not lead.
    pub(crate) leading: watch::Receiver<Option<CancellationToken>>,
}

impl Replica {
    /// Returns whether this manager leads and has taken up its work.
    pub(crate) fn leads(&self) -> bool {
        self.leading.borrow().is_some()
    }

    /// Returns a token that is cancelled when this manager's leadership ends; `None` while it does not lead.
    pub(crate) fn leader_scope(&self) -> Option<CancellationToken> {
        self.leading.borrow().clone()
    }

    /// Returns who leads, as Raft knows it.
    pub(crate) fn leadership(&self) -> Leadership {
        self.raft.leadership().borrow().clone()
    }

    /// Returns `host:port` of the leader; `None` while there is none.
    pub(crate) fn leader_address(&self) -> Option<String> {
        let leader = self.leadership().leader?;
        self.raft.members().into_iter().find(|member| member.id == leader).map(|member| member.address)
    }

    /// Commits what `plan` makes of the store; see [`write::write`].
    ///
    /// # Errors
    /// The error of `plan`, confirmed behind a read barrier, or why the change can't be committed.
    pub(crate) async fn write<T, E: From<ProposeError>>(
        &self,
        plan: impl FnMut(View) -> Result<(Transaction, T), E>,
    ) -> Result<T, E> {
        write::write(&self.store, &self.raft, plan).await
    }

    /// Commits the user's request with this id; see [`write::write_once`]. Returns `None` if it was done before.
    ///
    /// # Errors
    /// As [`Replica::write`].
    pub(crate) async fn write_once<T, E: From<ProposeError>>(
        &self,
        request_id: &str,
        plan: impl FnMut(View) -> Result<(Transaction, T), E>,
    ) -> Result<Option<T>, E> {
        write::write_once(&self.store, &self.raft, request_id, plan).await
    }

    /// Commits what `plan` makes of the store, if it makes anything; see [`write::write_if_needed`].
    ///
    /// # Errors
    /// Why the change can't be committed.
    pub(crate) async fn write_if_needed<T>(
        &self,
        plan: impl FnMut(View) -> Option<(Transaction, T)>,
    ) -> Result<Option<T>, ProposeError> {
        write::write_if_needed(&self.store, &self.raft, plan).await
    }

    /// Returns what `look` finds in the store; see [`write::read`].
    ///
    /// # Errors
    /// The error of `look`, confirmed behind a read barrier, or that this manager can't prove that it leads.
    pub(crate) async fn read<T, E: From<ProposeError>>(&self, look: impl Fn(&View) -> Result<T, E>) -> Result<T, E> {
        write::read(&self.store, &self.raft, look).await
    }

    /// Returns a view that shows everything that was acknowledged before the call.
    ///
    /// # Errors
    /// This manager does not lead, or no quorum answered in time.
    pub(crate) async fn proven_view(&self) -> Result<View, ProposeError> {
        Consensus::read_barrier(&self.raft).await?;
        Ok(self.store.view())
    }

    /// Returns this replica as the seam that control loops propose through.
    pub(crate) fn proposer(&self) -> Arc<dyn Proposer> {
        Arc::new(self.raft.clone())
    }
}
