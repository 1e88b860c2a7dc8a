//! Indices of networks: which addresses, subnets, identifiers and ports are taken, and which tasks, nodes and services a
//! network has. [`super::indices::Indices`] keeps them up to date, and `tables/networks.rs` reads them.

use std::collections::BTreeSet;

use imbl::OrdMap;
use ipnet::IpNet;

use super::groups::{Groups, Tally};
use super::runs::{Runs, number_of, numbers_of};
use flota_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use flota_api::model::{Attachment, Network, Node, NodePort, Service, Task};
use flota_api::version::Version;

/// Every index of networks. The fields are read by the accessors of the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct NetworkIndices {
    /// Addresses of a network that tasks, services and nodes have, and those that it never gives.
    pub(super) addresses: OrdMap<NetworkId, Runs>,
    /// All addresses of all subnets.
    pub(super) subnets: Runs,
    pub(super) vnis: Runs,
    /// Tasks with an attachment to a network that have not ended.
    pub(super) tasks: Groups<NetworkId, TaskId>,
    /// Nodes that have something attached to a network: a task that has not ended, or themselves.
    pub(super) nodes: Tally<NetworkId, NodeId>,
    /// The networks of each such node, with the version since which the node has the network.
    pub(super) of_node: OrdMap<NodeId, OrdMap<NetworkId, Version>>,
    /// Nodes with tasks that are attached to networks and have not ended: how many attachments, and since which version
    /// the node has any.
    pub(super) hosts: OrdMap<NodeId, (u64, Version)>,
    /// Nodes with an attachment of their own.
    pub(super) attached_nodes: Groups<NetworkId, NodeId>,
    /// Services whose newest spec names a network, or that still have a virtual IP there.
    pub(super) services: Groups<NetworkId, ServiceId>,
    /// Services that have or want a port of nodes.
    pub(super) ports: Groups<NodePort, ServiceId>,
    /// Services on whose ports every node answers.
    pub(super) published: Groups<(), ServiceId>,
    /// Nodes of which a program itself listens on a port.
    pub(super) listeners: Groups<NodePort, NodeId>,
    /// Destinations of the routes of nodes.
    pub(super) routes: Tally<(), IpNet>,
}

/// Returns the addresses of a network that are never given: the gateway, the auxiliary ones, the first one of each
/// subnet, and the last one with IPv4.
fn never_given(network: &Network) -> BTreeSet<u128> {
    let auxiliary = network.spec.subnets.iter().flat_map(|subnet| subnet.auxiliary.values());
    let of_subnets = network.subnets.iter().flat_map(|subnet| {
        let last = Some(subnet.prefix.broadcast()).filter(|address| address.is_ipv4());
        [Some(subnet.gateway), Some(subnet.prefix.network()), last].into_iter().flatten()
    });
    auxiliary.copied().chain(of_subnets).map(number_of).collect()
}

/// Returns the ports of nodes that a service has or wants.
fn ports(service: &Service) -> BTreeSet<NodePort> {
    let all = service.ports.iter().chain(&service.spec.ports);
    all.filter_map(|port| Some(NodePort { protocol: port.protocol, number: port.published? })).collect()
}

fn networks(service: &Service) -> BTreeSet<NetworkId> {
    let named = service.spec.networks.iter().map(|it| &it.network);
    named.chain(service.virtual_ips.iter().map(|it| &it.network)).cloned().collect()
}

impl NetworkIndices {
    fn take(&mut self, network: &NetworkId, numbers: impl IntoIterator<Item = u128>) {
        let taken = self.addresses.entry(network.clone()).or_default();
        numbers.into_iter().for_each(|number| taken.insert(number, number));
    }

    fn give_back(&mut self, network: &NetworkId, numbers: impl IntoIterator<Item = u128>) {
        let Some(taken) = self.addresses.get_mut(network) else { return };
        numbers.into_iter().for_each(|number| taken.remove(number, number));
        if taken.is_empty() {
            self.addresses.remove(network);
        }
    }

    /// Follows the change of a network from `old` to `new`.
    pub(super) fn network(&mut self, old: Option<&Network>, new: Option<&Network>) {
        if let Some(old) = old {
            self.give_back(&old.id, never_given(old));
            for (first, last) in old.subnets.iter().map(|subnet| numbers_of(&subnet.prefix)) {
                self.subnets.remove(first, last);
            }
            old.vni.into_iter().for_each(|vni| self.vnis.remove(vni.into(), vni.into()));
        }
        if let Some(new) = new {
            self.take(&new.id, never_given(new));
            for (first, last) in new.subnets.iter().map(|subnet| numbers_of(&subnet.prefix)) {
                self.subnets.insert(first, last);
            }
            new.vni.into_iter().for_each(|vni| self.vnis.insert(vni.into(), vni.into()));
        }
    }

