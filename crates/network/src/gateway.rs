//! The host's namespace as the gateway between its networks and the world: ways out, published ports, and what may pass.
//!
//! All rules are in one table. Networks are told by the names of their interfaces, so that a network that comes or goes
//! changes no rule; ports and machines are elements of maps and sets. A change takes effect as one transaction.
//!
//! A packet from outside to a published port: `publish` (prerouting) replaces its destination by a target's address;
//! `forward` lets it pass because of that; the route of the target's subnet leads to the network's uplink. What a network
//! sends out passes `forward`, and `source` (postrouting) replaces its source by the host's address.
//!
//! A host that becomes a gateway forwards packets between all its interfaces, as far as its other rules allow.

mod firewall;
mod listeners;
mod ports;
mod router;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub(crate) use firewall::{sender_changes, tunnel_tables};
pub use listeners::Listeners;
pub use ports::{HostPort, Protocol, PublishedPort, Target};
use router::become_router;
pub(crate) use uplink::host_address;
pub use uplink::{INTERFACE_PREFIX, Uplink};

use crate::error::NetworkError;
use crate::local_network::Audit;
use crate::mac::Mac;
use crate::namespace::Namespace;
use crate::netlink::Connection;
use crate::nftables::connections::{Connections, Selection};
use crate::nftables::ruleset::{Change, Family};
use crate::nftables::table::Tables;

/// The settings of a gateway, which stay the same as long as it exists.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GatewaySettings {
    /// The UDP port on which the frames of overlays arrive.
    pub vxlan_port: u16,
    /// TCP ports of the machines that networks can't reach.
    pub guarded_ports: BTreeSet<u16>,
    /// The file, in memory, that keeps which kernel parameters the host had before it became a gateway.
    pub former_parameters: PathBuf,
}

/// The origin of an overlay's frames: an interface on another machine.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Sender {
    /// The address of the machine in the underlay.
    pub machine: IpAddr,
    /// The MAC address of the interface.
    pub mac: Mac,
}

/// A change of what a gateway does.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GatewayChange {
    /// The networks that have a way out, by a name of at most nine bytes; `None` removes it.
    pub uplinks: BTreeMap<String, Option<Uplink>>,
    /// Published ports; `None` ends that a port is published.
    pub ports: BTreeMap<HostPort, Option<PublishedPort>>,
    /// If it has changed: all addresses of the machines whose guarded ports networks can't reach.
    pub machines: Option<BTreeSet<IpAddr>>,
    /// Senders of frames of overlays that come (true) or go (false). Frames of others are dropped.
    pub senders: BTreeMap<Sender, bool>,
}

/// The gateway of a host.
///
/// Dropping it changes nothing in the kernel: a restarted process adopts what it finds with [`Gateway::ensure`].
#[derive(Debug)]
pub struct Gateway {
    host: Namespace,
    former_parameters: PathBuf,
    links: Connection,
    tables: Tables,
    connections: Connections,
    uplinks: BTreeMap<String, Uplink>,
    ports: BTreeMap<HostPort, PublishedPort>,
    machines: BTreeSet<IpAddr>,
    /// Connections that can no longer be right.
    outdated: BTreeSet<Selection>,
    /// Those that were ended, and that the next audit ends again: a packet that was on its way to a target that has
    /// just gone may have begun a connection after the others were ended.
    ended: BTreeSet<Selection>,
    /// Chains to which no port leads any more: those that the next audit removes, and those that the one after it does.
    retired: [BTreeSet<String>; 2],
}

impl Gateway {
    /// Makes the host a gateway, or adopts what there is of it. What `wanted` does not name and an earlier process has left
    /// is removed, so that `wanted` has to be complete.
    ///
    /// # Errors
    /// The namespace of a network does not exist, or the kernel refuses.
    pub fn ensure(host: &Namespace, settings: &GatewaySettings, wanted: GatewayChange) -> Result<Self, NetworkError> {
        let mut links = Connection::open(host)?;
        host.enter(|| become_router(&settings.former_parameters))?;
        let uplinks: BTreeMap<_, _> =
            wanted.uplinks.into_iter().filter_map(|(name, uplink)| Some((name, uplink?))).collect();
        let ports: BTreeMap<_, _> =
            wanted.ports.into_iter().filter_map(|(port, published)| Some((port, published?))).collect();
        let machines = wanted.machines.unwrap_or_default();
        for (name, uplink) in &uplinks {
            uplink.ensure(name, &mut links, host)?;
        }
        let mut ruleset = firewall::tables(settings);
        let port_changes = ports.iter().flat_map(|(port, published)| {
            [ports::chain_change(*port, published), ports::element_change(*port, Some(published))]
        });
        let nobody = BTreeSet::new();
        let changes = port_changes.chain(firewall::machine_changes(&nobody, &machines));
        let changes: Vec<Change> = changes.chain(firewall::sender_changes(&wanted.senders)).collect();
        changes.into_iter().for_each(|change| change.apply(&mut ruleset));
        let tables = Tables::open(host, ruleset)?;
        uplink::remove_others(&mut links, uplinks.keys())?;
        let connections = Connections::open(host)?;
        Ok(Self {
            host: host.clone(),
            former_parameters: settings.former_parameters.clone(),
            links,
            tables,
            connections,
            uplinks,
            ports,
            machines,
            outdated: BTreeSet::new(),
            ended: BTreeSet::new(),
            retired: Default::default(),
        })
    }

