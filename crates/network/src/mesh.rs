//! Lets an overlay's namespace return replies to the machine through which a connection came, so that a published port
//! of one machine can lead to a target on another which sees the client's own address.
//!
//! Machine A has a published port, machine B the target. Both are routers in the overlay: each bridge has an address of
//! its machine and the MAC address that follows from it.
//!
//! 1. A sends the packet into the overlay, with the client's address as its source. It is addressed to the target, but its
//!    frame to B's bridge (`egress`: map `routers-of-addresses`).
//! 2. B forwards it, and marks the connection with a number that stands for A: the frame comes from A's bridge
//!    (`remember`: map `marks`).
//! 3. The target replies to the client by way of its router, which is B. B finds the mark at the connection, and a policy
//!    rule for marked packets sends the reply back into the overlay instead of out of B; its frame goes to A's bridge
//!    (`egress`: map `routers-of-marks`).
//! 4. A finds the connection, and puts the published address back.
//!
//! Frames get their MAC addresses from the maps, so neither routes nor neighbours depend on the number of machines. Until
//! then they have a placeholder, and are dropped if it is still there. What the host itself sends, or masquerades, comes
//! from A's address in the overlay, so replies find their way without a mark.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::bridge::BRIDGE;
use crate::error::NetworkError;
use crate::gateway::host_address;
use crate::local_network::Audit;
use crate::mac::{Mac, PLACEHOLDER};
use crate::namespace::Namespace;
use crate::netlink::Connection;
use crate::nftables::conditions::{
    connection_mark, connection_mark_has, frame_not_from, frame_version, from_address, from_interface, is_reply,
    is_request, load_destination, load_mark, load_source_mac, octets, redirect_frame, rule, send_from, to_interface,
    to_mac, verdict,
};
use crate::nftables::expression::{Conntrack, Expression, IpVersion, Meta, Register, Verdict};
use crate::nftables::ruleset::{
    Chain, ChainHook, Change, Data, Family, HookKind, Kind, Point, Rule, Ruleset, Set, Table,
};
use crate::nftables::table::Tables;
use crate::routes::{RETURN_TABLE, Route, Way};

/// Every mark has this bit; the others tell the machine.
const MARK: u32 = 1 << 31;
/// Before the rule for the main table (32766).
const RULE_PRIORITY: u32 = 1000;

const MARKS: &str = "marks";
const ROUTERS_OF_MARKS: &str = "routers-of-marks";

fn routers_of_addresses(ip: IpVersion) -> &'static str {
    match ip {
        IpVersion::V4 => "routers-of-addresses4",
        IpVersion::V6 => "routers-of-addresses6",
    }
}

/// An overlay that leads from the published ports of each machine to targets on all machines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MeshSpec {
    /// The overlay's namespace, which has its bridge.
    pub network: Namespace,
    /// The addresses of this machine's bridge that no other machine has, at most one of each IP version.
    pub own_addresses: Vec<IpAddr>,
}

/// A change of what a mesh knows about other machines.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MeshChange {
    /// If it has changed: the MAC addresses of all other machines' bridges.
    pub routers: Option<BTreeSet<Mac>>,
    /// The addresses in the overlay that are on another machine, with the MAC address of its bridge; `None` removes one.
    /// An address is needed from before it is a target until its last connection has ended.
    pub addresses: BTreeMap<IpAddr, Option<Mac>>,
}

/// A mesh in the kernel. Dropping it changes nothing there.
#[derive(Debug)]
pub struct Mesh {
    spec: MeshSpec,
    inside: Connection,
    tables: Tables,
    routers: BTreeSet<Mac>,
}

impl Mesh {
    /// Sets up the overlay's namespace, or adopts what there is. `wanted` has to be complete.
    ///
    /// # Errors
    /// The overlay has no bridge, or the kernel refuses.
    pub fn ensure(spec: MeshSpec, wanted: MeshChange) -> Result<Self, NetworkError> {
        let mut inside = Connection::open(&spec.network)?;
        spec.ensure_routes(&mut inside)?;
        let routers = wanted.routers.unwrap_or_default();
        let mut ruleset = spec.tables();
        let changes = router_changes(&BTreeSet::new(), &routers).into_iter().chain(address_changes(wanted.addresses));
        changes.collect::<Vec<_>>().into_iter().for_each(|change| change.apply(&mut ruleset));
        let tables = Tables::open(&spec.network, ruleset)?;
        Ok(Self { spec, inside, tables, routers })
    }

