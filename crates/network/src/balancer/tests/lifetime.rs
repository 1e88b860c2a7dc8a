//! The state that an ended process leaves, the programs that are attached, and the end of connections.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::machine::{BOTH, Group, Host, Kind, Machine, at, bpf, ip, network, place, pool};
use crate::balancer::assembler::Assembler;
use crate::balancer::hooks::ENTRANCES;
use crate::balancer::program::Program;
use crate::balancer::{Balancer, BalancerError, MOST_NETWORKS, VirtualAddress, Wanted};

const VIRTUAL: &str = "10.0.255.2";

/// Returns how many programs are attached at each hook.
fn attached(group: &Group) -> Vec<usize> {
    let folder = File::open(&group.path).expect("it is there");
    ENTRANCES.iter().map(|it| Program::attached(folder.as_fd(), it.hook).expect("it can be queried").len()).collect()
}

/// Loads a program of somebody else.
fn other(hook: usize, name: &str) -> Program {
    let mut program = Assembler::default();
    program.exit(1);
    Program::load(name, ENTRANCES[hook].hook, &program.finish()).expect("it is right")
}

fn reaches(machine: &Machine, backend: usize) {
    let _client = machine.connect(at(VIRTUAL)).expect("a backend listens");
    assert_eq!(machine.accept().0, backend);
}

#[test]
fn programs_and_maps_outlive_the_process_and_are_found_again() {
    let mut machine = Machine::new(Kind::Bpf, &["10.0.0.11", "10.0.0.12"]);
    machine.set(VIRTUAL, &["10.0.0.11"]);
    reaches(&machine, 0);
    // A balancer keeps descriptors only, so dropping it does what the end of its process does.
    let Machine { balancer, backends, host, group } = machine;
    drop(balancer);
    assert_eq!(attached(&group), [1; 8]);
    let cookie = host.sockets().cookie();
    let client = host.run_in(&group, || TcpStream::connect(at(VIRTUAL)).expect("the programs are there"));
    assert_eq!(client.peer_addr().expect("it is connected"), at(VIRTUAL));
    backends[0].listener.accept().expect("it was reached");

    let mut balancer = group.balancer();
    assert_eq!(attached(&group), [1; 8]);
    assert_eq!(balancer.repair().expect("it can be queried"), 0, "nothing was missing");
    assert_eq!(balancer.requests(place(VIRTUAL)).expect("it is counted"), 2);
    let mut machine = Machine { balancer, backends, host, group };
    reaches(&machine, 0);
    let mut wanted = Wanted::default();
    wanted.pools.insert(place(VIRTUAL), pool(&["10.0.0.12"]));
    wanted.members.insert(cookie, vec![network(1)]);
    machine.balancer.reconcile(&wanted, Instant::now()).expect("the maps have room");
    reaches(&machine, 1);
    wanted.pools.clear();
    machine.balancer.reconcile(&wanted, Instant::now()).expect("the kernel removes it");
    assert_eq!(machine.balancer.requests(place(VIRTUAL)).expect("it is counted"), 0, "it is not virtual any more");
    let error = machine.connect(at(VIRTUAL)).expect_err("nobody has the address");
    assert_ne!(error.kind(), ErrorKind::ConnectionRefused);
    machine.balancer.reconcile(&Wanted::default(), Instant::now()).expect("the kernel removes it");
    assert_eq!(machine.bpf().tables.members.entries().expect("it is readable"), []);
}

#[test]
fn the_program_of_another_version_is_replaced() {
    let group = Group::new();
    let folder = File::open(&group.path).expect("it is there");
    let foreign = other(7, "foreign");
    foreign.attach(folder.as_fd(), ENTRANCES[7].hook).expect("there is room");
    let older = [other(7, ENTRANCES[7].name), other(7, ENTRANCES[7].name)];
    for program in &older {
        program.attach(folder.as_fd(), ENTRANCES[7].hook).expect("there is room");
    }
    let _balancer = group.balancer();
    assert_eq!(attached(&group), [1, 1, 1, 1, 1, 1, 1, 2], "the foreign one stays");
    let left = Program::attached(folder.as_fd(), ENTRANCES[7].hook).expect("it can be queried");
    assert!(left.iter().any(|program| program.equals(&foreign) && program.is_named("foreign")));
    assert!(!left.iter().any(|program| program.equals(&older[0]) && program.is_named(ENTRANCES[7].name)));
    Balancer::detach(&group.path).expect("it can be detached");
    assert_eq!(attached(&group), [0, 0, 0, 0, 0, 0, 0, 1]);
    Balancer::detach(&group.path).expect("there is nothing to detach");
}

