//! Incoming TLS connections, each with the identity of the peer. Handshakes run concurrently and with a time limit, so
//! that a slow or silent caller delays nobody.

use std::io;
use std::net::SocketAddr;
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
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::certificate::{Identity, RAFT_NAME, read_subject};
use crate::peer::Peer;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest number of concurrent handshakes; further connections wait in the kernel's queue.
const HANDSHAKES: usize = 256;

/// A TLS connection with the identity of its peer.
#[derive(Debug)]
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
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

fn server_config(identity: &Identity) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots()?.into(), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A channel of accepted connections.
pub type Incoming = mpsc::Receiver<io::Result<PeerStream>>;

/// Accepts connections on `listener` until the first receiver is dropped. Returns two receivers: connections for Raft
/// (those that ask for the name `raft.flota`) arrive at the second one, all others at the first. If `raft` is given, the
/// handshakes and I/O of Raft's connections run on that runtime, so that nothing else delays them; otherwise all
/// connections arrive at the first receiver.
///
/// # Errors
/// The identity's key does not match its certificate.
pub fn incoming(
    listener: TcpListener,
    identity: &Identity,
    raft: Option<Handle>,
) -> Result<(Incoming, Incoming), rustls::Error> {
    let config = Arc::new(server_config(identity)?);
    let (sender, receiver) = mpsc::channel(16);
    let (raft_sender, raft_receiver) = mpsc::channel(16);
    let handshakes = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let permit = Arc::clone(&handshakes).acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let Ok((stream, address)) = accepted else {
                // For example out of descriptors: trying again at once would only burn CPU.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (config, raft) = (Arc::clone(&config), raft.clone());
            let (sender, raft_sender) = (sender.clone(), raft_sender.clone());
            tokio::spawn(async move {
                let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, async {
                    stream.set_nodelay(true)?;
                    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
                    match raft.filter(|_| start.client_hello().server_name() == Some(RAFT_NAME)) {
                        Some(raft) => finish_on(&raft, start, config, address, raft_sender),
                        None => finish(start, config, address, sender).await,
                    }
                });
                match handshake.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
                }
                drop(permit);
            });
        }
    });
    Ok((receiver, raft_receiver))
}

type Outgoing = mpsc::Sender<io::Result<PeerStream>>;

/// Completes a handshake and hands the connection to `sender`.
async fn finish(
    start: StartHandshake<TcpStream>,
    config: Arc<ServerConfig>,
    address: SocketAddr,
    sender: Outgoing,
) -> io::Result<()> {
    let stream = start.into_stream(config).await?;
    let peer = identify(&stream, address);
    drop(sender.send(Ok(PeerStream { stream, peer })).await);
    Ok(())
}

/// Completes a handshake on another runtime, which then also drives the connection's I/O.
fn finish_on(
    runtime: &Handle,
    start: StartHandshake<TcpStream>,
    config: Arc<ServerConfig>,
    address: SocketAddr,
    sender: Outgoing,
) -> io::Result<()> {
    let (accepted, socket) = (start.accepted, start.io.into_std()?);
    runtime.spawn(async move {
        let handshake = async {
            let start = StartHandshake::from_parts(accepted, TcpStream::from_std(socket)?);
            finish(start, config, address, sender).await
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
        }
    });
    Ok(())
}

/// The peer, by the certificate that it presented.
fn identify(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Peer {
    let certificates = stream.get_ref().1.peer_certificates();
    // The handshake has verified the chain. A certificate without a node's subject identifies nobody.
    match certificates.and_then(|chain| chain.first()).map(|leaf| read_subject(leaf)) {
        Some(Ok((id, role, _))) => Peer::Node { id, role, address },
        _ => Peer::Anonymous { address },
    }
}
