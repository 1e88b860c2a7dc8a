//! Checks of networks: what a node reports of its part of a network, and of the ways from there to other nodes.

use std::time::Duration;

use super::node::Balancer;
use crate::id::{NetworkId, NodeId};
use crate::state::states;

states! {
    /// The part of a network at which a probe fails.
    NetworkLayer {
        /// Packets between the nodes themselves.
        Underlay = "underlay",
        /// Packets between tasks, which the nodes carry to each other.
        Vxlan = "vxlan",
        /// Packets of the size that the interfaces of tasks send.
        Mtu = "mtu",
        /// Names of tasks.
        Dns = "dns",
        /// Connections to virtual IPs.
        Balancer = "balancer",
    }
}

/// A request for a report on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkCheck {
    /// The network.
    pub network: NetworkId,
    /// Whether to probe the ways to other nodes, which takes seconds if something is wrong.
    pub probe: bool,
}

/// What a node reports of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkReport {
    /// The virtual IPs of the network.
    pub balancer: BalancerReport,
    /// The ways to other nodes; empty without probes.
    pub peers: Vec<PeerReport>,
    /// Number of other nodes that were not probed, because they are too many.
    pub unprobed: u32,
}

/// What a node's balancer has of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalancerReport {
    /// What spreads the connections.
    pub kind: Option<Balancer>,
    /// Number of virtual IPs.
    pub virtual_ips: u32,
    /// Number of their backends.
    pub backends: u32,
    /// How the backends differ from those that the leader has told; the first few.
    pub differences: Vec<String>,
}

/// The way from a node to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// The other node.
    pub node: NodeId,
    /// How long a packet takes from a task to one there and back, if it comes back.
    pub round_trip: Option<Duration>,
    /// What fails.
    pub failures: Vec<LayerFailure>,
}

/// The failure of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFailure {
    /// The layer.
    pub layer: NetworkLayer,
    /// What was tried, and how it failed.
    pub why: String,
}
