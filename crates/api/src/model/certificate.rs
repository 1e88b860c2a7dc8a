//! What the store knows of the certificates of nodes.

use serde::{Serialize, Serializer};

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

impl NodeCertificate {
    /// Stands for any certificate that the cluster has issued to the node and does not know any more, because it began anew
    /// from older tables. It expires by then.
    pub fn unknown(expires_at: Timestamp) -> Self {
        Self { key: String::new(), expires_at }
    }

    /// Returns whether it stands for any certificate of its node.
    pub fn is_unknown(&self) -> bool {
        self.key.is_empty()
    }
}

/// Serializes the certificates that are known.
pub(super) fn known_certificates<S: Serializer>(all: &[NodeCertificate], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(all.iter().filter(|it| !it.is_unknown()))
}
