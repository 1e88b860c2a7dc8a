//! A network as this machine has it. Other crates make, change and remove networks only through this module, which calls
//! those that make the parts.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::attachment;
use crate::bridge;
use crate::error::{NetworkError, io};
use crate::guard::Guard;
use crate::mac::Mac;
use crate::macvlan;
use crate::namespace::Namespace;
use crate::netlink::Connection;
use crate::spec::{Attachment, Driver, LocalNetworkSpec, Remote};
use crate::stations::{Place, Station, StationTables};
use crate::vxlan;

/// A network on this machine with its desired state.
///
/// It holds netlink connections, which keep the network's namespace alive. Dropping it changes nothing in the kernel: a
/// restarted process adopts what it finds with [`LocalNetwork::ensure`].
#[derive(Debug)]
pub struct LocalNetwork {
    spec: LocalNetworkSpec,
    namespace: Namespace,
    node: Connection,
    /// The parts of a network with a bridge; other networks have none.
    bridged: Option<Bridged>,
    attachments: BTreeMap<Mac, Attachment>,
    remotes: BTreeMap<Mac, Remote>,
    /// The changes of the current call over connections that are closed again.
    changes: Vec<String>,
}

#[derive(Debug)]
struct Bridged {
    inside: Connection,
    tables: StationTables,
    mtu: u32,
    guard: Guard,
    /// The ports of the attachments, by index.
    ports: BTreeMap<Mac, u32>,
}

/// The result of an audit.
#[derive(Debug, Default)]
pub struct Audit {
    /// The differences that have been repaired, as phrases.
    pub mended: Vec<String>,
    /// The differences that could not be repaired.
    pub failed: Vec<NetworkError>,
}

impl LocalNetwork {
    /// Makes the network, or adopts what there is of it. `node` is the machine's namespace, `file` the file of the network's
    /// own namespace, which a network of links of the machine (macvlan) does not have.
    ///
    /// # Errors
    /// The spec is contradictory, no link has the underlay's address, or the kernel refuses. What has been made
    /// remains, for the next call or for [`remove_network`].
    pub fn ensure(node: &Namespace, file: &Path, spec: LocalNetworkSpec) -> Result<Self, NetworkError> {
        let mut network = Self {
            node: Connection::open(node)?,
            namespace: Namespace::at(file),
            spec,
            bridged: None,
            attachments: BTreeMap::new(),
            remotes: BTreeMap::new(),
            changes: Vec::new(),
        };
        network.build()?;
        Ok(network)
    }

    /// Changes the network, and all interfaces in it, to another spec.
    ///
    /// # Errors
    /// The spec is contradictory, or the kernel refuses. The new spec is then wanted nevertheless.
    pub fn update(&mut self, spec: LocalNetworkSpec) -> Result<(), NetworkError> {
        self.take_changes();
        self.spec = spec;
        self.mend().into_iter().next().map_or(Ok(()), Err)
    }

    /// The network's own namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The largest packet that its interfaces send; `None` if the network is only a link of the machine.
    pub fn mtu(&self) -> Option<u32> {
        self.bridged.as_ref().map(|bridged| bridged.mtu)
    }

    /// The spec that the network follows.
    pub fn spec(&self) -> &LocalNetworkSpec {
        &self.spec
    }

    /// Connects an interface to the network. Connecting it again mends what differs.
    ///
    /// # Errors
    /// An address is in none of the subnets, the namespace is gone, or the kernel refuses. [`LocalNetwork::detach`] removes
    /// what has been made.
    pub fn attach(&mut self, attachment: Attachment) -> Result<(), NetworkError> {
        self.take_changes();
        let mac = mac_of(&attachment.addresses)?;
        let addresses = attachment.addresses.clone();
        self.connect(attachment)?;
        let Some(Bridged { inside, tables, ports, .. }) = &mut self.bridged else { return Ok(()) };
        let Some(port) = ports.get(&mac) else { return Ok(()) };
        tables.add(inside, mac, &Station { addresses, place: Place::Port(*port) })
    }

    /// Disconnects an interface: removes it in its namespace, if that is still there, and all that belongs to it here. Does
    /// nothing if it is not connected, or if its address has moved to another namespace.
    ///
    /// # Errors
    /// The kernel refuses to remove the interface or its rules.
    pub fn detach(&mut self, attachment: &Attachment) -> Result<(), NetworkError> {
        self.take_changes();
        let mac = mac_of(&attachment.addresses)?;
        // Another namespace may have the address by now, and with it the port of that name.
        let is_moved = |other: &Attachment| other.namespace.path() != attachment.namespace.path();
        if self.attachments.get(&mac).is_some_and(is_moved) {
            return Ok(());
        }
        self.attachments.remove(&mac);
        match &mut self.bridged {
            Some(bridged) => {
                bridged.ports.remove(&mac);
                bridged.guard.remove(mac)?;
                bridged.tables.forget(&mut bridged.inside, mac, &attachment.addresses)?;
                bridged.inside.remove_link(&mac.port_name())
            }
            // The interface ends with its namespace.
            None if !attachment.namespace.exists() => Ok(()),
            None => Connection::open(&attachment.namespace)?.remove_link(&attachment.interface),
        }
    }

