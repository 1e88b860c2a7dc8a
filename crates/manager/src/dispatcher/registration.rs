//! The first step of a session: writes the node's description to the store, and answers with the cluster's settings.

use std::net::SocketAddr;

use flota_api::id::NodeId;
use flota_api::model::{Node, NodeDescription, NodeState};
use flota_api::naming;
use flota_api::object::Kind;
use flota_api::proto::dispatcher::{Register, Registered};
use flota_identity::GrantKey;
use flota_raft_store::{ProposeError, WriteTx};

use super::image_report::with_holder;
use super::liveness::period;
use crate::replica::Replica;

/// Why a node can't be registered.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegisterError {
    /// The node was removed or has left. A leader has proved this.
    #[error("the cluster does not know this node")]
    NotMember,
    /// A field of the message breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The registration could not be committed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Registers the node, which makes it ready, with this description, address and images.
///
/// # Errors
/// The node is not a member, its message is invalid, or this manager can't commit.
pub(super) async fn register(
    replica: &Replica,
    node_id: &NodeId,
    register: Register,
) -> Result<Registered, RegisterError> {
    let description: NodeDescription = register.description.into();
    naming::check(&description.hostname).map_err(|error| RegisterError::Invalid(format!("hostname: {error}")))?;
    description.check_offers().map_err(RegisterError::Invalid)?;
    if !register.listen.is_empty() && register.listen.parse::<SocketAddr>().is_err() {
        return Err(RegisterError::Invalid("listen: it is no IP:PORT".into()));
    }
    let written = replica.write(|view| {
        let node = view.node(node_id.as_str()).ok_or(RegisterError::NotMember)?;
        if node.has_left() {
            return Err(RegisterError::NotMember);
        }
        let was_ready = node.state == NodeState::Ready;
        let new = Node {
            description: description.clone(),
            address: if register.listen.is_empty() { node.address.clone() } else { register.listen.clone() },
            state: NodeState::Ready,
            state_reason: None,
            state_since: if was_ready { node.state_since } else { replica.clock.now() },
            ..node.as_ref().clone()
        };
        let cluster = view.cluster().ok_or(RegisterError::NotMember)?;
        let key = GrantKey::from_der(&cluster.grant_key.0);
        let registered = Registered {
            heartbeat_ms: u64::try_from(period(view.count(Kind::Node)).as_millis()).unwrap_or(u64::MAX),
            grant_public_key: key.map(|key| key.public_key()).unwrap_or_default().into(),
            raft_id: node.raft_id.unwrap_or_default(),
            node_name: description.hostname.clone(),
        };
        let mut tx = WriteTx::new(view.clone(), "");
        // While disconnected, the node may have stored images that the store does not list for it.
        for image in view.images().filter(|image| register.images.contains(&image.digest)) {
            if let Some(image) = with_holder(image, node_id) {
                tx.update(image);
            }
        }
        if new != **node {
            tx.update(new);
        }
        Ok((tx.finish(), registered))
    });
    written.await
}
