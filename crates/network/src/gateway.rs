//! The host's namespace as the gateway between its networks and the world: ways out, published ports, and what may pass.
//!
//! All rules are in one table. Networks are told by the names of their interfaces, so that a network that comes or goes
//! changes no rule; ports and machines are elements of maps and sets. Every change is one transaction.
//!
//! A packet from outside to a published port: `publish` (prerouting) replaces its destination by a target's address;
//! `forward` lets it pass because of that; the route of the target's subnet leads to the network's uplink. What a network
//! sends out passes `forward`, and `source` (postrouting) replaces its source by the host's address.
//!
//! A host that becomes a gateway forwards packets between all its interfaces, as far as its other rules allow.

mod firewall;
mod listeners;
mod ports;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

pub use listeners::taken_ports;
pub use ports::{HostPort, Protocol, PublishedPort, Target};
pub(crate) use uplink::host_address;
pub use uplink::{INTERFACE_PREFIX, Uplink};

use crate::error::NetworkError;
use crate::local_network::Audit;
use crate::namespace::{Namespace, set_here};
use crate::netlink::Connection;
use crate::nftables::connections::Connections;
use crate::nftables::ruleset::Change;
use crate::nftables::table::Tables;

/// What stays the same for as long as a gateway exists.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GatewaySettings {
    /// The UDP port on which the frames of overlays arrive.
    pub vxlan_port: u16,
    /// TCP ports of the machines that networks can't reach.
    pub guarded_ports: BTreeSet<u16>,
}

/// A change of what a gateway does.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GatewayChange {
    /// The networks that have a way out, by a name of at most nine bytes; `None` removes it.
    pub uplinks: BTreeMap<String, Option<Uplink>>,
    /// Published ports; `None` ends that a port is published.
    pub ports: BTreeMap<HostPort, Option<PublishedPort>>,
    /// If it has changed: all addresses of the machines that send frames of overlays, and whose guarded ports networks
    /// can't reach.
    pub machines: Option<BTreeSet<IpAddr>>,
}

/// The gateway of a host.
///
/// Dropping it changes nothing in the kernel: a restarted process adopts what it finds with [`Gateway::ensure`].
#[derive(Debug)]
pub struct Gateway {
    host: Namespace,
    links: Connection,
    tables: Tables,
    connections: Connections,
    uplinks: BTreeMap<String, Uplink>,
    ports: BTreeMap<HostPort, PublishedPort>,
    machines: BTreeSet<IpAddr>,
}

impl Gateway {
    /// Makes the host a gateway, or adopts what there is of it. What `wanted` does not name and an earlier process has left
    /// is removed, so that `wanted` has to be complete.
    ///
    /// # Errors
    /// The namespace of a network does not exist, or the kernel refuses.
    pub fn ensure(host: &Namespace, settings: &GatewaySettings, wanted: GatewayChange) -> Result<Self, NetworkError> {
        let mut links = Connection::open(host)?;
        host.enter(become_router)?;
        let uplinks: BTreeMap<_, _> =
            wanted.uplinks.into_iter().filter_map(|(name, uplink)| Some((name, uplink?))).collect();
        let ports: BTreeMap<_, _> =
            wanted.ports.into_iter().filter_map(|(port, published)| Some((port, published?))).collect();
        let machines = wanted.machines.unwrap_or_default();
        for (name, uplink) in &uplinks {
            uplink.ensure(name, &mut links, host)?;
        }
        let mut ruleset = firewall::tables(settings);
        let port_changes = ports.iter().flat_map(|(port, published)| ports::changes(*port, Some(published)));
        let nobody = BTreeSet::new();
        let changes: Vec<Change> = port_changes.chain(firewall::machine_changes(&nobody, &machines)).collect();
        changes.into_iter().for_each(|change| change.apply(&mut ruleset));
        let tables = Tables::open(host, ruleset)?;
        uplink::remove_others(&mut links, uplinks.keys())?;
        let connections = Connections::open(host)?;
        Ok(Self { host: host.clone(), links, tables, connections, uplinks, ports, machines })
    }

    /// Makes a change. What it does not name stays as it is. All changes of ports and machines take effect at once.
    /// Connections to targets that are gone end.
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
        self.change_rules(change.ports, change.machines)?;
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
    ) -> Result<(), NetworkError> {
        let mut changes: Vec<Change> =
            ports.iter().flat_map(|(port, published)| ports::changes(*port, published.as_ref())).collect();
        if let Some(machines) = &machines {
            changes.extend(firewall::machine_changes(&self.machines, machines));
        }
        self.tables.apply(changes)?;
        self.machines = machines.unwrap_or_else(|| std::mem::take(&mut self.machines));
        let mut outdated = BTreeSet::new();
        for (port, published) in ports {
            outdated.extend(ports::outdated(port, self.ports.get(&port), published.as_ref()));
            match published {
                Some(published) => self.ports.insert(port, published),
                None => self.ports.remove(&port),
            };
        }
        outdated.iter().try_for_each(|selection| self.connections.end(selection).map(drop))
    }

    /// Compares the kernel with what is wanted and mends what differs. Costs a few system calls as long as nothing does.
    pub fn audit(&mut self) -> Audit {
        let mut audit = Audit::default();
        self.links.take_changes();
        match self.host.enter(become_router) {
            Ok(changed) => audit.mended.extend(changed),
            Err(error) => audit.failed.push(error),
        }
        for (name, uplink) in &self.uplinks {
            audit.failed.extend(uplink.ensure(name, &mut self.links, &self.host).err());
        }
        audit.failed.extend(uplink::remove_others(&mut self.links, self.uplinks.keys()).err());
        audit.mended.extend(self.links.take_changes());
        match self.tables.mend() {
            Ok(true) => audit.mended.push("write the packet filter's tables".into()),
            Ok(false) => {}
            Err(error) => audit.failed.push(error),
        }
        audit
    }
}

/// Removes everything that a gateway has made in the namespace of a host, except that the host forwards packets. Does
/// nothing if there is nothing.
///
/// # Errors
/// The kernel refuses.
pub fn remove_gateway(host: &Namespace) -> Result<(), NetworkError> {
    let mut links = Connection::open(host)?;
    uplink::remove_others(&mut links, std::iter::empty())?;
    Tables::remove(host)
}

/// Lets the namespace of this thread forward packets. Returns the kernel parameters that had another value.
fn become_router() -> Result<Vec<String>, NetworkError> {
    let parameters = Path::new("/proc/sys/net/ipv6/conf");
    let interfaces = std::fs::read_dir(parameters).into_iter().flatten().flatten();
    // A router ignores router advertisements (1) unless told to obey them nevertheless (2), and so would lose its own routes.
    let obeying = interfaces.map(|entry| format!("net/ipv6/conf/{}/accept_ra", entry.file_name().to_string_lossy()));
    let obeying: Vec<_> = obeying.filter(|name| is_one(name)).collect();
    let mut parameters: Vec<_> = obeying.iter().map(|name| (name.as_str(), "2")).collect();
    parameters.extend([("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]);
    set_here(&parameters)
}

fn is_one(parameter: &str) -> bool {
    std::fs::read_to_string(Path::new("/proc/sys").join(parameter)).is_ok_and(|value| value.trim() == "1")
}
