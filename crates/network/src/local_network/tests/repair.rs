//! Differences that a crash, another program or an earlier process leaves are repaired or removed.

use super::world::{Host, World, assert_lost, assert_reached, overlay_spec};
use super::*;
use crate::netlink::cut;

/// Makes a network with one interface on the second machine and says whom it reaches: a sequence that a crash may cut.
fn make(world: &World, b: &Host, a: Remote) -> Result<LocalNetwork, NetworkError> {
    let mut network = world.network(1, overlay_spec(Driver::Overlay(world.underlay(1))))?;
    network.attach(b.attachment.clone())?;
    network.set_remotes(vec![a])?;
    Ok(network)
}

fn links(namespace: &Namespace) -> Vec<String> {
    let links = Connection::open(namespace).expect("a connection").links().expect("a list");
    links.into_iter().map(|link| link.name).collect()
}

#[test]
fn a_sequence_that_was_cut_anywhere_is_completed_by_the_next() {
    let world = World::new(VERSION_4, 1500);
    let mut first = world.overlay(0);
    let [a, b] = [world.host(0, "a", &["10.1.0.2", "fd01::2"]), world.host(1, "b", &["10.1.0.3", "fd01::3"])];
    first.attach(a.attachment.clone()).expect("attached");
    first.set_remotes(vec![world.remote(1, &b)]).expect("remotes");
    let mut cuts = 0;
    while cut::after(cuts, || make(&world, &b, world.remote(0, &a))) {
        let mut network = make(&world, &b, world.remote(0, &a)).expect("the next sequence completes it");
        let audit = network.audit();
        assert!(audit.mended.is_empty() && audit.failed.is_empty(), "after {cuts} changes: {audit:?}");
        assert_reached(&a, &b, true);
        network.remove().expect("removed");
        cuts += 1;
    }
    assert!(cuts > 15, "the sequence has {cuts} changes");
}

#[test]
fn a_network_that_was_made_or_removed_half_is_removed_whole() {
    let world = World::new(VERSION_4, 1500);
    let [a, b] = [world.host(0, "a", &["10.1.0.2"]), world.host(1, "b", &["10.1.0.3"])];
    let file = world.file(1, "network");
    let mut cuts = 0;
    loop {
        let made = cut::after(cuts, || make(&world, &b, world.remote(0, &a)));
        let mut removals = 0;
        while cut::after(removals, || remove_network(&file)) {
            removals += 1;
        }
        remove_network(&file).expect("there is nothing to remove");
        assert!(!file.exists(), "after {cuts} changes");
        assert_eq!(links(b.namespace()), ["lo"], "after {cuts} changes");
        if !made {
            break;
        }
        cuts += 1;
    }
    assert_eq!(links(&world.machine(1)), ["lo", "eth0"], "nothing is left on the machine");
}

#[test]
fn drift_is_mended_and_named() {
    let world = World::new(VERSION_4, 1500);
    let ([mut network, _second], [a, b]) = world.two_hosts();
    let own = network.namespace().clone();
    let port = a.mac().port_name();
    type Damage<'a> = (&'a str, &'a str, Box<dyn Fn(&mut Connection, &mut Connection) + 'a>);
    let damages: Vec<Damage> = vec![
        ("add the VXLAN link of network 4097", "vx0", Box::new(|inside, _| inside.remove_link("vx0").expect("gone"))),
        ("add the bridge", "br0", Box::new(|inside, _| inside.remove_link("br0").expect("gone"))),
        ("connect eth0", "port", Box::new(|inside, _| inside.remove_link(&port).expect("gone"))),
        ("connect eth0", "interface", Box::new(|_, outside| outside.remove_link("eth0").expect("gone"))),
        ("bring lo up", "loopback", Box::new(|inside, _| inside.bring_down("lo").expect("down"))),
        ("set up eth0", "down", Box::new(|_, outside| outside.bring_down("eth0").expect("down"))),
        (
            "add the route to 0.0.0.0/0",
            "routes",
            Box::new(|_, outside| {
                let index = outside.existing("eth0").expect("it exists").index;
                outside.set_routes(index, &[]).expect("no routes");
            }),
        ),
        (
            "add the address 10.1.0.2/24",
            "addresses",
            Box::new(|_, outside| {
                let index = outside.existing("eth0").expect("it exists").index;
                outside.set_addresses(index, &["10.9.0.1/24".parse().expect("a prefix")]).expect("another address");
            }),
        ),
        (
            "set the kernel parameter net/bridge/bridge-nf-call-iptables to 0",
            "parameter",
            Box::new(|_, _| {
                own.set(&[("net/bridge/bridge-nf-call-iptables", "1")]).expect("set");
            }),
        ),
        (
            "add the forwarding entry of 02:42:0a:01:00:03 at 198.18.7.2",
            "stations",
            Box::new(|inside, _| {
                let [bridge, vxlan] = ["br0", "vx0"].map(|name| inside.existing(name).expect("it exists").index);
                StationTables { bridge, vxlan: Some(vxlan) }.set(inside, &BTreeMap::new()).expect("emptied");
            }),
        ),
    ];
    for (expected, what, damage) in damages {
        let mut inside = Connection::open(network.namespace()).expect("a connection");
        let mut outside = Connection::open(a.namespace()).expect("a connection");
        damage(&mut inside, &mut outside);
        let audit = network.audit();
        assert!(audit.failed.is_empty(), "{what}: {audit:?}");
        assert!(audit.mended.iter().any(|act| act == expected), "{what}: {audit:?}");
        let again = network.audit();
        assert!(again.mended.is_empty() && again.failed.is_empty(), "{what}: {again:?}");
        assert_reached(&a, &b, true);
    }
}

