//! One manager: its store, its part in Raft, and what it serves.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::id::NodeId;
use flota_api::image_ref::ImageRef;
use flota_identity::Dialer;
use flota_raft_store::raft::{Dial, Leadership, RaftNode};
use flota_raft_store::{ProposeError, Proposer, Store, Transaction};

use crate::dispatcher::{Liveness, Sessions};
use crate::leader;
use crate::streams::Pending;

/// Raft's connections, made with the node's own certificate and to managers only.
#[derive(Clone, Debug)]
pub struct RaftDial(pub Dialer);

impl Dial for RaftDial {
    fn dial(&self, address: &str) -> tonic::transport::Channel {
        self.0.raft(address)
    }
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
    pub(crate) sessions: Sessions,
    pub(crate) liveness: Liveness,
    pub(crate) pending: Pending,
    /// Ends with this manager's leadership; `None` while it doesn't lead.
    pub(crate) leading: watch::Receiver<Option<CancellationToken>>,
}

impl Manager {
    /// Starts to follow leadership; runs until `shutdown`. Cancels `fatal` when the Raft core has stopped by itself.
    pub fn start(
        node_id: NodeId,
        store: Store,
        raft: RaftNode,
        dialer: Dialer,
        shutdown: CancellationToken,
        fatal: CancellationToken,
    ) -> Self {
        let (sender, leading) = watch::channel(None);
        let manager = Self {
            node_id,
            store,
            raft,
            dialer,
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

    /// Whether a user's request was done already, by this leader or one before: a retry must not be judged by what the
    /// first try has changed.
    pub(crate) fn done_before(&self, request_id: &str) -> bool {
        self.store.view().answered(request_id)
    }

    /// Proposes what `plan` makes of a fresh view, and again as long as only a concurrent change was in the way.
    ///
    /// # Errors
    /// What `plan` says, or why it can't be committed.
    pub(crate) async fn write<T, E: From<ProposeError>>(
        &self,
        mut plan: impl FnMut(flota_raft_store::View) -> Result<(Transaction, T), E>,
    ) -> Result<T, E> {
        /// Each loss means that another write won: more in a row is no accident.
        const TRIES: usize = 10;
        let mut last = ProposeError::Unknown;
        for _ in 0..TRIES {
            let (transaction, value) = plan(self.store.view())?;
            match self.raft.propose(transaction).await {
                Ok(_) => return Ok(value),
                Err(ProposeError::Conflict(conflict)) => last = ProposeError::Conflict(conflict),
                Err(other) => return Err(other.into()),
            }
        }
        Err(last.into())
    }

    /// This manager as the seam that the control loops see.
    pub(crate) fn proposer(&self) -> Arc<dyn Proposer> {
        Arc::new(self.raft.clone())
    }
}
