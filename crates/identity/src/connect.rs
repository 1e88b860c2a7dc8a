//! Connections to other nodes. They use TLS with this node's certificate, or without one to renew it; for a node that joins,
//! TLS that trusts only the CA with a given digest. In simulations, where all nodes run in one process, [`Connect`]
//! replaces TCP and TLS.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring::default_provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::certificate::{MANAGER_NAME, NODE_NAME, RAFT_NAME};
use crate::credentials::{Credentials, client_builder, client_config};
use crate::refusal::{OTHER_CLUSTER, in_words};
use crate::sha256_hex;
use crate::user::UserIdentity;
use flota_api::clock::Clock;

/// A peer that does not answer a connection attempt or a ping within this time counts as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_secs(2);
/// Data of a stream that its receiver has not read yet, in bytes. This is what a slow reader costs in memory.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// Unread data of a whole connection, in bytes: the largest value (RFC 9113, section 6.9.1), so that only the window of
/// its own stream holds up a sender. With less, a few readers that wait would hold up the session of their node.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// A connection as a stream of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A connection attempt.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A replacement for TCP and TLS. The implementation must tell the accepting side who connects.
pub trait Connect: Send + Sync + 'static {
    /// Connects to the node at `address` (`host:port`).
    fn connect(&self, address: &str) -> Connecting;
}

/// Opens channels to other nodes with one node's credentials.
#[derive(Clone)]
pub struct Dialer {
    connector: Connector,
}

#[derive(Clone)]
enum Connector {
    /// With this node's certificate.
    Node(Credentials),
    /// Without a certificate, to a manager of the cluster of these credentials.
    Stranger(Credentials),
    /// With the certificate of a user.
    User(Arc<ClientConfig>),
    /// Without a certificate, to a cluster of which only the CA's digest is known.
    Join(Arc<ClientConfig>),
    Custom(Arc<dyn Connect>),
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

impl Dialer {
    /// Makes a dialer that presents the node's certificate and trusts its cluster's CAs, as the credentials have them when a
    /// connection is made.
    pub fn new(credentials: Credentials) -> Self {
        Self { connector: Connector::Node(credentials) }
    }

    /// Makes a dialer that presents no certificate, because it may have expired, and trusts the cluster's CAs.
    pub fn without_certificate(credentials: Credentials) -> Self {
        Self { connector: Connector::Stranger(credentials) }
    }

    /// Makes a dialer for a user, who connects to managers alone.
    ///
    /// # Errors
    /// The key does not match the certificate.
    pub fn for_user(user: &UserIdentity) -> Result<Self, rustls::Error> {
        Ok(Self { connector: Connector::User(user.client(&Clock::system())?) })
    }

    /// Makes a dialer for a node that joins: it presents no certificate, and trusts a manager whose CA has the SHA-256
    /// `ca_digest` (hexadecimal).
    pub fn to_join(ca_digest: &str) -> Self {
        let verifier = PinnedCa { digest: ca_digest.to_owned() };
        let config = client_builder(&Clock::system())
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Self { connector: Connector::Join(client_config(config)) }
    }

    /// Makes a dialer that connects with `connect` instead of TCP and TLS.
    pub fn through(connect: Arc<dyn Connect>) -> Self {
        Self { connector: Connector::Custom(connect) }
    }

    /// Returns a channel to the manager at `address` (`host:port`). It connects when it is first used, and accepts only a
    /// manager's certificate.
    pub fn manager(&self, address: &str) -> Channel {
        self.channel(address, MANAGER_NAME)
    }

    /// Returns a channel to the manager at `address` that carries only Raft messages.
    pub fn raft(&self, address: &str) -> Channel {
        self.channel(address, RAFT_NAME)
    }

    /// Returns a channel to the node at `address`, whatever its role.
    pub fn node(&self, address: &str) -> Channel {
        self.channel(address, NODE_NAME)
    }

    fn channel(&self, address: &str, name: &'static str) -> Channel {
        let (address, dialer): (Arc<str>, Self) = (address.into(), self.clone());
        let connect = move |_| {
            let (address, dialer) = (Arc::clone(&address), dialer.clone());
            async move { dialer.connect(&address, name).await.map(TokioIo::new) }
        };
        // The URI only fills the request's authority. The connector knows the address.
        Endpoint::from_static("http://flota")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(CONNECT_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector_lazy(tower::service_fn(connect))
    }

    /// Connects to the manager at `address` (`host:port`).
    ///
    /// # Errors
    /// Nothing answers there in time, or the other end is not a manager of the cluster.
    pub async fn connect_manager(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        self.connect(address, MANAGER_NAME).await
    }

    /// Connects to the node at `address`, and asks for `name`.
    pub(crate) async fn connect(&self, address: &str, name: &'static str) -> io::Result<Box<dyn Stream>> {
        let connecting = async {
            match &self.connector {
                Connector::Node(it) => connect_tls(address, Arc::clone(&it.settings().client), name).await,
                Connector::Stranger(it) => connect_tls(address, Arc::clone(&it.settings().stranger), name).await,
                Connector::User(config) | Connector::Join(config) => {
                    connect_tls(address, Arc::clone(config), name).await
                }
                Connector::Custom(connect) => connect.connect(address).await,
            }
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

async fn connect_tls(address: &str, config: Arc<ClientConfig>, name: &'static str) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(name).expect("the constant is a valid name");
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(TlsConnector::from(config).connect(name, stream).await.map_err(in_words)?))
}

/// Accepts a server whose chain contains the CA with the digest, and whose certificate was signed by that CA, or by one
/// that is replacing it and has a certificate signed by it.
#[derive(Debug)]
struct PinnedCa {
    digest: String,
}

impl PinnedCa {
    fn provider() -> CryptoProvider {
        default_provider()
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|it| sha256_hex(it) == self.digest) else {
            return Err(rustls::Error::General(OTHER_CLUSTER.into()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), Self::provider().into())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = Self::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = Self::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::provider().signature_verification_algorithms.supported_schemes()
    }
}
