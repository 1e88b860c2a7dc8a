//! Names of networks: which records they have, who sees them, and how they change.

use std::collections::BTreeSet;
use std::process::Command;

use hickory_proto::op::{Edns, ResponseCode};
use hickory_proto::rr::RecordType;

use super::super::{DirectoryError, Port};
use super::*;

const BACK: &str = "key of back";

/// Questions about names that are not known end at once with this: the machine has no resolvers.
const UNKNOWN: ResponseCode = ResponseCode::ServFail;

#[test]
fn a_name_has_the_addresses_of_all_its_entries_in_any_case() {
    let machine = Machine::start();
    machine.directory.set(NETWORK, "web", entry(&["Web", "www"], &["10.0.0.2", "fd00::2"])).unwrap();
    machine.directory.set(NETWORK, "shop", entry(&["shop", "www"], &["10.0.0.3", "10.0.0.2"])).unwrap();
    assert_eq!(machine.addresses("wEB"), ["10.0.0.2"]);
    assert_eq!(machine.addresses("www"), ["10.0.0.2", "10.0.0.3"], "each address once");
    assert_eq!(shown(&machine.look_up("WWW", RecordType::AAAA)), ["fd00::2"]);
    machine.directory.remove(NETWORK, "web");
    assert_eq!(machine.addresses("www"), ["10.0.0.2", "10.0.0.3"], "the other entry has both");
    machine.directory.set(NETWORK, "shop", entry(&["shop", "www"], &["10.0.0.3"])).unwrap();
    assert_eq!(machine.addresses("www"), ["10.0.0.3"]);
    assert_eq!(machine.look_up("web", RecordType::A).response_code, UNKNOWN, "the name went with its last entry");
}

#[test]
fn a_known_name_without_records_of_a_type_gets_an_empty_answer() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    machine.name("idle", &[]);
    for (name, kind) in [("web", RecordType::AAAA), ("web", RecordType::HTTPS), ("idle", RecordType::A)] {
        let reply = machine.look_up(name, kind);
        assert_eq!((reply.response_code, shown(&reply).len()), (ResponseCode::NoError, 0), "{name} {kind}");
        assert!(reply.authoritative, "{name} {kind}");
    }
}

#[test]
fn no_client_keeps_what_may_be_withdrawn() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    let reply = machine.look_up("web", RecordType::A);
    assert_eq!(reply.answers[0].ttl, 0);
    assert!(reply.recursion_available && reply.recursion_desired);
}

#[test]
fn the_first_network_of_a_client_that_knows_a_name_answers() {
    let machine = Machine::start();
    machine.directory.set_network(BACK, "back").unwrap();
    machine.name("db", &["10.0.0.2"]);
    machine.directory.set(BACK, "db", entry(&["db"], &["10.0.1.2"])).unwrap();
    machine.directory.set(BACK, "cache", entry(&["cache"], &["10.0.1.3"])).unwrap();
    assert_eq!(machine.addresses("db"), ["10.0.0.2"]);
    assert_eq!(machine.look_up("cache", RecordType::A).response_code, UNKNOWN, "a network that was not joined");
    assert_eq!(machine.look_up("db.back", RecordType::A).response_code, UNKNOWN);
    let both =
        |keys: [&str; 2]| Client { networks: keys.map(str::to_owned).to_vec(), resolvers: Vec::new(), forwards: true };
    machine.serve(both([BACK, NETWORK]));
    assert_eq!(machine.addresses("db"), ["10.0.1.2"]);
    machine.serve(both([NETWORK, BACK]));
    assert_eq!(machine.addresses("db"), ["10.0.0.2"]);
    assert_eq!(machine.addresses("cache"), ["10.0.1.3"]);
    assert_eq!(machine.addresses("db.back"), ["10.0.1.2"], "a name may be written with its network's");
    machine.directory.remove_network(NETWORK);
    assert_eq!(machine.addresses("db"), ["10.0.1.2"]);
}

#[test]
fn addresses_have_the_names_of_their_entries_and_networks() {
    let machine = Machine::start();
    machine.directory.set(NETWORK, "web.1", entry(&["web.1", "tasks.web"], &["10.0.0.2", "fd00::2"])).unwrap();
    let four = machine.look_up("2.0.0.10.in-addr.arpa", RecordType::PTR);
    assert_eq!(shown(&four), ["web.1.front."]);
    let six = format!("2.{}d.f.ip6.arpa", "0.".repeat(29));
    assert_eq!(shown(&machine.look_up(&six, RecordType::PTR)), ["web.1.front."]);
    assert_eq!(machine.addresses("web.1.front"), ["10.0.0.2"], "the name leads back");
    machine.directory.remove(NETWORK, "web.1");
    assert_eq!(machine.look_up("2.0.0.10.in-addr.arpa", RecordType::PTR).response_code, UNKNOWN);
}

