//! The addresses that clients and backends see.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

use super::machine::{BOTH, Backend, Host, Kind, Machine, PORT, SOON, at, ip, network, place, pool};
use crate::balancer::VirtualAddress;

const VIRTUAL: &str = "10.0.255.2";
const VIRTUAL_6: &str = "fd00::ffff:2";

/// Writes through a connection in both directions.
fn exchange(mut client: &TcpStream, mut backend: &TcpStream) {
    backend.set_nonblocking(false).expect("it is a socket");
    let mut text = [0; 3];
    client.write_all(b"ask").expect("it is connected");
    backend.read_exact(&mut text).expect("it is connected");
    backend.write_all(&text).expect("it is connected");
    client.read_exact(&mut text).expect("it is connected");
    assert_eq!(&text, b"ask");
}

#[test]
fn a_tcp_connection_reaches_a_backend_and_shows_the_virtual_address() {
    for kind in BOTH {
        for (address, backend) in [(VIRTUAL, "10.0.0.11"), (VIRTUAL_6, "fd00::11")] {
            let mut machine = Machine::new(kind, &[backend]);
            machine.set(address, &[backend]);
            let client = machine.connect(at(address)).expect("a backend listens");
            let (index, accepted) = machine.accept();
            assert_eq!(index, 0);
            assert_eq!(client.peer_addr().expect("it is connected"), at(address));
            let seen = accepted.peer_addr().expect("it is connected");
            assert_eq!(seen, client.local_addr().expect("it is bound"), "the backend sees the client's own address");
            assert_eq!(accepted.local_addr().expect("it is bound"), at(backend));
            exchange(&client, &accepted);
        }
    }
}

#[test]
fn a_connection_that_does_not_block_reaches_a_backend() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &["10.0.0.11"]);
        machine.set(VIRTUAL, &["10.0.0.11"]);
        let client = machine.run(|| {
            let client =
                socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("a socket");
            let SocketAddr::V4(address) = at(VIRTUAL) else { unreachable!("it is of IPv4") };
            match connect(client.as_raw_fd(), &SockaddrIn::from(address)) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => TcpStream::from(client),
                Err(error) => panic!("{error}"),
            }
        });
        let milliseconds = PollTimeout::try_from(SOON).expect("it is short");
        let mut polled = [PollFd::new(std::os::fd::AsFd::as_fd(&client), PollFlags::POLLOUT)];
        assert_eq!(poll(&mut polled, milliseconds), Ok(1), "the connection is made");
        assert_eq!(client.peer_addr().expect("it is connected"), at(VIRTUAL));
        assert_eq!(machine.accept().0, 0);
    }
}

#[test]
fn a_socket_of_ipv6_reaches_backends_of_ipv4() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &["10.0.0.11"]);
        machine.set(VIRTUAL, &["10.0.0.11"]);
        let mapped = SocketAddr::new(ip("::ffff:10.0.255.2"), PORT);
        let client = machine.connect(mapped).expect("a backend listens");
        assert_eq!(client.peer_addr().expect("it is connected"), mapped);
        exchange(&client, &machine.accept().1);

        let datagrams = machine.datagrams("::");
        datagrams.set_read_timeout(Some(SOON)).expect("it is a socket");
        machine.run(|| datagrams.send_to(b"ask", mapped).expect("a backend listens"));
        let (_, from) = machine.recv();
        machine.backends[0].datagrams.send_to(b"answer", from).expect("a client listens");
        assert_eq!(datagrams.recv_from(&mut [0; 64]).expect("an answer").1, mapped);
    }
}

#[test]
fn the_answer_to_a_datagram_comes_from_the_virtual_address() {
    for kind in BOTH {
        for (address, backend, any) in [(VIRTUAL, "10.0.0.11", "0.0.0.0"), (VIRTUAL_6, "fd00::11", "::")] {
            let mut machine = Machine::new(kind, &[backend]);
            machine.set(address, &[backend]);
            for connected in [false, true] {
                let client = machine.datagrams(any);
                client.set_read_timeout(Some(SOON)).expect("it is a socket");
                if connected {
                    client.connect(at(address)).expect("a backend is there");
                    assert_eq!(client.peer_addr().expect("it is connected"), at(address));
                    client.send(b"ask").expect("a backend listens");
                } else {
                    client.send_to(b"ask", at(address)).expect("a backend listens");
                }
                let (index, from) = machine.recv();
                assert_eq!((index, from.port()), (0, client.local_addr().expect("it is bound").port()));
                machine.backends[0].datagrams.send_to(b"answer", from).expect("a client listens");
                assert_eq!(client.recv_from(&mut [0; 64]).expect("an answer").1, at(address));
            }
        }
    }
}

