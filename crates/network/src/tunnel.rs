//! The tunnels that carry the packets of encrypted overlays between machines: WireGuard devices in a namespace of their
//! own, which is the underlay of these overlays.
//!
//! ```text
//!  network's namespace        tunnels' namespace          host's namespace
//!  br0 ─── vx0 ═══ UDP 4789 ═══ wg51820 fd… ─────── UDP 51820, encrypted, to the other machines
//! ```
//!
//! A device's UDP socket stays in the host's namespace, in which the device is made. The tunnels' namespace has nothing
//! else that leads out, so a packet that can't be encrypted goes nowhere.
//!
//! Each key of this machine has a device, with all peers; more than one only while another key is on its way to the other
//! machines. All are received on, and the first is sent with. A device that is not wanted any more receives what is still
//! on its way: it goes with the second audit after that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

use ipnet::{IpNet, Ipv6Net};
use netlink_packet_route::link::{InfoKind, LinkAttribute};

use crate::error::NetworkError;
use crate::gateway::{Sender, sender_changes, tunnel_tables};
use crate::links::{describe, kind};
use crate::local_network::Audit;
use crate::namespace::{Namespace, set_here};
use crate::netlink::Connection;
use crate::nftables::ruleset::Change;
use crate::nftables::table::Tables;
use crate::routes::{Route, Way};
use crate::spec::Underlay;
use crate::vxlan::path_mtu;
use crate::wireguard::{PeerChange, PublicKey, SecretKey, WireGuard};

/// Bytes that WireGuard takes from the MTU of the path beside the IP header: UDP 8, its own header 16, and 16 bytes that
/// authenticate.
const OVERHEAD: u32 = 40;
/// The addresses of all keys ([`PublicKey::address`]).
const TUNNELS: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 8);
/// Kernel parameters of the tunnels' namespace.
const PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
];

/// A key of this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TunnelKey {
    /// The secret part.
    pub secret: SecretKey,
    /// The public part.
    pub public: PublicKey,
    /// The UDP port on which packets for this key arrive.
    pub port: u16,
}

impl TunnelKey {
    fn device(&self) -> String {
        format!("wg{}", self.port)
    }
}

/// The tunnels of this machine with their desired state.
///
/// Dropping it changes nothing in the kernel: a restarted process adopts what it finds with [`Tunnels::ensure`].
#[derive(Debug)]
pub struct Tunnels {
    namespace: Namespace,
    host: Connection,
    inside: Connection,
    /// `None` until there has been a device.
    wireguard: Option<WireGuard>,
    tables: Tables,
    local: IpAddr,
    mtu: u32,
    /// The first is the one that is sent with.
    keys: Vec<TunnelKey>,
    peers: BTreeMap<PublicKey, SocketAddr>,
    /// Devices of former keys: those that the next audit removes, and those that the one after it does.
    retired: [BTreeSet<String>; 2],
    /// The changes of the current call that netlink connections do not know.
    changes: Vec<String>,
}

/// What the tunnels of a machine should be at first.
#[derive(Clone, Debug)]
pub struct TunnelsSpec {
    /// The address from which the machine's packets to others come.
    pub local: IpAddr,
    /// The UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The keys of this machine, at least one. The first is the one that it sends with.
    pub keys: Vec<TunnelKey>,
    /// The keys of the other machines, and where packets for each go.
    pub peers: BTreeMap<PublicKey, SocketAddr>,
    /// The origins of frames: [`Sender::machine`] is the address of a peer's key.
    pub senders: BTreeSet<Sender>,
}

/// A change of whom the tunnels connect.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TunnelsChange {
    /// Keys of other machines, and where packets for each go; `None` removes one.
    pub peers: BTreeMap<PublicKey, Option<SocketAddr>>,
    /// Senders of frames that come (true) or go (false). Frames of others are dropped.
    pub senders: BTreeMap<Sender, bool>,
}

