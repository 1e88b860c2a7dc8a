//! Networks: what users ask for, and what the allocator has given to them, to services, tasks and nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::text_or_empty;
use crate::id::{NetworkId, StackId};
use crate::resources::number_or_zero;
use crate::state::states;
use crate::version::Meta;

/// Name of the network that carries requests for published ports from node to node. Every node has an address in it.
pub const INGRESS: &str = "ingress";

states! {
    /// How the tasks of a network reach each other.
    NetworkDriver {
        /// Over VXLAN, from node to node.
        Overlay = "overlay",
        /// Over a bridge, on one node.
        Bridge = "bridge",
        /// As machines of the node's own network.
        Macvlan = "macvlan",
        /// Tasks share the network of their node and have no addresses of their own.
        Host = "host",
        /// Tasks have loopback only.
        None = "none",
    }
}

states! {
    /// The transport protocol of a published port.
    Protocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

states! {
    /// Which nodes answer on a published port.
    PublishMode {
        /// Every node; it forwards requests to a task on any node.
        Ingress = "ingress",
        /// The nodes that run a task, each for its own task.
        Host = "host",
    }
}

states! {
    /// The kind of address to which the name of a service resolves.
    EndpointMode {
        /// Its virtual IP, from which connections are spread over its tasks.
        Vip = "vip",
        /// The addresses of its tasks.
        Dnsrr = "dnsrr",
    }
}

impl NetworkDriver {
    /// Returns whether tasks have addresses in networks of this driver.
    pub fn has_addresses(self) -> bool {
        !matches!(self, Self::Host | Self::None)
    }
}

/// A subnet that a user asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubnetSpec {
    /// All of its addresses.
    pub prefix: IpNet,
    /// Address of the gateway; the first one if `None`.
    #[serde(serialize_with = "text_or_empty")]
    pub gateway: Option<IpAddr>,
    /// The part from which addresses are given; the whole subnet if `None`.
    #[serde(serialize_with = "text_or_empty")]
    pub range: Option<IpNet>,
    /// Addresses that are never given, by a name that says what has them.
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// The network that a user wants. The system never changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// Name, unique in the cluster.
    pub name: String,
    /// Labels, for people and tools.
    pub labels: BTreeMap<String, String>,
    /// How its tasks reach each other.
    pub driver: NetworkDriver,
    /// Its subnets; those of an address family without any come from the cluster's pools.
    pub subnets: Vec<SubnetSpec>,
    /// Whether tasks also have IPv6 addresses.
    pub ipv6: bool,
    /// Whether tasks can't reach anything outside of the network.
    pub internal: bool,
    /// Whether other containers than those of services may join it.
    pub attachable: bool,
    /// Whether its packets are encrypted between nodes.
    pub encrypted: bool,
    /// Largest packet in bytes; what the path between the nodes carries if `None`.
    #[serde(serialize_with = "number_or_zero")]
    pub mtu: Option<u32>,
    /// Interface of the node that a `macvlan` network belongs to.
    #[serde(serialize_with = "text_or_empty")]
    pub parent: Option<String>,
}

impl Default for NetworkSpec {
    /// An overlay network.
    fn default() -> Self {
        Self {
            name: String::new(),
            labels: BTreeMap::new(),
            driver: NetworkDriver::Overlay,
            subnets: Vec::new(),
            ipv6: false,
            internal: false,
            attachable: false,
            encrypted: false,
            mtu: None,
            parent: None,
        }
    }
}

/// A subnet that a network has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// All of its addresses.
    pub prefix: IpNet,
    /// Address of the gateway, the same on every node.
    pub gateway: IpAddr,
    /// The part from which virtual IPs are given. No task has an address in it, and tasks route it to the gateway.
    pub virtual_range: IpNet,
}

/// The addresses that were given last, one for each address family. The next search begins behind them, so that an
/// address that was given back is not given again at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastGiven {
    /// To tasks and nodes.
    pub tasks: Vec<IpAddr>,
    /// To services, as virtual IPs.
    pub services: Vec<IpAddr>,
    /// The published port that was chosen last, kept by the network `ingress`.
    #[serde(serialize_with = "number_or_zero")]
    pub port: Option<u16>,
}

/// A network as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Identifier of the network.
    pub id: NetworkId,
    /// Times and version.
    pub meta: Meta,
    /// The spec that the user set.
    pub spec: Arc<NetworkSpec>,
    /// The VXLAN network identifier of an overlay network.
    #[serde(serialize_with = "number_or_zero")]
    pub vni: Option<u32>,
    /// Its subnets, in the order in which they are used.
    pub subnets: Vec<Subnet>,
    /// The addresses that were given last.
    pub last_given: LastGiven,
    /// The stack that it belongs to, if any.
    #[serde(serialize_with = "text_or_empty")]
    pub stack_id: Option<StackId>,
}

impl Network {
    /// Returns whether it is the network of published ports.
    pub fn is_ingress(&self) -> bool {
        self.spec.name == INGRESS
    }
}

/// Addresses from which subnets of a certain size are given to networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressPool {
    /// All of its addresses.
    pub prefix: IpNet,
    /// Length of the prefixes of its subnets.
    pub subnet_length: u8,
    /// The subnet that was given last. The next search begins behind it.
    #[serde(serialize_with = "text_or_empty")]
    pub last: Option<IpNet>,
}

/// The addresses that a task or a node has in one network, one for each address family of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The network.
    pub network: NetworkId,
    /// The addresses; none if the driver gives no addresses.
    pub addresses: Vec<IpAddr>,
}

/// The virtual IPs of a service in one network, one for each address family of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIp {
    /// The network.
    pub network: NetworkId,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

/// A network that the tasks of a service join.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAttachment {
    /// The network. In a request and in a stack file it may also be the network's name.
    pub network: NetworkId,
    /// Further names of the service in this network.
    pub aliases: Vec<String>,
}

/// A port of the tasks of a service that is reached from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedPort {
    /// The port on which the program of a task listens.
    pub target: u16,
    /// The port on nodes; the allocator chooses one if `None`.
    #[serde(serialize_with = "number_or_zero")]
    pub published: Option<u16>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The nodes that answer.
    pub mode: PublishMode,
}

/// A port of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

impl Serialize for NodePort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How the programs of a task resolve names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsConfig {
    /// Servers that are asked for names outside of the cluster; those of the node if empty.
    pub servers: Vec<IpAddr>,
    /// Domains in which short names are searched; those of the node if empty.
    pub search: Vec<String>,
    /// Options of the resolver, see resolv.conf(5).
    pub options: Vec<String>,
}

/// A line of a task's `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEntry {
    /// The host name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}
