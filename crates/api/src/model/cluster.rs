//! The cluster itself: its identity, keys and counters; and credentials of registries.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::Serialize;

use super::certificate::NodeCertificate;
use super::network::AddressPool;
use super::{seconds_or_zero, text_or_empty};
use crate::defaults::{CERTIFICATE_LIFE, RENEWAL_GRACE, TASK_HISTORY_LIMIT};
use crate::id::{ClusterId, NodeId, RegistryId};
use crate::resources::number_or_zero;
use crate::version::{Meta, Timestamp};

/// Bytes that must not be printed: `Debug` and `Serialize` print `[redacted]`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl Secret {
    /// Returns the secret as text; empty if it is not UTF-8.
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

/// A node that was removed, whose certificate is no longer accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// The node.
    pub node_id: NodeId,
    /// When the certificate expires.
    pub until: Timestamp,
}

/// The one object that describes the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Identifier of the cluster; the organisation in every certificate.
    pub id: ClusterId,
    /// Times and version.
    pub meta: Meta,
    /// Raised only by a restore; a worker refuses assignments of an older epoch.
    pub epoch: u64,
    /// The feature level that every manager supports.
    pub feature_level: u32,
    /// The Raft id that the next manager gets. No id is used twice.
    pub next_raft_id: u64,
    /// Certificate of the root CA, DER.
    pub ca_certificate: Vec<u8>,
    /// Private key of the root CA, PKCS#8 in DER.
    pub ca_key: Secret,
    /// Secret part of the join token for workers.
    pub worker_token_secret: Secret,
    /// Secret part of the join token for managers.
    pub manager_token_secret: Secret,
    /// When the join token for workers expires; `None` if it does not.
    #[serde(serialize_with = "text_or_empty")]
    pub worker_token_expires_at: Option<Timestamp>,
    /// When the join token for managers expires; `None` if it does not.
    #[serde(serialize_with = "text_or_empty")]
    pub manager_token_expires_at: Option<Timestamp>,
    /// Private key that signs image grants, Ed25519 in PKCS#8.
    pub grant_key: Secret,
    /// Nodes that were removed, until their certificates expire, and [`CLOCK_AHEAD`](crate::defaults::CLOCK_AHEAD) longer.
    pub revoked: Vec<Revoked>,
    /// Where networks get their subnets from; empty before the allocator has chosen the default.
    pub address_pools: Vec<AddressPool>,
    /// Whether programs can't gain privileges, as by setuid, if neither their service nor their node says so.
    pub no_new_privileges: bool,
    /// The rebalance that a user has asked for last.
    pub rebalance: Option<Rebalance>,
    /// Whether tasks move by themselves from nodes with many tasks to nodes that have come, or have come back.
    pub auto_rebalance: bool,
    /// Shortest period of the nodes' heartbeats; the default if `None`. In a large cluster it is longer.
    #[serde(serialize_with = "seconds_or_zero")]
    pub heartbeat: Option<Duration>,
    /// Number of missed heartbeats after which a node is down; the default if `None`.
    #[serde(serialize_with = "number_or_zero")]
    pub heartbeats_missed: Option<NonZeroU64>,
    /// Validity of the certificates that nodes get from now on; the default if `None`.
    #[serde(serialize_with = "seconds_or_zero")]
    pub certificate_life: Option<Duration>,
    /// How long a node can renew its certificate after that has expired; the default if `None`.
    #[serde(serialize_with = "seconds_or_zero")]
    pub renewal_grace: Option<Duration>,
    /// Certificates that made managers of nodes which were demoted since, until these expire, and
    /// [`CLOCK_AHEAD`](crate::defaults::CLOCK_AHEAD) longer. Their holders are workers.
    pub retired: Vec<NodeCertificate>,
    /// How long a manager may be down before another node replaces it; for ever if `None`.
    #[serde(serialize_with = "seconds_or_zero")]
    pub dead_manager_after: Option<Duration>,
    /// Number of tasks of each slot that are kept, the one that runs included; the default if `None`.
    #[serde(serialize_with = "number_or_zero")]
    pub task_history_limit: Option<NonZeroU64>,
    /// The replacement of the CA that goes on. `ca_certificate` and `ca_key` are those of the new one from its beginning.
    pub ca_rotation: Option<CaRotation>,
    /// Secret part of the key that opens the keys of locked managers; empty before the first.
    pub unlock_secret: Secret,
    /// Whether managers are locked after a start until they get the unlock key.
    pub autolock: bool,
}

impl Cluster {
    /// Returns the number of tasks of each slot that are kept.
    pub fn task_history_limit(&self) -> NonZeroU64 {
        self.task_history_limit.unwrap_or(TASK_HISTORY_LIMIT)
    }

    /// Returns the validity of a certificate that is issued now.
    pub fn certificate_life(&self) -> Duration {
        self.certificate_life.unwrap_or(CERTIFICATE_LIFE)
    }

    /// Returns how long a node can renew its certificate after that has expired.
    pub fn renewal_grace(&self) -> Duration {
        self.renewal_grace.unwrap_or(RENEWAL_GRACE)
    }

    /// Returns whether a certificate with this key no longer makes its node a manager, whatever is in it.
    pub fn is_retired(&self, key: &str) -> bool {
        self.retired.iter().any(|it| it.key == key)
    }
}

/// The replacement of the cluster's CA by another one, while it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaRotation {
    /// When it began, by the leader's wall clock.
    pub begun_at: Timestamp,
    /// Certificate of the CA that is replaced, DER. Every node trusts it until the rotation has ended.
    pub former_certificate: Vec<u8>,
    /// Private key of the CA that is replaced, PKCS#8 in DER. A second rotation needs it.
    pub former_key: Secret,
    /// Certificate of the new CA's key, signed by the CA that is replaced, DER. With it, nodes that trust only the former CA
    /// accept the new one.
    pub cross_certificate: Vec<u8>,
    /// Private key that takes the place of [`Cluster::grant_key`] at the end, Ed25519 in PKCS#8; empty if a manager does not
    /// know what that is.
    pub next_grant_key: Secret,
}

/// A rebalance that a user has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance {
    /// When it began, by the leader's clock.
    pub begun_at: Timestamp,
    /// Number of tasks that were told to move.
    pub moved: u64,
    /// When no task was left that should move; `None` while it goes on.
    pub ended_at: Option<Timestamp>,
}

/// Credentials for one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// Identifier of the object.
    pub id: RegistryId,
    /// Times and version.
    pub meta: Meta,
    /// Host of the registry, with its port if it has one.
    pub host: String,
    /// User name to log in with.
    pub username: String,
    /// Password or token to log in with.
    pub password: Secret,
}