#[test]
fn programs_that_were_detached_are_attached_again() {
    let mut machine = Machine::new(Kind::Bpf, &["10.0.0.11"]);
    machine.set(VIRTUAL, &["10.0.0.11"]);
    Balancer::detach(&machine.group.path).expect("it can be detached");
    assert_eq!(machine.balancer.repair().expect("there is room"), 8);
    reaches(&machine, 0);
}

#[test]
fn all_programs_are_attached_or_none() {
    let group = Group::new();
    let folder = File::open(&group.path).expect("it is there");
    // The hook of the last program has no room.
    let crowd: Vec<_> = (0..64).map(|number| other(7, &format!("other{number}"))).collect();
    for program in &crowd {
        program.attach(folder.as_fd(), ENTRANCES[7].hook).expect("there is room");
    }
    let older = other(6, ENTRANCES[6].name);
    older.attach(folder.as_fd(), ENTRANCES[6].hook).expect("there is room");
    let error = Balancer::bpf(&group.path, Instant::now()).expect_err("there is no room");
    assert_eq!(error.to_string(), "failed to attach the program flota_connect6");
    assert_eq!(attached(&group), [0, 0, 0, 0, 0, 0, 1, 64]);
    let left = Program::attached(folder.as_fd(), ENTRANCES[6].hook).expect("it can be queried");
    assert!(left[0].equals(&older), "the version that was there is back");
    crowd[0].detach(folder.as_fd(), ENTRANCES[7].hook).expect("it is attached");
    let _balancer = group.balancer();
    assert_eq!(attached(&group), [1, 1, 1, 1, 1, 1, 1, 64]);
}

#[test]
fn a_folder_that_is_no_group_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Balancer::bpf(folder.path(), Instant::now()).expect_err("it is no group");
    assert!(matches!(error, BalancerError::Kernel { .. }), "{error:?}");
}

#[test]
fn backends_of_old_generations_are_removed_after_a_second() {
    let mut machine = Machine::new(Kind::Bpf, &["10.0.0.11"]);
    let count = |machine: &Machine| machine.bpf().tables.backends.entries().expect("it is readable").len();
    let begun = Instant::now();
    let set = |machine: &mut Machine, backends: &[&str], milliseconds: u64| {
        let now = begun + Duration::from_millis(milliseconds);
        machine.balancer.set(place(VIRTUAL), &pool(backends), now).expect("the maps have room");
        count(machine)
    };
    assert_eq!(set(&mut machine, &["10.0.0.1", "10.0.0.2", "10.0.0.3"], 0), 3);
    assert_eq!(set(&mut machine, &["10.0.0.3", "10.0.0.2", "10.0.0.1"], 0), 3, "it is the same");
    assert_eq!(set(&mut machine, &["10.0.0.1", "10.0.0.2"], 100), 5);
    assert_eq!(set(&mut machine, &["10.0.0.1"], 200), 6);
    assert_eq!(set(&mut machine, &["10.0.0.2"], 1_150), 4, "the first three have gone");
    let now = begun + Duration::from_millis(1_250);
    assert_eq!(machine.balancer.sweep(now).expect("it is removed"), Some(begun + Duration::from_millis(2_150)));
    assert_eq!(count(&machine), 2);

    // The process ends before it has removed them.
    let Machine { group, .. } = machine;
    let mut balancer = group.balancer();
    let due = balancer.sweep(Instant::now()).expect("nothing is due").expect("an old one was found");
    assert_eq!(balancer.sweep(due).expect("it is removed"), None);
    assert_eq!(bpf(&balancer).tables.backends.entries().expect("it is readable").len(), 1);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let group = Group::new();
    let mut balancer = group.balancer();
    let error = balancer.set(place(VIRTUAL), &pool(&["fd00::11"]), Instant::now()).expect_err("mixed");
    assert_eq!(error.to_string(), "the backend fd00::11 can't serve 10.0.255.2, which is of the other IP version");
    let host = Host::new(&[]);
    let cookie = host.sockets().cookie();
    let networks: Vec<_> = (1..=MOST_NETWORKS as u64 + 1).map(network).collect();
    let error = balancer.join(cookie, &host.namespace(), &networks).expect_err("too many");
    assert_eq!(error.to_string(), "a namespace can't be in 17 networks; at most 16 are possible");
    balancer.join(cookie, &host.namespace(), &networks[1..]).expect("sixteen are possible");
}