impl Tunnels {
    /// Makes the tunnels, or adopts what there is of them. `file` is the file of their namespace. What an earlier process
    /// has left and `spec` does not name is removed.
    ///
    /// # Errors
    /// No link of the host has the local address, the kernel has no WireGuard, or it refuses. What has been made
    /// remains, for the next call or for [`crate::remove_network`].
    pub fn ensure(host: &Namespace, file: &Path, spec: TunnelsSpec) -> Result<Self, NetworkError> {
        let namespace = Namespace::make(file)?;
        let (inside, changes) = namespace.enter(|| Ok((Connection::open_here()?, set_here(PARAMETERS)?)))?;
        let mut rules = tunnel_tables(spec.vxlan_port);
        let senders = spec.senders.iter().map(|sender| (*sender, true)).collect();
        sender_changes(&senders).for_each(|change| change.apply(&mut rules));
        // Nobody is let in before the rules are there.
        let tables = Tables::open(&namespace, rules)?;
        let mut tunnels = Self {
            namespace,
            host: Connection::open(host)?,
            inside,
            wireguard: None,
            tables,
            local: spec.local,
            mtu: 0,
            keys: spec.keys,
            peers: spec.peers,
            retired: Default::default(),
            changes,
        };
        tunnels.build(true)?;
        tunnels.remove_devices(|_| true)?;
        Ok(tunnels)
    }

    /// The namespace in which overlays are made that use the tunnels.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The largest packet of an overlay that uses the tunnels, in bytes.
    pub fn overlay_mtu(&self) -> u32 {
        let underlay = Underlay { local: Ipv6Addr::UNSPECIFIED.into(), port: 0, vni: 0 };
        self.mtu.saturating_sub(underlay.overhead())
    }

    /// Changes the address from which the machine's packets come, if it differs.
    ///
    /// # Errors
    /// No link of the host has it, or the kernel refuses.
    pub fn set_local(&mut self, local: IpAddr) -> Result<(), NetworkError> {
        if self.local == local {
            return Ok(());
        }
        self.local = local;
        self.build(false)
    }

    /// Changes the keys of this machine. Of those that it has had, the sessions go on. The device of one that is gone still
    /// receives for a while.
    ///
    /// # Errors
    /// The kernel refuses. The keys are then wanted nevertheless: an audit completes the change.
    pub fn set_keys(&mut self, keys: Vec<TunnelKey>) -> Result<(), NetworkError> {
        let names: BTreeSet<_> = keys.iter().map(TunnelKey::device).collect();
        self.retired.iter_mut().for_each(|retired| retired.retain(|name| !names.contains(name)));
        let former = self.keys.iter().map(TunnelKey::device).filter(|name| !names.contains(name));
        self.retired[1].extend(former);
        self.keys = keys;
        self.build(false)
    }

    /// Changes whom the tunnels connect, at a cost that depends only on the number of changes.
    ///
    /// # Errors
    /// The kernel refuses. A part of the change may then be made; it can be made again.
    pub fn change(&mut self, change: TunnelsChange) -> Result<(), NetworkError> {
        let mut peers = BTreeMap::new();
        for (key, endpoint) in &change.peers {
            let changed = match endpoint {
                Some(endpoint) if self.peers.contains_key(key) => PeerChange::Move(*endpoint),
                Some(endpoint) => PeerChange::Add(*endpoint),
                None => PeerChange::Remove,
            };
            peers.insert(*key, changed);
        }
        let rules: Vec<Change> = sender_changes(&change.senders).collect();
        let changed = if rules.is_empty() { Ok(()) } else { self.tables.apply(rules) };
        let devices = self.keys.iter().map(TunnelKey::device).chain(self.retired.iter().flatten().cloned());
        if let Some(wireguard) = self.wireguard.as_mut().filter(|_| !peers.is_empty()) {
            devices.into_iter().try_for_each(|name| wireguard.change_peers(&name, &peers))?;
        }
        // A peer that could not be added is new at the next try as well: a move gives it no addresses.
        for (key, endpoint) in change.peers {
            match endpoint {
                Some(endpoint) => self.peers.insert(key, endpoint),
                None => self.peers.remove(&key),
            };
        }
        changed
    }

    /// Compares what the kernel has with what is wanted, and mends what differs. Also removes the devices that were not
    /// wanted at the last audit any more.
    pub fn audit(&mut self) -> Audit {
        self.take_changes();
        let mut audit = Audit::default();
        audit.failed.extend(self.build(false).err());
        match self.tables.mend() {
            Ok(true) => audit.mended.push("write the packet filter's tables of the tunnels".into()),
            Ok(false) => {}
            Err(error) => audit.failed.push(error),
        }
        audit.mended.extend(self.take_changes());
        let retired = std::mem::take(&mut self.retired[0]);
        audit.failed.extend(self.remove_devices(|name| retired.contains(name)).err());
        self.retired.swap(0, 1);
        audit
    }

