//! Asks the DNS server of a namespace as its programs do.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::message::encode_query;
use crate::error::{NetworkError, io};
use crate::namespace::Namespace;

/// How long the reply is waited for.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// The largest reply without EDNS (RFC 1035, section 4.2.1).
const LARGEST: usize = 512;

/// Returns the addresses of one IP version that the DNS server at `server` has for a whole name.
///
/// # Errors
/// The name is invalid, or there was no reply in time.
pub fn ask(namespace: &Namespace, server: SocketAddr, name: &str, is_ipv6: bool) -> Result<Vec<IpAddr>, NetworkError> {
    namespace.enter(|| exchange(server, name, is_ipv6).map_err(io(format!("ask {server} for `{name}`"))))
}

fn exchange(server: SocketAddr, name: &str, is_ipv6: bool) -> io::Result<Vec<IpAddr>> {
    let invalid = || io::Error::from(ErrorKind::InvalidInput);
    let name = Name::from_ascii(format!("{name}.")).map_err(|_| invalid())?;
    let kind = if is_ipv6 { RecordType::AAAA } else { RecordType::A };
    let id = rand::random();
    let question = encode_query(id, &Query::query(name, kind), false, None).ok_or_else(invalid)?;
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&question)?;
    let mut buffer = [0; LARGEST];
    let count = socket.recv(&mut buffer).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    })?;
    let reply = Message::from_vec(&buffer[..count]).map_err(io::Error::other)?;
    if reply.id != id {
        return Err(ErrorKind::InvalidData.into());
    }
    let address = |data: &RData| match data {
        RData::A(it) => Some(IpAddr::V4(it.0)),
        RData::AAAA(it) => Some(IpAddr::V6(it.0)),
        _ => None,
    };
    Ok(reply.answers.iter().filter_map(|it| address(&it.data)).collect())
}