#[test]
fn an_address_without_backends_refuses_at_once() {
    let mut machine = Machine::new(Kind::Bpf, &["10.0.0.11"]);
    machine.set(VIRTUAL, &[]);
    machine.set(VIRTUAL_6, &[]);
    for address in [VIRTUAL, VIRTUAL_6] {
        let begun = Instant::now();
        let error = machine.connect(at(address)).expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let client = machine.datagrams(if address == VIRTUAL { "0.0.0.0" } else { "::" });
        let error = client.send_to(b"ask", at(address)).expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(begun.elapsed() < SOON / 5, "{:?}", begun.elapsed());
    }
}

#[test]
fn other_addresses_namespaces_and_groups_are_left_alone() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &["10.0.0.11", VIRTUAL]);
        let direct = |machine: &Machine| {
            let client = machine.connect(at("10.0.0.11")).expect("it listens");
            assert_eq!(client.peer_addr().expect("it is connected"), at("10.0.0.11"));
            machine.accept().0
        };
        machine.set(VIRTUAL, &["10.0.0.11"]);
        assert_eq!(direct(&machine), 0, "an address that is not virtual");
        // The backend 1 has the virtual address itself, so a connection that is left alone reaches it.
        let reached = |machine: &Machine, client: TcpStream| (machine.accept().0, drop(client)).0;
        if kind == Kind::Bpf {
            let outside = machine.host.run(|| TcpStream::connect(at(VIRTUAL)).expect("it listens"));
            assert_eq!(reached(&machine, outside), 1, "a process outside of the group");
        }
        let (cookie, namespace) = (machine.host.sockets().cookie(), machine.host.namespace());
        machine.balancer.join(cookie, &namespace, &[network(2)]).expect("the map has room");
        assert_eq!(
            reached(&machine, machine.connect(at(VIRTUAL)).expect("it listens")),
            1,
            "a member of another network"
        );
        if kind == Kind::Bpf {
            // The rules of a namespace end with it.
            machine.balancer.leave(cookie).expect("the kernel removes it");
            assert_eq!(reached(&machine, machine.connect(at(VIRTUAL)).expect("it listens")), 1, "no member");
        }
        machine.balancer.join(cookie, &namespace, &[network(2), network(1)]).expect("the map has room");
        assert_eq!(reached(&machine, machine.connect(at(VIRTUAL)).expect("it listens")), 0, "a member of both");
        machine.balancer.remove(place(VIRTUAL), Instant::now()).expect("the kernel removes it");
        assert_eq!(
            reached(&machine, machine.connect(at(VIRTUAL)).expect("it listens")),
            1,
            "it is not virtual any more"
        );
    }
}

#[test]
fn two_namespaces_use_one_address_for_different_backends() {
    for kind in BOTH {
        let mut first = Machine::new(kind, &["10.0.0.11"]);
        first.set(VIRTUAL, &["10.0.0.11"]);
        let host = Host::with_routes(&["10.0.0.12"]);
        let backend = Backend::new(&host, "10.0.0.12");
        let second = VirtualAddress { network: network(2), address: ip(VIRTUAL) };
        first.balancer.set(second, &pool(&["10.0.0.12"]), Instant::now()).expect("the maps have room");
        first.balancer.join(host.sockets().cookie(), &host.namespace(), &[network(2)]).expect("the map has room");

        let client = first.connect(at(VIRTUAL)).expect("a backend listens");
        exchange(&client, &first.accept().1);
        let client = host.run_in(&first.group, || TcpStream::connect(at(VIRTUAL)).expect("a backend listens"));
        exchange(&client, &backend.listener.accept().expect("it was reached").0);
        let counts = [place(VIRTUAL), second].map(|place| first.balancer.requests(place).expect("it is counted"));
        assert_eq!(counts, [1, 1]);
    }
}

#[test]
fn a_backend_reaches_itself_through_the_virtual_address() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &["10.0.0.11"]);
        machine.set(VIRTUAL, &["10.0.0.11"]);
        let client = machine.connect(at(VIRTUAL)).expect("it listens");
        let (_, accepted) = machine.accept();
        assert_eq!(accepted.peer_addr().expect("it is connected").ip(), ip("10.0.0.11"));
        exchange(&client, &accepted);
    }
}

#[test]
fn a_socket_that_uses_the_backend_directly_is_told_its_address() {
    for kind in BOTH {
        let mut machine = Machine::new(kind, &["10.0.0.11"]);
        machine.set(VIRTUAL, &["10.0.0.11"]);
        let client: UdpSocket = machine.datagrams("0.0.0.0");
        for address in [VIRTUAL, "10.0.0.11", VIRTUAL] {
            client.connect(at(address)).expect("it is there");
            assert_eq!(client.peer_addr().expect("it is connected"), at(address));
        }
    }
}
