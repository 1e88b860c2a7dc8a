//! Networks between real namespaces.

mod guard;
mod repair;
mod world;

use std::time::Instant;

use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use world::{World, assert_lost, assert_reached, overlay_spec, passes};

use super::*;
use crate::links::describe;

/// The underlay's addresses of the two machines.
const VERSION_4: [&str; 2] = ["198.18.7.1/24", "198.18.7.2/24"];
const VERSION_6: [&str; 2] = ["fd0a::1/64", "fd0a::2/64"];

#[test]
fn hosts_on_two_machines_reach_each_other_over_both_versions_of_ip() {
    for underlay in [VERSION_4, VERSION_6] {
        let world = World::new(underlay, 1500);
        let (_networks, [a, b]) = world.two_hosts();
        for version_4 in [true, false] {
            assert_reached(&a, &b, version_4);
            assert_reached(&b, &a, version_4);
        }
    }
}

#[test]
fn packets_have_the_size_that_the_path_allows() {
    for (underlay, mtu) in [(VERSION_4, 9000), (VERSION_6, 1500)] {
        let world = World::new(underlay, mtu);
        let (_networks, [a, b]) = world.two_hosts();
        for host in [&a, &b] {
            let mut inside = Connection::open(host.namespace()).expect("a connection");
            assert_eq!(inside.existing("eth0").expect("it is attached").mtu, world.mtu());
        }
        let (from, to) = (a.udp(a.attachment.addresses[0]), b.udp(b.attachment.addresses[0]));
        let headers = 28;
        assert!(passes(&from, &to, world.mtu() as usize - headers), "the largest packet passes in one piece");
        assert!(passes(&from, &to, 3 * world.mtu() as usize), "a larger one passes in several");
    }
}

#[test]
fn frames_of_strangers_are_dropped() {
    let world = World::new(VERSION_4, 1500);
    let ([mut first, _second], [a, b]) = world.two_hosts();
    let (from, to) = (b.udp(b.attachment.addresses[0]), a.udp(a.attachment.addresses[0]));
    assert!(passes(&from, &to, 100));
    first.set_remotes(Vec::new()).expect("no remotes");
    assert_lost(&from, &to);
    first.set_remotes(vec![world.remote(1, &b)]).expect("remotes");
    assert!(passes(&from, &to, 100), "it is known again");
}

#[test]
fn an_interface_cannot_pretend_to_be_another() {
    let world = World::new(VERSION_4, 1500);
    let mut network = world.network(0, overlay_spec(Driver::Bridge)).expect("a network");
    let [a, b] = [world.host(0, "a", &["10.1.0.2"]), world.host(0, "b", &["10.1.0.3"])];
    for host in [&a, &b] {
        network.attach(host.attachment.clone()).expect("attached");
    }
    let (from, to) = (b.udp(b.attachment.addresses[0]), a.udp(a.attachment.addresses[0]));
    assert!(passes(&from, &to, 100));
    let mut inside = Connection::open(b.namespace()).expect("a connection");
    let index = inside.existing("eth0").expect("it is attached").index;
    let other = LinkAttribute::Address(vec![0x02, 0x42, 10, 1, 0, 99]);
    inside.set_link("pretend", describe(index, true, vec![other])).expect("a MAC address");
    // It needs no answer to its questions: it knows the other's MAC address.
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    neighbour.header.ifindex = index;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.attributes.push(NeighbourAttribute::Destination(a.attachment.addresses[0].into()));
    neighbour.attributes.push(NeighbourAttribute::LinkLayerAddress(a.mac().0.to_vec()));
    let add = netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_REPLACE;
    inside.change("know", RouteNetlinkMessage::NewNeighbour(neighbour), add).expect("a neighbour");
    assert_lost(&from, &to);
    network.attach(b.attachment.clone()).expect("mended");
    assert!(passes(&from, &to, 100));
}

#[test]
fn a_remote_interface_moves_and_goes() {
    let world = World::new(VERSION_4, 1500);
    let ([mut first, _second], [a, b]) = world.two_hosts();
    let (from, to) = (a.udp(a.attachment.addresses[0]), b.udp(b.attachment.addresses[0]));
    let right = world.remote(1, &b);
    let wrong = Remote { vtep: "198.18.7.77".parse().expect("an address"), ..right.clone() };
    first.change_remotes(Vec::new(), vec![wrong.clone()]).expect("moved");
    assert_lost(&from, &to);
    first.change_remotes(vec![wrong], vec![right.clone()]).expect("moved back");
    assert!(passes(&from, &to, 100));
    first.change_remotes(vec![right.clone()], Vec::new()).expect("removed");
    first.change_remotes(vec![right], Vec::new()).expect("there is nothing to remove");
    assert_lost(&from, &to);
    let audit = first.audit();
    assert!(audit.mended.is_empty() && audit.failed.is_empty(), "nothing is left of it: {audit:?}");
}

#[test]
fn virtual_addresses_refuse_connections_at_once() {
    let world = World::new(VERSION_4, 1500);
    let (_networks, [a, _b]) = world.two_hosts();
    for address in ["10.1.0.200:80", "[fd01::8000:0:0:7]:80"] {
        let target: std::net::SocketAddr = address.parse().expect("an address");
        let refused = a
            .namespace()
            .enter(|| Ok(std::net::TcpStream::connect_timeout(&target, world::DEADLINE).map_err(|error| error.kind())));
        assert_eq!(refused.expect("a namespace").err(), Some(ErrorKind::ConnectionRefused), "{address}");
    }
}

