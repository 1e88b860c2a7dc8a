//! Tests of the allocator: single decisions, and random sequences in which nothing is given twice and nothing leaks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use flota_api::id::NetworkId;
use flota_api::model::{
    AddressPool, Cluster, EndpointMode, INGRESS, Network, NetworkAttachment, NetworkSpec, Node, NodeDescription,
    NodePort, PendingReason, Protocol, PublishMode, PublishedPort, Service, ServiceSpec, Subnet, Task, TaskStatus,
};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_raft_store::store::number_of;
use flota_raft_store::{Event, Tables};

use super::{Addresses, Networks, Services};
use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Change, PlanContext};

/// Plans every key of the three loops, as a pass does, and makes the changes.
fn settle(view: &mut Tables) {
    let mut loops: [Box<dyn ControlLoop>; 3] = [Box::new(Networks), Box::new(Services), Box::new(Addresses)];
    for each in &mut loops {
        for key in each.all(view) {
            for change in each.plan(&key, view, &mut PlanContext::at(Timestamp(1))).changes {
                match change {
                    Change::Put(object) => view.put(object),
                    Change::Remove(kind, id) => drop(view.remove(kind, id)),
                }
            }
        }
    }
}

/// A cluster whose pools have these addresses, and its built-in networks.
fn cluster(prefix: &str, subnet_length: u8) -> Tables {
    let pool = |prefix: &str, subnet_length| AddressPool {
        prefix: prefix.parse().expect("a prefix"),
        subnet_length,
        last: None,
    };
    let address_pools = vec![pool(prefix, subnet_length), pool("fd00::/48", 64)];
    let mut view = Tables::default();
    view.put(Cluster { id: "c".into(), address_pools, ..Cluster::default() }.into_object());
    settle(&mut view);
    view
}

fn network(id: &str, ipv6: bool) -> Network {
    let spec = NetworkSpec { name: id.into(), ipv6, ..NetworkSpec::default() };
    Network { id: id.into(), spec: Arc::new(spec), ..Network::default() }
}

fn service(id: &str, networks: &[&str], ports: &[Option<u16>]) -> Service {
    let network = |id: &&str| NetworkAttachment { network: (*id).into(), ..NetworkAttachment::default() };
    let port = |published: &Option<u16>| PublishedPort {
        target: 80,
        published: *published,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
    };
    let spec = ServiceSpec {
        name: id.into(),
        networks: networks.iter().map(network).collect(),
        ports: ports.iter().map(port).collect(),
        ..ServiceSpec::default()
    };
    Service { id: id.into(), spec: Arc::new(spec), spec_version: 1, ..Service::default() }
}

fn task(id: &str, service: &str) -> Task {
    let status = TaskStatus { state: TaskState::Pending, ..TaskStatus::default() };
    Task { id: id.into(), service_id: service.into(), spec_version: 1, status, ..Task::default() }
}

fn end(view: &mut Tables, id: &str) {
    let ended = view.task(id).expect("it is there").as_ref().clone();
    let status = TaskStatus { state: TaskState::Failed, ..ended.status.clone() };
    view.put(Task { status, ..ended }.into_object());
}

fn addresses(view: &Tables, task: &str) -> Vec<String> {
    let task = view.task(task).expect("it is there");
    task.attachments.iter().flat_map(|it| &it.addresses).map(ToString::to_string).collect()
}

/// Every address that an object has, with its network; a double is there twice.
fn given(view: &Tables) -> Vec<(NetworkId, IpAddr)> {
    let live = view.tasks().filter(|task| !task.status.state.is_terminal());
    let attachments = live.flat_map(|task| &task.attachments).chain(view.nodes().flat_map(|node| &node.attachments));
    let of_members = attachments.flat_map(|it| it.addresses.iter().map(|address| (it.network.clone(), *address)));
    let virtual_ips = view.services().flat_map(|service| &service.virtual_ips);
    let of_services = virtual_ips.flat_map(|it| it.addresses.iter().map(|address| (it.network.clone(), *address)));
    of_members.chain(of_services).collect()
}

