//! The feature level that the cluster uses. A build that does not support it would apply entries without what it does not
//! know, and differ from the other managers for ever, so it stops instead. It loses nothing: a newer build goes on from there.

use flota_api::FEATURE_LEVEL;
use flota_api::model::Cluster;

/// The cluster uses a feature level that this build does not support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster uses feature level {0}, and this build supports level {FEATURE_LEVEL}: install a newer build on this \
     machine; nothing is lost"
)]
pub struct NewerLevel(u32);

/// Checks that this build supports the level in use.
pub(crate) fn check(cluster: &Cluster) -> Result<(), NewerLevel> {
    if cluster.feature_level > FEATURE_LEVEL { Err(NewerLevel(cluster.feature_level)) } else { Ok(()) }
}
