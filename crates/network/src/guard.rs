//! Keeps an interface from sending under addresses that are not its own. A locked port of a bridge lets in only frames from
//! its MAC address; here the addresses in them are judged: the sender of ARP (RFC 826), the source of IP packets, and the
//! target of a neighbour advertisement (RFC 4861 §4.4). Otherwise a container could take the connections of another one of its
//! network, or answer as the gateway.
//!
//! Each port has a chain at its ingress hook. The chains of a bridge are in a table beside those of a mesh.

use std::net::IpAddr;

use crate::error::NetworkError;
use crate::mac::Mac;
use crate::namespace::Namespace;
use crate::nftables::conditions::{
    advertises_neighbour, frame_is_arp, frame_is_foreign, frame_version, load_arp_sender, load_neighbour_target,
    load_source, octets, rule, verdict,
};
use crate::nftables::expression::{Expression, IpVersion, Verdict};
use crate::nftables::ruleset::{Chain, ChainHook, Family, HookKind, Point, Rule, Ruleset};
use crate::nftables::table::{PORTS, Tables};

/// The guards of the ports of one bridge.
#[derive(Debug)]
pub(crate) struct Guard {
    tables: Tables,
    /// Whether the kernel lacks what guards are made of.
    is_unsupported: bool,
}

impl Guard {
    /// Begins without guards. Those of an earlier process stay until [`Guard::mend`] is called.
    pub(crate) fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        Ok(Self { tables: Tables::unread(namespace, PORTS, Ruleset::new())?, is_unsupported: false })
    }

    /// Guards the port of this MAC address, whose interface has these addresses.
    pub(crate) fn set(&mut self, mac: Mac, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        let port = mac.port_name();
        let hook = ChainHook { kind: HookKind::Filter, point: Point::Ingress(port.clone()), priority: 0 };
        let rules = rules(&[addresses, &[mac.link_local().into()]].concat());
        match self.tables.put_chain(Family::Netdev, port, Chain { hook: Some(hook), rules }) {
            Err(error) if error.is_unsupported() => {
                if !std::mem::replace(&mut self.is_unsupported, true) {
                    tracing::warn!(error = %error, "containers may use the addresses of others in their networks");
                }
                Ok(())
            }
            set => set,
        }
    }

    /// Removes the guard of a port that is about to be removed. Not every kernel does so by itself.
    pub(crate) fn remove(&mut self, mac: Mac) -> Result<(), NetworkError> {
        if self.is_unsupported { Ok(()) } else { self.tables.remove_chain(Family::Netdev, &mac.port_name()) }
    }

    /// Writes all guards anew if they are not what they should be. Returns whether it did.
    pub(crate) fn mend(&mut self) -> Result<bool, NetworkError> {
        if self.is_unsupported { Ok(false) } else { self.tables.mend() }
    }
}

fn rules(addresses: &[IpAddr]) -> Vec<Rule> {
    let own = |ip: IpVersion| addresses.iter().copied().filter(move |address| IpVersion::of(*address) == ip);
    // Who has no address yet asks whether somebody has it (RFC 5227, RFC 4862).
    let none_of = |ip: IpVersion, load: &dyn Fn() -> Expression| {
        let unequal = |value: Vec<u8>| [load(), Expression::Unequal { value }];
        own(ip).chain([ip.everything().addr()]).flat_map(|it| unequal(octets(it))).collect::<Vec<_>>()
    };
    let drop = || verdict(Verdict::Drop);
    let mut rules = vec![
        rule([frame_is_foreign(), drop()]),
        rule([frame_is_arp(), none_of(IpVersion::V4, &load_arp_sender), drop()]),
    ];
    rules.extend(IpVersion::ALL.map(|ip| rule([frame_version(ip), none_of(ip, &|| load_source(ip)), drop()])));
    let target = none_of(IpVersion::V6, &load_neighbour_target);
    rules.push(rule([frame_version(IpVersion::V6), advertises_neighbour(), target, drop()]));
    rules
}
