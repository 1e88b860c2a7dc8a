//! The addresses of networks while a plan gives some of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flota_api::id::NetworkId;
use flota_api::model::{Network, Subnet};
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::store::{Runs, address_of, number_of, numbers_of};

use super::pools::Pools;
use crate::plan::{Change, Plan};

/// Who gets an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiver {
    /// A task or a node.
    Member,
    /// A service, as its virtual IP.
    Service,
}

/// The networks that a plan gives addresses of.
pub(super) struct Spaces<'a> {
    view: &'a Tables,
    pools: Pools<'a>,
    /// Each network as the plan leaves it, and what is taken then.
    networks: BTreeMap<NetworkId, (Network, Runs)>,
}

impl<'a> Spaces<'a> {
    pub(super) fn new(view: &'a Tables) -> Self {
        Self { view, pools: Pools::new(view), networks: BTreeMap::new() }
    }

    /// Gives one address of each address family of the network. A network with subnets from a pool gets a further one
    /// when its addresses are used up. `None` if an address family has no free address.
    pub(super) fn give(&mut self, network: &Arc<Network>, receiver: Receiver) -> Option<Vec<IpAddr>> {
        if !network.spec.driver.has_addresses() {
            return Some(Vec::new());
        }
        let is_new = || (network.as_ref().clone(), self.view.taken_addresses(&network.id));
        let (network, taken) = self.networks.entry(network.id.clone()).or_insert_with(is_new);
        let families: Vec<bool> = [false, true]
            .into_iter()
            .filter(|family| network.subnets.iter().any(|it| is_ipv6(it) == *family))
            .collect();
        if families.is_empty() {
            return None;
        }
        let mut given = Vec::new();
        for family in families {
            let address = match next_free(network, taken, receiver, family) {
                Some(address) => address,
                None if network.spec.subnets.iter().any(|it| it.prefix.addr().is_ipv6() == family) => return None,
                None => {
                    let subnet = self.pools.take(family)?;
                    never_give(&subnet, taken);
                    network.subnets.push(subnet);
                    next_free(network, taken, receiver, family)?
                }
            };
            taken.insert(number_of(address), number_of(address));
            let last = last_given(network, receiver);
            last.retain(|it| it.is_ipv6() != family);
            last.push(address);
            given.push(address);
        }
        Some(given)
    }

    /// Adds the changes of networks and pools to the plan, before the changes that depend on them.
    pub(super) fn finish(self, plan: &mut Plan) {
        let mut changes = Plan::default();
        if let (Some(cluster), Some(address_pools)) = (self.view.cluster(), self.pools.changed()) {
            changes.put(flota_api::model::Cluster { address_pools, ..cluster.as_ref().clone() });
        }
        for (network, _) in self.networks.into_values() {
            if self.view.network(network.id.as_str()).is_some_and(|old| **old != network) {
                changes.put(network);
            }
        }
        let rest: Vec<Change> = std::mem::take(&mut plan.changes);
        plan.changes = changes.changes.into_iter().chain(rest).collect();
    }
}

fn is_ipv6(subnet: &Subnet) -> bool {
    subnet.prefix.addr().is_ipv6()
}

/// Takes the addresses that no new subnet gives, as the tables do once it is there.
fn never_give(subnet: &Subnet, taken: &mut Runs) {
    let (first, last) = numbers_of(&subnet.prefix);
    let gateway = number_of(subnet.gateway);
    let broadcast = Some(last).filter(|_| !is_ipv6(subnet));
    [Some(first), Some(gateway), broadcast].into_iter().flatten().for_each(|number| taken.insert(number, number));
}

fn last_given(network: &mut Network, receiver: Receiver) -> &mut Vec<IpAddr> {
    match receiver {
        Receiver::Member => &mut network.last_given.tasks,
        Receiver::Service => &mut network.last_given.services,
    }
}

/// Returns the numbers of the first and the last address of a subnet that a receiver may get.
fn range(network: &Network, subnet: &Subnet, receiver: Receiver) -> (u128, u128) {
    let (first_virtual, last_virtual) = numbers_of(&subnet.virtual_range);
    if receiver == Receiver::Service {
        return (first_virtual, last_virtual);
    }
    let spec = network.spec.subnets.iter().find(|it| it.prefix == subnet.prefix);
    let (first, _) = numbers_of(&spec.and_then(|it| it.range).unwrap_or(subnet.prefix));
    // The virtual range is the last part, so what is before it is the rest.
    (first, first_virtual - 1)
}

/// Returns the free address that comes first behind the one that was given last, around all subnets of the family.
fn next_free(network: &mut Network, taken: &Runs, receiver: Receiver, family: bool) -> Option<IpAddr> {
    let last = last_given(network, receiver).iter().find(|it| it.is_ipv6() == family).map(|it| number_of(*it));
    if faults::is_on(Fault::DoubleAddress) && !network.is_ingress() && last.is_some() {
        return last.map(address_of);
    }
    let subnets = network.subnets.iter().filter(|it| is_ipv6(it) == family);
    let ranges: Vec<_> = subnets.map(|subnet| range(network, subnet, receiver)).collect();
    let at = last.and_then(|last| ranges.iter().position(|(from, to)| (*from..=*to).contains(&last)));
    let free = |(from, to): (u128, u128)| taken.first_free(from, to);
    let found = match (last, at) {
        (Some(last), Some(at)) => free((last + 1, ranges[at].1))
            .or_else(|| ranges[at + 1..].iter().chain(&ranges[..=at]).find_map(|range| free(*range))),
        _ => ranges.iter().find_map(|range| free(*range)),
    };
    found.map(address_of)
}
