//! Whose addresses the interfaces of a network may use.

use super::world::{World, assert_lost, assert_reached};
use super::*;
use crate::nftables::table::{PORTS, Tables};

/// What `nft` shows of the guards.
fn shown(network: &LocalNetwork) -> String {
    let list = || Ok(std::process::Command::new("nft").args(["list", "ruleset"]).output());
    let listed = network.namespace().enter(list).expect("it is entered").expect("nft is installed");
    String::from_utf8(listed.stdout).expect("text")
}

#[test]
fn an_interface_sends_nothing_under_the_address_of_another_one() {
    let world = World::new(VERSION_4, 1500);
    let ([mut network, _second], [a, _]) = world.two_hosts();
    let victim = world.host(0, "victim", &["10.1.0.9", "fd01::9"]);
    let other = world.host(0, "other", &["10.1.0.8", "fd01::8"]);
    for host in [&victim, &other] {
        network.attach(host.attachment.clone()).expect("attached");
    }
    for version_4 in [true, false] {
        assert_reached(&victim, &other, version_4);
        assert_reached(&a, &victim, version_4);
    }
    let mut inside = Connection::open(a.namespace()).expect("a connection");
    let index = inside.existing("eth0").expect("it exists").index;
    let all = ["10.1.0.2/24", "fd01::2/64", "10.1.0.8/24", "fd01::8/64"].map(|it| it.parse().expect("an address"));
    inside.set_addresses(index, &all).expect("a container with this right may do so");
    for (theirs, own) in [("10.1.0.8", "10.1.0.9"), ("fd01::8", "fd01::9")] {
        let [theirs, own] = [theirs, own].map(|it| it.parse::<IpAddr>().expect("an address"));
        assert_lost(&a.udp(theirs), &victim.udp(own));
    }
    for version_4 in [true, false] {
        assert_reached(&victim, &other, version_4);
    }
}

#[test]
fn guards_stay_while_a_process_restarts_are_mended_and_go_with_their_ports() {
    let world = World::new(VERSION_4, 1500);
    let ([network, _second], [a, b]) = world.two_hosts();
    let before = shown(&network);
    assert!(before.contains(PORTS) && before.contains(&a.mac().port_name()), "{before}");
    drop(network);
    let mut adopted = world.overlay(0);
    assert_eq!(shown(&adopted), before, "nothing is removed before the interfaces are known");
    adopted.attach(a.attachment.clone()).expect("attached");
    adopted.change_remotes(Vec::new(), vec![world.remote(1, &b)]).expect("remotes");
    assert_eq!(shown(&adopted), before);
    assert!(adopted.audit().mended.is_empty());
    let mut others = Tables::unread(adopted.namespace(), PORTS, BTreeMap::new()).expect("opened");
    assert!(others.mend().expect("written"), "somebody else removes them");
    assert_eq!(adopted.audit().mended, ["write the guards of the ports"]);
    assert_eq!(shown(&adopted), before);
    adopted.detach(&a.attachment).expect("detached");
    assert!(!shown(&adopted).contains(&a.mac().port_name()));
    assert!(adopted.audit().mended.is_empty());
}
