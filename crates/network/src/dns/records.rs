//! The addresses and services of one name, counted, because several entries may hold the same ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{Name, RData};

/// The header of a record whose owner is compressed to a pointer, without data.
const RECORD: usize = 12;

/// Values with the number of their holders, sorted.
#[derive(Debug)]
pub(super) struct Tally<T>(Vec<(T, u32)>);

impl<T> Default for Tally<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Tally<T> {
    pub(super) fn add(&mut self, value: T) {
        match self.0.binary_search_by(|(held, _)| held.cmp(&value)) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (value, 1)),
        }
    }

    pub(super) fn take(&mut self, value: &T) {
        if let Ok(at) = self.0.binary_search_by(|(held, _)| held.cmp(value)) {
            self.0[at].1 -= 1;
            if self.0[at].1 == 0 {
                self.0.remove(at);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds records of the values, each value once, from the rotation's start on, as long as there is room.
    pub(super) fn collect(&self, found: &mut Found, record: impl Fn(&T) -> Option<RData>) {
        let start = found.rotation.turn.checked_rem(self.0.len()).unwrap_or_default();
        for (value, _) in self.0[start..].iter().chain(&self.0[..start]) {
            if let Some(record) = record(value)
                && !found.push(record)
            {
                break;
            }
        }
    }
}

/// The records of a name.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Number of entries that have the name.
    pub(super) holders: usize,
    pub(super) v4: Tally<Ipv4Addr>,
    pub(super) v6: Tally<Ipv6Addr>,
    /// Ports with their targets, which are names of the network.
    pub(super) services: Tally<(u16, String)>,
}

impl Records {
    pub(super) fn add_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4.add(address),
            IpAddr::V6(address) => self.v6.add(address),
        }
    }

    pub(super) fn take_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4.take(&address),
            IpAddr::V6(address) => self.v6.take(&address),
        }
    }
}

/// Which part of the records an answer gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotation {
    /// Index of the first record, taken modulo their number.
    pub(super) turn: usize,
    /// Bytes that the records may have.
    pub(super) room: usize,
}

/// The records of an answer.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) records: Vec<RData>,
    /// Whether there are more records than fit.
    pub(super) is_cut: bool,
    rotation: Rotation,
}

impl Found {
    pub(super) fn new(rotation: Rotation) -> Self {
        Self { records: Vec::new(), is_cut: false, rotation }
    }

    /// Adds a record and returns whether it fits.
    fn push(&mut self, record: RData) -> bool {
        let name = |name: &Name| name.len() + 1;
        let size = RECORD
            + match &record {
                RData::A(_) => 4,
                RData::AAAA(_) => 16,
                RData::SRV(srv) => 6 + name(&srv.target),
                RData::PTR(ptr) => name(ptr),
                _ => unreachable!("a directory has no other records"),
            };
        self.is_cut |= size > self.rotation.room;
        if !self.is_cut {
            self.rotation.room -= size;
            self.records.push(record);
        }
        !self.is_cut
    }
}