    /// Makes a change, as one transaction. What it does not name stays as it is.
    ///
    /// # Errors
    /// The kernel refuses. Then nothing has changed.
    pub fn change(&mut self, change: MeshChange) -> Result<(), NetworkError> {
        let mut changes: Vec<Change> = address_changes(change.addresses).collect();
        if let Some(routers) = &change.routers {
            changes.extend(router_changes(&self.routers, routers));
        }
        self.tables.apply(changes)?;
        self.routers = change.routers.unwrap_or_else(|| std::mem::take(&mut self.routers));
        Ok(())
    }

    /// Compares the kernel with what is wanted and mends what differs.
    pub fn audit(&mut self) -> Audit {
        let mut audit = Audit::default();
        self.inside.take_changes();
        audit.failed.extend(self.spec.ensure_routes(&mut self.inside).err());
        audit.mended = self.inside.take_changes();
        match self.tables.mend() {
            Ok(true) => audit.mended.push("write the packet filter's tables".into()),
            Ok(false) => {}
            Err(error) => audit.failed.push(error),
        }
        audit
    }
}

impl MeshSpec {
    fn versions(&self) -> impl Iterator<Item = IpVersion> {
        self.own_addresses.iter().map(|address| IpVersion::of(*address))
    }

    /// Makes the way of marked packets: a policy rule, the route that it leads to, and the neighbour with the placeholder.
    fn ensure_routes(&self, inside: &mut Connection) -> Result<(), NetworkError> {
        let bridge = inside.existing(BRIDGE)?.index;
        let mut routes = Vec::new();
        for ip in self.versions() {
            inside.set_neighbour(bridge, placeholder(ip), PLACEHOLDER)?;
            ensure_rule(inside, ip)?;
            routes.push(Route { destination: ip.everything(), link: bridge, way: Way::Returning(placeholder(ip)) });
        }
        inside.set_routes(bridge, &routes)
    }

    fn tables(&self) -> Ruleset {
        let mut connections = Table::default();
        connections.sets.insert(MARKS.into(), Set::map(Kind::MAC, Kind::MARK));
        let hook = |kind, point, priority| Some(ChainHook { kind, point, priority });
        // The priorities are those that `nft` calls mangle (-150) and srcnat (100).
        let remember = Chain { hook: hook(HookKind::Filter, Point::Prerouting, -150), rules: remember() };
        connections.chains.insert("remember".into(), remember);
        let source = Chain { hook: hook(HookKind::Nat, Point::Postrouting, 100), rules: self.source() };
        connections.chains.insert("source".into(), source);

        let mut frames = Table::default();
        frames.sets.insert(ROUTERS_OF_MARKS.into(), Set::map(Kind::MARK, Kind::MAC));
        for ip in IpVersion::ALL {
            frames.sets.insert(routers_of_addresses(ip).into(), Set::map(Kind::address(ip), Kind::MAC));
        }
        let egress = Chain { hook: hook(HookKind::Filter, Point::Egress(BRIDGE.into()), 0), rules: self.egress() };
        frames.chains.insert("egress".into(), egress);
        [(Family::Inet, connections), (Family::Netdev, frames)].into()
    }

    /// Gives what comes from the host's own address this machine's address in the overlay.
    fn source(&self) -> Vec<Rule> {
        let own = self.own_addresses.iter();
        let from_host = |own: &IpAddr| from_address(host_address(IpVersion::of(*own)));
        own.map(|own| rule([to_interface(BRIDGE), from_host(own), send_from(*own)])).collect()
    }

