//! Tracked connections whose translation no longer holds (linux/netfilter/nfnetlink_conntrack.h). The kernel decides about
//! the translation of a connection once, at its first packet; for UDP, a "connection" is what one socket sends to another.
//! So a client that goes on sending would reach an address that is gone until its entry has expired, which it never does
//! while it sends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::attributes::{self, Attributes};
use super::expression::STATUS_DESTINATION_TRANSLATED;
use super::socket::{CONNTRACK, Message, Socket};
use crate::error::NetworkError;
use crate::namespace::Namespace;

const GET: u16 = 1;
const DELETE: u16 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_STATE: u16 = 4;
const TCP_STATE: [u16; 2] = [1, 1];
/// The state of a connection that is over (`TCP_CONNTRACK_TIME_WAIT` in linux/netfilter/nf_conntrack_tcp.h).
const TIME_WAIT: u8 = 7;
const ID: u16 = 12;
const ZONE: u16 = 18;
const STATUS_MASK: u16 = 26;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE_PORT: u16 = 2;
const PROTOCOL_DESTINATION_PORT: u16 = 3;

/// Which parts of a tuple must be equal (`CTA_FILTER_F_…`).
const SAME_SOURCE_ADDRESS: u32 = 1;
const SAME_PROTOCOL: u32 = 1 << 3;
const SAME_SOURCE_PORT: u32 = 1 << 4;
const SAME_DESTINATION_PORT: u32 = 1 << 5;

/// The connections to end.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Selection {
    /// Connections of an IP protocol that were sent to this address instead of the one that the client has named.
    SentTo(u8, SocketAddr),
    /// Connections that were sent to this host instead of the one that the client has named.
    SentToHost(IpAddr),
    /// Connections of an IP protocol to this port whose addresses were not translated.
    Untranslated(u8, u16),
}

/// The tracked connections of a namespace.
#[derive(Debug)]
pub(crate) struct Connections {
    socket: Socket,
}

