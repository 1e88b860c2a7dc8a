//! The rules of the host's namespace, apart from the targets of published ports: what may pass between the networks, the
//! host and the world, and whose addresses are replaced. Also those of the namespace of tunnels (`tunnel.rs`), which are
//! a part of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ports::{MASQUERADED, PORTS};
use super::uplink::INTERFACE_PREFIX;
use super::{GatewaySettings, Sender};
use crate::nftables::conditions::{
    TCP, UDP, connection_mark, destination_in, destination_is_local, destination_port, destination_port_in,
    frame_within_not_in, from_interfaces, from_loopback, is_redirected, masquerade, octets, protocol, reset, rule,
    source_is_elsewhere, state, to_interfaces, to_loopback, to_others_than, verdict, verdict_for_protocol_and_port,
};
use crate::nftables::expression::{Expression, IpVersion, STATE_ESTABLISHED, STATE_RELATED, Verdict};
use crate::nftables::ruleset::{
    Chain, ChainHook, Change, Data, Family, HookKind, Kind, Point, Rule, Ruleset, Set, Table,
};

/// The TCP ports that networks can't reach.
const GUARDED: &str = "guarded";

/// Addresses at which clouds give a machine its metadata, with credentials among them. Programs in networks would get those
/// of their machine.
const METADATA_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// The set of the metadata addresses of an IP version.
fn metadata(ip: IpVersion) -> &'static str {
    match ip {
        IpVersion::V4 => "metadata4",
        IpVersion::V6 => "metadata6",
    }
}

/// The set of the machines' addresses of an IP version.
fn machines(ip: IpVersion) -> &'static str {
    match ip {
        IpVersion::V4 => "machines4",
        IpVersion::V6 => "machines6",
    }
}

/// The set of the pairs of machine and MAC address from which frames of overlays come.
fn senders(ip: IpVersion) -> &'static str {
    match ip {
        IpVersion::V4 => "senders4",
        IpVersion::V6 => "senders6",
    }
}

/// Returns the host's tables without any published port and any machine.
pub(super) fn tables(settings: &GatewaySettings) -> Ruleset {
    let mut table = Table::default();
    let mut guarded = Set::new(Kind::PORT);
    guarded.elements = settings.guarded_ports.iter().map(|port| (port.to_be_bytes().to_vec(), Data::Absent)).collect();
    table.sets.insert(GUARDED.into(), guarded);
    table.sets.insert(PORTS.into(), Set::map(Kind::PROTOCOL_AND_PORT, Kind::VERDICT));
    for ip in IpVersion::ALL {
        table.sets.insert(machines(ip).into(), Set::new(Kind::address(ip)));
        let mut closed = Set::new(Kind::address(ip));
        let addresses = METADATA_ADDRESSES.iter().filter(|address| IpVersion::of(**address) == ip);
        closed.elements = addresses.map(|address| (octets(*address), Data::Absent)).collect();
        table.sets.insert(metadata(ip).into(), closed);
    }
    table.sets.extend(sender_sets());
    // The priorities are those that `nft` calls raw (-300), dstnat (-100), filter (0) and srcnat (100).
    let chains = [
        ("raw", HookKind::Filter, Point::Prerouting, -300, raw()),
        ("publish", HookKind::Nat, Point::Prerouting, -100, publish()),
        ("publish-here", HookKind::Nat, Point::Output, -100, publish()),
        ("input", HookKind::Filter, Point::Input, 0, input(settings.vxlan_port)),
        ("forward", HookKind::Filter, Point::Forward, 0, forward(settings.vxlan_port)),
        ("source", HookKind::Nat, Point::Postrouting, 100, source()),
    ];
    for (name, kind, point, priority, rules) in chains {
        table.chains.insert(name.into(), Chain { hook: Some(ChainHook { kind, point, priority }), rules });
    }
    [(Family::Inet, table)].into()
}

/// Returns the tables of a namespace that has nothing but the tunnels of encrypted overlays, without any sender.
pub(crate) fn tunnel_tables(vxlan_port: u16) -> Ruleset {
    let hook = Some(ChainHook { kind: HookKind::Filter, point: Point::Input, priority: 0 });
    let chains = [("input".into(), Chain { hook, rules: from_strangers(vxlan_port).into() })].into();
    [(Family::Inet, Table { sets: sender_sets().into(), chains })].into()
}

fn sender_sets() -> [(String, Set); 2] {
    IpVersion::ALL.map(|ip| (senders(ip).into(), Set::new(Kind::address_and_mac(ip))))
}

