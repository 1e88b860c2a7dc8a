//! The sockets of one network namespace: its cookie, where they listen, and the end of connections to a peer that has
//! gone.
//!
//! A task that stops closes its connections itself. A peer that is cut off does not: its clients would wait for minutes.
//! The kernel ends single sockets by sock_diag(7), and tells their programs so (ECONNABORTED).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;

use super::tables::NamespaceCookie;
use crate::error::{NetworkError, io};
use crate::namespace::Namespace;

// Constants of linux/sock_diag.h, linux/inet_diag.h and the kernel's net/tcp_states.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST_BYTECODE: u16 = 1;
const COMPARE_PEER: u8 = 8;
const ANY_PORT: i32 = -1;
/// Bytes of struct inet_diag_msg, after which the attributes follow.
const ANSWER_BYTES: usize = 72;
/// INET_DIAG_CGROUP_ID
const CONTROL_GROUP: u16 = 21;
/// A socket's addresses, ports and cookie (struct inet_diag_sockid). It follows four bytes in the kernel's answer.
const IDENTITY: std::ops::Range<usize> = 4..52;
/// Sockets of TCP that have a peer, except those that have only just been asked for or are over (bits 1 to 11 are
/// ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING).
const CONNECTED_TCP: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Sockets of TCP that their program has closed and whose peer has not confirmed everything: FIN_WAIT1, LAST_ACK, CLOSING.
const SENDING_TCP: u32 = 1 << 4 | 1 << 9 | 1 << 11;
/// Sockets of UDP are either connected (ESTABLISHED) or not (CLOSE).
const CONNECTED_UDP: u32 = 1 << 1;

/// A view of the connections in one network namespace, which it keeps alive.
#[derive(Debug)]
pub struct Sockets {
    socket: Socket,
    cookie: NamespaceCookie,
    sequence: u32,
}

/// A request or an answer, after its header.
#[derive(Clone, Debug)]
struct Body {
    kind: u16,
    bytes: Vec<u8>,
}

impl NetlinkSerializable for Body {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Body {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self { kind: header.message_type, bytes: payload.to_vec() })
    }
}

/// A kind of sockets: IP version of the socket, protocol, and states.
type Kind = (libc::c_int, libc::c_int, u32);

impl Sockets {
    /// Opens a view of a namespace's connections.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel refuses.
    pub fn of(namespace: &Namespace) -> Result<Self, NetworkError> {
        namespace.enter(|| {
            let open = || {
                let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
                socket.bind_auto()?;
                socket.connect(&SocketAddr::new(0, 0))?;
                let cookie = cookie(&socket)?;
                Ok(Self { socket, cookie, sequence: 0 })
            };
            open().map_err(io("list the sockets of a network namespace"))
        })
    }

    /// The namespace's cookie.
    pub fn cookie(&self) -> NamespaceCookie {
        self.cookie
    }

