//! Input that nobody sends by accident. After each of it the server still answers.

use hickory_proto::op::{Edns, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::message::{Received, read};
use super::*;

/// Sends bytes over UDP and returns the code of the reply.
fn code(machine: &Machine, bytes: &[u8]) -> ResponseCode {
    let socket = machine.socket();
    socket.send(bytes).unwrap();
    recv(&socket).response_code
}

#[test]
fn questions_that_are_none_are_refused_with_a_reason() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    let bytes = |change: &dyn Fn(&mut Message)| {
        let mut message = question("web", RecordType::A);
        change(&mut message);
        message.to_vec().unwrap()
    };
    let chaos = bytes(&|it| it.queries[0].query_class = DNSClass::CH);
    assert_eq!(code(&machine, &chaos), ResponseCode::Refused);
    let transfer = bytes(&|it| it.queries[0].query_type = RecordType::AXFR);
    assert_eq!(code(&machine, &transfer), ResponseCode::Refused);
    assert_eq!(code(&machine, &bytes(&|it| it.metadata.op_code = OpCode::Update)), ResponseCode::NotImp);
    assert_eq!(code(&machine, &bytes(&|it| it.queries.clear())), ResponseCode::FormErr);
    let two = bytes(&|it| it.queries.push(it.queries[0].clone()));
    assert_eq!(code(&machine, &two), ResponseCode::FormErr);
    let newer = bytes(&|it| {
        let mut edns = Edns::new();
        edns.set_version(1);
        it.edns = Some(edns);
    });
    // 16 has two names, one for each record that may carry it.
    assert_eq!(u16::from(code(&machine, &newer)), u16::from(ResponseCode::BADVERS));
    let whole = bytes(&|_| ());
    assert_eq!(code(&machine, &whole[..whole.len() - 1]), ResponseCode::FormErr, "a question that is cut off");
    // A name that points to itself, and one that points behind itself.
    for pointer in [12, 20] {
        let mut looping = whole[..12].to_vec();
        looping.extend([0xC0, pointer, 0, 1, 0, 1]);
        assert_eq!(code(&machine, &looping), ResponseCode::FormErr);
    }
    assert_eq!(machine.addresses("web"), ["10.0.0.2"]);
}

#[test]
fn the_largest_message_is_refused_and_the_connection_goes_on() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    let asked = question("web", RecordType::A).to_vec().unwrap();
    let mut large = asked.clone();
    large.resize(65_535, 0);
    let mut connection = machine.connection();
    send_framed(&mut connection, &large);
    assert_eq!(recv_framed(&mut connection).response_code, ResponseCode::FormErr);
    send_framed(&mut connection, &asked);
    assert_eq!(shown(&recv_framed(&mut connection)), ["10.0.0.2"]);
    large.truncate(60_000);
    assert_eq!(code(&machine, &large), ResponseCode::FormErr);
}

#[test]
fn replies_and_fragments_are_not_answered() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    let socket = machine.socket();
    let asked = question("web", RecordType::A);
    socket.send(&asked.clone().into_response().to_vec().unwrap()).unwrap();
    socket.send(b"").unwrap();
    socket.send(&[0; 11]).unwrap();
    socket.send(&asked.to_vec().unwrap()).unwrap();
    assert_eq!(recv(&socket).id, asked.id, "the first answer is that to the last message");
}

#[test]
fn a_client_that_opens_connections_and_says_nothing_only_blocks_its_own() {
    let machine = Machine::start();
    machine.name("web", &["10.0.0.2"]);
    let _idle: Vec<TcpStream> = (0..64).map(|_| machine.connection()).collect();
    assert_eq!(machine.addresses("web"), ["10.0.0.2"]);
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let mut random = SmallRng::seed_from_u64(11);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    let mut whole = question("_80._tcp.tasks.web.front", RecordType::SRV);
    whole.set_edns(edns);
    let whole = whole.to_vec().unwrap();
    let (mut questions, mut refused) = (0, 0);
    for round in 0..200_000 {
        let mut bytes = whole.clone();
        if round % 4 == 0 {
            bytes = (0..random.random_range(0..200)).map(|_| random.random()).collect();
        }
        for _ in 0..random.random_range(0..6) {
            if let Some(at) = bytes.len().checked_sub(1).map(|last| random.random_range(0..=last)) {
                bytes[at] = random.random();
            }
        }
        bytes.truncate(random.random_range(0..=whole.len() + 40));
        for transport in [Transport::Udp, Transport::Tcp] {
            match read(&bytes, transport) {
                Received::Question(question) => {
                    questions += 1;
                    // Whatever was read can be answered.
                    Message::from_vec(&question.encode_error(ResponseCode::ServFail)).unwrap();
                }
                Received::Refused(reply) => {
                    refused += 1;
                    Message::from_vec(&reply).unwrap();
                }
                Received::Nothing => {}
            }
        }
    }
    assert!(questions > 1000 && refused > 1000, "{questions} {refused}");
}