    /// Follows the change of a task from `old` to `new`, which comes after this version. Only a task that has not ended is
    /// attached.
    pub(super) fn task(&mut self, old: Option<&Task>, new: Option<&Task>, after: Version) {
        let attached = |task: &&Task| !task.attachments.is_empty() && !task.status.state.is_terminal();
        let (old, new) = (old.filter(attached), new.filter(attached));
        let same = |old: &Task, new: &Task| (&old.attachments, &old.node_id) == (&new.attachments, &new.node_id);
        if matches!((old, new), (None, None)) || old.zip(new).is_some_and(|(old, new)| same(old, new)) {
            return;
        }
        for (task, attachment) in old.into_iter().flat_map(|it| it.attachments.iter().map(move |each| (it, each))) {
            self.give_back(&attachment.network, numbers(attachment));
            self.tasks.update(Some((attachment.network.clone(), task.id.clone())), None);
            if let Some(node) = &task.node_id {
                self.detach(node, &attachment.network);
                self.count_host(node, after, |count| count.saturating_sub(1));
            }
        }
        for (task, attachment) in new.into_iter().flat_map(|it| it.attachments.iter().map(move |each| (it, each))) {
            self.take(&attachment.network, numbers(attachment));
            self.tasks.update(None, Some((attachment.network.clone(), task.id.clone())));
            if let Some(node) = &task.node_id {
                self.attach(node, &attachment.network, after);
                self.count_host(node, after, |count| count + 1);
            }
        }
    }

    /// Follows the change of a node from `old` to `new`, which comes after this version.
    pub(super) fn node(&mut self, old: Option<&Node>, new: Option<&Node>, after: Version) {
        self.listeners(old, new);
        let facts = |node: &Node| (node.attachments.clone(), node.description.routes.clone());
        if old.map(facts) == new.map(facts) {
            return;
        }
        if let Some(node) = old {
            for attachment in &node.attachments {
                self.give_back(&attachment.network, numbers(attachment));
                self.attached_nodes.update(Some((attachment.network.clone(), node.id.clone())), None);
                self.detach(&node.id, &attachment.network);
            }
            node.description.routes.iter().for_each(|route| self.routes.update(Some(((), *route)), None));
        }
        if let Some(node) = new {
            for attachment in &node.attachments {
                self.take(&attachment.network, numbers(attachment));
                self.attached_nodes.update(None, Some((attachment.network.clone(), node.id.clone())));
                self.attach(&node.id, &attachment.network, after);
            }
            node.description.routes.iter().for_each(|route| self.routes.update(None, Some(((), *route))));
        }
    }

    /// Follows the change of the ports on which a node's own programs listen.
    fn listeners(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let ports = |node: Option<&Node>| -> BTreeSet<(NodePort, NodeId)> {
            let all =
                node.into_iter().flat_map(|it| it.description.listeners.iter().map(|port| (*port, it.id.clone())));
            all.collect()
        };
        if old.map(|it| &it.description.listeners) == new.map(|it| &it.description.listeners) {
            return;
        }
        ports(old).into_iter().for_each(|it| self.listeners.update(Some(it), None));
        ports(new).into_iter().for_each(|it| self.listeners.update(None, Some(it)));
    }

    /// Follows the change of a service from `old` to `new`.
    pub(super) fn service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        if let Some(service) = old {
            for virtual_ip in &service.virtual_ips {
                self.give_back(&virtual_ip.network, virtual_ip.addresses.iter().copied().map(number_of));
            }
            networks(service).into_iter().for_each(|it| self.services.update(Some((it, service.id.clone())), None));
            ports(service).into_iter().for_each(|it| self.ports.update(Some((it, service.id.clone())), None));
            self.published.update(Some(((), service.id.clone())), None);
        }
        if let Some(service) = new {
            for virtual_ip in &service.virtual_ips {
                self.take(&virtual_ip.network, virtual_ip.addresses.iter().copied().map(number_of));
            }
            networks(service).into_iter().for_each(|it| self.services.update(None, Some((it, service.id.clone()))));
            ports(service).into_iter().for_each(|it| self.ports.update(None, Some((it, service.id.clone()))));
            let published = (!service.ports.is_empty()).then(|| ((), service.id.clone()));
            self.published.update(None, published);
        }
    }

    fn attach(&mut self, node: &NodeId, network: &NetworkId, after: Version) {
        self.nodes.update(None, Some((network.clone(), node.clone())));
        self.of_node.entry(node.clone()).or_default().entry(network.clone()).or_insert(after);
    }

    fn detach(&mut self, node: &NodeId, network: &NetworkId) {
        self.nodes.update(Some((network.clone(), node.clone())), None);
        if self.nodes.count(network, node) > 0 {
            return;
        }
        let Some(networks) = self.of_node.get_mut(node) else { return };
        networks.remove(network);
        if networks.is_empty() {
            self.of_node.remove(node);
        }
    }

    fn count_host(&mut self, node: &NodeId, after: Version, change: fn(u64) -> u64) {
        let (count, since) = self.hosts.get(node).copied().unwrap_or((0, after));
        match change(count) {
            0 => drop(self.hosts.remove(node)),
            count => drop(self.hosts.insert(node.clone(), (count, since))),
        }
    }
}

fn numbers(attachment: &Attachment) -> impl Iterator<Item = u128> {
    attachment.addresses.iter().copied().map(number_of)
}

#[cfg(test)]
mod tests;