#[test]
fn announced_ports_have_service_records() {
    let machine = Machine::start();
    let ports = vec![Port::tcp(80), Port::udp(53)];
    machine.directory.set(NETWORK, "web", Entry { ports, ..entry(&["web", "www"], &["10.0.0.2"]) }).unwrap();
    assert_eq!(shown(&machine.look_up("_80._tcp.www", RecordType::SRV)), ["0 0 80 web.front."]);
    assert_eq!(shown(&machine.look_up("_53._udp.web.front", RecordType::SRV)), ["0 0 53 web.front."]);
    assert_eq!(machine.look_up("_81._tcp.web", RecordType::SRV).response_code, UNKNOWN);
    machine.directory.remove(NETWORK, "web");
    assert_eq!(machine.look_up("_80._tcp.web", RecordType::SRV).response_code, UNKNOWN);
}

#[test]
fn each_address_comes_first_at_some_time() {
    let machine = Machine::start();
    let addresses: Vec<String> = (2..6).map(|it| format!("10.0.0.{it}")).collect();
    machine.name("web", &addresses.iter().map(String::as_str).collect::<Vec<_>>());
    let mut first = BTreeSet::new();
    // Clients ask for both types in turn.
    for _ in 0..200 {
        machine.look_up("web", RecordType::AAAA);
        let reply = shown(&machine.look_up("web", RecordType::A));
        assert_eq!(reply.len(), 4);
        first.insert(reply[0].clone());
    }
    assert_eq!(first.into_iter().collect::<Vec<_>>(), addresses);
}

#[test]
fn a_large_answer_is_cut_to_what_the_client_takes() {
    let machine = Machine::start();
    let addresses: Vec<String> = (0..6000).map(|it| format!("10.1.{}.{}", it / 256, it % 256)).collect();
    machine.name("tasks.web", &addresses.iter().map(String::as_str).collect::<Vec<_>>());
    let plain = machine.look_up("tasks.web", RecordType::A);
    assert!(plain.truncation && plain.edns.is_none());
    assert_eq!(plain.answers.len(), (512 - 12 - 15) / 16);
    let mut extended = question("tasks.web", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    extended.set_edns(edns);
    let reply = machine.ask(&extended);
    assert!(reply.truncation && reply.edns.is_some());
    assert_eq!(reply.answers.len(), (1232 - 12 - 15 - 11) / 16);
    let mut connection = machine.connection();
    // Several questions over one connection.
    for _ in 0..3 {
        send_framed(&mut connection, &question("tasks.web", RecordType::A).to_vec().unwrap());
    }
    for _ in 0..3 {
        let whole = recv_framed(&mut connection);
        assert!(!whole.truncation);
        assert_eq!(whole.answers.len(), (65_535 - 12 - 15) / 16);
    }
}

#[test]
fn names_that_dns_can_not_carry_are_refused_and_take_no_other_name_away() {
    let machine = Machine::start();
    let directory = &machine.directory;
    let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(56));
    for bad in ["", "a..b", ".web", "web.", "a b", "ä", "a/b", &"a".repeat(64), &long, "a\0"] {
        let refused = directory.set(NETWORK, "web", entry(&["web", bad], &["10.0.0.2"]));
        assert_eq!(refused, Err(DirectoryError::InvalidName(bad.to_lowercase())), "{bad}");
        assert_eq!(machine.addresses("web"), ["10.0.0.2"], "{bad}");
        directory.remove(NETWORK, "web");
        assert!(directory.set_network("other", bad).is_err() || bad == long, "{bad}");
    }
    directory.set(NETWORK, "web", entry(&["web", &long[1..]], &[])).expect("253 bytes with the network's name");
    assert_eq!(directory.set("none", "web", entry(&["web"], &[])), Err(DirectoryError::NoNetwork("none".to_owned())));
}

#[test]
fn the_c_library_finds_names() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    let conf = machine.folder.path().join("of the client");
    std::fs::write(&conf, super::super::resolv_conf(&[], &[], &super::super::ResolvConf::default())).unwrap();
    let namespace = machine.folder.path().join("client");
    // By default getent looks for no IPv4 addresses where only the loopback interface has one.
    let script = "mount --bind \"$0\" /etc/resolv.conf && getent --no-addrconfig ahostsv4 web && getent hosts 10.0.0.2";
    let output = Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .args(["unshare", "--mount", "sh", "-c", script])
        .arg(&conf)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("10.0.0.2        STREAM web"), "{text}");
    assert!(text.contains("10.0.0.2        web.front"), "{text}");
}
