//! Tests of the indices of networks.

use std::collections::BTreeSet;
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
    found.map(crate::store::address_of).into_iter().collect()
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

/// Counts, from the objects, the addresses of the network, its tasks, its nodes, and those with tasks.
fn counted(tables: &Tables) -> (Vec<u128>, Vec<String>, [Vec<NodeId>; 2]) {
    let attached = || tables.tasks().filter(|task| !task.status.state.is_terminal() && !task.attachments.is_empty());
    let of_tasks = attached().flat_map(|task| &task.attachments).flat_map(|it| &it.addresses);
    let of_nodes = tables.nodes().flat_map(|node| &node.attachments).flat_map(|it| &it.addresses);
    let virtual_ips = tables.services().flat_map(|service| &service.virtual_ips).flat_map(|it| &it.addresses);
    let mut addresses: Vec<u128> = of_tasks.chain(of_nodes).chain(virtual_ips).copied().map(number_of).collect();
    addresses.extend([0, 1, 255].map(|number| number_of(address(number))));
    addresses.sort_unstable();
    let with_tasks: BTreeSet<NodeId> = attached().filter_map(|task| task.node_id.clone()).collect();
    let attached_nodes = tables.nodes().filter(|node| !node.attachments.is_empty()).map(|node| node.id.clone());
    let nodes: BTreeSet<NodeId> = attached_nodes.chain(with_tasks.iter().cloned()).collect();
    let nodes = [nodes, with_tasks].map(|it| it.into_iter().collect());
    (addresses, attached().map(|task| task.id.to_string()).collect(), nodes)
}

fn indexed(tables: &Tables) -> (Vec<u128>, Vec<String>, [Vec<NodeId>; 2]) {
    let (id, taken) = (NetworkId::from("net"), tables.taken_addresses(&"net".into()));
    let is_taken = |number: &u128| taken.first_free(*number, *number).is_none();
    let addresses = (0..=255).map(|number| number_of(address(number))).filter(is_taken).collect();
    let tasks = tables.tasks_of_network(&id).map(|task| task.id.to_string()).collect();
    let nodes = [tables.nodes_of_network(&id).cloned().collect(), tables.hosts().cloned().collect()];
    (addresses, tasks, nodes)
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
            assert_eq!(is_there, indexed(&tables).2[0].contains(&node.into()));
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
    use flota_api::model::{NetworkAttachment, NodePort, Protocol, PublishMode, PublishedPort, ServiceSpec};
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
    let owner =
        |tables: &Tables, port| tables.services_with_port(NodePort { protocol: Protocol::Tcp, number: port }).count();
    assert_eq!([80, 81, 82].map(|port| owner(&tables, port)), [1, 1, 0]);
    assert_eq!((tables.services_of_network(&"net".into()).count(), tables.services_published().count()), (1, 1));
    tables.put(Service { spec: Arc::default(), ports: Vec::new(), ..service }.into_object());
    assert_eq!([80, 81, 82].map(|port| owner(&tables, port)), [0, 0, 0]);
    assert_eq!((tables.services_of_network(&"net".into()).count(), tables.services_published().count()), (0, 0));
}

#[test]
fn nodes_are_found_by_the_ports_on_which_their_own_programs_listen() {
    use flota_api::model::{NodeDescription, NodePort, Protocol};
    let port = |number| NodePort { protocol: Protocol::Tcp, number };
    let node = |id: &str, ports: &[u16]| {
        let listeners = ports.iter().copied().map(port).collect();
        let description = NodeDescription { listeners, ..NodeDescription::default() };
        Node { id: id.into(), description, ..Node::default() }.into_object()
    };
    let listening = |tables: &Tables, number| -> Vec<String> {
        tables.nodes_listening(port(number)).map(|node| node.id.to_string()).collect()
    };
    let mut tables = Tables::default();
    tables.put(node("a", &[22, 22, 80]));
    tables.put(node("b", &[22]));
    assert_eq!([22, 80].map(|it| listening(&tables, it)), [vec!["a", "b"], vec!["a"]]);
    tables.put(node("a", &[80]));
    assert_eq!([22, 80].map(|it| listening(&tables, it)), [vec!["b"], vec!["a"]]);
    tables.remove(Kind::Node, "b");
    tables.put(node("a", &[]));
    assert_eq!([22, 80].map(|it| listening(&tables, it)), [[""; 0]; 2]);
}
