//! The names of networks, as a client of one or several of them sees them.
//!
//! A network's names come from entries. An entry gives its names to its addresses, and names that several entries share
//! have the addresses of all. Setting and removing an entry costs what the entry holds, whatever else is there. The
//! caller's thread changes the directory while the server's thread reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hickory_proto::rr::rdata::{PTR, SRV};
use hickory_proto::rr::{Name, RData, RecordType};

use super::records::{Found, Records, Rotation, Tally};

/// The longest name as text (RFC 1035 §2.3.4: 255 bytes with the lengths of labels).
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// Why the directory refuses a change.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// The network was not set.
    #[error("the directory has no network `{0}`")]
    NoNetwork(String),
    /// A name is not one that DNS can carry.
    #[error(
        "`{0}` is not a DNS name: it has labels of 1 to 63 letters, digits, hyphens and underscores, and 253 bytes with \
         its network's name"
    )]
    InvalidName(String),
}

/// A port that SRV records announce, below each name of its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    labels: String,
    number: u16,
}

impl Port {
    /// Announces a TCP port: `_80._tcp.NAME`.
    pub fn tcp(number: u16) -> Self {
        Self { labels: format!("_{number}._tcp"), number }
    }

    /// Announces a UDP port: `_53._udp.NAME`.
    pub fn udp(number: u16) -> Self {
        Self { labels: format!("_{number}._udp"), number }
    }
}

/// Names and what they stand for.
///
/// An entry without addresses makes its names known: a question about them gets an empty answer and is not forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Names in any case. Reverse look-ups of the addresses and SRV records return the first one, with the name of the
    /// network appended.
    pub names: Vec<String>,
    /// Addresses of every name.
    pub addresses: Vec<IpAddr>,
    /// Ports to announce.
    pub ports: Vec<Port>,
}

impl Entry {
    fn normal(mut self) -> Self {
        self.names.iter_mut().for_each(|name| name.make_ascii_lowercase());
        let mut seen = BTreeSet::new();
        self.names.retain(|name| seen.insert(name.clone()));
        self.addresses.sort_unstable();
        self.addresses.dedup();
        self
    }
}

#[derive(Debug, Default)]
struct Network {
    name: String,
    entries: BTreeMap<String, Entry>,
    names: BTreeMap<String, Records>,
    /// First names of the entries that have an address.
    reverse: BTreeMap<IpAddr, Tally<String>>,
}

impl Network {
    fn add(&mut self, entry: &Entry) {
        let Some(first) = entry.names.first() else { return };
        for name in &entry.names {
            let records = self.names.entry(name.clone()).or_default();
            records.holders += 1;
            entry.addresses.iter().for_each(|address| records.add_address(*address));
            for Port { labels, number } in &entry.ports {
                let records = self.names.entry(format!("{labels}.{name}")).or_default();
                records.holders += 1;
                records.services.add((*number, first.clone()));
            }
        }
        for address in &entry.addresses {
            self.reverse.entry(*address).or_default().add(first.clone());
        }
    }

    fn take(&mut self, entry: &Entry) {
        let Some(first) = entry.names.first() else { return };
        for name in &entry.names {
            self.change(name, |records| entry.addresses.iter().for_each(|address| records.take_address(*address)));
            for Port { labels, number } in &entry.ports {
                self.change(&format!("{labels}.{name}"), |records| records.services.take(&(*number, first.clone())));
            }
        }
        for address in &entry.addresses {
            if let Some(names) = self.reverse.get_mut(address) {
                names.take(first);
                if names.is_empty() {
                    self.reverse.remove(address);
                }
            }
        }
    }

    /// Takes one holder from a name, which goes with its last one.
    fn change(&mut self, name: &str, take: impl FnOnce(&mut Records)) {
        if let Some(records) = self.names.get_mut(name) {
            take(records);
            records.holders -= 1;
            if records.holders == 0 {
                self.names.remove(name);
            }
        }
    }

    /// Returns a name below the network's, as other hosts of the network can look it up.
    fn full(&self, name: &str) -> Option<Name> {
        Name::from_ascii(format!("{name}.{}.", self.name)).ok()
    }

