//! A node's key pair and certificate, and what a certificate says.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use flota_api::id::{ClusterId, NodeId};
use flota_api::model::Role;

/// Every node's certificate is good for this name.
pub(crate) const NODE_NAME: &str = "node.flota";
/// Only managers' certificates are good for this name.
pub(crate) const MANAGER_NAME: &str = "manager.flota";
/// A manager's too: connections that ask for it carry Raft alone, and are served apart.
pub(crate) const RAFT_NAME: &str = "raft.flota";
/// Units, as they stand in certificates.
pub(crate) const UNITS: [(Role, &str); 2] = [(Role::Worker, "flota-worker"), (Role::Manager, "flota-manager")];

/// Why a certificate or a signing request is no good.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// It is not well formed.
    #[error("failed to read {what}: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// It could not be made.
    #[error("failed to make {what}: {why}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// It lacks what every node's certificate says.
    #[error("the certificate does not name its {0}")]
    Missing(&'static str),
}

/// A private key that has no certificate yet.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    /// A new one (ECDSA P-256).
    ///
    /// # Errors
    /// The machine has no random bytes.
    pub fn generate() -> Result<Self, CertificateError> {
        let key = rcgen::KeyPair::generate();
        key.map(Self).map_err(|error| CertificateError::Make { what: "a key pair", why: error.to_string() })
    }

    /// A signing request (PKCS#10, DER). Its subject is not looked at: the CA decides what stands in the certificate.
    ///
    /// # Errors
    /// The library refuses.
    pub fn signing_request(&self) -> Result<Vec<u8>, CertificateError> {
        let request = rcgen::CertificateParams::default().serialize_request(&self.0);
        let made = request.map_err(|error| CertificateError::Make { what: "a request", why: error.to_string() })?;
        Ok(made.der().to_vec())
    }

    /// The private key, PKCS#8, DER.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.serialize_der()
    }
}

/// Who a node is: its certificate with its key, and the CA that it trusts.
#[derive(Clone)]
pub struct Identity {
    /// Common name of the certificate.
    pub node_id: NodeId,
    /// Organisation of the certificate.
    pub cluster_id: ClusterId,
    /// Unit of the certificate.
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
    /// From a certificate, its private key and the CA's certificate, all DER.
    ///
    /// # Errors
    /// The certificate is not one of a node.
    pub fn new(certificate: Vec<u8>, key: Vec<u8>, ca: Vec<u8>) -> Result<Self, CertificateError> {
        let (node_id, role, cluster_id) = read_subject(&certificate)?;
        Ok(Self { node_id, cluster_id, role, certificate, key, ca })
    }

    /// Leaf and CA, as a server presents them: a joining node looks for the CA among them.
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

/// What the subject of a node's certificate says.
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
