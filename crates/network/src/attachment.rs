//! The inside of an interface's namespace: the interface's addresses and routes.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::link::LinkAttribute;

use crate::bridge::LOOPBACK;
use crate::error::NetworkError;
use crate::links::describe;
use crate::mac::Mac;
use crate::namespace::set_here;
use crate::netlink::Connection;
use crate::routes::{Route, Way};
use crate::spec::{Attachment, LocalNetworkSpec};

/// Enters the namespace that gets the interface, and connects to it. Sets the kernel parameters of new links there before
/// the interface is made.
pub(crate) fn open(attachment: &Attachment) -> Result<Connection, NetworkError> {
    // Without an IPv6 address the interface has no link-local one either: it would make programs ask for IPv6 addresses.
    let link_local = if attachment.addresses.iter().any(IpAddr::is_ipv6) { "0" } else { "1" };
    let parameters = [
        // Addresses are given out by someone who knows all of them, and are usable at once.
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/dad_transmits", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/addr_gen_mode", link_local),
    ];
    attachment.namespace.enter(|| {
        set_here(&parameters)?;
        Connection::open_here()
    })
}

/// Gives the interface its MAC address, addresses and routes, and brings it and loopback up.
pub(crate) fn configure(
    outside: &mut Connection,
    spec: &LocalNetworkSpec,
    attachment: &Attachment,
    mac: Mac,
    mtu: Option<u32>,
) -> Result<(), NetworkError> {
    if !outside.existing(LOOPBACK)?.up {
        outside.bring_up(LOOPBACK)?;
    }
    let link = outside.existing(&attachment.interface)?;
    if link.mac != Some(mac) || mtu.is_some_and(|mtu| mtu != link.mtu) || !link.up {
        let mut attributes = vec![LinkAttribute::Address(mac.0.to_vec())];
        attributes.extend(mtu.map(LinkAttribute::Mtu));
        outside.set_link(format_args!("set up {}", attachment.interface), describe(link.index, true, attributes))?;
    }
    let addresses: Result<Vec<_>, _> = attachment.addresses.iter().map(|address| spec.with_prefix(*address)).collect();
    outside.set_addresses(link.index, &addresses?)?;
    outside.set_routes(link.index, &routes(spec, attachment, link.index))
}

/// Returns the routes of the interface that do not follow from its addresses: to the other subnets of the network, to
/// virtual addresses, and everywhere else.
fn routes(spec: &LocalNetworkSpec, attachment: &Attachment, link: u32) -> Vec<Route> {
    let mut routes = Vec::new();
    for version_4 in [true, false] {
        let first = attachment.addresses.iter().find(|address| address.is_ipv4() == version_4);
        let Some(home) = first.and_then(|address| spec.subnet_of(*address)) else { continue };
        for subnet in spec.subnets.iter().filter(|subnet| subnet.prefix.addr().is_ipv4() == version_4) {
            if !attachment.addresses.iter().any(|address| subnet.prefix.contains(address)) {
                routes.push(Route { destination: subnet.prefix.trunc(), link, way: Way::Direct });
            }
            let virtual_range = subnet.virtual_range.iter().map(IpNet::trunc);
            routes.extend(virtual_range.map(|range| Route {
                destination: range,
                link,
                way: Way::Gateway(home.gateway),
            }));
        }
        if attachment.default_route {
            let everything = if version_4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() };
            routes.push(Route { destination: everything, link, way: Way::Gateway(home.gateway) });
        }
    }
    routes
}