#[test]
fn a_new_subnet_reaches_interfaces_that_are_connected_already() {
    let world = World::new(VERSION_4, 1500);
    let ([mut first, mut second], [a, _b]) = world.two_hosts();
    let c = world.host(1, "c", &["10.2.0.9"]);
    let mut spec = overlay_spec(first.spec().driver.clone());
    let prefix = "10.2.0.0/24".parse().expect("a prefix");
    spec.subnets.push(crate::Subnet { prefix, gateway: "10.2.0.1".parse().expect("an address"), virtual_range: None });
    assert!(matches!(second.attach(c.attachment.clone()), Err(NetworkError::ForeignAddress(_))));
    first.update(spec.clone()).expect("updated");
    second.update(crate::LocalNetworkSpec { driver: second.spec().driver.clone(), ..spec }).expect("updated");
    second.attach(c.attachment.clone()).expect("attached");
    first.change_remotes(Vec::new(), vec![world.remote(1, &c)]).expect("known");
    assert_reached(&a, &c, true);
}

#[test]
fn a_local_network_connects_the_hosts_of_its_machine() {
    let world = World::new(VERSION_4, 1500);
    let mut network = world.network(0, overlay_spec(Driver::Bridge)).expect("a network");
    let [a, b] = [world.host(0, "a", &["10.1.0.2", "fd01::2"]), world.host(0, "b", &["10.1.0.3", "fd01::3"])];
    for host in [&a, &b] {
        network.attach(host.attachment.clone()).expect("attached");
    }
    assert_reached(&a, &b, true);
    assert_reached(&a, &b, false);
    network.detach(&b.attachment).expect("detached");
    network.detach(&b.attachment).expect("it is detached");
    assert!(Connection::open(b.namespace()).expect("a connection").link("eth0").expect("asked").is_none());
    let audit = network.audit();
    assert!(audit.mended.is_empty() && audit.failed.is_empty(), "{audit:?}");
}

#[test]
fn interfaces_that_share_a_link_reach_each_other() {
    let world = World::new(VERSION_4, 1500);
    let shared = |parent: &str| overlay_spec(Driver::Macvlan { parent: parent.into() });
    assert!(matches!(world.network(0, shared("none")), Err(NetworkError::NoLink(name)) if name == "none"));
    let mut networks =
        [world.network(0, shared("under0")), world.network(1, shared("eth0"))].map(|it| it.expect("made"));
    let hosts = [world.host(0, "a", &["10.1.0.2", "fd01::2"]), world.host(1, "b", &["10.1.0.3", "fd01::3"])];
    for (network, host) in networks.iter_mut().zip(&hosts) {
        network.attach(host.attachment.clone()).expect("attached");
        network.attach(host.attachment.clone()).expect("it is attached");
        let audit = network.audit();
        assert!(audit.mended.is_empty() && audit.failed.is_empty(), "{audit:?}");
    }
    let [a, b] = hosts;
    assert_reached(&a, &b, true);
    assert_reached(&b, &a, false);
    let [first, mut second] = networks;
    second.detach(&b.attachment).expect("detached");
    first.remove().expect("removed");
    for host in [&a, &b] {
        assert!(Connection::open(host.namespace()).expect("a connection").link("eth0").expect("asked").is_none());
    }
}

/// Prints what the acts cost; `cargo test -p flota-network --release -- --ignored --nocapture cost` runs it alone.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let world = World::new(VERSION_4, 1500);
    let begun = Instant::now();
    let mut network = world.overlay(0);
    println!("ensure a new overlay {:?}", begun.elapsed());
    let hosts: Vec<_> = (2..52).map(|last| world.host(0, &format!("h{last}"), &[&format!("10.1.0.{last}")])).collect();
    let begun = Instant::now();
    for host in &hosts {
        network.attach(host.attachment.clone()).expect("attached");
    }
    println!("attach {:?}", begun.elapsed() / 50);
    let vtep = world.vteps[1];
    let remotes: Vec<_> = (0..10_000u32)
        .map(|number| Remote { addresses: vec![std::net::Ipv4Addr::from(0x0a01_0100 + number).into()], vtep })
        .collect();
    let begun = Instant::now();
    network.set_remotes(remotes.clone()).expect("remotes");
    println!("set 10,000 remotes {:?}", begun.elapsed());
    let begun = Instant::now();
    for remote in remotes.iter().take(100) {
        network.change_remotes(vec![remote.clone()], Vec::new()).expect("removed");
        network.change_remotes(Vec::new(), vec![remote.clone()]).expect("added");
    }
    println!("change a remote, of 10,000 {:?}", begun.elapsed() / 200);
    let begun = Instant::now();
    let audit = network.audit();
    println!("audit with 10,000 remotes and 50 interfaces {:?}, mended {}", begun.elapsed(), audit.mended.len());
    let begun = Instant::now();
    for host in &hosts {
        network.detach(&host.attachment).expect("detached");
    }
    println!("detach {:?}", begun.elapsed() / 50);
    let begun = Instant::now();
    network.remove().expect("removed");
    println!("remove {:?}", begun.elapsed());
}
