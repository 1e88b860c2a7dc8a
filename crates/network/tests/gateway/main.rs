//! Published ports, ways out and the firewall, with real packets: a client, two machines with an overlay between them, and
//! a task on each.

mod lab;

use std::net::IpAddr;
use std::process::Command;

use flota_network::{GatewayChange, HostPort, Listeners, Namespace, Protocol, remove_gateway};
use lab::{A, B, CLIENT, Lab, PORT};

const V4: [&str; 3] = ["198.18.0.1", "198.18.0.2", "198.18.0.9"];
const V6: [&str; 3] = ["fd99::1", "fd99::2", "fd99::9"];

fn nft(namespace: &Namespace, arguments: &[&str]) -> String {
    run(namespace, "nft", arguments)
}

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> String {
    let output = namespace.enter(|| Ok(Command::new(program).args(arguments).output().expect("it is installed")));
    let output = output.expect("the namespace exists");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a text")
}

#[test]
fn every_machine_leads_to_the_target_which_sees_the_client() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Tcp, &[(B, true)], false);
    for [a, b, client] in [V4, V6] {
        for machine in [a, b] {
            assert_eq!(
                lab.ask(CLIENT, machine, PORT),
                Ok(("b".into(), client.parse().expect("an address"))),
                "{machine}"
            );
        }
    }
}

#[test]
fn a_local_target_comes_first_and_others_follow_when_it_drains() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Tcp, &[(A, true), (B, true)], false);
    for (machine, name) in [(V4[0], "a"), (V4[1], "b")] {
        for _ in 0..8 {
            assert_eq!(lab.ask(CLIENT, machine, PORT).expect("an answer").0, name);
        }
    }
    lab.publish(Protocol::Tcp, &[(A, false), (B, true)], false);
    for _ in 0..8 {
        assert_eq!(lab.ask(CLIENT, V4[0], PORT).expect("an answer").0, "b");
    }
}

#[test]
fn the_machine_itself_reaches_its_published_port_also_by_loopback() {
    let mut lab = Lab::new();
    for target in [A, B] {
        lab.publish(Protocol::Tcp, &[(target, true)], false);
        for address in ["127.0.0.1", "::1", V4[0], V6[0], V4[1], V6[1]] {
            assert!(lab.ask(A, address, PORT).is_ok(), "{address} leads to target {target}");
        }
    }
}

#[test]
fn a_machine_reaches_the_published_port_of_another_also_if_the_target_is_its_own() {
    let mut lab = Lab::new();
    for target in [A, B] {
        lab.publish(Protocol::Tcp, &[(target, true)], false);
        for address in [V4[0], V6[0]] {
            assert!(lab.ask(B, address, PORT).is_ok(), "{address} leads to target {target}");
        }
    }
}

#[test]
fn a_masqueraded_port_hides_the_client() {
    let mut lab = Lab::new();
    for target in [A, B] {
        lab.publish(Protocol::Tcp, &[(target, true)], true);
        let (_, peer) = lab.ask(CLIENT, V4[0], PORT).expect("an answer");
        assert_eq!(
            peer,
            "10.9.0.1".parse::<IpAddr>().expect("an address"),
            "the first machine's address in the overlay"
        );
    }
}

#[test]
fn datagrams_of_one_socket_leave_a_target_that_is_gone() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Udp, &[(A, true), (B, true)], false);
    let socket = lab.udp(CLIENT);
    assert_eq!(lab.exchange(&socket, V4[0]).as_deref(), Some("a"));
    lab.publish(Protocol::Udp, &[(A, false), (B, true)], false);
    assert_eq!(lab.exchange(&socket, V4[0]).as_deref(), Some("a"), "a draining target keeps what it has");
    lab.publish(Protocol::Udp, &[(B, true)], false);
    assert_eq!(lab.exchange(&socket, V4[0]).as_deref(), Some("b"));
}

#[test]
fn datagrams_of_one_socket_leave_a_target_that_went_while_no_process_ran() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Udp, &[(A, true)], false);
    let socket = lab.udp(CLIENT);
    assert_eq!(lab.exchange(&socket, V4[0]).as_deref(), Some("a"));
    lab.succeed(A, Protocol::Udp, &[(A, true)], &[(B, true)]);
    assert_eq!(lab.exchange(&socket, V4[0]).as_deref(), Some("b"));
}

#[test]
fn datagrams_that_came_before_the_port_was_published_reach_the_target_afterwards() {
    let mut lab = Lab::new();
    let socket = lab.udp(CLIENT);
    let early = lab.listen_udp_on_machine(A);
    lab.send(&socket, V4[0]);
    drop(early);
    lab.publish(Protocol::Udp, &[(A, true)], false);
    assert_eq!(lab.exchange(&socket, V4[0]).as_deref(), Some("a"));
}

