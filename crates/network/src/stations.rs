//! The stations of a bridged network: which MAC address is at which port or machine, and which IP addresses it has.
//!
//! A station has a static entry in the bridge's forwarding table, if it is remote one in the VXLAN link's with the address
//! of its machine, and for each IP address a permanent neighbour entry at the bridge. From the latter the bridge answers
//! ARP and neighbour solicitations for remote stations, and this machine sends without asking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::addresses::family;
use crate::error::NetworkError;
use crate::mac::{Mac, PLACEHOLDER};
use crate::netlink::Connection;

/// A static entry of a forwarding table is "reachable without ARP" (linux/neighbour.h). With "permanent", the bridge would
/// take the address for its own.
const STATIC: u16 = 0x02 | 0x40;

/// An interface in the network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Station {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) place: Place,
}

/// The place of a station.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// At a port of the bridge.
    Port(u32),
    /// On another machine.
    Vtep(IpAddr),
}

/// The links whose tables hold stations, by index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StationTables {
    pub(crate) bridge: u32,
    /// Only an overlay has one.
    pub(crate) vxlan: Option<u32>,
}

/// An entry of a table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum StationEntry {
    /// The bridge sends frames for the MAC address to a port.
    Port(Mac, u32),
    /// The VXLAN link sends frames for the MAC address to a machine.
    Machine(Mac, u32, IpAddr),
    /// The IP address has the MAC address.
    Neighbour(IpAddr, Mac),
}

impl StationTables {
    /// Makes the tables hold exactly these stations.
    pub(crate) fn set(self, inside: &mut Connection, stations: &BTreeMap<Mac, Station>) -> Result<(), NetworkError> {
        let wanted: BTreeSet<StationEntry> =
            stations.iter().flat_map(|(mac, station)| self.entries(*mac, station)).collect();
        let found = self.found(inside)?;
        // New entries replace what they contradict, so that no frame is lost in between.
        for entry in wanted.difference(&found) {
            self.add_entry(inside, *entry)?;
        }
        let addresses: BTreeSet<_> = stations.values().flat_map(|station| &station.addresses).collect();
        for entry in found.difference(&wanted) {
            match entry {
                StationEntry::Neighbour(address, _) if addresses.contains(address) => {}
                entry => self.remove_entry(inside, *entry)?,
            }
        }
        Ok(())
    }

    /// Adds a station, or changes where it is.
    pub(crate) fn add(self, inside: &mut Connection, mac: Mac, station: &Station) -> Result<(), NetworkError> {
        self.entries(mac, station).into_iter().try_for_each(|entry| self.add_entry(inside, entry))
    }

    /// Removes a station.
    pub(crate) fn remove(self, inside: &mut Connection, mac: Mac, station: &Station) -> Result<(), NetworkError> {
        self.entries(mac, station).into_iter().try_for_each(|entry| self.remove_entry(inside, entry))
    }

    /// Removes the neighbour entries of a station at a port. Its forwarding entry goes with the port.
    pub(crate) fn forget(self, inside: &mut Connection, mac: Mac, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        addresses.iter().try_for_each(|address| self.remove_entry(inside, StationEntry::Neighbour(*address, mac)))
    }

    fn entries(self, mac: Mac, station: &Station) -> Vec<StationEntry> {
        let mut entries: Vec<_> = match (station.place, self.vxlan) {
            (Place::Port(port), _) => vec![StationEntry::Port(mac, port)],
            (Place::Vtep(vtep), Some(vxlan)) => {
                vec![StationEntry::Machine(mac, vxlan, vtep), StationEntry::Port(mac, vxlan)]
            }
            (Place::Vtep(_), None) => return Vec::new(),
        };
        entries.extend(station.addresses.iter().map(|address| StationEntry::Neighbour(*address, mac)));
        entries
    }

