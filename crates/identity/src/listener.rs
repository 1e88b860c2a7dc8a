//! Incoming TLS connections, each with the identity of the peer. Handshakes run concurrently, with a time limit and a
//! bound for each address, so that a slow or silent caller delays no other. Only a manager's connection, after its
//! handshake, reaches Raft's thread.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::server::{Acceptor, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::certificate::{Identity, RAFT_NAME, read_subject};
use crate::peer::Peer;
use crate::sources::{Held, Place, Sources};

use flota_api::model::Role;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest number of concurrent handshakes; further connections wait in the kernel's queue.
const HANDSHAKES: usize = 256;

/// A TLS connection with the identity of its peer.
#[derive(Debug)]
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// The place of a peer without a certificate among those of its address.
    _place: Option<Place>,
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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

/// Whether a connection needs a node's certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientCertificate {
    Optional,
    Mandatory,
}

fn server_config(identity: &Identity, certificate: ClientCertificate) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots()?.into(), Arc::clone(&provider));
    let verifier = match certificate {
        ClientCertificate::Optional => verifier.allow_unauthenticated(),
        ClientCertificate::Mandatory => verifier,
    };
    let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A channel of accepted connections.
pub type Incoming = mpsc::Receiver<io::Result<PeerStream>>;

type Outgoing = mpsc::Sender<io::Result<PeerStream>>;

/// Accepts connections on `listener` until the first receiver is dropped. Returns two receivers: managers' connections
/// for Raft (those that ask for the name `raft.flota`) arrive at the second one, all others at the first. If `raft` is
/// given, the I/O of Raft's connections runs on that runtime, so that nothing else delays them; otherwise all connections
/// arrive at the first receiver.
///
/// # Errors
/// The identity's key does not match its certificate.
pub fn incoming(
    listener: TcpListener,
    identity: &Identity,
    raft: Option<Handle>,
    sources: Sources,
) -> Result<(Incoming, Incoming), rustls::Error> {
    let (sender, receiver) = mpsc::channel(16);
    let (raft_sender, raft_receiver) = mpsc::channel(16);
    let door = Door {
        config: server_config(identity, ClientCertificate::Optional)?,
        raft_config: server_config(identity, ClientCertificate::Mandatory)?,
        raft,
        sources,
        sender,
        raft_sender,
    };
    let handshakes = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let permit = Arc::clone(&handshakes).acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = door.sender.closed() => return,
            };
            let Ok((stream, address)) = accepted else {
                // For example out of descriptors: trying again at once would only burn CPU.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Some(place) = door.sources.take(address.ip(), Held::Handshake) else {
                tracing::debug!(%address, "too many handshakes of this address at once");
                continue;
            };
            let door = door.clone();
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, door.admit(stream, address)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
                }
                drop((permit, place));
            });
        }
    });
    Ok((receiver, raft_receiver))
}

/// The settings by which a connection is accepted or refused.
#[derive(Clone)]
struct Door {
    config: Arc<ServerConfig>,
    raft_config: Arc<ServerConfig>,
    raft: Option<Handle>,
    sources: Sources,
    sender: Outgoing,
    raft_sender: Outgoing,
}

impl Door {
    /// Completes a handshake and hands the connection to its receiver.
    async fn admit(&self, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let raft = self.raft.as_ref().filter(|_| start.client_hello().server_name() == Some(RAFT_NAME));
        let Some(raft) = raft else {
            let stream = start.into_stream(Arc::clone(&self.config)).await?;
            let peer = identify(&stream, address);
            let place = match peer {
                Peer::Anonymous { .. } => {
                    let place = self.sources.take(address.ip(), Held::Stranger);
                    Some(place.ok_or_else(|| io::Error::other("too many connections without a certificate"))?)
                }
                _ => None,
            };
            drop(self.sender.send(Ok(PeerStream { stream, peer, _place: place })).await);
            return Ok(());
        };
        let mut stream = start.into_stream(Arc::clone(&self.raft_config)).await?;
        let peer = identify(&stream, address);
        if !matches!(peer, Peer::Node { role: Role::Manager, .. }) {
            return Err(io::Error::other("only a manager may connect for Raft"));
        }
        move_to(raft, &mut stream)?;
        drop(self.raft_sender.send(Ok(PeerStream { stream, peer, _place: None })).await);
        Ok(())
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

/// The peer, by the certificate that it presented.
fn identify(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Peer {
    let certificates = stream.get_ref().1.peer_certificates();
    // The handshake has verified the chain. A certificate without a node's subject identifies no node.
    match certificates.and_then(|chain| chain.first()).map(|leaf| read_subject(leaf)) {
        Some(Ok((id, role, _))) => Peer::Node { id, role, address },
        _ => Peer::Anonymous { address },
    }
}

#[cfg(test)]
mod tests;
