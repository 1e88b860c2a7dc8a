//! Indices of networks: which addresses, subnets, identifiers and ports are taken, and which tasks, nodes and services a
//! network has. [`super::indices::Indices`] keeps them up to date.

use std::collections::BTreeSet;

use imbl::OrdMap;
use ipnet::IpNet;

use super::groups::{Groups, Tally};
use super::runs::{Runs, number_of, numbers_of};
use flota_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use flota_api::model::{Attachment, Network, Node, Protocol, Service, Task};

/// A port on nodes.
pub type NodePort = (Protocol, u16);

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
    /// The same by node.
    pub(super) of_node: Tally<NodeId, NetworkId>,
    /// Nodes with an attachment of their own.
    pub(super) attached_nodes: Groups<NetworkId, NodeId>,
    /// Services whose newest spec names a network, or that still have a virtual IP there.
    pub(super) services: Groups<NetworkId, ServiceId>,
    /// Services that have or want a port of nodes.
    pub(super) ports: Groups<NodePort, ServiceId>,
    /// Services on whose ports every node answers.
    pub(super) published: Groups<(), ServiceId>,
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
    all.filter_map(|port| Some((port.protocol, port.published?))).collect()
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

    /// Follows the change of a task from `old` to `new`. Only a task that has not ended is attached.
    pub(super) fn task(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let attached = |task: &&Task| !task.attachments.is_empty() && !task.status.state.is_terminal();
        let (old, new) = (old.filter(attached), new.filter(attached));
        let same = |old: &Task, new: &Task| (&old.attachments, &old.node_id) == (&new.attachments, &new.node_id);
        if matches!((old, new), (None, None)) || old.zip(new).is_some_and(|(old, new)| same(old, new)) {
            return;
        }
        for (task, attachment) in old.into_iter().flat_map(|it| it.attachments.iter().map(move |each| (it, each))) {
            self.give_back(&attachment.network, numbers(attachment));
            self.tasks.update(Some((attachment.network.clone(), task.id.clone())), None);
            self.detach(task.node_id.as_ref(), &attachment.network);
        }
        for (task, attachment) in new.into_iter().flat_map(|it| it.attachments.iter().map(move |each| (it, each))) {
            self.take(&attachment.network, numbers(attachment));
            self.tasks.update(None, Some((attachment.network.clone(), task.id.clone())));
            self.attach(task.node_id.as_ref(), &attachment.network);
        }
    }

    /// Follows the change of a node from `old` to `new`.
    pub(super) fn node(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let facts = |node: &Node| (node.attachments.clone(), node.description.routes.clone());
        if old.map(facts) == new.map(facts) {
            return;
        }
        if let Some(node) = old {
            for attachment in &node.attachments {
                self.give_back(&attachment.network, numbers(attachment));
                self.attached_nodes.update(Some((attachment.network.clone(), node.id.clone())), None);
                self.detach(Some(&node.id), &attachment.network);
            }
            node.description.routes.iter().for_each(|route| self.routes.update(Some(((), *route)), None));
        }
        if let Some(node) = new {
            for attachment in &node.attachments {
                self.take(&attachment.network, numbers(attachment));
                self.attached_nodes.update(None, Some((attachment.network.clone(), node.id.clone())));
                self.attach(Some(&node.id), &attachment.network);
            }
            node.description.routes.iter().for_each(|route| self.routes.update(None, Some(((), *route))));
        }
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

    fn attach(&mut self, node: Option<&NodeId>, network: &NetworkId) {
        let Some(node) = node else { return };
        self.nodes.update(None, Some((network.clone(), node.clone())));
        self.of_node.update(None, Some((node.clone(), network.clone())));
    }

    fn detach(&mut self, node: Option<&NodeId>, network: &NetworkId) {
        let Some(node) = node else { return };
        self.nodes.update(Some((network.clone(), node.clone())), None);
        self.of_node.update(Some((node.clone(), network.clone())), None);
    }
}

