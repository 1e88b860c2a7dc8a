//! This manager's replica of the store, with its part in Raft. Every other part of the manager builds on it.
//!
//! It offers the tables, writes that are planned against a fresh view and committed through Raft ([`Replica::write`],
//! [`Replica::write_if_needed`]), and the current leadership. It does not know the parts above it: control API,
//! dispatcher, CA, control loops.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::Random;
use flota_raft_store::raft::{Leadership, RaftNode};
use flota_raft_store::{ProposeError, Proposer, Store, Transaction, View};

use crate::term_clock::TermClock;
use crate::write;

/// A manager's copy of the store and its part in Raft. Clones are the same replica.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// The tables; they show every entry that this manager has applied.
    pub(crate) store: Store,
    /// This manager's part in Raft.
    pub(crate) raft: RaftNode,
    /// The clock that stamps entries and gives planners their time.
    pub(crate) clock: TermClock,
    /// The source of new ids and secrets.
    pub(crate) random: Random,
    /// The scope of this manager's leadership; `None` while it does not lead.
    pub(crate) leading: watch::Receiver<Option<CancellationToken>>,
}

impl Replica {
    /// Returns whether this manager leads and has started its work.
    pub(crate) fn leads(&self) -> bool {
        self.leading.borrow().is_some()
    }

    /// Returns a token that is cancelled when this manager's leadership ends; `None` while it does not lead.
    pub(crate) fn leader_scope(&self) -> Option<CancellationToken> {
        self.leading.borrow().clone()
    }

    /// Returns the current leadership as Raft knows it.
    pub(crate) fn leadership(&self) -> Leadership {
        self.raft.leadership().borrow().clone()
    }

    /// Returns `host:port` of the leader; `None` while no leader is known.
    pub(crate) fn leader_address(&self) -> Option<String> {
        let leader = self.leadership().leader?;
        self.raft.members().into_iter().find(|member| member.id == leader).map(|member| member.address)
    }

    /// Commits the transaction that `plan` builds over the store; see [`write::write`].
    ///
    /// # Errors
    /// The error of `plan`, confirmed after a read barrier, or why the change can't be committed.
    pub(crate) async fn write<T, E: From<ProposeError>>(
        &self,
        plan: impl FnMut(View) -> Result<(Transaction, T), E>,
    ) -> Result<T, E> {
        write::write(&self.store, &self.raft, plan).await
    }

    /// Commits the transaction that `plan` builds over the store, if there is one; see [`write::write_if_needed`].
    ///
    /// # Errors
    /// The change can't be committed; the error says why.
    pub(crate) async fn write_if_needed<T>(
        &self,
        plan: impl FnMut(View) -> Option<(Transaction, T)>,
    ) -> Result<Option<T>, ProposeError> {
        write::write_if_needed(&self.store, &self.raft, plan).await
    }

    /// Returns this replica as the interface through which control loops propose.
    pub(crate) fn proposer(&self) -> Arc<dyn Proposer> {
        Arc::new(self.raft.clone())
    }
}
