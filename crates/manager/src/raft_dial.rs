//! Opens Raft's connections with the node's certificate. The daemon passes it to Raft's transport.

use flota_identity::Dialer;
use flota_raft_store::raft::Dial;

/// Opens Raft's connections with the node's own certificate, and only to managers.
#[derive(Clone, Debug)]
pub struct RaftDial(pub Dialer);

impl Dial for RaftDial {
    fn dial(&self, address: &str) -> tonic::transport::Channel {
        self.0.raft(address)
    }
}