#[test]
fn a_restarted_process_adopts_what_it_finds_without_a_change() {
    let world = World::new(VERSION_4, 1500);
    let ([network, _second], [a, b]) = world.two_hosts();
    drop(network);
    let mut adopted = world.overlay(0);
    adopted.attach(a.attachment.clone()).expect("attached");
    adopted.set_remotes(vec![world.remote(1, &b)]).expect("remotes");
    assert!(adopted.take_changes().iter().all(|act| act.contains(" entry of ")), "nothing is made again");
    assert_eq!(adopted.sweep().expect("swept"), 0);
    assert_reached(&a, &b, true);
}

#[test]
fn an_address_moves_to_another_namespace_while_the_old_one_remains() {
    let world = World::new(VERSION_4, 1500);
    let ([mut network, _second], [a, b]) = world.two_hosts();
    let successor = world.host(0, "successor", &["10.1.0.2", "fd01::2"]);
    network.attach(successor.attachment.clone()).expect("attached");
    assert_eq!(links(a.namespace()), ["lo"]);
    assert_reached(&successor, &b, true);
    network.detach(&a.attachment).expect("nothing of it is left");
    assert_reached(&successor, &b, true);
    assert!(network.audit().mended.is_empty());
    network.detach(&successor.attachment).expect("detached");
    assert_eq!(links(successor.namespace()), ["lo"]);
}

#[test]
fn an_address_that_another_machine_has_by_now_is_not_removed_with_its_former_owner() {
    let world = World::new(VERSION_4, 1500);
    let ([mut network, _second], [a, b]) = world.two_hosts();
    let here = world.remote(1, &b);
    let elsewhere = Remote { vtep: "198.18.7.99".parse().expect("an address"), ..here.clone() };
    network.change_remotes(vec![elsewhere], Vec::new()).expect("changed");
    assert_reached(&a, &b, true);
    network.change_remotes(vec![here], Vec::new()).expect("changed");
    assert_lost(&a.udp(a.attachment.addresses[0]), &b.udp(b.attachment.addresses[0]));
}

#[test]
fn a_daemon_that_restarts_keeps_what_its_tasks_need_until_it_has_taken_them_over() {
    let world = World::new(VERSION_4, 1500);
    let ([network, _second], [a, b]) = world.two_hosts();
    drop(network);
    let mut adopted = world.overlay(0);
    adopted.change_remotes(Vec::new(), vec![world.remote(1, &b)]).expect("remotes");
    assert_reached(&a, &b, true);
    adopted.attach(a.attachment.clone()).expect("attached");
    assert!(adopted.audit().failed.is_empty());
    assert_reached(&a, &b, true);
}

#[test]
fn a_path_that_is_narrower_than_ipv6_allows_carries_networks_with_ipv6() {
    let world = World::new(VERSION_4, 1280);
    let ([network, _second], [a, b]) = world.two_hosts();
    assert_eq!(network.mtu(), Some(1280));
    assert_reached(&a, &b, true);
    assert_reached(&a, &b, false);
}

#[test]
fn nothing_remains_in_a_namespace_that_something_else_keeps_alive() {
    let world = World::new(VERSION_4, 1500);
    let ([network, _second], [a, _b]) = world.two_hosts();
    let held = network.namespace().open().expect("a namespace");
    network.remove().expect("removed");
    let held = Namespace::at(Path::new(&format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held))));
    assert_eq!(links(&held), ["lo"]);
    assert_eq!(links(a.namespace()), ["lo"]);
    // The VXLAN network's number is free again.
    drop(world.overlay(0));
}

#[test]
fn interfaces_and_networks_of_an_earlier_process_are_removed() {
    let world = World::new(VERSION_4, 1500);
    let ([network, _second], [a, _b]) = world.two_hosts();
    drop(network);
    let mut adopted = world.overlay(0);
    assert_eq!(adopted.sweep().expect("swept"), 1, "nobody has attached it again");
    assert_eq!(links(a.namespace()), ["lo"]);
    drop(adopted);
    let folder = world.file(0, "");
    let keep = ["machine", "a"].map(OsString::from).into();
    assert_eq!(remove_other_networks(&folder, &keep).expect("removed"), [world.file(0, "network")]);
    assert!(!world.file(0, "network").exists() && a.namespace().exists());
}
