//! The maps that the balancer's programs read, and the bytes of their keys and values. `hooks` has the programs, which
//! build the same keys on their stacks.
//!
//! | map | key | value |
//! |---|---|---|
//! | members | cookie of a network namespace | its networks, in the order in which they are searched; zeros end them |
//! | virtuals | network, virtual address | generation, number of backends, affinity |
//! | backends | network, virtual address, generation, index | backend |
//! | requests | network, virtual address | requests that got a backend |
//! | asked | cookie of a socket, backend | virtual address that the socket asked for |
//!
//! Addresses have 16 bytes; an IPv4 address is mapped (RFC 4291, section 2.5.5.2). Numbers are in the machine's order.
//!
//! A connection reads `virtuals` and then `backends`, and this process may write in between. The backends of a
//! generation therefore never change: a new list is a new generation, and the old one is removed later.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use super::map::{Map, MapKind, Shape};

/// Largest number of networks that a namespace can be in.
pub const MOST_NETWORKS: usize = 16;

/// Bit of `virtuals` that stands for affinity, beside the number of backends.
pub(super) const AFFINITY: u32 = 1 << 31;

pub(super) const MEMBER_BYTES: usize = MOST_NETWORKS * 8;
pub(super) const PLACE_BYTES: usize = 24;
pub(super) const BACKEND_BYTES: usize = PLACE_BYTES + 8;

/// A network, as the caller numbers them. The number must stay the same when the caller restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkKey(pub NonZeroU64);

/// The kernel's number of a network namespace. It is not used again until the machine restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceCookie(pub u64);

/// An address that no interface has: connections to it from members of the network go to one of its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualAddress {
    /// The network in which the address is virtual.
    pub network: NetworkKey,
    /// The address.
    pub address: IpAddr,
}

/// The value of `virtuals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u32,
    pub(super) count: u32,
    pub(super) affinity: bool,
}

impl VirtualAddress {
    pub(super) fn key(&self) -> [u8; PLACE_BYTES] {
        joined(&[&self.network.0.get().to_ne_bytes(), &octets(self.address)])
    }

    pub(super) fn of_key(key: &[u8; PLACE_BYTES]) -> Option<Self> {
        let network = NetworkKey(NonZeroU64::new(u64::from_ne_bytes(part(key, 0)))?);
        Some(Self { network, address: address(part(key, 8)) })
    }

    pub(super) fn backend_key(&self, generation: u32, index: u32) -> [u8; BACKEND_BYTES] {
        joined(&[&self.key(), &generation.to_ne_bytes(), &index.to_ne_bytes()])
    }

    /// Returns the virtual address, the generation and the index of a key of `backends`.
    pub(super) fn of_backend_key(key: &[u8; BACKEND_BYTES]) -> Option<(Self, u32, u32)> {
        let [generation, index] = [PLACE_BYTES, PLACE_BYTES + 4].map(|at| u32::from_ne_bytes(part(key, at)));
        Some((Self::of_key(&part(key, 0))?, generation, index))
    }
}

impl State {
    /// Programs load this as one number, so that they never see one half of an old value.
    pub(super) fn value(self) -> [u8; 8] {
        let high = self.count | if self.affinity { AFFINITY } else { 0 };
        (u64::from(high) << 32 | u64::from(self.generation)).to_ne_bytes()
    }

    pub(super) fn of_value(value: [u8; 8]) -> Self {
        let value = u64::from_ne_bytes(value);
        let (generation, high) = ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
        Self { generation, count: high & !AFFINITY, affinity: high & AFFINITY != 0 }
    }
}

/// Returns the 16 bytes of an address.
pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

pub(super) fn address(octets: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
}