#[test]
fn a_client_finds_addresses_in_the_last_of_sixteen_networks() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &["10.0.0.11"]);
        let networks: Vec<_> = (1..=MOST_NETWORKS as u64).map(network).collect();
        machine
            .balancer
            .join(machine.host.sockets().cookie(), &machine.host.namespace(), &networks)
            .expect("sixteen are possible");
        let last = VirtualAddress { network: networks[MOST_NETWORKS - 1], address: ip(VIRTUAL) };
        machine.balancer.set(last, &pool(&["10.0.0.11"]), Instant::now()).expect("the maps have room");
        reaches(&machine, 0);
    }
}

#[test]
fn connections_to_a_backend_that_has_gone_end_at_once() {
    for kind in BOTH {
        for (address, own, backends) in
            [(VIRTUAL, "10.0.0.1", ["10.0.0.11", "10.0.0.12"]), ("fd00::ffff:2", "fd00::1", ["fd00::11", "fd00::12"])]
        {
            let mut machine = Machine::new(kind, &[backends[0], backends[1], own]);
            machine.set(address, &backends);
            let mut clients = [Vec::new(), Vec::new()];
            let mut ends = Vec::new();
            while clients.iter().any(|clients| clients.len() < 3) {
                let client = machine.connect_from(own, at(address));
                let (index, end) = machine.accept();
                ends.push(end);
                clients[index].push(client);
            }
            let [mut gone, mut kept] = clients;
            let datagrams = machine.datagrams(own);
            machine.set(address, &backends[..1]);
            datagrams.connect(at(address)).expect("a backend is there");
            datagrams.send(b"ask").expect("it is connected");
            machine.set(address, &backends[1..]);

            let aborted = machine
                .balancer
                .abort_to(&mut machine.host.sockets(), &[ip(backends[0])])
                .expect("the kernel can do it");
            assert_eq!(aborted, gone.len() + 1);
            for client in &mut gone {
                assert_eq!(client.read(&mut [0; 1]).expect_err("it has ended").kind(), ErrorKind::ConnectionAborted);
            }
            let error = datagrams.recv(&mut [0; 1]).expect_err("it has ended");
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            for client in &mut kept {
                client.set_nonblocking(true).expect("it is a socket");
                let error = client.read(&mut [0; 1]).expect_err("there is nothing to read");
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "this connection stays");
            }
        }
    }
}

#[test]
fn mapped_connections_to_a_backend_that_has_gone_end_too() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &["10.0.0.11", "10.0.0.1"]);
        machine.set(VIRTUAL, &["10.0.0.11"]);
        let mut client = machine.connect_from("::ffff:10.0.0.1", at("::ffff:10.0.255.2"));
        let _end = machine.accept();
        assert_eq!(
            machine.balancer.abort_to(&mut machine.host.sockets(), &[ip("10.0.0.11")]).expect("the kernel can do it"),
            1
        );
        assert_eq!(client.read(&mut [0; 1]).expect_err("it has ended").kind(), ErrorKind::ConnectionAborted);
    }
}

#[test]
fn rules_outlive_the_process_are_found_again_and_mended() {
    let mut machine = Machine::new(Kind::Nftables, &["10.0.0.11", "10.0.0.12"]);
    machine.set(VIRTUAL, &["10.0.0.11"]);
    reaches(&machine, 0);
    machine.balancer = Balancer::nftables();
    reaches(&machine, 0);
    let (cookie, namespace) = (machine.host.sockets().cookie(), machine.host.namespace());
    machine.set(VIRTUAL, &["10.0.0.11"]);
    machine.balancer.join(cookie, &namespace, &[network(1)]).expect("the kernel can do it");
    assert_eq!(machine.balancer.requests(place(VIRTUAL)).expect("they are counted"), 2, "the rules were right");
    crate::nftables::table::Tables::remove(&namespace).expect("they can be removed");
    assert_eq!(machine.balancer.repair().expect("the kernel can do it"), 1);
    reaches(&machine, 0);
    assert_eq!(machine.balancer.repair().expect("the kernel can do it"), 0);
    machine.set(VIRTUAL, &["10.0.0.12"]);
    reaches(&machine, 1);
    machine.balancer.reconcile(&Wanted::default(), Instant::now()).expect("the kernel can do it");
}