    fn find(&self, name: &str, kind: RecordType, rotation: Rotation) -> Option<Found> {
        let records = self.names.get(name)?;
        let mut found = Found::new(rotation);
        if matches!(kind, RecordType::A | RecordType::ANY) {
            records.v4.collect(&mut found, |address| Some(RData::A((*address).into())));
        }
        if matches!(kind, RecordType::AAAA | RecordType::ANY) {
            records.v6.collect(&mut found, |address| Some(RData::AAAA((*address).into())));
        }
        if matches!(kind, RecordType::SRV | RecordType::ANY) {
            let srv = |(port, target): &(u16, String)| Some(RData::SRV(SRV::new(0, 0, *port, self.full(target)?)));
            records.services.collect(&mut found, srv);
        }
        Some(found)
    }

    fn find_reverse(&self, address: IpAddr, kind: RecordType, rotation: Rotation) -> Option<Found> {
        let names = self.reverse.get(&address)?;
        let mut found = Found::new(rotation);
        if matches!(kind, RecordType::PTR | RecordType::ANY) {
            names.collect(&mut found, |name| Some(RData::PTR(PTR(self.full(name)?))));
        }
        Some(found)
    }
}

/// Whether DNS can carry the name, and a user can write it.
fn is_valid(name: &str) -> bool {
    let is_label = |label: &str| {
        let fits = !label.is_empty() && label.len() <= LONGEST_LABEL;
        fits && label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
    };
    name.len() <= LONGEST_NAME && name.split('.').all(is_label)
}

/// The names of all networks of a machine. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    networks: Arc<RwLock<BTreeMap<String, Network>>>,
}

impl Directory {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Network>> {
        self.networks.read().expect("no holder panics")
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Network>> {
        self.networks.write().expect("no holder panics")
    }

    /// Adds a network, or renames the one with that key. Its names can be written with or without the network's:
    /// `web`, `web.front`.
    ///
    /// # Errors
    /// The name is not a DNS name.
    pub fn set_network(&self, key: &str, name: &str) -> Result<(), DirectoryError> {
        if !is_valid(name) {
            return Err(DirectoryError::InvalidName(name.to_owned()));
        }
        self.write().entry(key.to_owned()).or_default().name = name.to_ascii_lowercase();
        Ok(())
    }

    /// Removes a network with its names, if there is one.
    pub fn remove_network(&self, key: &str) {
        self.write().remove(key);
    }

    /// Sets an entry of a network and replaces the one with that key, in one step for whoever looks up a name.
    ///
    /// # Errors
    /// There is no such network; nothing is changed then. Or a name is not a DNS name; it is left out then.
    pub fn set(&self, network: &str, key: &str, entry: Entry) -> Result<(), DirectoryError> {
        let entry = entry.normal();
        let mut networks = self.write();
        let found = networks.get_mut(network).ok_or_else(|| DirectoryError::NoNetwork(network.to_owned()))?;
        let longest = entry.ports.iter().map(|it| it.labels.len() + 1).max().unwrap_or_default() + found.name.len() + 1;
        let (names, bad): (_, Vec<_>) =
            entry.names.into_iter().partition(|it| is_valid(it) && it.len() + longest <= LONGEST_NAME);
        let entry = Entry { names, ..entry };
        if let Some(old) = found.entries.remove(key) {
            found.take(&old);
        }
        found.add(&entry);
        found.entries.insert(key.to_owned(), entry);
        bad.into_iter().next().map_or(Ok(()), |name| Err(DirectoryError::InvalidName(name)))
    }

    /// Removes an entry, if there is one.
    pub fn remove(&self, network: &str, key: &str) {
        if let Some(network) = self.write().get_mut(network)
            && let Some(old) = network.entries.remove(key)
        {
            network.take(&old);
        }
    }

    /// Looks a name up for a client of these networks: the first one that knows the name answers. `None` if none does,
    /// so that the question has to be forwarded.
    pub(super) fn find(&self, networks: &[String], name: &Name, kind: RecordType, rotation: Rotation) -> Option<Found> {
        let mut text = name.to_ascii();
        text.make_ascii_lowercase();
        let text = text.strip_suffix('.').unwrap_or(&text);
        let all = self.read();
        let joined = || networks.iter().filter_map(|key| all.get(key));
        if text.ends_with(".arpa") {
            let net = name.parse_arpa_name().ok().filter(|it| it.prefix_len() == it.max_prefix_len())?;
            return joined().find_map(|network| network.find_reverse(net.addr(), kind, rotation));
        }
        joined().find_map(|network| network.find(text, kind, rotation)).or_else(|| {
            joined().find_map(|network| {
                let name = text.strip_suffix(&network.name)?.strip_suffix('.')?;
                network.find(name, kind, rotation)
            })
        })
    }
}
