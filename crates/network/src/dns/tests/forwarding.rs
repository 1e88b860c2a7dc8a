//! Names that no network has: asked of the machine's resolvers, or the client's own.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::*;

const FIRST: &str = "127.0.0.53:53";
const SECOND: &str = "127.0.0.54:53";

#[test]
fn other_names_are_asked_of_the_machines_resolvers_and_kept() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53"]);
    let resolver = Resolver::start(&machine, FIRST, answering("192.0.2.1", 60));
    machine.name("web", &["10.0.0.2"]);
    assert_eq!(machine.addresses("example.com"), ["192.0.2.1"]);
    let reply = machine.look_up("EXAMPLE.com", RecordType::A);
    assert_eq!(shown(&reply), ["192.0.2.1"]);
    assert!((1..=60).contains(&reply.answers[0].ttl), "{}", reply.answers[0].ttl);
    assert!(!reply.authoritative && reply.edns.is_none(), "the client said nothing of EDNS");
    machine.addresses("web");
    assert_eq!(resolver.asked(), 1, "the second reply came from the cache, and networks' names are not forwarded");
}

#[test]
fn the_next_resolver_is_asked_when_one_does_not_answer() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53", "127.0.0.54"]);
    let silent = Resolver::start(&machine, FIRST, |_, _| Vec::new());
    let answering = Resolver::start(&machine, SECOND, answering("192.0.2.1", 0));
    assert_eq!(machine.addresses("example.com"), ["192.0.2.1"]);
    assert_eq!(machine.addresses("example.com"), ["192.0.2.1"]);
    assert_eq!((silent.asked(), answering.asked()), (1, 2), "a silent resolver is asked last for a while");
}

#[test]
fn a_client_with_resolvers_of_its_own_asks_those() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53"]);
    let machines = Resolver::start(&machine, FIRST, answering("192.0.2.1", 60));
    Resolver::start(&machine, SECOND, answering("192.0.2.2", 60));
    assert_eq!(machine.addresses("example.com"), ["192.0.2.1"]);
    machine.serve(Client { networks: Vec::new(), resolvers: vec![SECOND.parse().unwrap()], forwards: true });
    assert_eq!(machine.addresses("example.com"), ["192.0.2.2"], "what others have said is not its reply");
    assert_eq!(machines.asked(), 1);
}

#[test]
fn nothing_is_asked_for_a_client_that_can_not_reach_the_outside() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53"]);
    let resolver = Resolver::start(&machine, FIRST, answering("192.0.2.1", 60));
    machine.name("web", &["10.0.0.2"]);
    let resolvers = vec![SECOND.parse().unwrap()];
    let own = Resolver::start(&machine, SECOND, answering("192.0.2.2", 60));
    machine.serve(Client { networks: vec![NETWORK.to_owned()], resolvers, forwards: false });
    assert_eq!(machine.look_up("example.com", RecordType::A).response_code, ResponseCode::NXDomain);
    assert_eq!(machine.addresses("web"), ["10.0.0.2"]);
    assert_eq!((resolver.asked(), own.asked()), (0, 0));
}

#[test]
fn a_truncated_reply_is_asked_for_again_over_tcp() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53"]);
    Resolver::start(&machine, FIRST, |question, transport| {
        let mut reply = reply_to(question);
        match transport {
            Transport::Udp => reply.metadata.truncation = true,
            Transport::Tcp => (0..100).for_each(|last| {
                reply.add_answer(record(&question.queries[0].name, 60, &format!("192.0.2.{last}")));
            }),
        }
        vec![reply.to_vec().unwrap()]
    });
    let cut = machine.look_up("example.com", RecordType::A);
    assert!(cut.truncation && cut.answers.is_empty(), "a plain client takes 512 bytes");
    let mut connection = machine.connection();
    send_framed(&mut connection, &question("example.com", RecordType::A).to_vec().unwrap());
    assert_eq!(recv_framed(&mut connection).answers.len(), 100);
}