    /// Makes a change. What it does not name stays as it is. All changes of ports and machines take effect at once.
    /// Connections to targets that are gone end with [`Self::end_outdated`].
    ///
    /// # Errors
    /// The namespace of a network does not exist, or the kernel refuses. Ports and machines are then as they were.
    pub fn change(&mut self, change: GatewayChange) -> Result<(), NetworkError> {
        let (added, removed): (Vec<_>, Vec<_>) = change.uplinks.into_iter().partition(|(_, uplink)| uplink.is_some());
        for (name, uplink) in added.into_iter().filter_map(|(name, uplink)| Some((name, uplink?))) {
            if self.uplinks.get(&name) != Some(&uplink) {
                uplink.ensure(&name, &mut self.links, &self.host)?;
                self.uplinks.insert(name, uplink);
            }
        }
        self.change_rules(change.ports, change.machines, &change.senders)?;
        for (name, _) in removed {
            self.links.remove_link(&uplink::interface(&name))?;
            self.uplinks.remove(&name);
        }
        Ok(())
    }

    fn change_rules(
        &mut self,
        ports: BTreeMap<HostPort, Option<PublishedPort>>,
        machines: Option<BTreeSet<IpAddr>>,
        senders: &BTreeMap<Sender, bool>,
    ) -> Result<(), NetworkError> {
        let served = ports.iter().filter_map(|(port, published)| Some((*port, published.as_ref()?)));
        self.tables.apply(served.map(|(port, published)| ports::chain_change(port, published)).collect())?;
        let elements = ports.iter().map(|(port, published)| ports::element_change(*port, published.as_ref()));
        let mut changes: Vec<Change> = elements.chain(firewall::sender_changes(senders)).collect();
        if let Some(machines) = &machines {
            changes.extend(firewall::machine_changes(&self.machines, machines));
        }
        self.tables.apply(changes)?;
        self.machines = machines.unwrap_or_else(|| std::mem::take(&mut self.machines));
        for (port, published) in ports {
            let old = self.ports.get(&port);
            self.outdated.extend(ports::outdated(port, old, published.as_ref()));
            for wanted in published.iter().flat_map(|published| ports::wanted(port, published)) {
                self.outdated.remove(&wanted);
                self.ended.remove(&wanted);
            }
            self.retired[1].extend(old.map(|old| ports::chain_name(port, old)));
            if let Some(published) = &published {
                let name = ports::chain_name(port, published);
                self.retired.iter_mut().for_each(|retired| _ = retired.remove(&name));
            }
            match published {
                Some(published) => self.ports.insert(port, published),
                None => self.ports.remove(&port),
            };
        }
        Ok(())
    }

    /// Names the ports that an earlier process had published. Connections to targets that are gone since then end with
    /// [`Self::end_outdated`].
    pub fn succeed(&mut self, former: &BTreeMap<HostPort, PublishedPort>) {
        for (port, old) in former {
            self.outdated.extend(ports::outdated(*port, Some(old), self.ports.get(port)));
        }
        for wanted in self.ports.iter().flat_map(|(port, published)| ports::wanted(*port, published)) {
            self.outdated.remove(&wanted);
        }
    }

    /// Ends the connections that earlier changes have made wrong, most of all those to targets that are gone. The kernel
    /// looks through all tracked connections of the machine for them, which takes milliseconds.
    ///
    /// # Errors
    /// The kernel refuses to list the tracked connections or to end one. The next audit tries again.
    pub fn end_outdated(&mut self) -> Result<(), NetworkError> {
        let outdated = std::mem::take(&mut self.outdated);
        // First, so that the next audit also ends what fails here.
        self.ended.extend(outdated.iter().cloned());
        self.connections.end(&outdated).map(drop)
    }

    /// Compares the kernel with what is wanted and mends what differs. Costs a few system calls as long as nothing does.
    /// Also removes what changes before the last audit have left, so it has to be called about once a second.
    pub fn audit(&mut self) -> Audit {
        let mut audit = Audit::default();
        self.links.take_changes();
        match self.host.enter(|| become_router(&self.former_parameters)) {
            Ok(changed) => audit.mended.extend(changed),
            Err(error) => audit.failed.push(error),
        }
        for (name, uplink) in &self.uplinks {
            audit.failed.extend(uplink.ensure(name, &mut self.links, &self.host).err());
        }
        audit.failed.extend(uplink::remove_others(&mut self.links, self.uplinks.keys()).err());
        audit.mended.extend(self.links.take_changes());
        audit.failed.extend(self.remove_retired().err());
        audit.failed.extend(self.connections.end(&std::mem::take(&mut self.ended)).err());
        match self.tables.mend() {
            Ok(true) => audit.mended.push("write the packet filter's tables".into()),
            Ok(false) => {}
            Err(error) => audit.failed.push(error),
        }
        audit
    }

    /// Removes the chains that were retired before the last audit, so that no packet is still on its way through them.
    fn remove_retired(&mut self) -> Result<(), NetworkError> {
        let remove = |name: &String| Change::Chain { family: Family::Inet, name: name.clone(), chain: None };
        self.tables.apply(self.retired[0].iter().map(remove).collect())?;
        let [_, latest] = std::mem::take(&mut self.retired);
        self.retired[0] = latest;
        Ok(())
    }
}

/// Removes everything that a gateway has made in the namespace of a host, and gives the host the kernel parameters that the
/// file `former_parameters` keeps. Does nothing if there is nothing.
///
/// # Errors
/// The namespace can't be entered, or the kernel refuses to remove a link or a table or to set a parameter.
pub fn remove_gateway(host: &Namespace, former_parameters: &Path) -> Result<(), NetworkError> {
    let mut links = Connection::open(host)?;
    uplink::remove_others(&mut links, std::iter::empty())?;
    Tables::remove(host)?;
    host.enter(|| router::restore(former_parameters))
}
