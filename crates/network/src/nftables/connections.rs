//! Tracked connections whose translation no longer holds (linux/netfilter/nfnetlink_conntrack.h). The kernel decides about
//! the translation of a connection once, at its first packet; for UDP, a "connection" is what one socket sends to another.
//! So a client that goes on sending would reach an address that is gone until its entry has expired, which it never does
//! while it sends.

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
const ID: u16 = 12;
const ZONE: u16 = 18;
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
    /// Those of an IP protocol that were sent to this address instead of the one that the client has named.
    SentTo(u8, SocketAddr),
    /// Those of an IP protocol to this port whose addresses were not translated.
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
    /// The kernel refuses.
    pub(crate) fn end(&mut self, selection: &Selection) -> Result<usize, NetworkError> {
        let mut ended = 0;
        for family in selection.families() {
            let request = message(GET, family, selection.filter());
            for connection in self.socket.list("list the tracked connections", &request)? {
                // Older kernels ignore what they don't know of a filter.
                if selection.contains(&connection) {
                    ended += usize::from(self.forget(family, &connection)?);
                }
            }
        }
        Ok(ended)
    }

    /// Returns whether the connection was still there.
    fn forget(&mut self, family: u8, connection: &[u8]) -> Result<bool, NetworkError> {
        let identity = [TUPLE_ORIGINAL, ID, ZONE].into_iter().fold(Attributes::new(), |identity, kind| {
            match attributes::find(connection, kind) {
                Some(value) if kind == TUPLE_ORIGINAL => identity.nested_bytes(kind, value),
                Some(value) => identity.bytes(kind, value),
                None => identity,
            }
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
            Self::SentTo(_, SocketAddr::V4(_)) => vec![version_4],
            Self::SentTo(_, SocketAddr::V6(_)) => vec![version_6],
            Self::Untranslated(..) => vec![version_4, version_6],
        }
    }

    /// Lets the kernel list only what may be selected.
    fn filter(&self) -> Attributes {
        let protocol = |number: u8| Attributes::new().bytes(PROTOCOL_NUMBER, &[number]);
        match self {
            Self::SentTo(number, target) => {
                let address = match target.ip() {
                    IpAddr::V4(address) => Attributes::new().bytes(1, &address.octets()),
                    IpAddr::V6(address) => Attributes::new().bytes(3, &address.octets()),
                };
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

    fn contains(&self, connection: &[u8]) -> bool {
        let tuple = |kind| attributes::find(connection, kind).and_then(Tuple::read);
        let (Some(original), Some(reply)) = (tuple(TUPLE_ORIGINAL), tuple(TUPLE_REPLY)) else { return false };
        let status =
            attributes::find(connection, STATUS).and_then(|status| Some(u32::from_be_bytes(status.try_into().ok()?)));
        let translated = status.unwrap_or_default() & STATUS_DESTINATION_TRANSLATED != 0;
        match self {
            Self::SentTo(protocol, target) => translated && original.protocol == *protocol && reply.source == *target,
            Self::Untranslated(protocol, port) => {
                original.protocol == *protocol
                    && original.destination.port() == *port
                    && reply
                        == Tuple {
                            protocol: original.protocol,
                            source: original.destination,
                            destination: original.source,
                        }
            }
        }
    }
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

fn message(kind: u16, family: u8, attributes: Attributes) -> Message {
    Message { kind: CONNTRACK | kind, flags: 0, family, attributes }
}