#[test]
fn a_resolver_that_lies_is_not_believed() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53"]);
    Resolver::start(&machine, FIRST, |question, _| {
        let name = &question.queries[0].name;
        let lie = |change: &dyn Fn(&mut Message)| {
            let mut reply = reply_to(question);
            reply.add_answer(record(name, 60, "192.0.2.66"));
            change(&mut reply);
            reply.to_vec().unwrap()
        };
        let other = || Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A);
        let mut truth = reply_to(question);
        truth.add_answer(record(name, 60, "192.0.2.1"));
        vec![
            lie(&|reply| reply.metadata.id = reply.id.wrapping_add(1)),
            lie(&|reply| reply.queries = vec![other()]),
            lie(&|reply| reply.queries.clear()),
            lie(&|reply| reply.metadata.message_type = hickory_proto::op::MessageType::Query),
            b"\0".to_vec(),
            truth.to_vec().unwrap(),
        ]
    });
    assert_eq!(machine.addresses("example.com"), ["192.0.2.1"]);
}

#[test]
fn a_question_that_nobody_answers_fails_before_clients_give_up() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53"]);
    let silent = Resolver::start(&machine, FIRST, |_, _| Vec::new());
    machine.name("web", &["10.0.0.2"]);
    let socket = machine.socket();
    let asked = question("example.com", RecordType::A);
    // More than may wait at once, and fewer than fill the buffer of the server's socket, which drops the rest.
    for _ in 0..200 {
        socket.send(&asked.to_vec().unwrap()).unwrap();
    }
    assert_eq!(machine.addresses("web"), ["10.0.0.2"], "names of the networks don't wait");
    let reply = recv(&socket);
    assert_eq!((reply.response_code, reply.id), (ResponseCode::ServFail, asked.id));
    assert_eq!(silent.asked(), 3, "the same question is asked once at a time");
}

#[test]
fn a_resolver_that_is_older_than_edns_is_asked_again_without_it() {
    let machine = Machine::start();
    machine.set_resolvers(&["127.0.0.53"]);
    let answers = answering("192.0.2.1", 60);
    let old = Resolver::start(&machine, FIRST, move |question, transport| {
        if question.edns.is_none() {
            return answers(question, transport);
        }
        let mut refusal = reply_to(question);
        refusal.metadata.response_code = ResponseCode::FormErr;
        vec![refusal.to_vec().unwrap()]
    });
    assert_eq!((machine.addresses("example.com"), old.asked()), (vec!["192.0.2.1".to_owned()], 2));
}

#[test]
fn a_resolv_conf_that_changes_is_read_again() {
    let machine = Machine::start();
    Resolver::start(&machine, FIRST, answering("192.0.2.1", 0));
    Resolver::start(&machine, SECOND, answering("192.0.2.2", 0));
    machine.set_resolvers(&["127.0.0.53"]);
    assert_eq!(machine.addresses("example.com"), ["192.0.2.1"]);
    machine.set_resolvers(&["127.0.0.54", "127.0.0.53"]);
    let until = std::time::Instant::now() + DEADLINE;
    while machine.addresses("example.com") != ["192.0.2.2"] {
        assert!(std::time::Instant::now() < until, "the new resolvers are asked");
    }
}

#[test]
fn questions_that_come_while_no_server_reads_are_answered_by_the_next_one() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    machine.server.stop("client");
    let held = loop {
        // The server's thread may not have closed its sockets yet.
        if let Ok(held) = DnsSockets::open(&machine.client) {
            break held;
        }
    };
    let socket = machine.socket();
    socket.send(&question("web", RecordType::A).to_vec().unwrap()).unwrap();
    let client = Client { networks: vec![NETWORK.to_owned()], resolvers: Vec::new(), forwards: true };
    machine.server.serve("client", client.clone(), held.try_clone().unwrap());
    assert_eq!(shown(&recv(&socket)), ["10.0.0.2"]);
    machine.server.serve("client", client, held.try_clone().unwrap());
    assert_eq!(machine.addresses("web"), ["10.0.0.2"], "another copy of the sockets");
}
