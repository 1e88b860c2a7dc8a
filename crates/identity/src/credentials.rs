//! The identity that a node uses now, and the TLS settings that follow from it. Listener, dialers and Raft share one
//! [`Credentials`], and look into it for each new connection, so that a renewed certificate is in use at once. Connections
//! that are open go on with the certificate with which they were made.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::UnixTime;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use flota_api::clock::Clock;

use crate::certificate::Identity;

/// The identity in use. Clones share it.
#[derive(Clone)]
pub struct Credentials {
    clock: Clock,
    current: Arc<watch::Sender<Arc<Settings>>>,
}

/// An identity with its TLS settings, which can be put to use.
pub struct Settings {
    pub(crate) identity: Identity,
    /// For a connection to another node, with this node's certificate.
    pub(crate) client: Arc<ClientConfig>,
    /// For a connection to a manager without a certificate, which may have expired by the manager's clock.
    pub(crate) stranger: Arc<ClientConfig>,
    /// For a connection of a caller who may have no certificate.
    pub(crate) server: Arc<ServerConfig>,
    /// For a connection that carries Raft.
    pub(crate) raft: Arc<ServerConfig>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?})", self.settings().identity)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({:?})", self.identity)
    }
}

impl Settings {
    /// Returns the identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Credentials {
    /// Makes credentials that use `identity`. The certificates of others are checked against the time of `clock`.
    ///
    /// # Errors
    /// The identity's key does not match its certificate.
    pub fn new(identity: Identity, clock: Clock) -> Result<Self, rustls::Error> {
        let settings = Settings::new(identity, &clock)?;
        Ok(Self { clock, current: Arc::new(watch::Sender::new(Arc::new(settings))) })
    }

    /// Makes the TLS settings for another identity, and changes nothing.
    ///
    /// # Errors
    /// The identity's key does not match its certificate.
    pub fn prepare(&self, identity: Identity) -> Result<Settings, rustls::Error> {
        Settings::new(identity, &self.clock)
    }

    /// Makes every connection from now on use another identity.
    pub fn install(&self, settings: Settings) {
        self.current.send_replace(Arc::new(settings));
    }

    /// Watches for other identities that come into use.
    pub fn changes(&self) -> watch::Receiver<Arc<Settings>> {
        self.current.subscribe()
    }

    /// Returns the identity in use.
    pub fn identity(&self) -> Identity {
        self.settings().identity.clone()
    }

    /// Returns the clock against which certificates are checked.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.current.borrow())
    }
}

/// Whether a connection needs a node's certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientCertificate {
    Optional,
    Mandatory,
}

impl Settings {
    fn new(identity: Identity, clock: &Clock) -> Result<Self, rustls::Error> {
        let client = client_builder(clock).with_root_certificates(identity.roots()?);
        let stranger = client.clone().with_no_client_auth();
        let client = client.with_client_auth_cert(identity.chain(), identity.private_key())?;
        Ok(Self {
            client: client_config(client),
            stranger: client_config(stranger),
            server: server_config(&identity, ClientCertificate::Optional, clock)?,
            raft: server_config(&identity, ClientCertificate::Mandatory, clock)?,
            identity,
        })
    }
}

/// Begins the settings of a client.
pub(crate) fn client_builder(clock: &Clock) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_details(default_provider().into(), Arc::new(TlsTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider supports TLS 1.3")
}

/// Completes the settings of a client.
pub(crate) fn client_config(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session skips the check of certificates, so an expired one stays accepted.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn server_config(
    identity: &Identity,
    certificate: ClientCertificate,
    clock: &Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots()?.into(), Arc::clone(&provider));
    let verifier = match certificate {
        ClientCertificate::Optional => verifier.allow_unauthenticated(),
        ClientCertificate::Mandatory => verifier,
    };
    let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(TlsTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // As for clients.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The clock as the TLS library takes it.
#[derive(Debug)]
struct TlsTime(Clock);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.0.now().0)))
    }
}
