//! WireGuard devices in one namespace, by generic netlink (linux/wireguard.h). `links.rs` makes and removes the devices;
//! this gives them keys and peers.
//!
//! A peer is let in, and reached, only as [`PublicKey::address`], which follows from its key. So a packet that arrives from
//! such an address was sent by the machine that has the key, and one to such an address can be read by no other.

mod keys;
mod socket;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

pub use keys::{PublicKey, SecretKey};
use socket::GenericSocket;

use crate::error::NetworkError;
use crate::nftables::attributes::{Attributes, find, read};

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;

/// Attributes of a device.
mod device {
    pub(super) const NAME: u16 = 2;
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const PUBLIC_KEY: u16 = 4;
    pub(super) const LISTEN_PORT: u16 = 6;
    pub(super) const PEERS: u16 = 8;
}

/// Attributes of a peer.
mod peer {
    pub(super) const PUBLIC_KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const KEEPALIVE: u16 = 5;
    pub(super) const ALLOWED: u16 = 9;
    pub(super) const REMOVE: u32 = 1 << 0;
    pub(super) const REPLACE_ALLOWED: u32 = 1 << 1;
}

/// Attributes of a range of addresses that a peer may have.
mod allowed {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const LENGTH: u16 = 3;
}

/// Seconds between packets that keep a session alive. That there are any makes both machines begin their handshake as soon
/// as they know each other's keys, so that the first packet of a task, or of a new key, does not wait for one.
const KEEPALIVE: u16 = 25;
/// Peers in one message: the list of them is an attribute, which has at most 64 KiB.
const PEERS: usize = 100;

/// A device as the kernel has it.
#[derive(Debug, Default)]
pub(crate) struct Device {
    /// `None` without a secret key.
    pub(crate) public: Option<PublicKey>,
    pub(crate) port: u16,
    peers: BTreeMap<PublicKey, FoundPeer>,
}

#[derive(Debug, Default)]
struct FoundPeer {
    is_kept_alive: bool,
    /// The ranges of addresses that it may have, each by its attributes.
    allowed: Vec<BTreeMap<u16, Vec<u8>>>,
}

/// A change of a peer of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PeerChange {
    /// Lets it in, and sends packets for it there.
    Add(SocketAddr),
    /// Sends packets for a peer that is let in already there. Nothing that it sends is lost meanwhile.
    Move(SocketAddr),
    Remove,
}

/// A connection to the kernel's WireGuard in one namespace.
#[derive(Debug)]
pub(crate) struct WireGuard(GenericSocket);

impl WireGuard {
    /// Opens a connection in the namespace of this thread. The kernel must have a device already, because it loads the
    /// module with the first.
    pub(crate) fn open_here() -> Result<Self, NetworkError> {
        GenericSocket::open_here("wireguard").map(Self)
    }