    /// Sets which interfaces other machines have in the network. Only an overlay reaches them.
    ///
    /// # Errors
    /// A remote interface has no address, or the kernel refuses.
    pub fn set_remotes(&mut self, remotes: Vec<Remote>) -> Result<(), NetworkError> {
        self.take_changes();
        self.remotes = by_mac(remotes)?;
        self.set_stations()
    }

    /// Changes which interfaces other machines have, at a cost that depends only on the number of changes. A remote
    /// interface that is known already is moved to its new machine.
    ///
    /// # Errors
    /// A remote interface has no address, or the kernel refuses. The change is wanted nevertheless: an audit completes it.
    pub fn change_remotes(&mut self, removed: Vec<Remote>, added: Vec<Remote>) -> Result<(), NetworkError> {
        self.take_changes();
        let (removed, added) = (by_mac(removed)?, by_mac(added)?);
        // The address may be another interface's by now.
        let is_there = |(mac, remote): &(&Mac, &Remote)| self.remotes.get(mac) == Some(remote);
        let gone: Vec<Mac> = removed.iter().filter(is_there).map(|(mac, _)| *mac).collect();
        let previous: Vec<_> = gone.iter().filter_map(|mac| self.remotes.remove_entry(mac)).collect();
        self.remotes.extend(added.iter().map(|(mac, remote)| (*mac, remote.clone())));
        let Some(Bridged { inside, tables, .. }) = &mut self.bridged else { return Ok(()) };
        for (mac, remote) in previous {
            tables.remove(inside, mac, &station(&remote))?;
        }
        for (mac, remote) in added {
            tables.add(inside, mac, &station(&remote))?;
        }
        Ok(())
    }

    /// Compares what the kernel has with what is wanted, and mends what differs.
    pub fn audit(&mut self) -> Audit {
        self.take_changes();
        let failed = self.mend();
        Audit { mended: self.take_changes(), failed }
    }

    /// Disconnects every interface that has not been attached through this value. After a restart, those are the ones of
    /// namespaces that have ended meanwhile. Returns how many there were.
    ///
    /// # Errors
    /// The kernel refuses to list the links or to remove one.
    pub fn sweep(&mut self) -> Result<usize, NetworkError> {
        let Some(Bridged { inside, ports, .. }) = &mut self.bridged else { return Ok(0) };
        let known: BTreeSet<_> = ports.keys().map(|mac| mac.port_name()).collect();
        let strangers: Vec<_> = inside
            .links()?
            .into_iter()
            .filter(|link| Mac::is_port_name(&link.name) && !known.contains(&link.name))
            .collect();
        for stranger in &strangers {
            inside.remove_link(&stranger.name)?;
        }
        Ok(strangers.len())
    }

    /// Removes the network with everything in its namespace. Interfaces that are still connected are removed as well.
    ///
    /// # Errors
    /// The kernel refuses to remove an interface or the namespace.
    pub fn remove(self) -> Result<(), NetworkError> {
        let Self { namespace, attachments, bridged, .. } = self;
        if bridged.is_none() {
            for attachment in attachments.values().filter(|attachment| attachment.namespace.exists()) {
                Connection::open(&attachment.namespace)?.remove_link(&attachment.interface)?;
            }
        }
        drop(bridged);
        remove_network(namespace.path())
    }

    /// Makes the parts that do not depend on interfaces.
    fn build(&mut self) -> Result<(), NetworkError> {
        let mtu = match (&self.spec.driver, self.spec.mtu) {
            (Driver::Macvlan { parent }, _) => {
                self.node.existing(parent)?;
                self.bridged = None;
                return Ok(());
            }
            (Driver::Overlay(underlay), None) => {
                vxlan::path_mtu(&mut self.node, underlay.local)?.saturating_sub(underlay.overhead())
            }
            _ => self.spec.plain_mtu(),
        };
        let mtu = mtu.max(self.spec.least_mtu());
        let (mut inside, changes) = bridge::open(&self.namespace, &self.spec)?;
        self.changes.extend(changes);
        let bridge = bridge::ensure(&mut inside, &self.spec, mtu)?;
        let vxlan = match &self.spec.driver {
            Driver::Overlay(underlay) => {
                Some(vxlan::ensure(&mut self.node, &mut inside, &self.namespace, bridge, mtu, underlay)?)
            }
            _ => None,
        };
        let (ports, guard) = match self.bridged.take() {
            Some(bridged) => (bridged.ports, bridged.guard),
            None => (BTreeMap::new(), Guard::open(&self.namespace)?),
        };
        self.bridged = Some(Bridged { inside, tables: StationTables { bridge, vxlan }, mtu, guard, ports });
        Ok(())
    }