#[test]
fn no_new_connection_fails_while_targets_come_and_go() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Tcp, &[(A, true), (B, true)], false);
    let asking = lab.keep_asking(V4[0]);
    for _ in 0..100 {
        lab.publish(Protocol::Tcp, &[(A, false), (B, true)], false);
        lab.publish(Protocol::Tcp, &[(A, true), (B, false)], false);
    }
    let (answered, failed) = asking.finish();
    assert!(answered > 20 && failed.is_empty(), "{answered} answers, {failed:?}");
    let chains = |lab: &Lab| nft(&lab.machine(A), &["list", "chains"]).matches("chain tcp-8080-").count();
    assert_eq!(chains(&lab), 2, "packets may be on their way through the last chain");
    assert_eq!([lab.audit(), lab.audit()], [Vec::<String>::new(), Vec::new()], "nothing is wrong");
    assert_eq!(chains(&lab), 1, "two audits later none is");
}

#[test]
fn no_connection_is_cut_that_uses_the_ports_of_one_to_a_target_that_is_gone() {
    let mut lab = Lab::new();
    // Connections that are over are tracked for two minutes, so each new one meets one that had its ports.
    lab.machine(CLIENT).set(&[("net/ipv4/ip_local_port_range", "40000 40063")]).expect("a parameter");
    lab.publish(Protocol::Tcp, &[(A, true)], false);
    let asking = lab.keep_asking(V4[0]);
    for _ in 0..40 {
        for (gone, stays) in [(A, B), (B, A)] {
            lab.publish(Protocol::Tcp, &[(gone, false), (stays, true)], false);
            // The target has answered what it had.
            asking.wait_for_answers(10);
            lab.publish(Protocol::Tcp, &[(stays, true)], false);
        }
    }
    let (answered, failed) = asking.finish();
    assert!(answered > 800 && failed.is_empty(), "{answered} answers, {failed:?}");
}

#[test]
fn a_task_reaches_the_world_as_its_machine_but_no_guarded_port() {
    let lab = Lab::new();
    lab.serve_machine(CLIENT, 7000);
    assert_eq!(lab.ask_as_task(A, V4[2], 7000).expect("an answer").1, V4[0].parse::<IpAddr>().expect("an address"));
    assert_eq!(lab.ask_as_task(A, V6[2], 7000).expect("an answer").1, V6[0].parse::<IpAddr>().expect("an address"));
    for machine in [A, B] {
        lab.serve_machine(machine, 7001);
        lab.serve_machine(machine, 2377);
        assert!(lab.ask_as_task(A, V4[machine], 7001).is_ok(), "an open port of machine {machine}");
        assert!(lab.ask_as_task(A, V4[machine], 2377).is_err(), "a guarded port of machine {machine}");
        assert!(lab.ask(CLIENT, V4[machine], 2377).is_ok(), "only networks are kept away");
    }
}

#[test]
fn a_task_does_not_reach_the_metadata_of_its_machine() {
    let lab = Lab::new();
    lab.serve_machine(CLIENT, 7003);
    let v6 = "fd00:ec2::254";
    for (address, prefix, via) in [("169.254.169.254", "/32", V4[CLIENT]), (v6, "/128", V6[CLIENT])] {
        run(&lab.machine(CLIENT), "ip", &["address", "add", &format!("{address}{prefix}"), "dev", "lo"]);
        lab.route(A, &format!("{address}{prefix}"), via);
        assert!(lab.ask(A, address, 7003).is_ok(), "the machine itself reaches {address}");
        let refused = lab.ask_as_task(A, address, 7003).expect_err("its tasks don't");
        assert!(refused.contains("refused"), "{refused}");
    }
    lab.serve_machine(A, 7004);
    run(&lab.machine(A), "ip", &["route", "del", "169.254.169.254/32"]);
    run(&lab.machine(A), "ip", &["address", "add", "169.254.169.254/32", "dev", "lo"]);
    assert!(lab.ask_as_task(A, "169.254.169.254", 7004).is_err(), "also if the machine serves it itself");
    assert!(lab.ask_as_task(A, V4[A], 7004).is_ok());
}

#[test]
fn a_stranger_routes_nothing_into_a_network_and_sends_no_frames() {
    let lab = Lab::new();
    lab.route(CLIENT, "10.9.0.0/24", V4[0]);
    assert!(lab.ask(CLIENT, "10.9.0.2", lab::TASK_PORT).is_err(), "nothing is published at the address of the task");
    let vxlan = lab.listen_udp(A, 4790);
    assert!(lab.frame_reaches(B, B, &vxlan, V4[0], 4790), "a machine sends frames of its task");
    assert!(!lab.frame_reaches(B, A, &vxlan, V4[0], 4790), "it sends none in the name of another");
    assert!(!lab.frame_reaches(CLIENT, B, &vxlan, V4[0], 4790), "a stranger sends none");
}

#[test]
fn a_task_reaches_nobody_under_the_address_of_someone_else() {
    let lab = Lab::new();
    let receiver = lab.listen_udp(CLIENT, 7002);
    assert!(lab.reaches_as(A, "10.9.0.2", &receiver, V4[2], 7002), "its own address");
    assert!(!lab.reaches_as(A, "10.8.0.5", &receiver, V4[2], 7002), "an address of no network");
    let vxlan = lab.listen_udp(CLIENT, 4790);
    assert!(!lab.reaches_as(A, "10.9.0.2", &vxlan, V4[2], 4790), "frames, as if its machine had sent them");
}

