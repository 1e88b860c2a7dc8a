//! The VXLAN link of an overlay (RFC 7348): the port of its bridge that leads to other machines.
//!
//! The link is made in the machine's namespace, where its UDP socket stays, and is in the network's namespace from the
//! start. It sends only to stations that its table names, and nothing to all machines: frames for others are dropped.
//! ARP and neighbour solicitations for remote stations are answered by the bridge.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;

use netlink_packet_route::link::{InfoBridgePort, InfoData, InfoKind, InfoVxlan, LinkAttribute};

use crate::error::NetworkError;
use crate::links::{Link, describe, kind};
use crate::namespace::Namespace;
use crate::netlink::Connection;
use crate::spec::Underlay;

const VXLAN: &str = "vx0";

/// Returns the MTU of the path between machines, as far as this machine's link tells.
pub(crate) fn path_mtu(node: &mut Connection, local: IpAddr) -> Result<u32, NetworkError> {
    let link = node.link_with(local)?.ok_or(NetworkError::NoUnderlay(local))?;
    Ok(node.link_at(link)?.ok_or(NetworkError::NoUnderlay(local))?.mtu)
}

/// Makes the VXLAN link, a port of the bridge. Returns its index.
pub(crate) fn ensure(
    node: &mut Connection,
    inside: &mut Connection,
    namespace: &Namespace,
    bridge: u32,
    mtu: u32,
    underlay: &Underlay,
) -> Result<u32, NetworkError> {
    let wanted = settings(underlay);
    let found = inside.link(VXLAN)?;
    if !found.as_ref().is_some_and(|link| is_made_so(link, &wanted)) {
        inside.remove_link(VXLAN)?;
        let target = namespace.open()?;
        let attributes = vec![
            LinkAttribute::IfName(VXLAN.into()),
            LinkAttribute::NetNsFd(target.as_raw_fd()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::Mtu(mtu),
            kind(InfoKind::Vxlan, Some(InfoData::Vxlan(wanted))),
        ];
        node.add_link(format_args!("add the VXLAN link of network {}", underlay.vni), describe(0, true, attributes))?;
    }
    let link = inside.existing(VXLAN)?;
    if link.controller != Some(bridge) || link.mtu != mtu || !link.up {
        let attributes = vec![LinkAttribute::Controller(bridge), LinkAttribute::Mtu(mtu)];
        inside.set_link("set up the VXLAN link", describe(link.index, true, attributes))?;
    }
    let settings = [
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
        InfoBridgePort::NeighSupress(true),
        InfoBridgePort::Locked(true),
    ];
    inside.set_port(&link, &settings)?;
    Ok(link.index)
}

fn settings(underlay: &Underlay) -> Vec<InfoVxlan> {
    let local = match underlay.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    vec![
        InfoVxlan::Id(underlay.vni),
        InfoVxlan::Port(underlay.port),
        local,
        InfoVxlan::Learning(false),
        // RFC 7348, 5: the outer checksum should be zero over IPv4. Network cards that compute it wrongly do no harm then.
        InfoVxlan::UDPCsum(false),
    ]
}

fn is_made_so(link: &Link, wanted: &[InfoVxlan]) -> bool {
    // The kernel does not tell an address that is not set.
    let is_told = |setting: &&InfoVxlan| **setting != InfoVxlan::Local6(Ipv6Addr::UNSPECIFIED);
    let mut wanted = wanted.iter().filter(is_told);
    matches!(&link.data, Some(InfoData::Vxlan(found)) if wanted.all(|setting| found.contains(setting)))
}
