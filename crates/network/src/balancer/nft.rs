//! Virtual addresses by rules of the packet filter, in each namespace that uses them: for machines whose kernel has no
//! programs at control groups, or does not let this process attach them.
//!
//! The first packet of a connection to a virtual address gets the address of a backend instead (address translation), and
//! connection tracking remembers it. A map leads from the destination to the chain of the virtual address, whose rule
//! draws a backend from a list; with affinity, the list has one entry, which follows from the namespace. It happens where
//! a process sends (`direct`) and where packets arrive from namespaces within (`nested`). A virtual address without
//! backends is in no map, so whoever has the address refuses the connection.
//!
//! Chains are replaced as those of published ports are (`gateway/ports.rs`): the new one comes before the map leads to it,
//! and the old one goes later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use super::error::BalancerError;
use super::pool::{Pool, arrange, jump_hash};
use super::sockets::Sockets;
use super::tables::{NamespaceCookie, NetworkKey, VirtualAddress};
use super::{GRACE, Wanted};
use crate::error::NetworkError;
use crate::namespace::Namespace;
use crate::nftables::conditions::{ICMP, ICMP_6, load_destination, octets, protocol, rule, verdict, version};
use crate::nftables::connections::{Connections, Selection};
use crate::nftables::expression::{Expression, IpVersion, Register, Verdict};
use crate::nftables::ruleset::{
    Chain, ChainHook, Change, Data, Family, HookKind, Kind, Point, Rule, Ruleset, Set, Table,
};
use crate::nftables::table::Tables;

/// The map from the virtual addresses of an IP version to their chains.
fn virtuals(ip: IpVersion) -> &'static str {
    match ip {
        IpVersion::V4 => "virtuals4",
        IpVersion::V6 => "virtuals6",
    }
}

/// The balancer of the namespaces that have joined it.
#[derive(Debug, Default)]
pub(super) struct NftBalancer {
    pools: BTreeMap<VirtualAddress, HeldPool>,
    members: BTreeMap<NamespaceCookie, Member>,
    /// Chains that no map leads to, the oldest first.
    retired: VecDeque<(Instant, NamespaceCookie, String)>,
    /// Connections that chains have counted which are gone.
    counted: BTreeMap<VirtualAddress, u64>,
}

/// The backends of a virtual address, in order.
#[derive(Debug, PartialEq)]
struct HeldPool {
    affinity: bool,
    order: Vec<IpAddr>,
}

/// A namespace.
#[derive(Debug)]
struct Member {
    networks: Vec<NetworkKey>,
    tables: Tables,
    connections: Connections,
    /// The chains to which virtual addresses lead.
    led: BTreeMap<IpAddr, (NetworkKey, String)>,
}

impl NftBalancer {
    pub(super) fn set(&mut self, place: VirtualAddress, pool: &Pool, now: Instant) -> Result<(), BalancerError> {
        let held = self.pools.get(&place);
        let order = arrange(held.map_or(&[][..], |held| &held.order), &pool.backends);
        let new = HeldPool { affinity: pool.affinity, order };
        if held == Some(&new) {
            return Ok(());
        }
        self.pools.insert(place, new);
        let led = self.lead_all(place, now);
        if led.is_err() {
            // So that the next call does not take it for done.
            self.pools.remove(&place);
        }
        led
    }

    pub(super) fn remove(&mut self, place: VirtualAddress, now: Instant) -> Result<(), BalancerError> {
        self.pools.remove(&place);
        self.lead_all(place, now)?;
        self.counted.remove(&place);
        Ok(())
    }

    pub(super) fn join(
        &mut self,
        cookie: NamespaceCookie,
        namespace: &Namespace,
        networks: &[NetworkKey],
    ) -> Result<(), BalancerError> {
        if self.members.get(&cookie).is_some_and(|it| it.networks == networks) {
            return Ok(());
        }
        // Without an offset of its own for each address, the time stamps of connections to one backend by different
        // addresses rise. The backend would otherwise drop the second of two that use the same port.
        namespace.set(&[("net/ipv4/tcp_timestamps", "2")])?;
        let (mut ruleset, mut led) = (ruleset(), BTreeMap::new());
        for (address, (network, held)) in effective(&self.pools, networks) {
            let Some((name, chain)) = chain(cookie, address, held) else { continue };
            let element = element(address, Some(name.clone()));
            let chain = Change::Chain { family: Family::Inet, name: name.clone(), chain: Some(chain) };
            [chain, element].into_iter().for_each(|change| change.apply(&mut ruleset));
            led.insert(address, (network, name));
        }
        let tables = Tables::open(namespace, ruleset)?;
        let connections = Connections::open(namespace)?;
        self.members.insert(cookie, Member { networks: networks.to_vec(), tables, connections, led });
        Ok(())
    }

