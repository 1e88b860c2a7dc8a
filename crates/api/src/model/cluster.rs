//! The cluster itself: its identity, its keys, its counters; and the credentials of registries.

use std::fmt;

use serde::Serialize;

use crate::id::{ClusterId, NodeId, RegistryId};
use crate::version::{Meta, Timestamp};

/// Bytes that must not be printed: `Debug` and `Serialize` say `[redacted]`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl Secret {
    /// As text; empty where it is none.
    pub fn as_text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[redacted]")
    }
}

/// A node that was removed: its certificate opens nothing any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Whose.
    pub node_id: NodeId,
    /// When the certificate has run out by itself.
    pub until: Timestamp,
}

/// The one object that describes the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Of the cluster; the organisation in every certificate.
    pub id: ClusterId,
    /// Times and version.
    pub meta: Meta,
    /// Raised by a restore only; a worker refuses assignments of an older one.
    pub epoch: u64,
    /// The level that every manager speaks.
    pub feature_level: u32,
    /// The next Raft id that will be given; never given twice.
    pub next_raft_id: u64,
    /// DER.
    pub ca_certificate: Vec<u8>,
    /// PKCS#8, DER.
    pub ca_key: Secret,
    /// The secret half of the workers' join token.
    pub worker_token_secret: Secret,
    /// The secret half of the managers' join token.
    pub manager_token_secret: Secret,
    /// Ed25519, PKCS#8: signs image grants.
    pub grant_key: Secret,
    /// Nodes that were removed, until their certificates have run out.
    pub revoked: Vec<Revoked>,
}

/// Credentials for one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// Of the object.
    pub id: RegistryId,
    /// Times and version.
    pub meta: Meta,
    /// `registry.example.com`, with a port where it has one.
    pub host: String,
    /// Who logs in.
    pub username: String,
    /// With what.
    pub password: Secret,
}
