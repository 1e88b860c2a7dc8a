//! Plans the check of a network: what its balancer should have and what the kernel has, and which task to probe on each
//! other node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flota_api::id::{NetworkId, NodeId};
use flota_api::model::{BalancerReport, Endpoint, NetworkDriver};
use flota_network::Namespace;

use super::LinuxKernel;
use super::services::{place, pool};
use crate::networks::check::{CheckPlan, ProbeOrigin, ProbeTarget};
use crate::networks::view::{KnownNetwork, View};

/// Largest number of other nodes that are probed, each in a thread of its own.
const MOST_PEERS: usize = 64;
/// Largest number of differences that are named.
const MOST_DIFFERENCES: usize = 16;

/// The virtual IPs that lack each backend.
type Missing = BTreeMap<IpAddr, Vec<IpAddr>>;

impl LinuxKernel {
    pub(super) fn planned_check(&self, view: &View, id: &NetworkId) -> CheckPlan {
        let Some(network) = view.network(id) else { return CheckPlan::default() };
        let (balancer, missing) = self.compare_balancer(network);
        let all = self.targets(network, &missing);
        let (before, after): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it.node < self.options.node);
        // Each node begins behind itself, so that together they probe every node.
        let mut peers: Vec<ProbeTarget> = after.into_iter().chain(before).collect();
        let unprobed = u32::try_from(peers.len().saturating_sub(MOST_PEERS)).unwrap_or(u32::MAX);
        peers.truncate(MOST_PEERS);
        CheckPlan { balancer, origin: self.origin(view, network), peers, unprobed }
    }

    /// Compares the backends of the network's virtual IPs with what they should be.
    fn compare_balancer(&self, network: &KnownNetwork) -> (BalancerReport, Missing) {
        let mut report = BalancerReport { kind: Some(self.balancer_kind), ..BalancerReport::default() };
        let mut missing = Missing::new();
        for service in network.services.values() {
            let told = network.backends(&service.service);
            for address in &service.virtual_ips {
                let wanted = pool(*address, &told).backends;
                let found = self.balancer.backends(place(&network.config.id, *address)).unwrap_or_else(|error| {
                    tracing::warn!(error = %crate::networks::Chain(&error), "the balancer can't be read");
                    BTreeSet::new()
                });
                report.virtual_ips += 1;
                report.backends += u32::try_from(found.len()).unwrap_or(u32::MAX);
                wanted.difference(&found).for_each(|it| missing.entry(*it).or_default().push(*address));
                if found != wanted && report.differences.len() < MOST_DIFFERENCES {
                    let name = &service.name;
                    report.differences.push(format!("{address} of `{name}` leads to {found:?} instead of {wanted:?}"));
                }
            }
        }
        (report, missing)
    }

    /// Returns a task on each other node to which connections are sent.
    fn targets(&self, network: &KnownNetwork, missing: &Missing) -> Vec<ProbeTarget> {
        if network.config.driver != NetworkDriver::Overlay {
            return Vec::new();
        }
        let mut first: BTreeMap<&NodeId, &Endpoint> = BTreeMap::new();
        for endpoint in network.endpoints.values().filter(|it| it.serving && it.node != self.options.node) {
            first.entry(&endpoint.node).or_insert(endpoint);
        }
        let target = |(node, endpoint): (&NodeId, &Endpoint)| ProbeTarget {
            node: node.clone(),
            name: (!network.is_ingress()).then(|| format!("{}.{}", endpoint.name, network.config.name)),
            addresses: endpoint.addresses.clone(),
            underlay: endpoint.vtep,
            missing_in: endpoint.addresses.iter().filter_map(|it| missing.get(it)).flatten().copied().collect(),
        };
        first.into_iter().map(target).collect()
    }

    fn origin(&self, view: &View, network: &KnownNetwork) -> Option<ProbeOrigin> {
        let mut own = network.endpoints.values().filter(|it| it.node == self.options.node);
        let task = own.find(|it| self.tasks.contains_key(&it.task))?;
        let mtu = self.networks.get(&network.config.id).and_then(|it| it.local.mtu());
        Some(ProbeOrigin {
            task: Namespace::at(&self.options.folder.task(&task.task)),
            addresses: task.addresses.clone(),
            host: self.options.host.clone(),
            underlay: self.local_address(view),
            mtu: mtu.and_then(|it| usize::try_from(it).ok()),
        })
    }
}