    /// Returns the backends of a virtual address.
    pub(super) fn backends(&self, place: VirtualAddress) -> BTreeSet<IpAddr> {
        self.pools.get(&place).map(|held| held.order.iter().copied().collect()).unwrap_or_default()
    }

    /// Forgets a namespace. Its rules go with it.
    pub(super) fn leave(&mut self, cookie: NamespaceCookie) {
        self.members.remove(&cookie);
        self.retired.retain(|(_, member, _)| *member != cookie);
    }

    pub(super) fn reconcile(&mut self, wanted: &Wanted, now: Instant) -> Result<(), BalancerError> {
        self.members.retain(|cookie, _| wanted.members.contains_key(cookie));
        let surplus: Vec<_> = self.pools.keys().filter(|place| !wanted.pools.contains_key(place)).copied().collect();
        let mut results: Vec<_> = surplus.into_iter().map(|place| self.remove(place, now)).collect();
        results.extend(wanted.pools.iter().map(|(place, pool)| self.set(*place, pool, now)));
        results.into_iter().collect()
    }

    /// Compares the rules with the kernel. Returns in how many namespaces they had changed.
    pub(super) fn repair(&mut self) -> Result<usize, BalancerError> {
        let mended: Vec<_> = self.members.values_mut().map(|member| member.tables.mend()).collect();
        mended.into_iter().try_fold(0, |count, mended| Ok(count + usize::from(mended?)))
    }

    pub(super) fn requests(&mut self, place: VirtualAddress) -> Result<u64, BalancerError> {
        let mut total = self.counted.get(&place).copied().unwrap_or_default();
        for member in self.members.values_mut() {
            if let Some((_, name)) = member.led.get(&place.address).filter(|(network, _)| *network == place.network) {
                total += member.tables.counted(Family::Inet, name)?;
            }
        }
        Ok(total)
    }

    pub(super) fn sweep(&mut self, now: Instant) -> Result<Option<Instant>, BalancerError> {
        while let Some((_, cookie, name)) = self.retired.front().filter(|(due, ..)| *due <= now) {
            if let Some(member) = self.members.get_mut(cookie) {
                let removal = Change::Chain { family: Family::Inet, name: name.clone(), chain: None };
                member.tables.apply(vec![removal])?;
            }
            self.retired.pop_front();
        }
        Ok(self.retired.front().map(|(due, ..)| *due))
    }

    /// Ends the connections of a namespace that were sent to these backends, and returns how many sockets that were.
    pub(super) fn abort_to(&mut self, sockets: &mut Sockets, peers: &[IpAddr]) -> Result<usize, NetworkError> {
        let mut aborted = 0;
        let Some(member) = self.members.get_mut(&sockets.cookie()) else { return Ok(0) };
        for peer in peers {
            let selection = BTreeSet::from([Selection::SentToHost(*peer)]);
            let mut ports: BTreeMap<IpAddr, BTreeSet<u16>> = BTreeMap::new();
            for (source, asked) in member.connections.origins(&selection)? {
                ports.entry(asked.ip()).or_default().insert(source.port());
            }
            for (asked, ports) in ports {
                aborted += sockets.abort_from(asked, &ports)?;
            }
            // The next datagram of a socket without a peer goes elsewhere.
            member.connections.end(&selection)?;
        }
        Ok(aborted)
    }