impl Connections {
    pub(crate) fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        Ok(Self { socket: Socket::open(namespace)? })
    }

    /// Forgets the selected connections and returns their number. The next packet of each is treated as the first one.
    ///
    /// # Errors
    /// The kernel refuses to list the tracked connections or to forget one.
    pub(crate) fn end(&mut self, selections: &BTreeSet<Selection>) -> Result<usize, NetworkError> {
        let mut ended = 0;
        for (family, connection) in self.selected(selections)? {
            ended += usize::from(self.forget(family, &connection)?);
        }
        Ok(ended)
    }

    /// Returns where the selected connections come from, and which address each client has named.
    ///
    /// # Errors
    /// The kernel refuses to list the tracked connections.
    pub(crate) fn origins(
        &mut self,
        selections: &BTreeSet<Selection>,
    ) -> Result<Vec<(SocketAddr, SocketAddr)>, NetworkError> {
        let selected = self.selected(selections)?;
        let tuples = selected.iter().filter_map(|(_, it)| Tuple::read(attributes::find(it, TUPLE_ORIGINAL)?));
        Ok(tuples.map(|it| (it.source, it.destination)).collect())
    }

    /// Lists the selected connections with their address families. For each list the kernel looks through the tracked
    /// connections of all namespaces, so there is one for all selections.
    fn selected(&mut self, selections: &BTreeSet<Selection>) -> Result<Vec<(u8, Vec<u8>)>, NetworkError> {
        let families: BTreeSet<u8> = selections.iter().flat_map(Selection::families).collect();
        let mut selected = Vec::new();
        for family in families {
            let request = message(GET, family, filter(selections));
            let listed = self.socket.list("list the tracked connections", &request)?;
            // Older kernels ignore what they don't know of a filter.
            let wanted = listed.into_iter().filter(|it| selections_of(it).any(|it| selections.contains(&it)));
            // A client's next connection from the same port is treated as a new one anyway, and it may begin right now.
            let wanted = wanted.filter(|it| !is_over(it));
            selected.extend(wanted.map(|it| (family, it)));
        }
        Ok(selected)
    }

    /// Returns whether the connection was still there.
    ///
    /// The kernel is told which one by the addresses and ports of its replies, because these include the address to
    /// which the connection was sent. A new connection of the client may have the same original tuple and even the same
    /// id, because the kernel makes ids of that tuple and of addresses in memory, which it uses again.
    fn forget(&mut self, family: u8, connection: &[u8]) -> Result<bool, NetworkError> {
        // Without a tuple, the kernel would forget all connections.
        let Some(replies) = attributes::find(connection, TUPLE_REPLY) else { return Ok(false) };
        let identity = Attributes::new().nested_bytes(TUPLE_REPLY, replies);
        let identity =
            [ID, ZONE].into_iter().fold(identity, |identity, kind| match attributes::find(connection, kind) {
                Some(value) => identity.bytes(kind, value),
                None => identity,
            });
        match self.socket.request("forget a tracked connection", &message(DELETE, family, identity)) {
            Err(error) if error.refusal() == Some(Errno::ENOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }
}

impl Selection {
    fn families(&self) -> Vec<u8> {
        let (version_4, version_6) = (libc::AF_INET as u8, libc::AF_INET6 as u8);
        match self {
            Self::SentTo(_, SocketAddr::V4(_)) | Self::SentToHost(IpAddr::V4(_)) => vec![version_4],
            Self::SentTo(_, SocketAddr::V6(_)) | Self::SentToHost(IpAddr::V6(_)) => vec![version_6],
            Self::Untranslated(..) => vec![version_4, version_6],
        }
    }

    /// Whether it names an IPv6 address. The kernel's filter by such an address leaves out just the ones that are equal
    /// (`ctnetlink_filter_match_tuple` in nf_conntrack_netlink.c).
    fn names_ipv6(&self) -> bool {
        matches!(self, Self::SentTo(_, SocketAddr::V6(_)) | Self::SentToHost(IpAddr::V6(_)))
    }

    /// Lets the kernel list only what may be selected.
    fn filter(&self) -> Attributes {
        let protocol = |number: u8| Attributes::new().bytes(PROTOCOL_NUMBER, &[number]);
        match self {
            Self::SentToHost(host) => {
                let tuple = Attributes::new().nested(TUPLE_IP, &address_of(*host));
                let filter = Attributes::new().bytes(FILTER_REPLY, &SAME_SOURCE_ADDRESS.to_ne_bytes());
                Attributes::new().nested(TUPLE_REPLY, &tuple).nested(FILTER, &filter)
            }
            Self::SentTo(number, target) => {
                let address = address_of(target.ip());
                let protocol = protocol(*number).bytes(PROTOCOL_SOURCE_PORT, &target.port().to_be_bytes());
                let tuple = Attributes::new().nested(TUPLE_IP, &address).nested(TUPLE_PROTOCOL, &protocol);
                let same = SAME_SOURCE_ADDRESS | SAME_PROTOCOL | SAME_SOURCE_PORT;
                let filter = Attributes::new().bytes(FILTER_REPLY, &same.to_ne_bytes());
                Attributes::new().nested(TUPLE_REPLY, &tuple).nested(FILTER, &filter)
            }
            Self::Untranslated(number, port) => {
                let protocol = protocol(*number).bytes(PROTOCOL_DESTINATION_PORT, &port.to_be_bytes());
                let tuple = Attributes::new().nested(TUPLE_PROTOCOL, &protocol);
                let filter =
                    Attributes::new().bytes(FILTER_ORIGINAL, &(SAME_PROTOCOL | SAME_DESTINATION_PORT).to_ne_bytes());
                Attributes::new().nested(TUPLE_ORIGINAL, &tuple).nested(FILTER, &filter)
            }
        }
    }
}

/// Lets the kernel list little more than what is selected.
fn filter(selections: &BTreeSet<Selection>) -> Attributes {
    let is_translated = |it: &Selection| !matches!(it, Selection::Untranslated(..));
    match selections.first() {
        Some(only) if selections.len() == 1 && !only.names_ipv6() => only.filter(),
        _ if selections.iter().all(is_translated) => {
            let status = STATUS_DESTINATION_TRANSLATED;
            Attributes::new().number(STATUS, status).number(STATUS_MASK, status)
        }
        _ => Attributes::new(),
    }
}

/// Returns every selection that contains the connection.
fn selections_of(connection: &[u8]) -> impl Iterator<Item = Selection> {
    let tuple = |kind| attributes::find(connection, kind).and_then(Tuple::read);
    let status =
        attributes::find(connection, STATUS).and_then(|status| Some(u32::from_be_bytes(status.try_into().ok()?)));
    let is_translated = status.unwrap_or_default() & STATUS_DESTINATION_TRANSLATED != 0;
    let tuples = tuple(TUPLE_ORIGINAL).zip(tuple(TUPLE_REPLY));
    tuples
        .into_iter()
        .flat_map(move |(original, reply)| {
            let Tuple { protocol, source, destination } = original;
            let mirrored = Tuple { protocol, source: destination, destination: source };
            let [sent, host] = [Selection::SentTo(protocol, reply.source), Selection::SentToHost(reply.source.ip())];
            let untranslated = (reply == mirrored).then_some(Selection::Untranslated(protocol, destination.port()));
            [Some(sent).filter(|_| is_translated), Some(host).filter(|_| is_translated), untranslated]
        })
        .flatten()
}

/// Whether it is a connection of TCP that both sides have closed.
fn is_over(connection: &[u8]) -> bool {
    let state = attributes::find(connection, PROTOCOL_STATE);
    let state = TCP_STATE.into_iter().fold(state, |state, kind| attributes::find(state?, kind));
    state == Some(&[TIME_WAIT])
}

/// One direction of a connection.
#[derive(Debug, Eq, PartialEq)]
struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    fn read(tuple: &[u8]) -> Option<Self> {
        let addresses = attributes::find(tuple, TUPLE_IP)?;
        let protocol = attributes::find(tuple, TUPLE_PROTOCOL)?;
        let address = |version_4, version_6| -> Option<IpAddr> {
            match attributes::find(addresses, version_4) {
                Some(address) => Some(<[u8; 4]>::try_from(address).ok()?.into()),
                None => Some(<[u8; 16]>::try_from(attributes::find(addresses, version_6)?).ok()?.into()),
            }
        };
        let port = |kind| Some(u16::from_be_bytes(attributes::find(protocol, kind)?.try_into().ok()?));
        Some(Self {
            protocol: *attributes::find(protocol, PROTOCOL_NUMBER)?.first()?,
            source: SocketAddr::new(address(1, 3)?, port(PROTOCOL_SOURCE_PORT)?),
            destination: SocketAddr::new(address(2, 4)?, port(PROTOCOL_DESTINATION_PORT)?),
        })
    }
}

/// Describes an address of a tuple.
fn address_of(address: IpAddr) -> Attributes {
    match address {
        IpAddr::V4(address) => Attributes::new().bytes(1, &address.octets()),
        IpAddr::V6(address) => Attributes::new().bytes(3, &address.octets()),
    }
}

fn message(kind: u16, family: u8, attributes: Attributes) -> Message {
    Message { kind: CONNTRACK | kind, flags: 0, family, attributes }
}
