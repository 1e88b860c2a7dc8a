//! The leader's messages to a node about the networks that it has: their settings, the services and endpoints in them,
//! and the addresses of other nodes. `convert/endpoints.rs` converts the session's messages to these types.

use std::net::IpAddr;

use super::network::{NetworkDriver, PublishedPort, Subnet};
use super::tunnel::TunnelKey;
use crate::id::{NetworkId, NodeId, ServiceId, TaskId};
use crate::version::Version;

/// The settings of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Identifies the network.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// How its tasks reach each other.
    pub driver: NetworkDriver,
    /// The VXLAN network identifier of an overlay network.
    pub vni: Option<u32>,
    /// Largest packet in bytes; what the path between the nodes carries if `None`.
    pub mtu: Option<u32>,
    /// Whether tasks can't reach anything outside of the network.
    pub internal: bool,
    /// Interface of the node that a `macvlan` network belongs to.
    pub parent: Option<String>,
    /// Whether its packets are encrypted between nodes.
    pub encrypted: bool,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
}

/// A service in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkService {
    /// The network.
    pub network: NetworkId,
    /// The service.
    pub service: ServiceId,
    /// Its name.
    pub name: String,
    /// Its further names in this network.
    pub aliases: Vec<String>,
    /// Its virtual IPs in this network; none if its name resolves to the addresses of its tasks.
    pub virtual_ips: Vec<IpAddr>,
    /// The ports on which every node answers, all with a published port; only in the network `ingress`.
    pub ports: Vec<PublishedPort>,
}

/// A task in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The network.
    pub network: NetworkId,
    /// The task.
    pub task: TaskId,
    /// The service that the task belongs to.
    pub service: ServiceId,
    /// Name of the task, such as `web.1`.
    pub name: String,
    /// Its addresses in this network.
    pub addresses: Vec<IpAddr>,
    /// The node that runs it.
    pub node: NodeId,
    /// The address of that node's overlay traffic.
    pub vtep: Option<IpAddr>,
    /// Whether connections are sent to it. If not, it can still be reached by its address.
    pub serving: bool,
    /// Whether that node is down, so that connections to the task end. It may live and come back: packets still reach it.
    pub lost: bool,
    /// The keys of that node, oldest first; only in an encrypted network.
    pub tunnel_keys: Vec<TunnelKey>,
}

/// The addresses of a node in a network; only in the network `ingress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNode {
    /// The network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// Its addresses in this network.
    pub addresses: Vec<IpAddr>,
    /// The address of its overlay traffic.
    pub vtep: Option<IpAddr>,
}

/// A change of the networks that a node has. A network that is removed takes its services, endpoints and nodes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkUpdate {
    /// The version of the store that the node has programmed when it has programmed this update and all earlier ones.
    pub version: Version,
    /// Whether this is everything that the node has to know, and what it knew before is void.
    pub full: bool,
    /// Networks that are new or have changed.
    pub networks: Vec<NetworkConfig>,
    /// Networks that are no longer needed on this node.
    pub removed_networks: Vec<NetworkId>,
    /// Services that are new or have changed.
    pub services: Vec<NetworkService>,
    /// Services that a network no longer has.
    pub removed_services: Vec<(NetworkId, ServiceId)>,
    /// Endpoints that are new or have changed.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that a network no longer has.
    pub removed_endpoints: Vec<(NetworkId, TaskId)>,
    /// Nodes that are new or have changed.
    pub nodes: Vec<NetworkNode>,
    /// Nodes that a network no longer has.
    pub removed_nodes: Vec<(NetworkId, NodeId)>,
    /// Whether more parts of this update follow. It is carried out, and confirmed, when the last has arrived.
    pub more: bool,
}
