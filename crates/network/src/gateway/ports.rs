//! Published ports: connections to a port of the host are sent to one of the port's targets.
//!
//! Each port has a chain. Its rule draws a random number and looks up a target in a list that belongs to the rule, so
//! that all targets get the same share. Connections that exist already don't pass the chain again.
//!
//! A chain never changes: other targets are another chain, whose name tells its content, and the map of ports then leads
//! there. A packet that is on its way while a transaction takes effect could meet a new rule without its list, or an old
//! rule whose list is gone. So the new chain comes one transaction before the map leads to it, and the old one goes later.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::nftables::conditions::{TCP, UDP, mark_connection, octets, rule, version};
use crate::nftables::connections::Selection;
use crate::nftables::expression::{Expression, IpVersion, Register, Verdict};
use crate::nftables::ruleset::{Chain, Change, Data, Family, Kind, Rule};

/// The mark of connections whose targets see an address of the host instead of the client's.
pub(crate) const MASQUERADED: u32 = 1;
/// The map from protocols and ports to chains.
pub(crate) const PORTS: &str = "ports";

/// A transport protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// A port of the host.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HostPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

/// The targets of connections to a port of the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PublishedPort {
    /// The targets. Without one that accepts connections, the port behaves as if it were not published.
    pub targets: BTreeSet<Target>,
    /// Whether targets see an address of the host instead of the client's.
    pub masquerade: bool,
}

/// A target of a published port.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The address on which it listens.
    pub address: SocketAddr,
    /// Whether it is on this host. As long as one such target accepts connections, the others get none.
    pub local: bool,
    /// Whether it gets new connections. One that does not keeps those it has; those of a target that is removed end.
    pub accepts: bool,
}

impl Protocol {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

impl HostPort {
    /// The name of a chain of this port.
    fn chain_name(self, chain: &Chain) -> String {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{protocol}-{}-{:016x}", self.number, chain.hash())
    }

    /// The key in the map of ports: protocol and port in a word each.
    fn key(self) -> Vec<u8> {
        let [high, low] = self.number.to_be_bytes();
        vec![self.protocol.number(), 0, 0, 0, high, low, 0, 0]
    }
}

impl PublishedPort {
    /// The addresses of one version that get new connections.
    fn chosen(&self, version: IpVersion) -> Vec<SocketAddr> {
        let of_version = |target: &&Target| IpVersion::of(target.address.ip()) == version;
        let accepting: Vec<_> = self.targets.iter().filter(|target| target.accepts).filter(of_version).collect();
        let any_local = accepting.iter().any(|target| target.local);
        accepting.iter().filter(|target| target.local || !any_local).map(|target| target.address).collect()
    }