    /// Returns whether the kernel still sends for connections of TCP that their program has closed, also by its end: the
    /// peer has not confirmed all that was written.
    ///
    /// # Errors
    /// The kernel refuses to list the sockets.
    pub fn are_sending(&mut self) -> Result<bool, NetworkError> {
        for version in [libc::AF_INET, libc::AF_INET6] {
            let sending = self.ports(version, libc::IPPROTO_TCP, SENDING_TCP);
            if !sending.map_err(io("list the connections that are being closed"))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends all connections with one of these peers, of TCP and UDP, and returns how many those were.
    ///
    /// # Errors
    /// The kernel refuses, for example because it is built without CONFIG_INET_DIAG_DESTROY.
    pub fn abort_to(&mut self, peers: &[IpAddr]) -> Result<usize, NetworkError> {
        let abort = |peer: &IpAddr| self.abort_where(*peer, |_| true);
        peers.iter().map(abort).sum::<io::Result<usize>>().map_err(io("end the connections to peers that have gone"))
    }

    /// Ends the connections from these ports to a peer.
    pub(crate) fn abort_from(&mut self, peer: IpAddr, ports: &BTreeSet<u16>) -> Result<usize, NetworkError> {
        self.abort_where(peer, |port| ports.contains(&port)).map_err(io("end connections of a network namespace"))
    }

    fn abort_where(&mut self, peer: IpAddr, is_meant: impl Fn(u16) -> bool) -> io::Result<usize> {
        // Sockets of IPv6 also use IPv4.
        let versions: &[libc::c_int] =
            if peer.is_ipv4() { &[libc::AF_INET, libc::AF_INET6] } else { &[libc::AF_INET6] };
        let mut aborted = 0;
        for version in versions {
            for (protocol, states) in [(libc::IPPROTO_TCP, CONNECTED_TCP), (libc::IPPROTO_UDP, CONNECTED_UDP)] {
                aborted += self.abort_kind((*version, protocol, states), peer, &is_meant)?;
            }
        }
        Ok(aborted)
    }

    /// Returns the ports of all sockets of this IP version and protocol that are in one of the states (bits), each with the
    /// control group in which it was opened, if the kernel says so (Linux 5.9).
    pub(crate) fn ports(
        &mut self,
        version: libc::c_int,
        protocol: libc::c_int,
        states: u32,
    ) -> io::Result<Vec<(u16, Option<u64>)>> {
        let list = request((version, protocol, states), &[0; 48]);
        match self.exchange(SOCK_DIAG_BY_FAMILY, list, NLM_F_REQUEST | NLM_F_DUMP) {
            Ok(found) => Ok(found.iter().filter_map(|it| Some((port(it.get(IDENTITY)?)?, group(it)))).collect()),
            // A kernel without IPv6 has no such sockets.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn abort_kind(&mut self, kind: Kind, peer: IpAddr, is_meant: &impl Fn(u16) -> bool) -> io::Result<usize> {
        let list = [request(kind, &[0; 48]), peer_filter(peer)].concat();
        let found = self.exchange(SOCK_DIAG_BY_FAMILY, list, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut aborted = 0;
        for socket in found {
            let Some(identity) = socket.get(IDENTITY).filter(|it| port(it).is_some_and(is_meant)) else { continue };
            match self.exchange(SOCK_DESTROY, request(kind, identity), NLM_F_REQUEST | NLM_F_ACK) {
                Ok(_) => aborted += 1,
                // It has been closed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(aborted)
    }

    /// Sends a request and returns the bodies of the answers.
    fn exchange(&mut self, kind: u16, bytes: Vec<u8>, flags: u16) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(Body { kind, bytes }));
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut found = Vec::new();
        loop {
            let (answers, _) = self.socket.recv_from_full()?;
            let mut rest = answers.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<Body>::deserialize(rest).map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[length..];
                // What an earlier exchange that failed has left unread.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(body) => found.push(body.bytes),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(found),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => (),
                }
            }
        }
    }
}

/// Returns the local port of a socket's identity.
fn port(identity: &[u8]) -> Option<u16> {
    identity.first_chunk().map(|port| u16::from_be_bytes(*port))
}

/// Returns the id of a socket's control group, from the attributes of the kernel's answer.
fn group(answer: &[u8]) -> Option<u64> {
    let mut rest = answer.get(ANSWER_BYTES..)?;
    while let Some((header, _)) = rest.split_first_chunk::<4>() {
        let [length, kind] = [[header[0], header[1]], [header[2], header[3]]].map(u16::from_ne_bytes);
        let length = usize::from(length).max(4);
        if kind == CONTROL_GROUP {
            return rest.get(4..length)?.try_into().ok().map(u64::from_ne_bytes);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Returns a struct inet_diag_req_v2.
fn request((version, protocol, states): Kind, identity: &[u8]) -> Vec<u8> {
    let mut request = vec![version as u8, protocol as u8, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(identity);
    request
}

/// Returns the attribute that limits a list to the sockets with this peer: a program for the kernel of one struct
/// inet_diag_bc_op and its struct inet_diag_hostcond. It accepts a socket if it ends exactly at its end.
fn peer_filter(peer: IpAddr) -> Vec<u8> {
    let (version, address) = match peer {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut condition = vec![version as u8, (address.len() * 8) as u8, 0, 0];
    condition.extend(ANY_PORT.to_ne_bytes());
    condition.extend(address);
    let length = 4 + condition.len() as u16;
    let mut attribute = Vec::new();
    attribute.extend((4 + length).to_ne_bytes());
    attribute.extend(REQUEST_BYTECODE.to_ne_bytes());
    attribute.extend([COMPARE_PEER, length as u8]);
    attribute.extend((length + 4).to_ne_bytes());
    attribute.extend(condition);
    attribute
}

/// Returns the cookie of the namespace that a socket is in (Linux 5.14).
#[expect(unsafe_code, reason = "the option has no safe wrapper")]
fn cookie(socket: &Socket) -> io::Result<NamespaceCookie> {
    let mut cookie = 0u64;
    let mut length = std::mem::size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, and `cookie` has as many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(NamespaceCookie(cookie))
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_closed_connection_is_sending_until_its_peer_has_read_everything() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("task");
        let namespace = Namespace::make(&path).expect("tests run as root");
        crate::netlink::Connection::open(&namespace).and_then(|mut it| it.bring_up("lo")).expect("loopback is up");
        let connect = || {
            let listener = TcpListener::bind("127.0.0.1:80")?;
            let client = TcpStream::connect("127.0.0.1:80")?;
            Ok((client, listener.accept()?.0))
        };
        let (mut client, mut server) = namespace.enter(|| connect().map_err(io("connect"))).expect("it is connected");
        let mut sockets = Sockets::of(&namespace).expect("its sockets can be listed");
        assert!(!sockets.are_sending().expect("they are listed"), "the program has not closed it");
        server.set_nonblocking(true).expect("it is a socket");
        let mut written = 0;
        loop {
            match server.write(&[0; 65_536]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        drop(server);
        assert!(sockets.are_sending().expect("they are listed"), "the client has not read anything");
        let read = client.read_to_end(&mut Vec::new()).expect("everything arrives");
        assert_eq!(read, written);
        drop(client);
        while sockets.are_sending().expect("they are listed") {
            std::thread::yield_now();
        }
        Namespace::remove(&path).expect("it is removed");
    }
}
