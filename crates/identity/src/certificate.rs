//! A node's key pair and certificate, and the subject that a certificate names.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use flota_api::id::{ClusterId, NodeId};
use flota_api::model::Role;

/// Every node's certificate is valid for this name.
pub(crate) const NODE_NAME: &str = "node.flota";
/// Only managers' certificates are valid for this name.
pub(crate) const MANAGER_NAME: &str = "manager.flota";
/// Managers' certificates are valid for this name too. Connections that ask for it carry only Raft, and are served
/// separately.
pub(crate) const RAFT_NAME: &str = "raft.flota";
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

    /// Returns a signing request (PKCS#10, DER). Its subject is empty, because the CA decides what the certificate says.
    ///
    /// # Errors
    /// The library fails to encode it.
    pub fn signing_request(&self) -> Result<Vec<u8>, CertificateError> {
        let request = rcgen::CertificateParams::default().serialize_request(&self.0);
        let made = request.map_err(|error| CertificateError::Make { what: "a request", why: error.to_string() })?;
        Ok(made.der().to_vec())
    }

    /// Returns the private key as PKCS#8 in DER.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.serialize_der()
    }
}

/// The identity of a node: its certificate and key, and the CA that it trusts.
#[derive(Clone)]
pub struct Identity {
    /// Id of the node (common name of the certificate).
    pub node_id: NodeId,
    /// Id of the cluster (organisation of the certificate).
    pub cluster_id: ClusterId,
    /// Role of the node (organisational unit of the certificate).
    pub role: Role,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) ca: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} {} of {})", self.role, self.node_id, self.cluster_id)
    }
}

impl Identity {
    /// Makes an identity from a certificate, its private key (PKCS#8) and the CA's certificate, all DER. Does not verify
    /// that they belong together.
    ///
    /// # Errors
    /// The certificate is malformed, or its subject is not that of a node.
    pub fn new(certificate: Vec<u8>, key: Vec<u8>, ca: Vec<u8>) -> Result<Self, CertificateError> {
        let (node_id, role, cluster_id) = read_subject(&certificate)?;
        Ok(Self { node_id, cluster_id, role, certificate, key, ca })
    }

    /// Returns the chain that a server presents. It includes the CA, because a joining node looks for it there.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone().into(), self.ca.clone().into()]
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    pub(crate) fn roots(&self) -> Result<rustls::RootCertStore, rustls::Error> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone().into())?;
        Ok(roots)
    }
}

/// Returns node, role and cluster from the subject of a certificate.
pub(crate) fn read_subject(der: &[u8]) -> Result<(NodeId, Role, ClusterId), CertificateError> {
    let malformed = |why: String| CertificateError::Malformed { what: "a certificate", why };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    let subject: &X509Name<'_> = certificate.subject();
    let first = |text: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        text.and_then(|it| it.as_str().ok()).map(str::to_owned)
    };
    let node = first(subject.iter_common_name().next()).ok_or(CertificateError::Missing("node"))?;
    let unit = first(subject.iter_organizational_unit().next()).ok_or(CertificateError::Missing("role"))?;
    let cluster = first(subject.iter_organization().next()).ok_or(CertificateError::Missing("cluster"))?;
    let role = UNITS.iter().find(|(_, name)| *name == unit).map(|(role, _)| *role);
    Ok((node.into(), role.ok_or(CertificateError::Missing("role"))?, cluster.into()))
}
