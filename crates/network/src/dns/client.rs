//! Serves one client: its datagrams and its connections.
//!
//! A reply from memory is sent at once. Questions that have to be forwarded wait beside the others, so a slow resolver
//! does not keep a client from the names of its own networks. Everything that waits is bounded for each client.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::message::{LONGEST_QUESTION, Transport};
use super::view::{Answer, Later, View};

/// How many datagrams of a client wait for resolvers at a time. One more is dropped; its sender repeats it.
const MOST_WAITING: usize = 128;
/// How many datagrams of a client are read before others have their turn.
const TURN: usize = 32;
/// How many connections a client has at a time; more wait to be accepted.
const MOST_CONNECTIONS: usize = 16;
/// How long a connection waits for a whole question, and for the client to take a reply.
const IDLE: Duration = Duration::from_secs(10);
/// The pause after a connection could not be accepted, which happens when the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers datagrams until the socket fails.
pub(super) async fn serve_datagrams(view: &View, socket: &UdpSocket) -> io::Error {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            ready = socket.readable() => {
                let received = ready.and_then(|()| receive(view, socket, |client, reply| {
                    if waiting.len() < MOST_WAITING {
                        waiting.push(async move { (client, reply.await) });
                    }
                }));
                if let Err(error) = received {
                    return error;
                }
            }
            Some((client, reply)) = waiting.next(), if !waiting.is_empty() => send(socket, client, &reply),
        }
    }
}

/// Reads datagrams and answers them; `later` gets the replies that are not known yet.
fn receive(view: &View, socket: &UdpSocket, mut later: impl FnMut(SocketAddr, Later)) -> io::Result<()> {
    // One byte more than a question may have, so that a longer one is seen to be longer.
    let mut buffer = [0; LONGEST_QUESTION + 1];
    for _ in 0..TURN {
        let (size, client) = match socket.try_recv_from(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            received => received?,
        };
        match view.answer(&buffer[..size], Transport::Udp) {
            Answer::Now(reply) => send(socket, client, &reply),
            Answer::Later(reply) => later(client, reply),
            Answer::Nothing => {}
        }
    }
    Ok(())
}

fn send(socket: &UdpSocket, client: SocketAddr, reply: &[u8]) {
    // A reply that can't be sent is lost as any datagram may be; the client repeats its question.
    let _ = socket.try_send_to(reply, client);
}

/// Accepts connections and answers the questions that come over them, for ever.
pub(super) async fn serve_connections(view: &View, listener: &TcpListener) -> Infallible {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if open.len() < MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => open.push(serve_connection(view, stream)),
                Err(error) => {
                    tracing::warn!(error = %error, "failed to accept a connection of a DNS client");
                    sleep(PAUSE).await;
                }
            },
            // Whatever ended the connection, the client knows it too.
            Some(_) = open.next(), if !open.is_empty() => {}
        }
    }
}

/// Answers questions in the order in which they come, until the client closes or is idle (RFC 7766).
async fn serve_connection(view: &View, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, async {
            let mut question = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut question).await.map(|_| question)
        });
        let reply = match view.answer(&question.await??, Transport::Tcp) {
            Answer::Now(reply) => reply,
            Answer::Later(reply) => reply.await,
            Answer::Nothing => return Ok(()),
        };
        let size = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&size.to_be_bytes(), reply.as_slice()].concat())).await??;
    }
}
