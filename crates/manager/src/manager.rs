//! One manager: its store, its part in Raft, and what it serves.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::Random;
use flota_api::id::NodeId;
use flota_api::image_ref::ImageRef;
use flota_identity::Dialer;
use flota_raft_store::raft::{Dial, Leadership, RaftNode};
use flota_raft_store::{ProposeError, Proposer, Store, Transaction, View};

use crate::dispatcher::{Liveness, Sessions};
use crate::streams::Pending;
use crate::term_clock::TermClock;
use crate::{leader, write};

/// Raft's connections, made with the node's own certificate and to managers only.
#[derive(Clone, Debug)]
pub struct RaftDial(pub Dialer);

impl Dial for RaftDial {
    fn dial(&self, address: &str) -> tonic::transport::Channel {
        self.0.raft(address)
    }
}

/// What a manager is started with.
#[derive(Debug)]
pub struct ManagerOptions {
    /// This node.
    pub node_id: NodeId,
    /// What all managers agree on.
    pub store: Store,
    /// How they agree.
    pub raft: RaftNode,
    /// Opens connections to the other managers.
    pub dialer: Dialer,
    /// Tells the time; the Raft node's entries are to be stamped with the same clock ([`TermClock::as_clock`]).
    pub clock: TermClock,
    /// For new ids and secrets.
    pub random: Random,
}

/// A manager's parts; cheap to clone, every clone is the same manager.
#[derive(Clone, Debug)]
pub struct Manager {
    /// This node.
    pub node_id: NodeId,
    /// What all managers agree on.
    pub store: Store,
    /// How they agree.
    pub raft: RaftNode,
    pub(crate) dialer: Dialer,
    pub(crate) clock: TermClock,
    pub(crate) random: Random,
    pub(crate) sessions: Sessions,
    pub(crate) liveness: Liveness,
    pub(crate) pending: Pending,
    /// Ends with this manager's leadership; `None` while it doesn't lead.
    pub(crate) leading: watch::Receiver<Option<CancellationToken>>,
}

impl Manager {
    /// Starts to follow leadership; runs until `shutdown`. Cancels `fatal` when the Raft core has stopped by itself.
    pub fn start(options: ManagerOptions, shutdown: CancellationToken, fatal: CancellationToken) -> Self {
        let ManagerOptions { node_id, store, raft, dialer, clock, random } = options;
        let (sender, leading) = watch::channel(None);
        let manager = Self {
            node_id,
            store,
            raft,
            dialer,
            clock,
            random,
            sessions: Sessions::default(),
            liveness: Liveness::default(),
            pending: Pending::default(),
            leading,
        };
        tokio::spawn(leader::follow(manager.clone(), sender, shutdown, fatal));
        manager
    }

    /// Whether this manager leads and has taken up its work.
    pub fn leads(&self) -> bool {
        self.leading.borrow().is_some()
    }

    /// Who leads, as Raft has it.
    pub fn leadership(&self) -> Leadership {
        self.raft.leadership().borrow().clone()
    }

    /// `host:port` of the leader; `None` while there is none.
    pub fn leader_address(&self) -> Option<String> {
        let leader = self.leadership().leader?;
        self.raft.members().into_iter().find(|member| member.id == leader).map(|member| member.address)
    }

    /// User name and password for the registry of this image, where somebody has logged in there. Only for this machine's
    /// own root, who can read the store anyway.
    pub fn credentials(&self, reference: &str) -> Option<(String, String)> {
        let reference = ImageRef::parse(reference).ok()?;
        let view = self.store.view();
        let registry = view.registry_by_host(&reference.registry)?;
        Some((registry.username.clone(), registry.password.as_text().to_owned()))
    }

    /// Whether this node was removed from the cluster: its certificate is still good by itself.
    pub fn revoked(&self, node: &NodeId) -> bool {
        self.store.view().cluster().is_some_and(|cluster| cluster.revoked.iter().any(|it| it.node_id == *node))
    }

    /// Writes what `plan` makes of the store; see [`write::write`].
    ///
    /// # Errors
    /// What `plan` says, proved by a read barrier, or why it can't be committed.
    pub(crate) async fn write<T, E: From<ProposeError>>(
        &self,
        plan: impl FnMut(View) -> Result<(Transaction, T), E>,
    ) -> Result<T, E> {
        write::write(&self.store, &self.raft, plan).await
    }

    /// Writes for the user's request with this id; see [`write::write_once`]. `None`: it was done before.
    ///
    /// # Errors
    /// As [`Manager::write`].
    pub(crate) async fn write_once<T, E: From<ProposeError>>(
        &self,
        request_id: &str,
        plan: impl FnMut(View) -> Result<(Transaction, T), E>,
    ) -> Result<Option<T>, E> {
        write::write_once(&self.store, &self.raft, request_id, plan).await
    }

    /// What `look` finds in the store; see [`write::read`].
    ///
    /// # Errors
    /// What `look` says, proved by a read barrier, or that this manager can't prove that it leads.
    pub(crate) async fn read<T, E: From<ProposeError>>(&self, look: impl Fn(&View) -> Result<T, E>) -> Result<T, E> {
        write::read(&self.store, &self.raft, look).await
    }

    /// A view that shows everything that was acknowledged before the call.
    ///
    /// # Errors
    /// This manager does not lead, or no quorum answered in time.
    pub(crate) async fn proven_view(&self) -> Result<View, ProposeError> {
        write::Consensus::read_barrier(&self.raft).await?;
        Ok(self.store.view())
    }

    /// This manager as the seam that the control loops see.
    pub(crate) fn proposer(&self) -> Arc<dyn Proposer> {
        Arc::new(self.raft.clone())
    }
}
