//! What the store knows of the certificates of nodes.

use serde::Serialize;

use crate::version::Timestamp;

/// A certificate that the cluster has issued to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCertificate {
    /// SHA-256 of its public key, in hexadecimal digits.
    pub key: String,
    /// When it expires.
    pub expires_at: Timestamp,
}