    fn egress(&self) -> Vec<Rule> {
        let accept = || verdict(Verdict::Accept);
        let mut rules = vec![rule([vec![load_mark()], redirect_frame(ROUTERS_OF_MARKS), accept()])];
        rules.extend(self.own_addresses.iter().map(|own| {
            let ip = IpVersion::of(*own);
            let to = vec![load_destination(ip)];
            rule([frame_version(ip), frame_not_from(*own), to, redirect_frame(routers_of_addresses(ip)), accept()])
        }));
        rules.push(rule([to_mac(PLACEHOLDER), verdict(Verdict::Drop)]));
        rules
    }
}

fn remember() -> Vec<Rule> {
    let first = Register::FIRST;
    let mark_of_router = vec![
        load_source_mac(),
        Expression::LoadFromMap { map: MARKS.into(), to: first },
        Expression::StoreConntrack { key: Conntrack::Mark, from: first },
    ];
    let restore = vec![
        Expression::LoadConntrack { key: Conntrack::Mark, to: first },
        Expression::StoreMeta { key: Meta::Mark, from: first },
    ];
    vec![
        rule([from_interface(BRIDGE), is_request(), connection_mark(0), mark_of_router]),
        rule([from_interface(BRIDGE), is_reply(), connection_mark_has(MARK), restore]),
    ]
}

/// The mark of connections that come from a router. It follows from the router's MAC address, so that it stays the same.
fn mark_of(router: Mac) -> Vec<u8> {
    let [_, _, address @ ..] = router.0;
    (MARK | u32::from_be_bytes(address)).to_ne_bytes().to_vec()
}

fn router_changes(old: &BTreeSet<Mac>, new: &BTreeSet<Mac>) -> Vec<Change> {
    let elements = |router: &Mac, exists: bool| {
        let (mac, mark) = (router.0.to_vec(), mark_of(*router));
        let data = |data: &Vec<u8>| exists.then(|| Data::Value(data.clone()));
        let (mark_data, mac_data) = (data(&mark), data(&mac));
        [
            Change::Element { family: Family::Inet, set: MARKS.into(), key: mac, data: mark_data },
            Change::Element { family: Family::Netdev, set: ROUTERS_OF_MARKS.into(), key: mark, data: mac_data },
        ]
    };
    let gone = old.difference(new).flat_map(|router| elements(router, false));
    gone.chain(new.difference(old).flat_map(|router| elements(router, true))).collect()
}

fn address_changes(addresses: BTreeMap<IpAddr, Option<Mac>>) -> impl Iterator<Item = Change> {
    addresses.into_iter().map(|(address, router)| Change::Element {
        family: Family::Netdev,
        set: routers_of_addresses(IpVersion::of(address)).into(),
        key: octets(address),
        data: router.map(|router| Data::Value(router.0.to_vec())),
    })
}

/// The next hop of frames that get their MAC address from a map.
fn placeholder(ip: IpVersion) -> IpAddr {
    match ip {
        IpVersion::V4 => Ipv4Addr::new(169, 254, 70, 3).into(),
        IpVersion::V6 => Ipv6Addr::new(0xfd46, 0x6c6f, 0x7461, 0, 0, 0, 0, 3).into(),
    }
}

/// Adds the policy rule for marked packets that come from the bridge. Packets of the underlay must not match it.
fn ensure_rule(inside: &mut Connection, ip: IpVersion) -> Result<(), NetworkError> {
    let mut wanted = RuleMessage::default();
    wanted.header.family = if ip == IpVersion::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    wanted.header.action = RuleAction::ToTable;
    wanted.header.table = RETURN_TABLE;
    wanted.attributes = vec![
        RuleAttribute::Iifname(BRIDGE.into()),
        RuleAttribute::FwMark(MARK),
        RuleAttribute::FwMask(MARK),
        RuleAttribute::Priority(RULE_PRIORITY),
    ];
    let mut request = RuleMessage::default();
    request.header.family = wanted.header.family;
    let found = inside.dump("list the policy rules", RouteNetlinkMessage::GetRule(request))?;
    let is_there = found.iter().any(|message| {
        matches!(message, RouteNetlinkMessage::NewRule(found)
            if found.header.table == RETURN_TABLE
                && wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute)))
    });
    if is_there {
        return Ok(());
    }
    inside.change("add the policy rule of the mesh", RouteNetlinkMessage::NewRule(wanted), NLM_F_CREATE | NLM_F_EXCL)
}