#[test]
fn what_replies_need_on_their_way_back_does_not_expire_and_is_not_taken_for_a_station() {
    let mut lab = Lab::new();
    let mesh = lab.mesh_namespace(A);
    let kept = |version| run(&mesh, "ip", &[version, "neighbour", "show", "nud", "permanent"]);
    for _ in 0..2 {
        assert!(kept("-4").contains("169.254.70.3 "), "{}", kept("-4"));
        assert!(kept("-6").contains("fd46:6c6f:7461::3 "), "{}", kept("-6"));
        assert_eq!(lab.audit(), Vec::<String>::new(), "nothing is wrong");
    }
}

#[test]
fn a_foreign_flush_a_deleted_rule_and_a_deleted_link_are_mended() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Tcp, &[(B, true)], false);
    assert_eq!(lab.audit(), Vec::<String>::new(), "nothing differs");
    let machine = lab.machine(A);
    nft(&machine, &["add", "table", "ip", "foreign"]);
    assert_eq!(lab.audit(), Vec::<String>::new(), "the tables of others are their own");
    let damage: [&[&str]; 4] = [
        &["flush", "ruleset"],
        &["flush", "chain", "inet", "flota", "forward"],
        &["delete", "element", "inet", "flota", "ports", "{ tcp . 8080 }"],
        &["add", "element", "inet", "flota", "guarded", "{ 99 }"],
    ];
    for damage in damage {
        nft(&machine, damage);
        assert_eq!(lab.audit(), ["write the packet filter's tables"], "{damage:?}");
        assert!(lab.ask(CLIENT, V4[0], PORT).is_ok(), "{damage:?}");
    }
    nft(&machine, &["flush", "ruleset"]);
    lab.publish(Protocol::Tcp, &[(A, true)], false);
    assert_eq!(lab.ask(CLIENT, V4[0], PORT).expect("a change mends, too").0, "a");
    nft(&lab.mesh_namespace(A), &["flush", "ruleset"]);
    lab.remove_link(A, "flota-ingress");
    assert!(!lab.audit().is_empty());
    lab.publish(Protocol::Tcp, &[(B, true)], false);
    assert_eq!(lab.ask(CLIENT, V4[0], PORT).expect("an answer").0, "b");
}

#[test]
fn a_restarted_gateway_adopts_what_it_finds_and_a_removed_one_leaves_nothing() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Tcp, &[(B, true)], false);
    let machine = lab.machine(A);
    let before = nft(&machine, &["--handle", "list", "ruleset"]);
    lab.restart(A);
    assert_eq!(nft(&machine, &["--handle", "list", "ruleset"]), before, "nothing was written anew");
    nft(&machine, &["add", "chain", "inet", "flota", "tcp-8080-left"]);
    lab.restart(A);
    assert_eq!(nft(&machine, &["--handle", "list", "ruleset"]), before, "only what was left is removed");
    nft(&machine, &["add", "table", "ip", "foreign"]);
    let former = lab.file("former-0");
    remove_gateway(&machine, &former).expect("it is removed");
    assert_eq!(nft(&machine, &["list", "ruleset"]).trim(), "table ip foreign {\n}");
    assert_eq!(lab.links(A), ["eth0", "eth1", "lo"]);
    remove_gateway(&machine, &former).expect("there is nothing to remove");
}

#[test]
fn ten_thousand_targets_are_written_at_once_and_adopted() {
    let mut lab = Lab::new();
    lab.change(lab::many_ports(30_000..31_000, 10));
    assert_eq!(lab.audit(), Vec::<String>::new(), "the kernel has them as they should be");
    lab.publish(Protocol::Tcp, &[(B, true)], false);
    assert!(lab.ask(CLIENT, V4[0], PORT).is_ok());
    nft(&lab.machine(A), &["delete", "chain", "inet", "flota", "raw"]);
    assert_eq!(lab.audit(), ["write the packet filter's tables"]);
}

#[test]
fn a_program_of_the_machine_takes_its_port() {
    let mut lab = Lab::new();
    lab.publish(Protocol::Tcp, &[(A, true)], false);
    lab.serve_machine(A, 22);
    let taken = Listeners::open(&lab.machine(A)).and_then(|mut it| it.ports()).expect("they are listed");
    let expected = [(Protocol::Tcp, 22), (Protocol::Udp, 4789)];
    let expected = expected.map(|(protocol, number)| HostPort { protocol, number });
    assert_eq!(
        taken.into_keys().collect::<Vec<_>>(),
        expected,
        "that of a program and that of the overlay; a published port has no program"
    );
    lab.change(GatewayChange { ports: [(lab::published(Protocol::Tcp), None)].into(), ..GatewayChange::default() });
    assert!(lab.ask(CLIENT, V4[0], PORT).is_err(), "the port is not published any more");
}
