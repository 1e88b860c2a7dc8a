//! A node's key pair and certificate, and what a certificate says.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate, X509Name};

use crate::sha256_hex;
use flota_api::defaults::CLOCK_SKEW;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{NodeCertificate, Role};
use flota_api::version::Timestamp;

/// Every node's certificate is valid for this name.
pub(crate) const NODE_NAME: &str = "node.flota";
/// Only managers' certificates are valid for this name.
pub(crate) const MANAGER_NAME: &str = "manager.flota";
/// Managers' certificates are valid for this name too. Connections that ask for it carry only Raft, and are served
/// separately.
pub(crate) const RAFT_NAME: &str = "raft.flota";
/// Organisational unit in the certificates of users.
pub(crate) const USER_UNIT: &str = "flota-user";
/// Organisational unit in the certificate of each role.
pub(crate) const UNITS: [(Role, &str); 2] = [(Role::Worker, "flota-worker"), (Role::Manager, "flota-manager")];

/// Why a certificate or a signing request can't be read or made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// The input is malformed.
    #[error("failed to read {what}: {why}")]
    Malformed {
        /// The item that could not be read.
        what: &'static str,
        /// The parser's error.
        why: String,
    },
    /// The library failed to create it.
    #[error("failed to make {what}: {why}")]
    Make {
        /// The item that could not be made.
        what: &'static str,
        /// The library's error.
        why: String,
    },
    /// The subject lacks a part that every node's certificate has.
    #[error("the certificate does not name its {0}")]
    Missing(&'static str),
}

/// A private key without a certificate.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    /// Generates a key (ECDSA P-256).
    ///
    /// # Errors
    /// The kernel provides no random bytes.
    pub fn generate() -> Result<Self, CertificateError> {
        let key = rcgen::KeyPair::generate();
        key.map(Self).map_err(|error| CertificateError::Make { what: "a key pair", why: error.to_string() })
    }

    /// Reads a key from PKCS#8 in DER.
    ///
    /// # Errors
    /// The bytes are not a key.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let key = rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(der));
        key.map(Self).map_err(|error| CertificateError::Malformed { what: "a key", why: error.to_string() })
    }

    /// Returns a signing request (PKCS#10, DER). Its subject is empty, because the CA decides what the certificate says.
    ///
    /// # Errors
    /// The library fails to encode it.
    pub fn signing_request(&self) -> Result<Vec<u8>, CertificateError> {
        let request = rcgen::CertificateParams::default().serialize_request(&self.0);
        let made = request.map_err(|error| CertificateError::Make { what: "a request", why: error.to_string() })?;
        Ok(made.der().to_vec())
    }

    /// Signs a message.
    ///
    /// # Errors
    /// The kernel provides no random bytes.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CertificateError> {
        let signed = rcgen::SigningKey::sign(&self.0, message);
        signed.map_err(|error| CertificateError::Make { what: "a signature", why: error.to_string() })
    }

    /// Returns the private key as PKCS#8 in DER.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.serialize_der()
    }
}

/// When a certificate was issued and when it expires, by the clock of the leader that signed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// When it was signed. It is valid from [`CLOCK_SKEW`] before that on.
    pub issued_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl Validity {
    /// Returns the time from the signature to the end.
    pub fn life(&self) -> Duration {
        self.issued_at.until(self.expires_at)
    }
}

/// The identity of a node: its certificate and key, and the CAs that it trusts.
#[derive(Clone)]
pub struct Identity {
    /// Id of the node (common name of the certificate).
    pub node_id: NodeId,
    /// Id of the cluster (organisation of the certificate).
    pub cluster_id: ClusterId,
    /// Role of the node (organisational unit of the certificate).
    pub role: Role,
    /// When the certificate was issued and when it expires.
    pub validity: Validity,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    /// Certificates of its CA that other CAs have signed. With them, a peer that trusts only one of those accepts it.
    pub(crate) intermediates: Vec<Vec<u8>>,
    /// Certificates of the CAs that it trusts. The first has signed its own certificate.
    pub(crate) trusted: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} {} of {})", self.role, self.node_id, self.cluster_id)
    }
}

impl Identity {
    /// Makes an identity from a certificate, its private key (PKCS#8) and the certificates of the trusted CAs, all DER. Does
    /// not verify that they belong together.
    ///
    /// # Errors
    /// The certificate is malformed, or its subject is not that of a node.
    pub fn new(certificate: Vec<u8>, key: Vec<u8>, trusted: Vec<Vec<u8>>) -> Result<Self, CertificateError> {
        let Subject { node_id, role, cluster_id, validity, .. } = Subject::read(&certificate)?;
        Ok(Self { node_id, cluster_id, role, validity, certificate, key, intermediates: Vec::new(), trusted })
    }