#[test]
fn a_cluster_gets_its_pools_and_its_networks_and_a_network_its_identifier_and_subnets() {
    let mut view = Tables::default();
    view.put(Cluster { id: "c".into(), ..Cluster::default() }.into_object());
    view.put(network("back", true).into_object());
    settle(&mut view);
    let pools = view.cluster().expect("it is there").address_pools.clone();
    assert_eq!(pools[0].prefix.to_string(), "10.0.0.0/8");
    let names: BTreeSet<&str> = view.networks().map(|network| network.spec.name.as_str()).collect();
    assert_eq!(names, [INGRESS, "host", "none", "back"].into());
    settle(&mut view);
    let back = view.network("back").expect("it is there");
    assert_eq!((back.subnets.len(), back.vni.is_some()), (2, true));
    assert!(pools[1].prefix.contains(&back.subnets[1].prefix));
    assert_eq!(view.network_by_name("host").map(|it| (it.subnets.len(), it.vni)), Some((0, None)));
    let vnis: BTreeSet<u32> = view.networks().filter_map(|network| network.vni).collect();
    assert_eq!(vnis, [4_096, 4_097].into());
}

#[test]
fn a_task_gets_an_address_of_each_family_in_each_network_of_its_spec_in_their_order() {
    let mut view = cluster("10.0.0.0/8", 24);
    view.put(network("a", true).into_object());
    view.put(network("b", false).into_object());
    view.put(service("web", &["b", "a"], &[Some(80)]).into_object());
    view.put(task("t", "web").into_object());
    settle(&mut view);
    let task = view.task("t").expect("it is there");
    let attached: Vec<(&str, usize)> =
        task.attachments.iter().map(|it| (it.network.as_str(), it.addresses.len())).collect();
    let ingress = view.network_by_name(INGRESS).expect("it is there");
    assert_eq!(attached, [("b", 1), ("a", 2), (ingress.id.as_str(), 2)], "published ports answer by both");
    assert!(view.is_attached(task));
    let service = view.service("web").expect("it is there");
    assert_eq!(service.virtual_ips.len(), 2, "every node answers in `ingress`, so no virtual IP is needed there");
    for virtual_ip in &service.virtual_ips {
        let network = view.network(virtual_ip.network.as_str()).expect("it is there");
        let is_virtual = |address| network.subnets.iter().any(|subnet| subnet.virtual_range.contains(address));
        assert!(virtual_ip.addresses.iter().all(is_virtual));
        assert!(task.attachments.iter().flat_map(|it| &it.addresses).all(|address| !is_virtual(address)));
    }
}