    fn found(self, inside: &mut Connection) -> Result<BTreeSet<StationEntry>, NetworkError> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            let answer = inside.dump("list the stations", RouteNetlinkMessage::GetNeighbour(request))?;
            found.extend(answer.into_iter().filter_map(|message| self.parse(message)));
        }
        Ok(found)
    }

    fn parse(self, message: RouteNetlinkMessage) -> Option<StationEntry> {
        let RouteNetlinkMessage::NewNeighbour(NeighbourMessage { header, attributes, .. }) = message else {
            return None;
        };
        let (mut mac, mut address) = (None, None);
        for attribute in attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
                NeighbourAttribute::Destination(found) => address = plain(found),
                _ => {}
            }
        }
        let permanent = header.state == NeighbourState::Permanent;
        match (header.family, address) {
            // The bridge's own addresses, and those of its ports.
            (AddressFamily::Bridge, None) if permanent => None,
            (AddressFamily::Bridge, None) => Some(StationEntry::Port(mac?, header.ifindex)),
            (AddressFamily::Bridge, Some(vtep)) => Some(StationEntry::Machine(mac?, header.ifindex, vtep)),
            // Entries that are not permanent come and go with the traffic.
            (_, address) if permanent && header.ifindex == self.bridge => {
                // The mesh programs its placeholder itself.
                Some(StationEntry::Neighbour(address?, mac.filter(|mac| *mac != PLACEHOLDER)?))
            }
            _ => None,
        }
    }

    fn add_entry(self, inside: &mut Connection, entry: StationEntry) -> Result<(), NetworkError> {
        let message = RouteNetlinkMessage::NewNeighbour(self.describe(entry));
        inside.change(format_args!("add {}", Phrase(entry)), message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn remove_entry(self, inside: &mut Connection, entry: StationEntry) -> Result<(), NetworkError> {
        let message = RouteNetlinkMessage::DelNeighbour(self.describe(entry));
        inside.change_unless(Errno::ENOENT, format_args!("remove {}", Phrase(entry)), message, 0)
    }

    fn describe(self, entry: StationEntry) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        let (mac, destination) = match entry {
            StationEntry::Port(mac, _) => (mac, None),
            StationEntry::Machine(mac, _, vtep) => (mac, Some(vtep)),
            StationEntry::Neighbour(address, mac) => (mac, Some(address)),
        };
        let (family, link, state, flags) = match entry {
            StationEntry::Port(_, port) => {
                (AddressFamily::Bridge, port, NeighbourState::Other(STATIC), NeighbourFlags::Controller)
            }
            StationEntry::Machine(_, vxlan, _) => {
                (AddressFamily::Bridge, vxlan, NeighbourState::Other(STATIC), NeighbourFlags::Own)
            }
            StationEntry::Neighbour(address, _) => {
                (family(address), self.bridge, NeighbourState::Permanent, NeighbourFlags::empty())
            }
        };
        message.header.family = family;
        message.header.ifindex = link;
        message.header.state = state;
        message.header.flags = flags;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        message.attributes.extend(destination.map(|address| NeighbourAttribute::Destination(address.into())));
        message
    }
}

/// Names an entry.
struct Phrase(StationEntry);

impl std::fmt::Display for Phrase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            StationEntry::Port(mac, port) => write!(formatter, "the forwarding entry of {mac} at port {port}"),
            StationEntry::Machine(mac, _, vtep) => write!(formatter, "the forwarding entry of {mac} at {vtep}"),
            StationEntry::Neighbour(address, mac) => write!(formatter, "the neighbour entry of {address} at {mac}"),
        }
    }
}

/// Forwarding entries are of no address family; the length of the address tells its version.
fn plain(address: NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some(address.into()),
        NeighbourAddress::Inet6(address) => Some(address.into()),
        NeighbourAddress::Other(bytes) => match <[u8; 4]>::try_from(bytes) {
            Ok(bytes) => Some(bytes.into()),
            Err(bytes) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        },
        _ => None,
    }
}