/// Returns the value of `members`. Of more than [`MOST_NETWORKS`] networks the last ones are left out.
pub(super) fn member(networks: &[NetworkKey]) -> [u8; MEMBER_BYTES] {
    let numbers: Vec<_> = networks.iter().take(MOST_NETWORKS).map(|it| it.0.get().to_ne_bytes()).collect();
    joined(&numbers.iter().map(<[u8; 8]>::as_slice).collect::<Vec<_>>())
}

pub(super) fn networks(member: &[u8; MEMBER_BYTES]) -> Vec<NetworkKey> {
    let numbers = (0..MOST_NETWORKS).map(|index| u64::from_ne_bytes(part(member, index * 8)));
    numbers.map_while(NonZeroU64::new).map(NetworkKey).collect()
}

fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(parts.iter().copied().flatten()).for_each(|(to, from)| *to = *from);
    bytes
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    joined(&[bytes.get(at..).unwrap_or_default()])
}

/// The maps.
#[derive(Debug)]
pub(super) struct BalancerMaps {
    pub(super) members: Map<8, MEMBER_BYTES>,
    pub(super) virtuals: Map<PLACE_BYTES, 8>,
    pub(super) backends: Map<BACKEND_BYTES, 16>,
    pub(super) requests: Map<PLACE_BYTES, 8>,
    pub(super) asked: Map<PLACE_BYTES, 16>,
}

const fn hash(name: &'static str, most: u32) -> Shape {
    Shape { name, kind: MapKind::Hash, most }
}

const MEMBERS: Shape = hash("flota_members", 1 << 14);
const VIRTUALS: Shape = hash("flota_virtuals", 1 << 14);
const BACKENDS: Shape = hash("flota_backends", 1 << 18);
const REQUESTS: Shape = hash("flota_requests", VIRTUALS.most);
/// Sockets do not announce their end, so this map forgets what has not been used for longest. A socket whose entry it
/// has forgotten is told the backend's address where it asks for its peer's.
const ASKED: Shape = Shape { name: "flota_asked", kind: MapKind::LeastRecentlyUsed, most: 1 << 16 };

impl BalancerMaps {
    /// Creates empty maps.
    pub(super) fn create() -> io::Result<Self> {
        Ok(Self {
            members: Map::create(&MEMBERS)?,
            virtuals: Map::create(&VIRTUALS)?,
            backends: Map::create(&BACKENDS)?,
            requests: Map::create(&REQUESTS)?,
            asked: Map::create(&ASKED)?,
        })
    }

    /// Returns those among the maps of a program, if all are there in the shape of this version.
    pub(super) fn find(maps: &[OwnedFd]) -> io::Result<Option<Self>> {
        let found = (
            Map::find(&MEMBERS, maps)?,
            Map::find(&VIRTUALS, maps)?,
            Map::find(&BACKENDS, maps)?,
            Map::find(&REQUESTS, maps)?,
            Map::find(&ASKED, maps)?,
        );
        Ok(match found {
            (Some(members), Some(virtuals), Some(backends), Some(requests), Some(asked)) => {
                Some(Self { members, virtuals, backends, requests, asked })
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u64) -> NetworkKey {
        NetworkKey(NonZeroU64::new(number).expect("not zero"))
    }

    #[test]
    fn keys_and_values_are_read_back() {
        for text in ["10.0.0.7", "fd00::7"] {
            let place = VirtualAddress { network: network(7 << 40), address: text.parse().expect("an address") };
            assert_eq!(VirtualAddress::of_key(&place.key()), Some(place));
            assert_eq!(VirtualAddress::of_backend_key(&place.backend_key(8, 9)), Some((place, 8, 9)));
        }
        for affinity in [false, true] {
            let state = State { generation: u32::MAX, count: 65_000, affinity };
            assert_eq!(State::of_value(state.value()), state);
        }
        let all: Vec<_> = (1..=MOST_NETWORKS as u64).map(network).collect();
        for count in [0, 1, MOST_NETWORKS] {
            assert_eq!(networks(&member(&all[..count])), &all[..count]);
        }
    }
}
