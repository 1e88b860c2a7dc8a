//! The bridge of a network, in a namespace of its own, and the ports that connect interfaces to it.
//!
//! The bridge learns nothing and floods no unicast frames: every station has an entry in its tables (`stations.rs`). A port
//! takes only frames whose source is a station at that port, so that no interface can pretend to be another.

use std::os::fd::AsRawFd;

use ipnet::IpNet;
use netlink_packet_route::link::{InfoBridge, InfoBridgePort, InfoData, InfoKind, LinkAttribute};

use crate::error::NetworkError;
use crate::links::{describe, kind, veth};
use crate::mac::Mac;
use crate::namespace::{Namespace, set_here};
use crate::netlink::Connection;
use crate::routes::{Route, Way};
use crate::spec::{Attachment, LocalNetworkSpec};

/// Name of the bridge in a network's namespace.
pub const BRIDGE: &str = "br0";
pub(crate) const LOOPBACK: &str = "lo";

/// Kernel parameters of a network's namespace. The ones of new links (`default`) come before the links.
const PARAMETERS: &[(&str, &str)] = &[
    // Frames between ports are none of the packet filter's business.
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
    // A virtual address is served by an address that the packet came for; replies may come from another link.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    // The other addresses of a subnet stay when the first one is removed.
    ("net/ipv4/conf/all/promote_secondaries", "1"),
    ("net/ipv4/conf/default/promote_secondaries", "1"),
    // The gateway has the same address on every machine, which duplicate detection would take for a conflict.
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    // Ports need no address, and the bridge's are given.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
];

/// Makes the network's namespace, if there is none, sets its kernel parameters and connects to it. Returns the parameters
/// that had another value.
pub(crate) fn open(namespace: &Namespace, spec: &LocalNetworkSpec) -> Result<(Connection, Vec<String>), NetworkError> {
    let forwarding = if spec.forwarding { "1" } else { "0" };
    // Switching it sets other parameters to their defaults, so it comes first.
    let forwarding = [("net/ipv4/ip_forward", forwarding), ("net/ipv6/conf/all/forwarding", forwarding)];
    let parameters = [&forwarding, PARAMETERS].concat();
    Namespace::make(namespace.path())?.enter(|| Ok((Connection::open_here()?, set_here(&parameters)?)))
}

/// Makes the bridge with its addresses and the routes of virtual addresses. Returns its index.
pub(crate) fn ensure(inside: &mut Connection, spec: &LocalNetworkSpec, mtu: u32) -> Result<u32, NetworkError> {
    let mac = spec.bridge_mac()?;
    let attributes = vec![LinkAttribute::Address(mac.0.to_vec()), LinkAttribute::Mtu(mtu)];
    let index = match inside.link(BRIDGE)? {
        Some(link) if link.kind == Some(InfoKind::Bridge) => {
            if link.mac != Some(mac) || link.mtu != mtu || !link.up {
                inside.set_link("set up the bridge", describe(link.index, true, attributes))?;
            }
            link.index
        }
        found => {
            if found.is_some() {
                inside.remove_link(BRIDGE)?;
            }
            let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
            let name = LinkAttribute::IfName(BRIDGE.into());
            let attributes = [attributes, vec![name, kind(InfoKind::Bridge, Some(data))]].concat();
            inside.add_link("add the bridge", describe(0, true, attributes))?;
            inside.existing(BRIDGE)?.index
        }
    };
    inside.set_addresses(index, &spec.bridge_addresses()?)?;
    let loopback = inside.existing(LOOPBACK)?;
    if !loopback.up {
        inside.bring_up(LOOPBACK)?;
    }
    let ranges = spec.subnets.iter().filter_map(|subnet| subnet.virtual_range);
    let own = |destination: IpNet| Route { destination: destination.trunc(), link: loopback.index, way: Way::Own };
    inside.set_routes(loopback.index, &ranges.map(own).collect::<Vec<_>>())?;
    Ok(index)
}

/// Connects an interface to the bridge. Returns the index of its port.
pub(crate) fn connect(
    inside: &mut Connection,
    bridge: u32,
    mtu: u32,
    outside: &mut Connection,
    attachment: &Attachment,
    mac: Mac,
) -> Result<u32, NetworkError> {
    let (name, interface) = (mac.port_name(), &attachment.interface);
    let (port, found) = (inside.link(&name)?, outside.link(interface)?);
    let connected = match (&port, &found) {
        (Some(port), Some(found)) => {
            port.kind == Some(InfoKind::Veth) && port.peer == Some(found.index) && found.peer == Some(port.index)
        }
        _ => false,
    };
    if !connected {
        inside.remove_link(&name)?;
        outside.remove_link(interface)?;
        let target = attachment.namespace.open()?;
        let peer = vec![
            LinkAttribute::IfName(interface.clone()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::NetNsFd(target.as_raw_fd()),
        ];
        // The kernel brings neither end up before both are there (ENOTCONN); the peer comes up when it is configured.
        let peer = veth(describe(0, false, peer));
        let name = LinkAttribute::IfName(name.clone());
        let port = vec![name, LinkAttribute::Controller(bridge), LinkAttribute::Mtu(mtu), peer];
        inside.add_link(format_args!("connect {interface}"), describe(0, true, port))?;
    }
    let port = inside.existing(&name)?;
    if port.controller != Some(bridge) || port.mtu != mtu || !port.up {
        let attributes = vec![LinkAttribute::Controller(bridge), LinkAttribute::Mtu(mtu)];
        inside.set_link(format_args!("set up the port of {interface}"), describe(port.index, true, attributes))?;
    }
    let settings = [InfoBridgePort::Learning(false), InfoBridgePort::UnicastFlood(false), InfoBridgePort::Locked(true)];
    inside.set_port(&port, &settings)?;
    Ok(port.index)
}