    /// Returns the device of that name.
    pub(crate) fn device(&mut self, name: &str) -> Result<Device, NetworkError> {
        let mut found = Device::default();
        let request = Attributes::new().text(device::NAME, name);
        // A device with many peers comes in several messages.
        for message in self.0.dump(&format!("read the WireGuard device {name}"), GET_DEVICE, &request)? {
            for (kind, value) in read(&message) {
                match kind {
                    device::PUBLIC_KEY => found.public = value.try_into().ok().map(PublicKey),
                    device::LISTEN_PORT => found.port = value.try_into().map_or(0, u16::from_ne_bytes),
                    device::PEERS => read(value).for_each(|(_, peer)| found.add_peer(peer)),
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// Gives a device its secret key and its UDP port.
    pub(crate) fn set_key(&mut self, name: &str, secret: &SecretKey, port: u16) -> Result<(), NetworkError> {
        let attributes = Attributes::new()
            .text(device::NAME, name)
            .bytes(device::PRIVATE_KEY, secret.bytes())
            .bytes(device::LISTEN_PORT, &port.to_ne_bytes());
        self.0.change(&format!("set the key of the WireGuard device {name}"), SET_DEVICE, &attributes)
    }

    /// Changes peers of a device.
    pub(crate) fn change_peers(
        &mut self,
        name: &str,
        peers: &BTreeMap<PublicKey, PeerChange>,
    ) -> Result<(), NetworkError> {
        let described: Vec<_> = peers.iter().map(|(key, change)| describe(*key, *change)).collect();
        for some in described.chunks(PEERS) {
            let list = some.iter().fold(Attributes::new(), |list, peer| list.nested(0, peer));
            let attributes = Attributes::new().text(device::NAME, name).nested(device::PEERS, &list);
            self.0.change(&format!("set the peers of the WireGuard device {name}"), SET_DEVICE, &attributes)?;
        }
        Ok(())
    }
}

impl Device {
    /// Returns the keys of all peers.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &PublicKey> {
        self.peers.keys()
    }

    /// Returns whether the peer is let in, as it should be.
    pub(crate) fn admits(&self, key: PublicKey) -> bool {
        self.peers.get(&key).is_some_and(|it| it.is_kept_alive && it.allowed == [parts(allowed(key).as_bytes())])
    }

    /// Adds a peer as the kernel tells it. A peer at the end of a message may be continued in the next one, which
    /// repeats its key alone.
    fn add_peer(&mut self, peer: &[u8]) {
        let Some(key) = find(peer, peer::PUBLIC_KEY).and_then(|it| it.try_into().ok()).map(PublicKey) else { return };
        let known = self.peers.entry(key).or_default();
        known.is_kept_alive |= find(peer, peer::KEEPALIVE) == Some(&KEEPALIVE.to_ne_bytes());
        known.allowed.extend(find(peer, peer::ALLOWED).into_iter().flat_map(read).map(|(_, range)| parts(range)));
    }
}

/// Returns attributes by their kinds: the kernel does not tell them in the order in which it is told.
fn parts(attributes: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    read(attributes).map(|(kind, value)| (kind, value.to_vec())).collect()
}

fn describe(key: PublicKey, change: PeerChange) -> Attributes {
    let named = Attributes::new().bytes(peer::PUBLIC_KEY, &key.0);
    match change {
        PeerChange::Add(endpoint) => named
            .bytes(peer::FLAGS, &peer::REPLACE_ALLOWED.to_ne_bytes())
            .bytes(peer::ENDPOINT, &socket_address(endpoint))
            .bytes(peer::KEEPALIVE, &KEEPALIVE.to_ne_bytes())
            .nested(peer::ALLOWED, &Attributes::new().nested(0, &allowed(key))),
        PeerChange::Move(endpoint) => named.bytes(peer::ENDPOINT, &socket_address(endpoint)),
        PeerChange::Remove => named.bytes(peer::FLAGS, &peer::REMOVE.to_ne_bytes()),
    }
}

/// Describes the one address that a peer may have.
fn allowed(key: PublicKey) -> Attributes {
    let family = u16::try_from(libc::AF_INET6).expect("a small number");
    Attributes::new()
        .bytes(allowed::FAMILY, &family.to_ne_bytes())
        .bytes(allowed::ADDRESS, &key.address().octets())
        .bytes(allowed::LENGTH, &[128])
}

/// Returns the address as a `sockaddr` (ip(7), ipv6(7)).
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = u16::try_from(family).expect("a small number").to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(ip) => {
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn admits(messages: &[Attributes]) -> bool {
        let mut device = Device::default();
        messages.iter().for_each(|peer| device.add_peer(peer.as_bytes()));
        device.admits(KEY)
    }

    #[test]
    fn a_peer_is_described_as_the_kernel_reads_it_and_known_again() {
        for (endpoint, length) in [("198.18.0.2:51820", 16), ("[fd0a::2]:51821", 28)] {
            let endpoint: SocketAddr = endpoint.parse().expect("an address");
            let peer = describe(KEY, PeerChange::Add(endpoint));
            let address = find(peer.as_bytes(), peer::ENDPOINT).expect("it is there");
            assert_eq!(address.len(), length, "the length of a sockaddr");
            assert_eq!(address[2..4], endpoint.port().to_be_bytes());
            assert!(admits(&[peer]));
            let moved = describe(KEY, PeerChange::Move(endpoint));
            assert!(find(moved.as_bytes(), peer::ALLOWED).is_none(), "it stays let in");
        }
        let removed = describe(KEY, PeerChange::Remove);
        assert_eq!(find(removed.as_bytes(), peer::FLAGS), Some(&peer::REMOVE.to_ne_bytes()[..]));
        assert!(find(removed.as_bytes(), peer::ALLOWED).is_none());
    }

    #[test]
    fn a_peer_is_admitted_with_its_own_address_and_no_other_also_if_it_is_told_in_pieces() {
        let ranges = |keys: &[PublicKey]| keys.iter().fold(Attributes::new(), |list, it| list.nested(0, &allowed(*it)));
        let named = || Attributes::new().bytes(peer::PUBLIC_KEY, &KEY.0);
        let first = |keys: &[PublicKey]| {
            named().bytes(peer::KEEPALIVE, &KEEPALIVE.to_ne_bytes()).nested(peer::ALLOWED, &ranges(keys))
        };
        let rest = |keys: &[PublicKey]| named().nested(peer::ALLOWED, &ranges(keys));
        let other = PublicKey([8; 32]);
        assert!(admits(&[first(&[KEY])]) && admits(&[first(&[]), rest(&[KEY])]));
        for wrong in [vec![first(&[other])], vec![first(&[KEY, other])], vec![first(&[])], vec![rest(&[KEY])]] {
            assert!(!admits(&wrong), "{wrong:?}");
        }
        assert!(!admits(&[first(&[KEY]), rest(&[other])]));
    }
}
