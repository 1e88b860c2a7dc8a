//! The peer of a connection.

use std::net::SocketAddr;

use flota_api::id::NodeId;
use flota_api::model::Role;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// This machine's root user, connected to the local socket.
    Local,
    /// A node of this cluster, identified by its certificate.
    Node {
        /// Id of the node.
        id: NodeId,
        /// Role of the node.
        role: Role,
        /// Its address.
        address: SocketAddr,
        /// The key of its certificate: SHA-256 in hexadecimal digits.
        key: String,
    },
    /// A user, identified by the certificate. The store says what it may do.
    User {
        /// Name of the user.
        name: String,
        /// The key of its certificate: SHA-256 in hexadecimal digits.
        key: String,
        /// Its address.
        address: SocketAddr,
    },
    /// A caller without a certificate, which may only request one.
    Anonymous {
        /// Its address.
        address: SocketAddr,
    },
}

/// The role that the certificate of a calling node has. The role of the [`Peer`] is that which the store gives the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertifiedRole(pub Role);

impl Peer {
    /// Returns the node's id, if the peer is a node.
    pub fn node_id(&self) -> Option<&NodeId> {
        match self {
            Self::Node { id, .. } => Some(id),
            _ => None,
        }
    }
}