    /// Adds the certificates (DER) that lead from its CA to others. It presents them with its own.
    #[must_use]
    pub fn with_intermediates(self, intermediates: Vec<Vec<u8>>) -> Self {
        Self { intermediates, ..self }
    }

    /// Returns the digest that stands for the CAs that it trusts.
    pub fn trusts(&self) -> String {
        trust_digest(&self.trusted)
    }

    /// Returns the private key as PKCS#8 in DER.
    pub fn key_der(&self) -> Vec<u8> {
        self.key.clone()
    }

    /// Returns the certificate as the store knows it.
    ///
    /// # Errors
    /// The certificate is malformed.
    pub fn known_certificate(&self) -> Result<NodeCertificate, CertificateError> {
        known_certificate(&self.certificate)
    }

    /// Returns the chain that it presents. It includes the CAs, because a joining node looks for its own there.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let others = self.intermediates.iter().chain(&self.trusted);
        [&self.certificate].into_iter().chain(others).map(|der| der.clone().into()).collect()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    pub(crate) fn roots(&self) -> Result<rustls::RootCertStore, rustls::Error> {
        roots(&self.trusted)
    }
}

/// Returns the SHA-256 of these CA certificates (DER), one after the other, in hexadecimal digits. The CA that signed the
/// node's own certificate comes first. A node and the cluster compare this digest to find out whether they trust the same
/// CAs.
pub fn trust_digest(trusted: &[Vec<u8>]) -> String {
    sha256_hex(&trusted.concat())
}

/// Returns the CAs as the TLS library takes them.
pub(crate) fn roots(trusted: &[Vec<u8>]) -> Result<rustls::RootCertStore, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for ca in trusted {
        roots.add(ca.clone().into())?;
    }
    Ok(roots)
}

/// Returns what the store keeps of a certificate in DER.
///
/// # Errors
/// The certificate is malformed.
pub fn known_certificate(der: &[u8]) -> Result<NodeCertificate, CertificateError> {
    let Names { validity, public_key, .. } = Names::read(der)?;
    Ok(NodeCertificate { key: sha256_hex(&public_key), expires_at: validity.expires_at })
}

/// What every certificate of a cluster says.
#[derive(Debug)]
pub(crate) struct Names {
    /// Id of a node, or name of a user.
    pub(crate) common: String,
    pub(crate) unit: String,
    pub(crate) cluster_id: ClusterId,
    pub(crate) validity: Validity,
    /// The point of the elliptic curve (RFC 5480, section 2.2).
    pub(crate) public_key: Vec<u8>,
}

impl Names {
    /// Reads a certificate in DER. Verifies nothing.
    pub(crate) fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |why: String| CertificateError::Malformed { what: "a certificate", why };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        let subject: &X509Name<'_> = certificate.subject();
        let first = |text: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            text.and_then(|it| it.as_str().ok()).map(str::to_owned)
        };
        let common = first(subject.iter_common_name().next()).ok_or(CertificateError::Missing("node"))?;
        let unit = first(subject.iter_organizational_unit().next()).ok_or(CertificateError::Missing("role"))?;
        let cluster = first(subject.iter_organization().next()).ok_or(CertificateError::Missing("cluster"))?;
        let at = |time: ASN1Time| Timestamp(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1_000));
        let validity = certificate.validity();
        Ok(Self {
            common,
            unit,
            cluster_id: cluster.into(),
            validity: Validity { issued_at: at(validity.not_before) + CLOCK_SKEW, expires_at: at(validity.not_after) },
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

/// What the certificate of a node says.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) node_id: NodeId,
    pub(crate) role: Role,
    pub(crate) cluster_id: ClusterId,
    pub(crate) validity: Validity,
    pub(crate) public_key: Vec<u8>,
}

impl Subject {
    /// Reads a certificate in DER. Verifies nothing.
    ///
    /// # Errors
    /// It is malformed, or not that of a node.
    pub(crate) fn read(der: &[u8]) -> Result<Self, CertificateError> {
        Self::of(Names::read(der)?)
    }

    /// Takes the names for those of a node.
    ///
    /// # Errors
    /// They are not those of a node.
    pub(crate) fn of(names: Names) -> Result<Self, CertificateError> {
        let Names { common, unit, cluster_id, validity, public_key } = names;
        let role = UNITS.iter().find(|(_, name)| *name == unit).map(|(role, _)| *role);
        let role = role.ok_or(CertificateError::Missing("role"))?;
        Ok(Self { node_id: common.into(), role, cluster_id, validity, public_key })
    }
}

/// Splits certificates in DER that follow each other.
pub(crate) fn split(mut der: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let malformed = |why: String| CertificateError::Malformed { what: "the CA's certificate", why };
        let (rest, _) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        found.push(der[..der.len() - rest.len()].to_vec());
        der = rest;
    }
    Ok(found)
}