#[test]
fn an_address_that_was_given_back_is_given_again_only_after_the_others() {
    let mut view = cluster("10.0.0.0/8", 29);
    view.put(network("a", false).into_object());
    view.put(service("web", &["a"], &[]).into_object());
    let mut seen = Vec::new();
    for number in 0..5 {
        let id = format!("t{number}");
        view.put(task(&id, "web").into_object());
        settle(&mut view);
        seen.extend(addresses(&view, &id));
        end(&mut view, &id);
    }
    assert_eq!(seen, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.2"]);
}

#[test]
fn a_network_grows_by_subnets_of_the_pool_and_a_task_without_an_address_says_so_until_one_is_free() {
    let mut view = cluster("10.0.0.0/28", 29);
    let fixed = flota_api::model::SubnetSpec {
        prefix: "10.9.0.0/29".parse().expect("a prefix"),
        gateway: None,
        range: None,
        auxiliary: [("router".to_owned(), IpAddr::from([10, 9, 0, 2]))].into(),
    };
    let subnets = vec![super::subnet_of(&fixed)];
    let spec = NetworkSpec { name: "fixed".into(), subnets: vec![fixed], ..NetworkSpec::default() };
    view.put(Network { id: "f".into(), spec: Arc::new(spec), subnets, ..Network::default() }.into_object());
    view.put(service("web", &["f"], &[]).into_object());
    for id in ["t1", "t2", "t3", "t4"] {
        view.put(Task { slot: u64::from(id.as_bytes()[1] - b'0'), ..task(id, "web") }.into_object());
    }
    settle(&mut view);
    assert_eq!(["t1", "t2", "t3"].map(|id| addresses(&view, id).concat()), ["10.9.0.3", "10.9.0.4", "10.9.0.5"]);
    let waits = view.task("t4").expect("it is there");
    assert_eq!(waits.pending_reason.as_deref(), Some(&PendingReason::NoAddress("fixed".into())));
    assert!(!view.is_attached(waits));
    end(&mut view, "t2");
    settle(&mut view);
    assert_eq!(addresses(&view, "t4"), ["10.9.0.4"]);
    assert_eq!(view.task("t4").expect("it is there").pending_reason, None);

    view.put(network("grows", false).into_object());
    view.put(service("api", &["grows"], &[]).into_object());
    for number in 0..5 {
        view.put(Task { slot: number, ..task(&format!("g{number}"), "api") }.into_object());
    }
    settle(&mut view);
    let without = (0..5).filter(|number| addresses(&view, &format!("g{number}")).is_empty()).count();
    assert_eq!(without, 1, "`ingress` has one subnet of the pool, `grows` the other with four addresses");
    assert_eq!(view.network("grows").expect("it is there").subnets.len(), 1);
}

#[test]
fn ports_are_chosen_from_30000_up_and_kept_and_none_is_chosen_twice() {
    let mut view = cluster("10.0.0.0/8", 24);
    view.put(service("taken", &[], &[Some(30_001)]).into_object());
    view.put(service("web", &[], &[None, None, Some(80)]).into_object());
    settle(&mut view);
    let ports = |view: &Tables| -> Vec<u16> {
        view.service("web").expect("it is there").ports.iter().filter_map(|port| port.published).collect()
    };
    assert_eq!(ports(&view), [30_000, 30_002, 80]);
    settle(&mut view);
    assert_eq!(ports(&view), [30_000, 30_002, 80], "nothing has changed");
    view.put(service("next", &[], &[None]).into_object());
    settle(&mut view);
    assert_eq!(view.service("next").expect("it is there").ports[0].published, Some(30_003));
    let listeners = vec![NodePort { protocol: Protocol::Tcp, number: 30_004 }];
    let description = NodeDescription { listeners, ..NodeDescription::default() };
    view.put(Node { id: "w".into(), description, ..Node::default() }.into_object());
    view.put(service("last", &[], &[None]).into_object());
    settle(&mut view);
    let given = view.service("last").expect("it is there").ports[0].published;
    assert_eq!(given, Some(30_005), "a program of a node listens on the one before");
}

#[test]
fn a_port_that_was_chosen_is_given_up_if_the_user_names_it_for_another() {
    let mut view = cluster("10.0.0.0/8", 24);
    view.put(service("web", &[], &[None]).into_object());
    settle(&mut view);
    let old = Service::clone(view.service("web").expect("it is there"));
    assert_eq!(old.ports[0].published, Some(30_000));
    let named = PublishedPort { target: 443, published: Some(30_000), ..old.spec.ports[0] };
    let ports = vec![old.spec.ports[0], named];
    let spec = ServiceSpec { ports, ..old.spec.as_ref().clone() };
    view.put(Service { spec: Arc::new(spec), ..old }.into_object());
    settle(&mut view);
    let ports: Vec<_> =
        view.service("web").expect("it is there").ports.iter().map(|it| (it.target, it.published)).collect();
    assert_eq!((ports[0].1, ports[1]), (Some(30_001), (443, Some(30_000))));
}

#[test]
fn a_subnet_that_comes_back_wakes_those_for_whom_a_network_was_full() {
    let mut view = cluster("198.18.0.0/24", 24);
    view.put(network("a", false).into_object());
    settle(&mut view);
    view.put(network("b", false).into_object());
    view.put(service("web", &["b"], &[]).into_object());
    view.put(task("t", "web").into_object());
    settle(&mut view);
    assert!(view.service("web").expect("it is there").virtual_ips.is_empty(), "the pool has one subnet");
    let network = Network::clone(view.network("a").expect("it is there"));
    let removed = Event::Removed(network.into_object());
    assert_eq!(Services.dirtied_by(&removed, &view), [Key::of("web")]);
    assert_eq!(Addresses.dirtied_by(&removed, &view), [Key::of("web")]);
    let with_route = |routes: &[&str]| {
        let routes = routes.iter().map(|it| it.parse().expect("a route")).collect();
        let description = NodeDescription { routes, ..NodeDescription::default() };
        Node { id: "w".into(), description, ..Node::default() }.into_object()
    };
    let unrouted = Event::Updated { old: with_route(&["198.18.9.0/24"]), new: with_route(&[]) };
    assert!(Services.dirtied_by(&unrouted, &view).contains(&Key::of("web")));
    let same = Event::Updated { old: with_route(&["198.18.9.0/24"]), new: with_route(&["198.18.9.0/24"]) };
    assert!(Services.dirtied_by(&same, &view).is_empty());
}

#[test]
fn a_virtual_ip_stays_as_long_as_a_task_of_an_older_spec_lives() {
    let mut view = cluster("10.0.0.0/8", 24);
    view.put(network("a", false).into_object());
    view.put(service("web", &["a"], &[]).into_object());
    view.put(task("t", "web").into_object());
    settle(&mut view);
    let old = view.service("web").expect("it is there").as_ref().clone();
    view.put(Service { spec: Arc::default(), spec_version: 2, ..old.clone() }.into_object());
    settle(&mut view);
    assert_eq!(view.service("web").expect("it is there").virtual_ips, old.virtual_ips);
    end(&mut view, "t");
    settle(&mut view);
    assert!(view.service("web").expect("it is there").virtual_ips.is_empty());
    let dnsrr = ServiceSpec { endpoint_mode: EndpointMode::Dnsrr, ..old.spec.as_ref().clone() };
    view.put(Service { spec: Arc::new(dnsrr), spec_version: 3, ..old }.into_object());
    settle(&mut view);
    assert!(view.service("web").expect("it is there").virtual_ips.is_empty(), "its name stands for its tasks");
}

/// One random change of what users, the orchestrator and workers do.
fn disturb(rng: &mut StdRng, view: &mut Tables) {
    let number = rng.random_range(0..12u32);
    match rng.random_range(0..10) {
        0 if view.node(format!("n{number}")).is_none() => {
            view.put(Node { id: format!("n{number}").as_str().into(), ..Node::default() }.into_object());
        }
        0 => drop(view.remove(Kind::Node, format!("n{number}"))),
        1 => {
            let networks: &[&str] = [&["a"][..], &["a", "b"], &["b"], &[]][rng.random_range(0..4)];
            let ports: &[Option<u16>] = [&[None][..], &[None, None], &[]][rng.random_range(0..3)];
            let id = format!("s{}", number % 4);
            let old = view.service(&id).map(|it| it.as_ref().clone()).unwrap_or_default();
            let new = service(&id, networks, ports);
            view.put(
                Service { spec_version: old.spec_version + 1, virtual_ips: old.virtual_ips, ports: old.ports, ..new }
                    .into_object(),
            );
        }
        2 => drop(view.remove(Kind::Service, format!("s{}", number % 4))),
        3..=6 => {
            let id = format!("t{}", rng.random_range(0..80u32));
            if view.task(&id).is_none()
                && let Some(service) = view.service(format!("s{}", number % 4)).cloned()
            {
                let task = task(&id, service.id.as_str());
                view.put(Task { spec_version: service.spec_version, ..task }.into_object());
            }
        }
        _ => {
            let id = format!("t{}", rng.random_range(0..80u32));
            match view.task(&id).cloned() {
                Some(task) if task.status.state.is_terminal() => drop(view.remove(Kind::Task, &id)),
                Some(_) => end(view, &id),
                None => {}
            }
        }
    }
}

#[test]
fn nothing_is_given_twice_and_nothing_leaks_whatever_happens() {
    for seed in 0..8 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut view = cluster("10.0.0.0/24", 28);
        view.put(network("a", true).into_object());
        view.put(network("b", false).into_object());
        for step in 0..300 {
            disturb(&mut rng, &mut view);
            settle(&mut view);
            let all = given(&view);
            let once: BTreeSet<_> = all.iter().cloned().collect();
            assert_eq!(all.len(), once.len(), "seed {seed}, step {step}: an address is given twice");
            for (network, address) in &once {
                let network = view.network(network.as_str()).expect("a network in use is there");
                let is_inside = |subnet: &Subnet| subnet.prefix.contains(address) && subnet.gateway != *address;
                assert!(
                    network.subnets.iter().any(is_inside),
                    "seed {seed}, step {step}: {address} is not of its network"
                );
            }
            let ports: Vec<_> = view.services().flat_map(|it| &it.ports).filter_map(|it| it.published).collect();
            assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len(), "seed {seed}, step {step}");
        }
        let removed = |object: &Object| matches!(object.kind(), Kind::Task | Kind::Service | Kind::Node);
        for object in view.objects().filter(removed).collect::<Vec<_>>() {
            view.remove(object.kind(), object.id());
        }
        for network in view.networks() {
            let taken = view.taken_addresses(&network.id);
            for subnet in &network.subnets {
                let (first, last) = flota_raft_store::store::numbers_of(&subnet.prefix);
                let left = (first..=last.min(first + 255)).filter(|it| taken.first_free(*it, *it).is_none()).count();
                let never = if subnet.prefix.addr().is_ipv6() { 2 } else { 3 };
                assert_eq!(left, never, "seed {seed}: {} still has addresses that no object has", subnet.prefix);
            }
        }
    }
}

