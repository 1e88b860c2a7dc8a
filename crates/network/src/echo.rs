//! Echo requests (RFC 792, RFC 4443): whether packets of a size reach an address and come back. The kernel of whoever has
//! the address answers them, so they probe the way and not a program.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, socket};

use crate::error::{NetworkError, io};
use crate::namespace::Namespace;
use crate::nftables::expression::IpVersion;

/// Requests are sent this often, because one may get lost.
const TRIES: u16 = 3;
/// How long the answer to a request is waited for before the next one is sent.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of the header of a message.
const HEADER: usize = 8;
/// Bytes of the largest packet that is received.
const LARGEST: usize = 1 << 16;

/// Sends packets of `size` bytes from one address of a namespace to another address, which nobody on the way may cut, and
/// returns how long the first answer took; `None` if none came within a second and a half.
///
/// # Errors
/// The namespace does not have the address `from`, or no route to `to`.
pub fn echo(namespace: &Namespace, from: IpAddr, to: IpAddr, size: usize) -> Result<Option<Duration>, NetworkError> {
    namespace.enter(|| exchange(from, to, size).map_err(io(format!("send an echo request to {to}"))))
}

fn exchange(from: IpAddr, to: IpAddr, size: usize) -> io::Result<Option<Duration>> {
    let (socket, id) = (open(from)?, rand::random());
    let begun = Instant::now();
    for sequence in 0..TRIES {
        let message = EchoMessage { version: IpVersion::of(to), id, sequence };
        match socket.send_to(&message.request(size), (to, 0)) {
            // The namespace's own interface has learned that such packets are too large.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(None),
            sent => drop(sent?),
        }
        if is_answered(&socket, to, &message, begun + PAUSE * u32::from(sequence + 1))? {
            return Ok(Some(begun.elapsed()));
        }
    }
    Ok(None)
}

/// Waits until the message is answered, but not longer than `until`.
fn is_answered(socket: &UdpSocket, by: IpAddr, message: &EchoMessage, until: Instant) -> io::Result<bool> {
    let mut buffer = vec![0; LARGEST];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut buffer) {
            Ok((count, sender)) if sender.ip() == by && message.is_answer(&buffer[..count]) => return Ok(true),
            // A raw socket gets the messages of all.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Opens a raw socket, which sends and receives as one of UDP does.
#[expect(unsafe_code, reason = "the options have no safe wrapper")]
fn open(from: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol, level, option, probe) = match from {
        IpAddr::V4(_) => {
            let (family, protocol) = (AddressFamily::Inet, SockProtocol::Icmp);
            (family, protocol, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        }
        IpAddr::V6(_) => {
            let (family, protocol) = (AddressFamily::Inet6, SockProtocol::IcmpV6);
            (family, protocol, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
        }
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let length = std::mem::size_of_val(&probe) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, as many as `probe` has.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(&probe).cast(), length) };
    Errno::result(set)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    Ok(socket.into())
}

/// What tells a request and its answer from others.
#[derive(Debug)]
struct EchoMessage {
    version: IpVersion,
    id: u16,
    sequence: u16,
}

impl EchoMessage {
    /// The types of a request and of its answer.
    fn types(&self) -> (u8, u8) {
        match self.version {
            IpVersion::V4 => (8, 0),
            IpVersion::V6 => (128, 129),
        }
    }

    fn identity(&self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.id.to_be_bytes(), self.sequence.to_be_bytes());
        [a, b, c, d]
    }

    /// Returns a request which, with the header of IP, has this size.
    fn request(&self, size: usize) -> Vec<u8> {
        let of_ip = if self.version == IpVersion::V4 { 20 } else { 40 };
        let mut request = vec![0; size.saturating_sub(of_ip).max(HEADER)];
        request[0] = self.types().0;
        request[4..HEADER].copy_from_slice(&self.identity());
        if self.version == IpVersion::V4 {
            let sum = checksum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        // The kernel computes that of IPv6 itself (RFC 3542, section 3.1).
        request
    }

    /// Returns whether a received packet is the answer. With IPv4 it begins with its IP header (raw(7)).
    fn is_answer(&self, packet: &[u8]) -> bool {
        let of_ip = match self.version {
            IpVersion::V4 => packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4),
            IpVersion::V6 => 0,
        };
        let Some(message) = packet.get(of_ip..of_ip + HEADER) else { return false };
        message[0] == self.types().1 && message[4..] == self.identity()
    }
}

/// Returns the Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|it| u32::from(it[0]) << 8 | it.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_address_answers_within_the_size_that_fits() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("host");
        let host = Namespace::make(&path).expect("tests run as root");
        crate::netlink::Connection::open(&host).and_then(|mut it| it.bring_up("lo")).expect("loopback is up");
        let ask = |from: &str, to: &str, size: usize| {
            echo(&host, from.parse().expect("an address"), to.parse().expect("an address"), size)
        };
        for (from, to) in [("127.0.0.1", "127.0.0.2"), ("::1", "::1")] {
            assert!(ask(from, to, 64).expect("it is sent").is_some(), "{to}");
            assert!(ask(from, to, 9_000).expect("it is sent").is_some(), "{to}");
            // The interface takes packets of 65,536 bytes.
            assert!(ask(from, to, 65_537).is_err() || ask(from, to, 65_537).is_ok_and(|it| it.is_none()), "{to}");
        }
        assert!(ask("127.0.0.1", "192.0.2.1", 64).is_err(), "there is no route");
        assert!(ask("192.0.2.1", "127.0.0.1", 64).is_err(), "the address is another host's");
        Namespace::remove(&path).expect("it is removed");
    }

    #[test]
    fn only_the_answer_to_this_very_request_counts() {
        let message = EchoMessage { version: IpVersion::V4, id: 7, sequence: 1 };
        let answer = |kind: u8, id: u8, sequence: u8| {
            let mut packet = vec![0; 20];
            packet[0] = 0x45;
            packet.extend([kind, 0, 0, 0, 0, id, 0, sequence]);
            packet
        };
        let table = [(answer(0, 7, 1), true), (answer(8, 7, 1), false), (answer(0, 8, 1), false)];
        for (packet, expected) in table.into_iter().chain([(answer(0, 7, 2), false), (vec![0x4f; 20], false)]) {
            assert_eq!(message.is_answer(&packet), expected, "{packet:?}");
        }
        // A message with its own checksum in it adds up to zero.
        assert_eq!(checksum(&message.request(85)), 0);
    }
}
