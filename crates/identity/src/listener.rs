//! Incoming TLS connections, each with the identity of the peer. Handshakes run concurrently, with a time limit and a
//! bound for each address, so that a slow or silent caller delays no other. The connections of each address without a
//! certificate, and those of each node, are bounded. Only a manager's connection, after its
//! handshake, reaches Raft's thread.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::certificate::{Names, RAFT_NAME, Subject, USER_UNIT};
use crate::credentials::Credentials;
use crate::peer::Peer;
use crate::refusal::in_words;
use crate::sha256_hex;
use crate::sources::{Place, Source, Sources};

use flota_api::id::ClusterId;
use flota_api::model::Role;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest number of concurrent handshakes. One more ends the oldest: who means it well is done within a few round trips.
const HANDSHAKES: usize = 1_024;

/// A TLS connection with the identity of its peer. It breaks when its node or user loses rights ([`Sources::end`]), and without
/// a certificate after a minute.
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    ends: BoxFuture<'static, &'static str>,
    /// The place of the connection among those of its node or address.
    _place: Place,
}

impl fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl PeerStream {
    fn new(stream: TlsStream<TcpStream>, peer: Peer, place: Place) -> Self {
        Self { stream, peer, ends: place.ends(), _place: place }
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // The server always reads, so it is woken here.
        if let Poll::Ready(why) = self.ends.as_mut().poll(cx) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A channel of accepted connections.
pub type Incoming = mpsc::Receiver<io::Result<PeerStream>>;

type Outgoing = mpsc::Sender<io::Result<PeerStream>>;

/// Accepts connections on `listener` until the first receiver is dropped. Returns two receivers: managers' connections
/// for Raft (those that ask for the name `raft.flota`) arrive at the second one, all others at the first. If `raft` is
/// given, the I/O of Raft's connections runs on that runtime, so that nothing else delays them; otherwise all connections
/// arrive at the first receiver. Each handshake uses the certificate that `credentials` have then.
pub fn incoming(
    listener: TcpListener,
    credentials: Credentials,
    raft: Option<Handle>,
    sources: Sources,
) -> (Incoming, Incoming) {
    let (sender, receiver) = mpsc::channel(16);
    let (raft_sender, raft_receiver) = mpsc::channel(16);
    let door = Door { credentials, raft, sources, sender, raft_sender };
    tokio::spawn(accept(listener, door));
    (receiver, raft_receiver)
}

/// A handshake that goes on.
struct Handshake {
    task: AbortHandle,
    /// Whether the peer is known, so that its connection is only to be handed over.
    is_known: Arc<AtomicBool>,
}

/// Accepts connections until the receiver is dropped.
async fn accept(listener: TcpListener, door: Door) {
    let mut handshakes: VecDeque<Handshake> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = door.sender.closed() => return,
        };
        let Ok((stream, address)) = accepted else {
            // For example out of descriptors: trying again at once would only burn CPU.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(place) = door.sources.take(Source::handshakes(address.ip())) else {
            tracing::debug!(%address, "too many handshakes of this address at once");
            continue;
        };
        if handshakes.len() >= HANDSHAKES {
            handshakes.retain(|it| !it.is_known.load(Ordering::Relaxed) && !it.task.is_finished());
        }
        if handshakes.len() >= HANDSHAKES {
            handshakes.pop_front().inspect(|it| it.task.abort());
        }
        let is_known = Arc::new(AtomicBool::new(false));
        let (door, told) = (door.clone(), Arc::clone(&is_known));
        let handshake = tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, door.admit(stream, address, &told)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
            }
            drop(place);
        });
        handshakes.push_back(Handshake { task: handshake.abort_handle(), is_known });
    }
}

/// The settings by which a connection is accepted or refused.
#[derive(Clone)]
struct Door {
    credentials: Credentials,
    raft: Option<Handle>,
    sources: Sources,
    sender: Outgoing,
    raft_sender: Outgoing,
}

impl Door {
    /// Completes a handshake and hands the connection to its receiver. Says in between that the peer is known.
    async fn admit(&self, stream: TcpStream, address: SocketAddr, is_known: &AtomicBool) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let settings = self.credentials.settings();
        let cluster = &settings.identity.cluster_id;
        let raft = self.raft.as_ref().filter(|_| start.client_hello().server_name() == Some(RAFT_NAME));
        let Some(raft) = raft else {
            let stream = start.into_stream(Arc::clone(&settings.server)).await.map_err(in_words)?;
            let peer = identify(&stream, address, cluster)?;
            let place = self.place(&peer, address)?;
            is_known.store(true, Ordering::Relaxed);
            drop(self.sender.send(Ok(PeerStream::new(stream, peer, place))).await);
            return Ok(());
        };
        let mut stream = start.into_stream(Arc::clone(&settings.raft)).await.map_err(in_words)?;
        let peer = identify(&stream, address, cluster)?;
        if !matches!(peer, Peer::Node { role: Role::Manager, .. }) {
            return Err(io::Error::other("only a manager may connect for Raft"));
        }
        let place = self.place(&peer, address)?;
        is_known.store(true, Ordering::Relaxed);
        move_to(raft, &mut stream)?;
        drop(self.raft_sender.send(Ok(PeerStream::new(stream, peer, place))).await);
        Ok(())
    }

    /// Takes a place for a connection of this peer.
    fn place(&self, peer: &Peer, address: SocketAddr) -> io::Result<Place> {
        let source = match peer {
            Peer::Node { id, .. } => Source::Node(id.clone()),
            Peer::User { key, .. } => Source::User(key.clone()),
            Peer::Local | Peer::Anonymous { .. } => Source::strangers(address.ip()),
        };
        self.sources.take(source).ok_or_else(|| io::Error::other("too many connections of this node, user or address"))
    }
}

/// Makes another runtime drive the connection's I/O.
fn move_to(runtime: &Handle, stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    let (socket, _) = stream.get_mut();
    // A socket can't be taken out of the stream, so a copy of its descriptor replaces it.
    let copy = std::net::TcpStream::from(socket.as_fd().try_clone_to_owned()?);
    let _entered = runtime.enter();
    *socket = TcpStream::from_std(copy)?;
    Ok(())
}

/// The peer, by the certificate that it presented, which the handshake has verified.
///
/// # Errors
/// The certificate is not that of a node or a user of this cluster.
fn identify(stream: &TlsStream<TcpStream>, address: SocketAddr, cluster: &ClusterId) -> io::Result<Peer> {
    let certificates = stream.get_ref().1.peer_certificates();
    let Some(leaf) = certificates.and_then(|chain| chain.first()) else { return Ok(Peer::Anonymous { address }) };
    let names = Names::read(leaf).map_err(io::Error::other)?;
    if names.cluster_id != *cluster {
        return Err(io::Error::other(format!("the certificate is of the cluster {}", names.cluster_id)));
    }
    if names.unit == USER_UNIT {
        return Ok(Peer::User { name: names.common, key: sha256_hex(&names.public_key), address });
    }
    let Subject { node_id: id, role, public_key, .. } = Subject::of(names).map_err(io::Error::other)?;
    Ok(Peer::Node { id, role, address, key: sha256_hex(&public_key) })
}

#[cfg(test)]
mod tests;
