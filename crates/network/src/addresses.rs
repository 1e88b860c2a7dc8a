//! Addresses of links, which are made to match a wanted set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::error::NetworkError;
use crate::netlink::Connection;

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The address of a default route.
pub(crate) fn unspecified(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

impl Connection {
    /// Gives a link exactly these addresses, apart from link-local ones. An address is usable at once: the kernel does
    /// not look for a duplicate, since the addresses were given out by someone who knows all of them.
    pub(crate) fn set_addresses(&mut self, link: u32, wanted: &[IpNet]) -> Result<(), NetworkError> {
        let found = self.addresses()?;
        let found: Vec<_> = found.into_iter().filter(|(index, _)| *index == link).map(|(_, address)| address).collect();
        for address in found.iter().filter(|address| !wanted.contains(address)) {
            let message = RouteNetlinkMessage::DelAddress(describe(link, *address));
            // The kernel removes the further addresses of a subnet with the first, unless it is told to keep them.
            self.change_unless(Errno::EADDRNOTAVAIL, format_args!("remove the address {address}"), message, 0)?;
        }
        for address in wanted.iter().filter(|address| !found.contains(address)) {
            let message = RouteNetlinkMessage::NewAddress(describe(link, *address));
            self.change(format_args!("add the address {address}"), message, NLM_F_CREATE | NLM_F_REPLACE)?;
        }
        Ok(())
    }

    /// Returns the addresses of a link, apart from link-local ones.
    ///
    /// # Errors
    /// No link has that name, or the kernel refuses.
    pub fn addresses_of(&mut self, link: &str) -> Result<Vec<IpNet>, NetworkError> {
        let index = self.existing(link)?.index;
        Ok(self.addresses()?.into_iter().filter(|(found, _)| *found == index).map(|(_, address)| address).collect())
    }

    /// Returns the index of the link that has the address.
    pub(crate) fn link_with(&mut self, address: IpAddr) -> Result<Option<u32>, NetworkError> {
        let found = self.addresses()?.into_iter().find(|(_, found)| found.addr() == address);
        Ok(found.map(|(index, _)| index))
    }

    /// Returns the addresses of all links, apart from link-local ones, with the links' indexes.
    fn addresses(&mut self) -> Result<Vec<(u32, IpNet)>, NetworkError> {
        let found = self.dump("list the addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(found.into_iter().filter_map(parse).collect())
    }
}

fn describe(link: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = link;
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    if let IpNet::V6(_) = address {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    let address = address.addr();
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn parse(message: RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if message.header.scope == AddressScope::Link {
        return None;
    }
    // Of a point-to-point link `Address` is the other end; `Local`, if there is one, is always this end.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or(message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    }))?;
    Some((message.header.index, IpNet::new(address, message.header.prefix_len).ok()?))
}
