//! The peer of a connection, and the methods that it may call.

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
    /// A caller without a certificate, which may only request one.
    Anonymous {
        /// Its address.
        address: SocketAddr,
    },
}

impl Peer {
    /// Returns the node's id, if the peer is a node.
    pub fn node_id(&self) -> Option<&NodeId> {
        match self {
            Self::Node { id, .. } => Some(id),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Callers {
    Local,
    LocalAndManagers,
    Managers,
    Nodes,
    Everyone,
}

/// The one table of which callers may call which methods; the first matching prefix counts. No caller may use a method
/// that is not in it.
const TABLE: [(&str, Callers); 11] = [
    ("/flota.node.LocalNode/", Callers::Local),
    ("/flota.control.Control/", Callers::LocalAndManagers),
    ("/flota.raft.RaftTransport/", Callers::Managers),
    ("/flota.ca.NodeCa/IssueCertificate", Callers::Everyone),
    // The request shows by a signature who sends it, since the certificate may have expired.
    ("/flota.ca.NodeCa/RenewCertificate", Callers::Everyone),
    ("/flota.ca.NodeCa/ConfirmTrust", Callers::Nodes),
    ("/flota.ca.NodeCa/JoinRaft", Callers::Managers),
    ("/flota.ca.NodeCa/LeaveRaft", Callers::Nodes),
    ("/flota.dispatcher.Dispatcher/", Callers::Nodes),
    ("/flota.streams.Streams/", Callers::Nodes),
    ("/flota.images.ImageStore/", Callers::Nodes),
];

/// Whether `peer` may call the gRPC method at `path`.
pub fn may_call(peer: &Peer, path: &str) -> bool {
    let callers = TABLE.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, callers)| *callers);
    let manager = matches!(peer, Peer::Node { role: Role::Manager, .. });
    match callers {
        Some(Callers::Everyone) => true,
        Some(Callers::Local) => *peer == Peer::Local,
        Some(Callers::LocalAndManagers) => *peer == Peer::Local || manager,
        Some(Callers::Managers) => manager,
        Some(Callers::Nodes) => matches!(peer, Peer::Node { .. }),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_may_call_its_methods_and_no_others() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let worker = Peer::Node { id: "w".into(), role: Role::Worker, address, key: String::new() };
        let manager = Peer::Node { id: "m".into(), role: Role::Manager, address, key: String::new() };
        let anonymous = Peer::Anonymous { address };
        let expected = |path| [&Peer::Local, &manager, &worker, &anonymous].map(|peer| may_call(peer, path));
        assert_eq!(expected("/flota.node.LocalNode/Init"), [true, false, false, false]);
        assert_eq!(expected("/flota.control.Control/ListNodes"), [true, true, false, false]);
        assert_eq!(expected("/flota.raft.RaftTransport/Vote"), [false, true, false, false]);
        assert_eq!(expected("/flota.dispatcher.Dispatcher/Session"), [false, true, true, false]);
        assert_eq!(expected("/flota.ca.NodeCa/IssueCertificate"), [true, true, true, true]);
        assert_eq!(expected("/flota.ca.NodeCa/RenewCertificate"), [true, true, true, true]);
        assert_eq!(expected("/flota.ca.NodeCa/ConfirmTrust"), [false, true, true, false]);
        assert_eq!(expected("/flota.ca.NodeCa/JoinRaft"), [false, true, false, false]);
        assert_eq!(expected("/grpc.health.v1.Health/Check"), [false; 4]);
    }
}