    /// Makes an address lead where it should, in all namespaces that are in its network.
    fn lead_all(&mut self, place: VirtualAddress, now: Instant) -> Result<(), BalancerError> {
        self.sweep(now)?;
        let Self { pools, members, retired, counted } = self;
        for (cookie, member) in members.iter_mut().filter(|(_, it)| it.networks.contains(&place.network)) {
            let found = member.networks.iter().find_map(|network| {
                let held = pools.get(&VirtualAddress { network: *network, address: place.address })?;
                Some((*network, held))
            });
            let wanted = found.and_then(|(network, held)| Some((network, chain(*cookie, place.address, held)?)));
            let name = wanted.as_ref().map(|(_, (name, _))| name.clone());
            if let Some((_, (name, chain))) = &wanted {
                retired.retain(|(_, member, retired)| member != cookie || retired != name);
                let chain = Some(chain.clone());
                member.tables.apply(vec![Change::Chain { family: Family::Inet, name: name.clone(), chain }])?;
            }
            member.tables.apply(vec![element(place.address, name.clone())])?;
            let new = wanted.map(|(network, (name, _))| (network, name));
            let old = match new {
                Some(new) => member.led.insert(place.address, new),
                None => member.led.remove(&place.address),
            };
            if let Some((network, old)) = old.filter(|(_, old)| Some(old) != name.as_ref()) {
                let count = member.tables.counted(Family::Inet, &old)?;
                *counted.entry(VirtualAddress { network, address: place.address }).or_default() += count;
                retired.push_back((now + GRACE, *cookie, old));
            }
        }
        Ok(())
    }
}

/// Returns the virtual addresses of a namespace. An address that is virtual in several of its networks is looked up in
/// the first of those.
fn effective<'a>(
    pools: &'a BTreeMap<VirtualAddress, HeldPool>,
    networks: &[NetworkKey],
) -> BTreeMap<IpAddr, (NetworkKey, &'a HeldPool)> {
    let mut found = BTreeMap::new();
    for network in networks {
        let of_network = pools.iter().filter(|(place, _)| place.network == *network);
        of_network.for_each(|(place, held)| _ = found.entry(place.address).or_insert((*network, held)));
    }
    found
}

/// Returns the rules of a namespace without virtual addresses.
fn ruleset() -> Ruleset {
    let mut table = Table::default();
    for ip in IpVersion::ALL {
        table.sets.insert(virtuals(ip).into(), Set::map(Kind::address(ip), Kind::VERDICT));
    }
    // The priority is the one that `nft` calls dstnat.
    for (name, point) in [("direct", Point::Output), ("nested", Point::Prerouting)] {
        let mut rules: Vec<Rule> =
            [ICMP, ICMP_6].map(|number| rule([protocol(number), verdict(Verdict::Accept)])).into();
        rules.extend(IpVersion::ALL.map(|ip| {
            let lookup = Expression::VerdictFromMap { map: virtuals(ip).into() };
            rule([version(ip), vec![load_destination(ip), lookup]])
        }));
        let hook = Some(ChainHook { kind: HookKind::Nat, point, priority: -100 });
        table.chains.insert(name.into(), Chain { hook, rules });
    }
    [(Family::Inet, table)].into()
}

/// Returns the chain of a virtual address with its name; `None` if it has no backend.
fn chain(cookie: NamespaceCookie, address: IpAddr, held: &HeldPool) -> Option<(String, Chain)> {
    let (ip, first) = (IpVersion::of(address), Register::FIRST);
    let backends = match held.affinity {
        true => held.order.get(jump_hash(cookie.0, held.order.len())).map(std::slice::from_ref).unwrap_or_default(),
        false => &held.order[..],
    };
    let below = u32::try_from(backends.len()).ok().filter(|count| *count > 0)?;
    let choose = vec![Expression::LoadRandom { below, to: first }, Expression::LoadFromList { to: first }];
    let mut rule = rule([vec![Expression::Count], choose, vec![Expression::SendToHost { version: ip }]]);
    rule.list = Some((Kind::address(ip), backends.iter().map(|it| octets(*it)).collect()));
    let chain = Chain { hook: None, rules: vec![rule] };
    Some((format!("{address}-{:016x}", chain.hash()), chain))
}

/// Returns the change that leads a virtual address to a chain, or with `None` nowhere.
fn element(address: IpAddr, chain: Option<String>) -> Change {
    let data = chain.map(|name| Data::Verdict(Verdict::Goto(name)));
    Change::Element { family: Family::Inet, set: virtuals(IpVersion::of(address)).into(), key: octets(address), data }
}
