//! Which backend a request goes to.

use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use super::machine::{BOTH, Host, Kind, Machine, at, ip, network, place, pool};
use crate::balancer::Pool;

const VIRTUAL: &str = "10.0.255.2";
const BACKENDS: [&str; 4] = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"];

/// Connects and returns the number of the backend.
fn connect(machine: &Machine) -> usize {
    let _client = machine.connect(at(VIRTUAL)).expect("backends listen");
    machine.accept().0
}

#[test]
fn connections_are_spread_over_all_backends_and_counted() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &BACKENDS);
        machine.set(VIRTUAL, &BACKENDS);
        let mut counts = [0; BACKENDS.len()];
        for _ in 0..200 {
            counts[connect(&machine)] += 1;
        }
        assert!(counts.iter().all(|count| (25..=75).contains(count)), "{counts:?}");
        assert_eq!(machine.balancer.requests(place(VIRTUAL)).expect("they are counted"), 200);
        machine.set(VIRTUAL, &BACKENDS[..2]);
        let reached: Vec<_> = (0..50).map(|_| connect(&machine)).collect();
        assert!([0, 1].iter().all(|index| reached.contains(index)), "{reached:?}");
        assert!(reached.iter().all(|index| *index < 2), "{reached:?}");
        assert_eq!(machine.balancer.requests(place(VIRTUAL)).expect("they are counted"), 250);
    }
}

#[test]
fn the_datagrams_of_a_socket_go_to_one_backend() {
    let mut machine = Machine::new(Kind::Bpf, &BACKENDS);
    machine.set(VIRTUAL, &BACKENDS[..3]);
    let clients: Vec<_> = (0..100).map(|_| machine.datagrams("0.0.0.0")).collect();
    let reached = |machine: &Machine| -> Vec<usize> {
        let reach = |client: &UdpSocket| {
            client.send_to(b"ask", at(VIRTUAL)).expect("backends listen");
            machine.recv().0
        };
        clients.iter().map(reach).collect()
    };
    let before = reached(&machine);
    for index in 0..3 {
        let count = before.iter().filter(|it| **it == index).count();
        assert!((15..=55).contains(&count), "{before:?}");
    }
    assert_eq!(reached(&machine), before, "the second datagram goes where the first went");
    machine.set(VIRTUAL, &BACKENDS);
    let after = reached(&machine);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.clone().all(|(_, after)| *after == 3), "only to the new one: {before:?} {after:?}");
    assert!((5..=50).contains(&moved.count()), "about a quarter: {before:?} {after:?}");
}

#[test]
fn a_client_with_affinity_keeps_its_backend() {
    let mut machine = Machine::new(Kind::Bpf, &BACKENDS);
    let clients: Vec<_> = (0..40).map(|_| Host::new(&BACKENDS)).collect();
    for client in &clients {
        machine.balancer.join(client.sockets().cookie(), &client.namespace(), &[network(1)]).expect("the map has room");
    }
    let mut reached = |backends: &[&str]| -> Vec<IpAddr> {
        let pool = Pool { affinity: true, ..pool(backends) };
        machine.balancer.set(place(VIRTUAL), &pool, Instant::now()).expect("the maps have room");
        clients.iter().map(|client| backend_of(client, &machine)).collect()
    };
    let before = reached(&BACKENDS[..3]);
    assert!(BACKENDS[..3].iter().all(|backend| before.contains(&ip(backend))), "they are spread: {before:?}");
    assert_eq!(reached(&BACKENDS[..3]), before);
    let after = reached(&BACKENDS);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(_, after)| **after == ip(BACKENDS[3])), "only to the new one: {before:?} {after:?}");
    assert!((1..=25).contains(&moved.len()), "about a quarter: {before:?} {after:?}");
}

/// Returns the backend that a client reaches, twice.
fn backend_of(client: &Host, machine: &Machine) -> IpAddr {
    let connect = || {
        let socket = UdpSocket::bind((ip("0.0.0.0"), 0)).expect("a free port");
        socket.connect(at(VIRTUAL)).expect("backends are there");
        // The backends are on the client's loopback interface, so the kernel chooses the same address for its own end.
        socket.local_addr().expect("it is bound").ip()
    };
    let [first, second] = client.run_in(&machine.group, || [connect(), connect()]);
    assert_eq!(first, second);
    first
}

#[test]
fn rules_keep_what_a_socket_has_begun_and_choose_anew_for_the_next() {
    let mut machine = Machine::new(Kind::Nftables, &BACKENDS);
    machine.set(VIRTUAL, &BACKENDS[..1]);
    let client = machine.datagrams("0.0.0.0");
    let reached = |machine: &Machine, client: &UdpSocket| {
        client.send_to(b"ask", at(VIRTUAL)).expect("backends listen");
        machine.recv().0
    };
    assert_eq!(reached(&machine, &client), 0);
    machine.set(VIRTUAL, &BACKENDS[1..2]);
    assert_eq!(reached(&machine, &client), 0, "as long as the task may finish what it has");
    assert_eq!(reached(&machine, &machine.datagrams("0.0.0.0")), 1);
    machine.balancer.abort_to(&mut machine.host.sockets(), &[ip(BACKENDS[0])]).expect("the kernel can do it");
    assert_eq!(reached(&machine, &client), 1, "the backend has gone");
    assert_eq!(machine.balancer.requests(place(VIRTUAL)).expect("they are counted"), 3);
}

#[test]
fn all_connections_of_a_namespace_with_affinity_go_to_one_backend_by_rules_too() {
    let mut machine = Machine::new(Kind::Nftables, &BACKENDS);
    let pool = Pool { affinity: true, ..pool(&BACKENDS) };
    machine.balancer.set(place(VIRTUAL), &pool, Instant::now()).expect("the kernel can do it");
    let first = connect(&machine);
    assert!((0..20).all(|_| connect(&machine) == first));
}