    fn chain(&self) -> Chain {
        let mark = if self.masquerade { vec![rule([mark_connection(MASQUERADED)])] } else { Vec::new() };
        let spread = IpVersion::ALL.into_iter().filter_map(|version| spread(version, &self.chosen(version)));
        Chain { hook: None, rules: mark.into_iter().chain(spread).collect() }
    }
}

/// The rule that sends connections of an IP version to one of the addresses.
fn spread(ip: IpVersion, addresses: &[SocketAddr]) -> Option<Rule> {
    let below = u32::try_from(addresses.len()).ok().filter(|count| *count > 0)?;
    let first = Register::FIRST;
    let choose = vec![Expression::LoadRandom { below, to: first }, Expression::LoadFromList { to: first }];
    let mut rule = rule([version(ip), choose, vec![Expression::SendTo { version: ip }]]);
    rule.list = Some((Kind::address_and_port(ip), addresses.iter().map(list_entry).collect()));
    Some(rule)
}

fn list_entry(address: &SocketAddr) -> Vec<u8> {
    let mut entry = octets(address.ip());
    entry.extend(address.port().to_be_bytes());
    entry.extend([0, 0]);
    entry
}

/// Returns the change that makes the chain of a published port.
pub(crate) fn chain_change(port: HostPort, published: &PublishedPort) -> Change {
    let chain = published.chain();
    Change::Chain { family: Family::Inet, name: port.chain_name(&chain), chain: Some(chain) }
}

/// Returns the change that leads a port to its chain, or with `None` nowhere.
pub(crate) fn element_change(port: HostPort, published: Option<&PublishedPort>) -> Change {
    let data = published.map(|published| Data::Verdict(Verdict::Goto(port.chain_name(&published.chain()))));
    Change::Element { family: Family::Inet, set: PORTS.into(), key: port.key(), data }
}

/// Returns the name of the chain of a published port.
pub(crate) fn chain_name(port: HostPort, published: &PublishedPort) -> String {
    port.chain_name(&published.chain())
}

/// Returns the tracked connections that must end when a port changes: those to targets that are gone, and those that were
/// sent to the host itself before the port had a target, since a client that goes on sending by UDP would stay there.
pub(crate) fn outdated(port: HostPort, old: Option<&PublishedPort>, new: Option<&PublishedPort>) -> Vec<Selection> {
    let addresses = |published: Option<&PublishedPort>| -> BTreeSet<SocketAddr> {
        published.iter().flat_map(|published| &published.targets).map(|target| target.address).collect()
    };
    let protocol = port.protocol.number();
    let gone = &addresses(old) - &addresses(new);
    let mut outdated: Vec<_> = gone.into_iter().map(|address| Selection::SentTo(protocol, address)).collect();
    let is_served =
        |published: Option<&PublishedPort>, version| published.is_some_and(|it| !it.chosen(version).is_empty());
    let appears = |version| is_served(new, version) && !is_served(old, version);
    if port.protocol == Protocol::Udp && IpVersion::ALL.into_iter().any(appears) {
        outdated.push(Selection::Untranslated(protocol, port.number));
    }
    outdated
}

/// Returns the tracked connections to the targets of a port.
pub(crate) fn wanted(port: HostPort, published: &PublishedPort) -> impl Iterator<Item = Selection> {
    published.targets.iter().map(move |target| Selection::SentTo(port.protocol.number(), target.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: &str, local: bool, accepts: bool) -> Target {
        Target { address: address.parse().expect("an address"), local, accepts }
    }

    fn published<const N: usize>(targets: [Target; N]) -> PublishedPort {
        PublishedPort { targets: targets.into(), masquerade: false }
    }

    fn chosen(published: &PublishedPort) -> Vec<String> {
        let chosen = IpVersion::ALL.into_iter().flat_map(|version| published.chosen(version));
        chosen.map(|address| address.to_string()).collect()
    }

    const HERE: &str = "10.0.0.2:80";
    const THERE: &str = "10.0.0.3:80";

    #[test]
    fn local_targets_come_first_as_long_as_one_accepts() {
        let table = [
            (published([target(HERE, true, true), target(THERE, false, true)]), vec![HERE]),
            (published([target(HERE, true, false), target(THERE, false, true)]), vec![THERE]),
            (published([target(HERE, true, false), target(THERE, false, false)]), vec![]),
            (published([target(HERE, true, true), target("[fd00::3]:80", false, true)]), vec![HERE, "[fd00::3]:80"]),
            (published([]), vec![]),
        ];
        for (published, expected) in table {
            assert_eq!(chosen(&published), expected, "{published:?}");
        }
    }

    #[test]
    fn a_port_without_an_accepting_target_sends_nothing_anywhere() {
        assert_eq!(published([target(HERE, true, false)]).chain().rules, []);
    }

    #[test]
    fn only_connections_that_can_no_longer_be_right_end() {
        let udp = HostPort { protocol: Protocol::Udp, number: 53 };
        let tcp = HostPort { protocol: Protocol::Tcp, number: 53 };
        let (both, one) =
            (published([target(HERE, true, true), target(THERE, false, true)]), published([target(HERE, true, true)]));
        let drained = published([target(HERE, true, true), target(THERE, false, false)]);
        let there = THERE.parse().expect("an address");
        assert_eq!(outdated(tcp, Some(&both), Some(&one)), [Selection::SentTo(TCP, there)], "the target is gone");
        assert_eq!(outdated(tcp, Some(&both), Some(&drained)), [], "the target finishes what it has");
        assert_eq!(outdated(tcp, Some(&one), Some(&both)), [], "a target comes");
        assert_eq!(outdated(tcp, None, Some(&one)), [], "the host has refused what came before");
        assert_eq!(
            outdated(udp, None, Some(&one)),
            [Selection::Untranslated(UDP, 53)],
            "clients that were sending already"
        );
        assert_eq!(outdated(udp, Some(&one), None), [Selection::SentTo(UDP, HERE.parse().expect("an address"))]);
    }
}
