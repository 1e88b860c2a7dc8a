//! The description of a network on this machine.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::NetworkError;
use crate::mac::Mac;
use crate::namespace::Namespace;

/// The least MTU of IPv6 (RFC 8200 §5).
const IPV6_MTU: u32 = 1280;

/// The MTU of a network whose spec and kind say nothing else (Ethernet's).
const ETHERNET_MTU: u32 = 1500;

/// A network as this machine should have it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalNetworkSpec {
    /// The driver of the network.
    pub driver: Driver,
    /// Its subnets, at least one.
    pub subnets: Vec<Subnet>,
    /// Addresses in the network that belong to this machine alone, apart from the gateways. They are the source of what
    /// this machine sends into the network.
    pub own_addresses: Vec<IpAddr>,
    /// The largest packet, in bytes. `None` takes what the path allows: of an overlay that is the MTU of the link that has
    /// the underlay's local address, less the headers.
    pub mtu: Option<u32>,
    /// Whether the network's namespace forwards packets, to the outside or to another machine's part of the network.
    pub forwarding: bool,
}

/// A subnet of a network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subnet {
    /// The network prefix.
    pub prefix: IpNet,
    /// The address of the router. Of a bridged network that is this machine's bridge, as on every other machine.
    pub gateway: IpAddr,
    /// Virtual addresses. Interfaces route them to the gateway, which answers pings and refuses connections to them: what
    /// serves them has to take the packets before.
    pub virtual_range: Option<IpNet>,
}

/// The means by which a network connects its interfaces.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Driver {
    /// A bridge in a namespace of its own, connected to those of other machines by VXLAN (RFC 7348).
    Overlay(Underlay),
    /// A bridge in a namespace of its own.
    Bridge,
    /// Links that share the link `parent` of this machine, each with a MAC address of its own. They are in the network
    /// of that link, whose router is the gateway.
    Macvlan {
        /// Name of a link in the machine's namespace.
        parent: String,
    },
}

/// How an overlay reaches other machines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Underlay {
    /// The address of this machine that packets come from: a VXLAN tunnel endpoint (VTEP). With `::`, the route chooses
    /// an IPv6 address for each packet, and the network's MTU must be given.
    pub local: IpAddr,
    /// The UDP port, the same on every machine.
    pub port: u16,
    /// The number that tells the network from others, 24 bits.
    pub vni: u32,
}

impl Underlay {
    /// Bytes that the headers take from the MTU of the path: Ethernet 14, VXLAN 8, UDP 8, IPv4 20 or IPv6 40 bytes.
    pub(crate) fn overhead(&self) -> u32 {
        if self.local.is_ipv4() { 50 } else { 70 }
    }
}

/// An interface in a network. Its MAC address is [`Mac::of`] its addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// The namespace that gets the interface.
    pub namespace: Namespace,
    /// Name of the interface there.
    pub interface: String,
    /// Its addresses: at least one, each in a subnet of the network.
    pub addresses: Vec<IpAddr>,
    /// Whether the namespace's default routes lead through this interface.
    pub default_route: bool,
}

/// An interface on another machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remote {
    /// Its addresses, at least one. They tell its MAC address ([`Mac::of`]).
    pub addresses: Vec<IpAddr>,
    /// The underlay's address of its machine.
    pub vtep: IpAddr,
}

impl LocalNetworkSpec {
    /// Returns the MAC address of the bridge, which follows from the machine's own addresses, or else from the gateways.
    pub(crate) fn bridge_mac(&self) -> Result<Mac, NetworkError> {
        let gateways: Vec<_> = self.subnets.iter().map(|subnet| subnet.gateway).collect();
        let mac = Mac::of(&self.own_addresses).or_else(|| Mac::of(&gateways));
        mac.ok_or_else(|| NetworkError::NoAddress("the network".into()))
    }

    /// Returns the addresses of the bridge. The kernel takes the first one of a subnet as the source of packets.
    pub(crate) fn bridge_addresses(&self) -> Result<Vec<IpNet>, NetworkError> {
        let gateways = self.subnets.iter().map(|subnet| subnet.gateway);
        self.own_addresses.iter().copied().chain(gateways).map(|address| self.with_prefix(address)).collect()
    }

    /// Returns the address with the length of its subnet's prefix.
    pub(crate) fn with_prefix(&self, address: IpAddr) -> Result<IpNet, NetworkError> {
        let subnet = self.subnet_of(address).ok_or(NetworkError::ForeignAddress(address))?;
        IpNet::new(address, subnet.prefix.prefix_len()).map_err(|_| NetworkError::ForeignAddress(address))
    }

    pub(crate) fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.prefix.contains(&address))
    }

    /// Returns the smallest MTU with which the kernel gives its interfaces their addresses. What is too large for the path is
    /// then sent in fragments.
    pub(crate) fn least_mtu(&self) -> u32 {
        if self.subnets.iter().any(|it| it.prefix.addr().is_ipv6()) { IPV6_MTU } else { 0 }
    }

    /// Returns the MTU of a network whose path is not narrower than Ethernet's.
    pub(crate) fn plain_mtu(&self) -> u32 {
        self.mtu.unwrap_or(ETHERNET_MTU)
    }
}