fn numbers(attachment: &Attachment) -> impl Iterator<Item = u128> {
    attachment.addresses.iter().copied().map(number_of)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use crate::store::{Tables, number_of};
    use flota_api::id::{NetworkId, NodeId};
    use flota_api::model::{Attachment, Network, Node, Service, Subnet, Task, TaskStatus, VirtualIp};
    use flota_api::object::{Kind, StoreObject};
    use flota_api::state::TaskState;

    const LAST: u8 = 80;

    fn address(number: u8) -> std::net::IpAddr {
        [10, 0, 1, number].into()
    }

    fn network() -> Network {
        let subnet = Subnet {
            prefix: "10.0.1.0/24".parse().expect("a prefix"),
            gateway: address(1),
            virtual_range: "10.0.1.192/26".parse().expect("a prefix"),
        };
        Network { id: "net".into(), vni: Some(4_096), subnets: vec![subnet], ..Network::default() }
    }

    /// An address that nothing in the tables has, as the allocator finds one.
    fn free(rng: &mut StdRng, tables: &Tables) -> Vec<std::net::IpAddr> {
        let first = number_of(address(rng.random_range(2..LAST)));
        let found = tables.taken_addresses(&"net".into()).first_free(first, number_of(address(LAST)));
        found.map(super::super::address_of).into_iter().collect()
    }

    fn change(rng: &mut StdRng, tables: &mut Tables) {
        let id = rng.random_range(0..30u32).to_string();
        let (kind, id) = match rng.random_range(0..4) {
            0 => (Kind::Node, format!("n{}", id.len())),
            1 => (Kind::Service, format!("s{id}")),
            _ => (Kind::Task, format!("t{id}")),
        };
        tables.remove(kind, &id);
        if rng.random_bool(0.3) {
            return;
        }
        let (network, addresses) = (NetworkId::from("net"), free(rng, tables));
        let attachments = vec![Attachment { network: network.clone(), addresses: addresses.clone() }];
        let state = [TaskState::Running, TaskState::Failed][usize::from(rng.random_bool(0.3))];
        tables.put(match kind {
            Kind::Node => Node { id: id.as_str().into(), attachments, ..Node::default() }.into_object(),
            Kind::Service => {
                let virtual_ips = vec![VirtualIp { network, addresses }];
                Service { id: id.as_str().into(), virtual_ips, ..Service::default() }.into_object()
            }
            _ => {
                let node_id = rng.random_bool(0.7).then(|| format!("n{}", rng.random_range(1..3)).into());
                let status = TaskStatus { state, ..TaskStatus::default() };
                Task { id: id.as_str().into(), node_id, attachments, status, ..Task::default() }.into_object()
            }
        });
    }

    /// What the objects say of the network: its addresses, its tasks, and its nodes.
    fn counted(tables: &Tables) -> (Vec<u128>, Vec<String>, Vec<NodeId>) {
        let attached =
            || tables.tasks().filter(|task| !task.status.state.is_terminal() && !task.attachments.is_empty());
        let of_tasks = attached().flat_map(|task| &task.attachments).flat_map(|it| &it.addresses);
        let of_nodes = tables.nodes().flat_map(|node| &node.attachments).flat_map(|it| &it.addresses);
        let virtual_ips = tables.services().flat_map(|service| &service.virtual_ips).flat_map(|it| &it.addresses);
        let mut addresses: Vec<u128> = of_tasks.chain(of_nodes).chain(virtual_ips).copied().map(number_of).collect();
        addresses.extend([0, 1, 255].map(|number| number_of(address(number))));
        addresses.sort_unstable();
        let with_tasks = attached().filter_map(|task| task.node_id.clone());
        let attached_nodes = tables.nodes().filter(|node| !node.attachments.is_empty()).map(|node| node.id.clone());
        let mut nodes: Vec<NodeId> = with_tasks.chain(attached_nodes).collect();
        nodes.sort();
        nodes.dedup();
        (addresses, attached().map(|task| task.id.to_string()).collect(), nodes)
    }

    fn indexed(tables: &Tables) -> (Vec<u128>, Vec<String>, Vec<NodeId>) {
        let (id, taken) = (NetworkId::from("net"), tables.taken_addresses(&"net".into()));
        let is_taken = |number: &u128| taken.first_free(*number, *number).is_none();
        let addresses = (0..=255).map(|number| number_of(address(number))).filter(is_taken).collect();
        let tasks = tables.tasks_of_network(&id).map(|task| task.id.to_string()).collect();
        (addresses, tasks, tables.nodes_of_network(&id).cloned().collect())
    }

    #[test]
    fn the_indices_say_what_the_objects_say_after_any_changes() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut tables = Tables::default();
        tables.put(network().into_object());
        for step in 0..2_000 {
            change(&mut rng, &mut tables);
            assert_eq!(indexed(&tables), counted(&tables), "after {step} steps");
            for node in ["n1", "n2"] {
                let is_there = tables.networks_of_node(&node.into()).next().is_some();
                assert_eq!(is_there, indexed(&tables).2.contains(&node.into()));
            }
        }
    }

    #[test]
    fn a_removed_network_leaves_neither_addresses_nor_a_subnet_nor_an_identifier() {
        let mut tables = Tables::default();
        tables.put(network().into_object());
        let mut larger = network();
        larger.subnets.push(Subnet { prefix: "10.0.9.0/24".parse().expect("a prefix"), ..larger.subnets[0].clone() });
        tables.put(larger.into_object());
        assert!(
            tables.taken_subnets().last_met(number_of([10, 0, 9, 7].into()), number_of([10, 0, 9, 8].into())).is_some()
        );
        tables.remove(Kind::Network, "net");
        assert!(tables.taken_subnets().is_empty() && tables.taken_vnis().is_empty());
        assert!(tables.taken_addresses(&"net".into()).is_empty());
    }

    #[test]
    fn ports_and_networks_of_services_are_found_by_what_the_specs_want_and_by_what_the_services_have() {
        use flota_api::model::{NetworkAttachment, Protocol, PublishMode, PublishedPort, ServiceSpec};
        let port = |published| PublishedPort {
            target: 80,
            published: Some(published),
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
        };
        let network = NetworkAttachment { network: "net".into(), ..NetworkAttachment::default() };
        let spec = ServiceSpec { networks: vec![network], ports: vec![port(80)], ..ServiceSpec::default() };
        let service = Service { id: "s".into(), spec: Arc::new(spec), ports: vec![port(81)], ..Service::default() };
        let mut tables = Tables::default();
        tables.put(service.clone().into_object());
        let owner = |tables: &Tables, port| tables.services_with_port((Protocol::Tcp, port)).count();
        assert_eq!([80, 81, 82].map(|port| owner(&tables, port)), [1, 1, 0]);
        assert_eq!((tables.services_of_network(&"net".into()).count(), tables.services_published().count()), (1, 1));
        tables.put(Service { spec: Arc::default(), ports: Vec::new(), ..service }.into_object());
        assert_eq!([80, 81, 82].map(|port| owner(&tables, port)), [0, 0, 0]);
        assert_eq!((tables.services_of_network(&"net".into()).count(), tables.services_published().count()), (0, 0));
    }
}