/// Frames of overlays pass only if they come from a known pair of machine and MAC address.
fn from_strangers(vxlan_port: u16) -> [Rule; 2] {
    let vxlan = || [protocol(UDP), destination_port(vxlan_port)].concat();
    IpVersion::ALL.map(|ip| rule([vxlan(), frame_within_not_in(ip, senders(ip)), verdict(Verdict::Drop)]))
}

/// Returns the changes that make `new` the machines' addresses instead of `old`.
pub(super) fn machine_changes<'a>(
    old: &'a BTreeSet<IpAddr>,
    new: &'a BTreeSet<IpAddr>,
) -> impl Iterator<Item = Change> + 'a {
    let element = |address: &IpAddr, data| Change::Element {
        family: Family::Inet,
        set: machines(IpVersion::of(*address)).into(),
        key: octets(*address),
        data,
    };
    let gone = old.difference(new).map(move |address| element(address, None));
    gone.chain(new.difference(old).map(move |address| element(address, Some(Data::Absent))))
}

/// Returns the changes that let these senders in, or no longer.
pub(crate) fn sender_changes(changes: &BTreeMap<Sender, bool>) -> impl Iterator<Item = Change> {
    changes.iter().map(|(sender, is_known)| Change::Element {
        family: Family::Inet,
        set: senders(IpVersion::of(sender.machine)).into(),
        key: [octets(sender.machine), sender.mac.0.to_vec(), vec![0; 2]].concat(),
        data: is_known.then_some(Data::Absent),
    })
}

fn from_networks() -> Vec<Expression> {
    from_interfaces(INTERFACE_PREFIX)
}

fn to_networks() -> Vec<Expression> {
    to_interfaces(INTERFACE_PREFIX)
}

/// A published port on 127.0.0.1 needs `route_localnet`. This keeps networks from reaching what listens there. Replies to
/// such connections are still for another address here.
fn raw() -> Vec<Rule> {
    vec![rule([from_networks(), to_loopback(), verdict(Verdict::Drop)])]
}

fn publish() -> Vec<Rule> {
    vec![rule([destination_is_local(), verdict_for_protocol_and_port(PORTS)])]
}

/// Networks don't reach the metadata of the machine, whether it is served here or elsewhere.
fn no_metadata() -> impl Iterator<Item = Rule> {
    IpVersion::ALL.into_iter().flat_map(|ip| {
        let metadata = || [from_networks(), destination_in(ip, metadata(ip))].concat();
        [rule([metadata(), protocol(TCP), reset()]), rule([metadata(), verdict(Verdict::Drop)])]
    })
}

fn input(vxlan_port: u16) -> Vec<Rule> {
    let vxlan = || [protocol(UDP), destination_port(vxlan_port)].concat();
    let mut rules = vec![
        rule([from_networks(), vxlan(), verdict(Verdict::Drop)]),
        rule([from_networks(), protocol(TCP), destination_port_in(GUARDED), reset()]),
    ];
    rules.extend(no_metadata());
    rules.extend(from_strangers(vxlan_port));
    rules
}

fn forward(vxlan_port: u16) -> Vec<Rule> {
    let mut rules = vec![
        rule([from_networks(), source_is_elsewhere(), verdict(Verdict::Drop)]),
        // It leaves with this machine's address, so the machine that gets it would take it for a frame of a network here.
        rule([from_networks(), protocol(UDP), destination_port(vxlan_port), verdict(Verdict::Drop)]),
    ];
    rules.extend(IpVersion::ALL.map(|ip| {
        rule([from_networks(), protocol(TCP), destination_port_in(GUARDED), destination_in(ip, machines(ip)), reset()])
    }));
    rules.extend(no_metadata());
    rules.extend([
        rule([to_networks(), state(STATE_ESTABLISHED | STATE_RELATED), verdict(Verdict::Accept)]),
        rule([to_networks(), is_redirected(), verdict(Verdict::Accept)]),
        rule([to_networks(), verdict(Verdict::Drop)]),
    ]);
    rules
}

fn source() -> Vec<Rule> {
    let published = || [to_networks(), is_redirected()].concat();
    let mut rules = vec![
        rule([published(), connection_mark(MASQUERADED), masquerade()]),
        // The target may be in the client's network, and would answer it directly.
        rule([published(), from_networks(), masquerade()]),
    ];
    rules.extend(IpVersion::ALL.map(|ip| rule([published(), from_loopback(ip), masquerade()])));
    rules.push(rule([from_networks(), to_others_than(INTERFACE_PREFIX), masquerade()]));
    rules
}
