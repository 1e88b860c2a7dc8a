//! One question to one resolver: over UDP from a random port with a random id, and over TCP if the reply is truncated.
//! A reply that does not match the question is ignored (RFC 5452).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{error::Elapsed, timeout};

use super::cache::Key;
use super::message::encode_query;

/// The longest wait for a reply, over UDP and TCP together.
const WAIT: Duration = Duration::from_millis(1500);
/// The size of datagrams that pass every path in one piece (DNS flag day 2020).
const PAYLOAD: u16 = 1232;
/// How many datagrams are read that don't match the question. Whoever sends more is trying to guess the id.
const MOST_MISMATCHES: usize = 32;

/// Why a resolver gave no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("failed to ask the resolver")]
    Io(#[from] io::Error),
    #[error("the resolver does not answer")]
    Timeout(#[from] Elapsed),
    #[error("the resolver's reply does not match the question")]
    Mismatch,
    #[error("the question can't be written")]
    Encode,
}

/// A reply as it came.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) message: Message,
    /// Size on the wire.
    pub(super) bytes: usize,
}

/// Asks one resolver, with or without EDNS.
pub(super) async fn ask(server: SocketAddr, key: &Key, with_edns: bool) -> Result<Answered, ExchangeError> {
    let id = rand::random();
    let extension = with_edns.then_some((PAYLOAD, key.dnssec_ok));
    let query = encode_query(id, &key.query, key.checking_disabled, extension).ok_or(ExchangeError::Encode)?;
    let exchange = async {
        let answered = over_udp(server, &query, id, key).await?;
        if answered.message.truncation { over_tcp(server, &query, id, key).await } else { Ok(answered) }
    };
    timeout(WAIT, exchange).await?
}

async fn over_udp(server: SocketAddr, query: &[u8], id: u16, key: &Key) -> Result<Answered, ExchangeError> {
    // The kernel chooses a port at random.
    let local = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(local).await?;
    // Datagrams of other hosts don't arrive at a connected socket.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    for _ in 0..MOST_MISMATCHES {
        let size = socket.recv(&mut buffer).await?;
        if let Some(answered) = accept(&buffer[..size], id, key) {
            return Ok(answered);
        }
    }
    Err(ExchangeError::Mismatch)
}

async fn over_tcp(server: SocketAddr, query: &[u8], id: u16, key: &Key) -> Result<Answered, ExchangeError> {
    let mut stream = TcpStream::connect(server).await?;
    let size = u16::try_from(query.len()).map_err(|_| ExchangeError::Encode)?;
    stream.write_all(&[&size.to_be_bytes(), query].concat()).await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    accept(&buffer, id, key).ok_or(ExchangeError::Mismatch)
}

/// Returns the message if it is a reply to the question.
fn accept(bytes: &[u8], id: u16, key: &Key) -> Option<Answered> {
    let message = Message::from_vec(bytes).ok()?;
    let failed = !matches!(message.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    // Some resolvers leave the question out of a reply that only has an error.
    let is_ours = match message.queries.as_slice() {
        [query] => *query == key.query,
        [] => failed,
        _ => false,
    };
    let matches = message.id == id && message.message_type == MessageType::Response && message.op_code == OpCode::Query;
    (matches && is_ours).then_some(Answered { message, bytes: bytes.len() })
}