    /// Makes the devices, and the route through the first. `is_new`: the peers that are found may be elsewhere now. Later,
    /// the kernel knows better where they are.
    fn build(&mut self, is_new: bool) -> Result<(), NetworkError> {
        let header = if self.local.is_ipv4() { 20 } else { 40 };
        self.mtu = path_mtu(&mut self.host, self.local)?.saturating_sub(OVERHEAD + header);
        let mut links = Vec::new();
        for key in self.keys.clone() {
            links.push(self.build_device(&key, is_new)?);
        }
        // The route goes from one device to another in one step.
        let tunnels = IpNet::V6(TUNNELS);
        for (number, link) in links.iter().enumerate() {
            let route = (number == 0).then_some(Route { destination: tunnels, link: *link, way: Way::Direct });
            self.inside.set_routes(*link, route.as_slice())?;
        }
        Ok(())
    }

    /// Makes the device of a key. Returns its index.
    fn build_device(&mut self, key: &TunnelKey, is_new: bool) -> Result<u32, NetworkError> {
        let name = key.device();
        if self.inside.link(&name)?.is_none() {
            let target = self.namespace.open()?;
            let attributes = vec![
                LinkAttribute::IfName(name.clone()),
                LinkAttribute::NetNsFd(target.as_raw_fd()),
                LinkAttribute::Mtu(self.mtu),
                kind(InfoKind::Wireguard, None),
            ];
            self.host.add_link(format_args!("add the tunnels' device {name}"), describe(0, false, attributes))?;
        }
        let link = self.inside.existing(&name)?;
        let wireguard = match &mut self.wireguard {
            Some(wireguard) => wireguard,
            None => self.wireguard.insert(self.namespace.enter(WireGuard::open_here)?),
        };
        let found = wireguard.device(&name)?;
        if found.public != Some(key.public) || found.port != key.port {
            wireguard.set_key(&name, &key.secret, key.port)?;
            self.changes.push(format!("set the key of the tunnels' device {name}"));
        }
        let wanted = self.peers.iter().filter_map(|(peer, endpoint)| match found.admits(*peer) {
            true => is_new.then_some((*peer, PeerChange::Move(*endpoint))),
            false => Some((*peer, PeerChange::Add(*endpoint))),
        });
        let gone = found.peers().filter(|peer| !self.peers.contains_key(peer));
        let changed: BTreeMap<_, _> = gone.map(|peer| (*peer, PeerChange::Remove)).chain(wanted).collect();
        if !changed.is_empty() {
            wireguard.change_peers(&name, &changed)?;
            self.changes.push(format!("set the peers of the tunnels' device {name}"));
        }
        let address = IpNet::V6(Ipv6Net::from(key.public.address()));
        self.inside.set_addresses(link.index, &[address])?;
        if link.mtu != self.mtu || !link.up {
            let attributes = vec![LinkAttribute::Mtu(self.mtu)];
            self.inside
                .set_link(format_args!("set up the tunnels' device {name}"), describe(link.index, true, attributes))?;
        }
        Ok(link.index)
    }

    /// Removes the devices of keys that this machine does not have any more, if their names are `chosen`.
    fn remove_devices(&mut self, chosen: impl Fn(&str) -> bool) -> Result<(), NetworkError> {
        let kept: BTreeSet<_> = self.keys.iter().map(TunnelKey::device).collect();
        for link in self.inside.links()? {
            if link.kind == Some(InfoKind::Wireguard) && !kept.contains(&link.name) && chosen(&link.name) {
                self.inside.remove_link(&link.name)?;
            }
        }
        Ok(())
    }

    /// Returns what has been changed since the last call.
    fn take_changes(&mut self) -> Vec<String> {
        let mut changes = std::mem::take(&mut self.changes);
        changes.extend(self.host.take_changes());
        changes.extend(self.inside.take_changes());
        changes
    }
}
