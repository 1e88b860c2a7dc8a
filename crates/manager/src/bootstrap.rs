//! The first entry of a new cluster: the cluster object and its first node. The daemon commits it when a cluster begins.

use rand::Rng;

use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{Cluster, Node, NodeDescription, Role, Secret};
use flota_api::version::Timestamp;
use flota_api::{FEATURE_LEVEL, VERSION};
use flota_identity::{GrantKey, RootCa, new_secret};
use flota_raft_store::{Transaction, View, WriteTx};

/// The node with which a cluster begins.
#[derive(Clone, Copy, Debug)]
pub struct FirstNode<'a> {
    /// The id in the node's certificate.
    pub id: &'a NodeId,
    /// The machine's host name.
    pub hostname: &'a str,
    /// `host:port` at which the other nodes reach it.
    pub address: &'a str,
}

/// Returns the transaction with which a cluster begins. `view` is a view of an empty store, `now` the wall clock's time.
pub fn first_entry(
    view: View,
    id: &ClusterId,
    ca: &RootCa,
    node: FirstNode<'_>,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Transaction {
    let mut tx = WriteTx::new(view, "");
    tx.create(Cluster {
        id: id.clone(),
        epoch: 1,
        feature_level: FEATURE_LEVEL,
        next_raft_id: 2,
        ca_certificate: ca.certificate().to_vec(),
        ca_key: Secret(ca.key().to_vec()),
        worker_token_secret: new_secret("", rng).into(),
        manager_token_secret: new_secret("", rng).into(),
        grant_key: Secret(GrantKey::generate()),
        ..Cluster::default()
    });
    tx.create(Node {
        id: node.id.clone(),
        role: Role::Manager,
        raft_id: Some(1),
        address: node.address.to_owned(),
        description: NodeDescription {
            hostname: node.hostname.to_owned(),
            program_version: VERSION.to_owned(),
            feature_level: FEATURE_LEVEL,
            ..NodeDescription::default()
        },
        state_since: now,
        ..Node::default()
    });
    tx.finish()
}
