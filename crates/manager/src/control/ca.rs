//! The cluster's CA: what nodes trust, and its replacement by another one.

use std::sync::Arc;

use flota_api::LEVEL_OF_KEYS;
use flota_api::model::{Cluster, Node, Secret};
use flota_api::version::Timestamp;
use flota_identity::{GrantKey, RootCa};
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use super::{Control, Member};
use crate::level;
use crate::trust::{self, NextKeys};

/// Most nodes that an answer names.
const NAMED: usize = 100;

/// The CAs that nodes trust.
#[derive(Clone, Debug)]
pub(crate) struct CaSummary {
    /// Their certificates in DER; the first signs.
    pub(crate) trusted: Vec<Vec<u8>>,
    /// How far the nodes are, while the CA is replaced.
    pub(crate) progress: Option<RotationProgress>,
}

/// How far the nodes are with the replacement of the CA.
#[derive(Clone, Debug)]
pub(crate) struct RotationProgress {
    /// When it began.
    pub(crate) begun_at: Timestamp,
    /// Number of nodes in the cluster.
    pub(crate) nodes: usize,
    /// Number of nodes that use the new CA.
    pub(crate) renewed: usize,
    /// Some of the other nodes.
    pub(crate) waiting: Vec<Arc<Node>>,
}

/// A CA that a user gives, in PEM.
#[derive(Clone, Copy)]
pub(crate) struct GivenPem<'a> {
    /// Its certificate.
    pub(crate) certificate: &'a str,
    /// Its key.
    pub(crate) key: &'a str,
}

fn summary(view: &Tables) -> Result<CaSummary, ControlError> {
    let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?;
    let progress = cluster.ca_rotation.as_ref().map(|rotation| {
        let nodes = view.nodes().filter(|node| !node.has_left()).count();
        let waiting: Vec<_> = trust::waiting(view, cluster).collect();
        RotationProgress {
            begun_at: rotation.begun_at,
            nodes,
            renewed: nodes - waiting.len(),
            waiting: waiting.into_iter().take(NAMED).cloned().collect(),
        }
    });
    Ok(CaSummary { trusted: trust::trusted(cluster), progress })
}

impl<M: Member> Control<M> {
    /// Returns the CAs that nodes trust.
    pub(crate) async fn get_ca(&self) -> Result<CaSummary, ControlError> {
        summary(&*self.proven_view().await?)
    }

    /// Begins to replace the CA, by the given one or else by a new one.
    pub(crate) async fn rotate_ca(
        &self,
        request_id: Option<&str>,
        given: Option<GivenPem<'_>>,
    ) -> Result<CaSummary, ControlError> {
        let now = self.clock.wall().now();
        let next = match given {
            Some(pem) => RootCa::from_pem(pem.certificate, pem.key, now.to_system())
                .map_err(|error| ControlError::invalid("ca", error))?,
            None => {
                let view = self.proven_view().await?;
                let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?;
                RootCa::generate(&cluster.id, now.to_system()).map_err(|error| ControlError::invalid("ca", error))?
            }
        };
        let rotated = self.write_once(request_id, |view| {
            let cluster = view.cluster().ok_or(ControlError::NoClusterYet)?;
            // While a manager is of a build that does not know the next grant key, the present one stays.
            let level = level::raised(&view, LEVEL_OF_KEYS).ok();
            let grant_key = Secret(level.map(|_| GrantKey::generate()).unwrap_or_default());
            let keys = NextKeys { ca: &next, grant_key: &grant_key };
            let begun = trust::begin(cluster, keys, now).map_err(|error| ControlError::invalid("ca", error))?;
            let begun = Cluster { feature_level: level.unwrap_or(cluster.feature_level), ..begun };
            let mut tx = WriteTx::new(view, request_id);
            tx.update(begun);
            Ok((tx.finish(), ()))
        });
        rotated.await?;
        self.read(|view| summary(view)).await
    }
}
