//! Routes that this crate makes. They carry a protocol number of their own, by which they are told from all others: the
//! kernel's, and those that someone else has added.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use nix::errno::Errno;

use crate::addresses::family;
use crate::error::NetworkError;
use crate::namespace::Namespace;
use crate::netlink::Connection;

/// `rtm_protocol` of these routes: a number that no registered program uses (/etc/iproute2/rt_protos).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(70);
/// The table of the addresses that are this machine's own (linux/rtnetlink.h).
const LOCAL_TABLE: u8 = 255;
/// The table that only packets reach which a policy rule sends there.
pub(crate) const RETURN_TABLE: u8 = 70;

/// The lowest metric of IPv6 routes to this machine's own addresses: that of a route without any (linux/ipv6_route.h).
const OWN_METRIC: u32 = 1024;

/// A route of this crate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Route {
    /// The destination of the route; of length 0 for a default route.
    pub(crate) destination: IpNet,
    pub(crate) link: u32,
    pub(crate) way: Way,
}

/// How a packet reaches the destination of a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// Every address of the destination is this machine's own.
    Own,
    /// The link leads to the destination.
    Direct,
    /// This router knows the way. It need not be in a subnet of the link.
    Gateway(IpAddr),
    /// So does this one, for the packets that a policy rule sends to [`RETURN_TABLE`].
    Returning(IpAddr),
}

impl Connection {
    /// Gives a link exactly these routes, apart from those that others have added.
    pub(crate) fn set_routes(&mut self, link: u32, wanted: &[Route]) -> Result<(), NetworkError> {
        let found = self.dump("list the routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        let found: Vec<_> = found.into_iter().filter_map(parse).filter(|route| route.link == link).collect();
        for route in found.iter().filter(|route| !wanted.contains(route)) {
            let message = RouteNetlinkMessage::DelRoute(describe(route));
            self.change_unless(Errno::ESRCH, format_args!("remove the route to {}", route.destination), message, 0)?;
        }
        for route in wanted.iter().filter(|route| !found.contains(route)) {
            let message = RouteNetlinkMessage::NewRoute(describe(route));
            let act = format_args!("add the route to {}", route.destination);
            self.change(act, message, NLM_F_CREATE | NLM_F_REPLACE)?;
        }
        Ok(())
    }
}

impl Namespace {
    /// Returns the destinations of the routes in the main table, without default routes, link-local ones and those that
    /// this crate has made.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel refuses.
    pub fn destinations(&self) -> Result<Vec<IpNet>, NetworkError> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let found = Connection::open(self)?.dump("list the routes", request)?;
        Ok(found.into_iter().filter_map(foreign_destination).collect::<BTreeSet<_>>().into_iter().collect())
    }
}

fn foreign_destination(message: RouteNetlinkMessage) -> Option<IpNet> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else { return None };
    let is_ours = header.protocol == PROTOCOL || header.table != RouteHeader::RT_TABLE_MAIN;
    let address = attributes.iter().find_map(|it| match it {
        RouteAttribute::Destination(address) => plain(address),
        _ => None,
    })?;
    let is_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_left_out = is_ours || is_local || address.is_multicast() || header.destination_prefix_length == 0;
    IpNet::new(address, header.destination_prefix_length).ok().filter(|_| !is_left_out)
}

fn describe(route: &Route) -> RouteMessage {
    let own = route.way == Way::Own;
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.addr());
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = match route.way {
        Way::Own => LOCAL_TABLE,
        Way::Returning(_) => RETURN_TABLE,
        Way::Direct | Way::Gateway(_) => RouteHeader::RT_TABLE_MAIN,
    };
    message.header.protocol = PROTOCOL;
    message.header.kind = if own { RouteType::Local } else { RouteType::Unicast };
    message.header.scope = match route.way {
        Way::Own => RouteScope::Host,
        Way::Direct => RouteScope::Link,
        Way::Gateway(_) | Way::Returning(_) => RouteScope::Universe,
    };
    message.attributes.push(RouteAttribute::Oif(route.link));
    if own && route.destination.addr().is_ipv6() {
        // With IPv6, a route replaces another one of the same destination and metric, whatever its link is. Several
        // links may have a route to the same address, so each has a metric of its own.
        message.attributes.push(RouteAttribute::Priority(OWN_METRIC + route.link));
    }
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    if let Way::Gateway(gateway) | Way::Returning(gateway) = route.way {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message
}

fn parse(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else { return None };
    if header.protocol != PROTOCOL {
        return None;
    }
    let unspecified = crate::addresses::unspecified(header.address_family)?;
    let (mut destination, mut link, mut gateway) = (unspecified, None, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = plain(&address)?,
            RouteAttribute::Gateway(address) => gateway = Some(plain(&address)?),
            RouteAttribute::Oif(index) => link = Some(index),
            _ => {}
        }
    }
    let way = match (header.kind, gateway) {
        (RouteType::Local, _) => Way::Own,
        (_, Some(gateway)) if header.table == RETURN_TABLE => Way::Returning(gateway),
        (_, Some(gateway)) => Way::Gateway(gateway),
        (_, None) => Way::Direct,
    };
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(Route { destination, link: link?, way })
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn each_of_several_links_keeps_its_own_route_to_an_address() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("host");
        let mut host = Namespace::make(&place).and_then(|it| Connection::open(&it)).expect("tests run as root");
        let route = |link| Route { destination: IpAddr::from(Ipv6Addr::LOCALHOST).into(), link, way: Way::Own };
        let mut links = Vec::new();
        for name in ["one", "two"] {
            host.add_bridge(name).expect("it is added");
            let link = host.existing(name).expect("it is there").index;
            host.set_routes(link, &[route(link)]).expect("it has its route");
            links.push(link);
        }
        let message = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let found = host.dump("list the routes", message).expect("they are listed");
        let found: Vec<_> = found.into_iter().filter_map(parse).map(|route| route.link).collect();
        assert_eq!(found, links);
        host.set_routes(links[0], &[]).expect("its route is removed");
        let message = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let left = host.dump("list the routes", message).expect("they are listed");
        assert_eq!(left.into_iter().filter_map(parse).collect::<Vec<_>>(), [route(links[1])]);
        Namespace::remove(&place).expect("it is removed");
    }
}