    /// Connects an interface, and wants it from now on.
    fn connect(&mut self, attachment: Attachment) -> Result<(), NetworkError> {
        let mac = mac_of(&attachment.addresses)?;
        let mut outside = attachment::open(&attachment)?;
        let mtu = match (&mut self.bridged, &self.spec.driver) {
            (Some(bridged), _) => {
                let Bridged { inside, tables, mtu, .. } = bridged;
                let port = bridge::connect(inside, tables.bridge, *mtu, &mut outside, &attachment, mac)?;
                if bridged.ports.insert(mac, port) != Some(port) {
                    // It was made, or an earlier process has made it.
                    bridged.guard.set(mac, &attachment.addresses)?;
                }
                Some(*mtu)
            }
            (None, Driver::Macvlan { parent }) => {
                macvlan::connect(&mut self.node, parent, self.spec.mtu, &mut outside, &attachment, mac)?;
                self.spec.mtu
            }
            // The network could not be built when its spec changed.
            (None, _) => return Err(NetworkError::NoLink(bridge::BRIDGE.into())),
        };
        attachment::configure(&mut outside, &self.spec, &attachment, mac, mtu)?;
        self.changes.extend(outside.take_changes());
        self.attachments.insert(mac, attachment);
        Ok(())
    }

    /// Makes the tables of a bridged network name all stations, and no others.
    fn set_stations(&mut self) -> Result<(), NetworkError> {
        let Some(Bridged { inside, tables, ports, .. }) = &mut self.bridged else { return Ok(()) };
        let mut stations: BTreeMap<_, _> = self.remotes.iter().map(|(mac, remote)| (*mac, station(remote))).collect();
        for (mac, attachment) in &self.attachments {
            if let Some(port) = ports.get(mac) {
                let addresses = attachment.addresses.clone();
                stations.insert(*mac, Station { addresses, place: Place::Port(*port) });
            }
        }
        tables.set(inside, &stations)
    }

    /// Makes everything what it should be, as far as possible. Returns what failed.
    fn mend(&mut self) -> Vec<NetworkError> {
        let mut failed = Vec::new();
        failed.extend(self.build().err());
        for attachment in self.attachments.values().cloned().collect::<Vec<_>>() {
            failed.extend(self.connect(attachment).err());
        }
        failed.extend(self.set_stations().err());
        if let Some(bridged) = &mut self.bridged {
            match bridged.guard.mend() {
                Ok(true) => self.changes.push("write the guards of the ports".into()),
                Ok(false) => {}
                Err(error) => failed.push(error),
            }
        }
        failed
    }

    /// Returns what has been changed since the last call.
    fn take_changes(&mut self) -> Vec<String> {
        let mut changes = std::mem::take(&mut self.changes);
        changes.extend(self.node.take_changes());
        changes.extend(self.bridged.iter_mut().flat_map(|bridged| bridged.inside.take_changes()));
        changes
    }
}

fn mac_of(addresses: &[IpAddr]) -> Result<Mac, NetworkError> {
    Mac::of(addresses).ok_or_else(|| NetworkError::NoAddress("an interface".into()))
}

fn by_mac(remotes: Vec<Remote>) -> Result<BTreeMap<Mac, Remote>, NetworkError> {
    remotes.into_iter().map(|remote| Ok((mac_of(&remote.addresses)?, remote))).collect()
}

fn station(remote: &Remote) -> Station {
    Station { addresses: remote.addresses.clone(), place: Place::Vtep(remote.vtep) }
}

/// Removes the network whose namespace has this file, with all links in it, also if its parts have been made only half.
/// Does nothing if there is none.
///
/// # Errors
/// The kernel refuses to remove a link or the namespace.
pub fn remove_network(file: &Path) -> Result<(), NetworkError> {
    let namespace = Namespace::at(file);
    if namespace.exists() {
        // A copy of the mount in another mount namespace may keep the namespace alive, but not what is in it.
        let mut inside = Connection::open(&namespace)?;
        for link in inside.links()?.iter().filter(|link| link.name != bridge::LOOPBACK) {
            inside.remove_link(&link.name)?;
        }
    }
    Namespace::remove(file)
}

/// Removes the networks whose files are in `folder`, apart from the named ones: what an earlier process has left. Returns
/// their files.
///
/// # Errors
/// The folder is unreadable, or the kernel refuses. The others are removed nevertheless.
pub fn remove_other_networks(folder: &Path, keep: &BTreeSet<OsString>) -> Result<Vec<PathBuf>, NetworkError> {
    let act = || io(format!("list the networks in {}", folder.display()));
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(act())?,
    };
    let (mut removed, mut failed) = (Vec::new(), None);
    for entry in entries {
        let entry = entry.map_err(act())?;
        if keep.contains(&entry.file_name()) {
            continue;
        }
        match remove_network(&entry.path()) {
            Ok(()) => removed.push(entry.path()),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(removed), Err)
}

#[cfg(test)]
mod tests;