#[test]
fn an_address_in_a_network_of_65000_endpoints_is_found_without_looking_at_the_others() {
    let mut view = cluster("10.0.0.0/8", 16);
    view.put(network("a", false).into_object());
    settle(&mut view);
    let full = view.network("a").expect("it is there").as_ref().clone();
    let mut taken = view.taken_addresses(&full.id);
    let (first, last) = flota_raft_store::store::numbers_of(&full.subnets[0].prefix);
    taken.insert(first, last - 1_000);
    let free = taken.first_free(first, last);
    assert_eq!(free, Some(number_of(full.subnets[0].prefix.broadcast()) - 999));
}

#[test]
fn what_a_service_gives_back_wakes_those_that_lack_it() {
    let mut view = cluster("198.18.0.0/16", 24);
    view.put(network("n", false).into_object());
    settle(&mut view);
    view.put(service("a", &["n"], &[]).into_object());
    view.put(service("b", &["n"], &[]).into_object());
    settle(&mut view);
    let old = Service::clone(view.service("a").expect("it is there"));
    assert_eq!(old.virtual_ips.len(), 1);
    let without = Service { virtual_ips: Vec::new(), ..old.clone() };
    let freed = Event::Updated { old: old.clone().into_object(), new: without.into_object() };
    assert!(Services.dirtied_by(&freed, &view).contains(&Key::of("b")));
    let spec = ServiceSpec { endpoint_mode: EndpointMode::Dnsrr, ..old.spec.as_ref().clone() };
    let by_names = Service { spec: spec.into(), ..old.clone() };
    let chosen = Event::Updated { old: old.clone().into_object(), new: by_names.into_object() };
    assert_eq!(Addresses.dirtied_by(&chosen, &view), [Key::of("a")]);

    // The network of a stack that does not have it any more goes with its last use.
    let of_stack = Network { stack_id: Some("gone".into()), ..Network::clone(view.network("n").expect("it is there")) };
    view.put(of_stack.into_object());
    view.remove(Kind::Service, "b");
    let spec = ServiceSpec { networks: Vec::new(), ..old.spec.as_ref().clone() };
    let left = Service { spec: spec.into(), virtual_ips: Vec::new(), ..old.clone() };
    view.put(left.clone().into_object());
    let leaves = Event::Updated { old: old.into_object(), new: left.into_object() };
    assert!(Networks.dirtied_by(&leaves, &view).contains(&Key::of("n")));
}
