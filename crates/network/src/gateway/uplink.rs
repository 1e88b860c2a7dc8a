//! The way out of a network: a veth pair between its namespace and the host's.
//!
//! Both ends of every pair have the same addresses and MAC addresses, which mean something only on the pair. The host
//! routes the network's subnets to the pair, and the network everything else. The host's address is also the source of
//! what the host itself sends to the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use ipnet::IpNet;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute};

use crate::bridge::BRIDGE;
use crate::error::NetworkError;
use crate::links::{describe, veth};
use crate::mac::Mac;
use crate::namespace::Namespace;
use crate::netlink::Connection;
use crate::nftables::expression::IpVersion;
use crate::routes::{Route, Way};

/// The beginning of the names of the host's ends.
pub const INTERFACE_PREFIX: &str = "flota-";
/// The name of the network's end.
const INSIDE: &str = "up0";

const HOST_MAC: Mac = Mac([0x02, 0x46, 0, 0, 0, 1]);
const NETWORK_MAC: Mac = Mac([0x02, 0x46, 0, 0, 0, 2]);

/// A network's way out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Uplink {
    /// The network's namespace, which has its bridge and forwards packets.
    pub network: Namespace,
    /// The prefixes of its subnets. No other network of the host has them.
    pub subnets: Vec<IpNet>,
}

/// Returns the host's address on every pair.
pub(crate) fn host_address(ip: IpVersion) -> IpAddr {
    match ip {
        IpVersion::V4 => Ipv4Addr::new(169, 254, 70, 1).into(),
        IpVersion::V6 => Ipv6Addr::new(0xfd46, 0x6c6f, 0x7461, 0, 0, 0, 0, 1).into(),
    }
}

fn network_address(ip: IpVersion) -> IpAddr {
    match ip {
        IpVersion::V4 => Ipv4Addr::new(169, 254, 70, 2).into(),
        IpVersion::V6 => Ipv6Addr::new(0xfd46, 0x6c6f, 0x7461, 0, 0, 0, 0, 2).into(),
    }
}

/// Returns the name of the host's end.
pub(super) fn interface(name: &str) -> String {
    format!("{INTERFACE_PREFIX}{name}")
}

impl Uplink {
    /// Makes the pair, or what is missing of it. `host` is a connection in the namespace `host_namespace`.
    pub(super) fn ensure(
        &self,
        name: &str,
        host: &mut Connection,
        host_namespace: &Namespace,
    ) -> Result<(), NetworkError> {
        let interface = interface(name);
        let mut network = Connection::open(&self.network)?;
        let mtu = network.existing(BRIDGE)?.mtu;
        self.connect(&interface, host, &mut network, mtu)?;
        let outer = host.existing(&interface)?;
        let inner = network.existing(INSIDE)?;
        for (connection, link) in [(&mut *host, &outer), (&mut network, &inner)] {
            if link.mtu != mtu || !link.up {
                // Without a link-local IPv6 address: the pair has addresses of its own. A new link takes no such setting.
                let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
                let mode = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
                let change = describe(link.index, true, vec![LinkAttribute::Mtu(mtu), mode]);
                connection.set_link(format_args!("set up {}", link.name), change)?;
            }
        }
        let versions: Vec<_> = IpVersion::ALL.into_iter().filter(|ip| self.has(*ip)).collect();
        if self.has(IpVersion::V6) {
            // The owner of the machine may have switched IPv6 off for new interfaces.
            host_namespace.set(&[(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")])?;
        }
        let addresses = versions.iter().map(|ip| IpNet::from(host_address(*ip))).collect::<Vec<_>>();
        host.set_addresses(outer.index, &addresses)?;
        for ip in versions {
            host.set_neighbour(outer.index, network_address(ip), NETWORK_MAC)?;
            network.set_neighbour(inner.index, host_address(ip), HOST_MAC)?;
        }
        host.set_routes(outer.index, &self.routes_of_host(outer.index))?;
        network.set_routes(inner.index, &self.routes_of_network(inner.index))?;
        // A published port on 127.0.0.1 leads to the network, and its replies come from there.
        let parameter = format!("net/ipv4/conf/{interface}/route_localnet");
        host_namespace.set(&[(&parameter, "1")]).map(drop)
    }

    fn connect(
        &self,
        interface: &str,
        host: &mut Connection,
        network: &mut Connection,
        mtu: u32,
    ) -> Result<(), NetworkError> {
        let (outer, inner) = (host.link(interface)?, network.link(INSIDE)?);
        let connected = match (&outer, &inner) {
            (Some(outer), Some(inner)) => {
                outer.kind == Some(InfoKind::Veth)
                    && outer.peer == Some(inner.index)
                    && inner.peer == Some(outer.index)
                    && (outer.mac, inner.mac) == (Some(HOST_MAC), Some(NETWORK_MAC))
            }
            _ => false,
        };
        if connected {
            return Ok(());
        }
        host.remove_link(interface)?;
        network.remove_link(INSIDE)?;
        let target = self.network.open()?;
        let end = |name: &str, mac: Mac| {
            let (name, mac) = (LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(mac.0.to_vec()));
            vec![name, mac, LinkAttribute::Mtu(mtu)]
        };
        let mut inner = end(INSIDE, NETWORK_MAC);
        inner.push(LinkAttribute::NetNsFd(target.as_raw_fd()));
        let mut outer = end(interface, HOST_MAC);
        // The kernel brings neither end up before both are there (ENOTCONN); the inner one comes up afterwards.
        outer.push(veth(describe(0, false, inner)));
        host.add_link(format_args!("add the uplink {interface}"), describe(0, false, outer))
    }

    fn has(&self, ip: IpVersion) -> bool {
        self.subnets.iter().any(|subnet| IpVersion::of(subnet.addr()) == ip)
    }

    fn routes_of_host(&self, link: u32) -> Vec<Route> {
        let to = |subnet: &IpNet| {
            let way = Way::Gateway(network_address(IpVersion::of(subnet.addr())));
            Route { destination: subnet.trunc(), link, way }
        };
        // Replies to ::1 come from the network, and the kernel takes packets to that address only by a route of the
        // interface on which they arrive (`rt6_need_strict` in net/ipv6/route.c). Nobody else can send them: those
        // whose destination is ::1 on the wire are dropped before.
        let loopback = Route { destination: IpAddr::from(Ipv6Addr::LOCALHOST).into(), link, way: Way::Own };
        self.subnets.iter().map(to).chain(self.has(IpVersion::V6).then_some(loopback)).collect()
    }

    fn routes_of_network(&self, link: u32) -> Vec<Route> {
        let versions = IpVersion::ALL.into_iter().filter(|ip| self.has(*ip));
        versions.map(|ip| Route { destination: ip.everything(), link, way: Way::Gateway(host_address(ip)) }).collect()
    }
}

/// Removes the uplinks that are not in `wanted`, which earlier processes have left.
pub(super) fn remove_others<'a>(
    host: &mut Connection,
    wanted: impl Iterator<Item = &'a String>,
) -> Result<(), NetworkError> {
    let wanted: Vec<_> = wanted.map(|name| interface(name)).collect();
    for link in host.links()? {
        if link.name.starts_with(INTERFACE_PREFIX) && !wanted.contains(&link.name) {
            host.remove_link(&link.name)?;
        }
    }
    Ok(())
}
