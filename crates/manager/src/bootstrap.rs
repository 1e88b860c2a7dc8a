//! The first entry of a new cluster: the cluster object and its first node.

use rand::Rng;

use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{Cluster, Node, NodeDescription, Role, Secret};
use flota_api::version::Timestamp;
use flota_api::{FEATURE_LEVEL, VERSION};
use flota_identity::{GrantKey, RootCa, new_secret};
use flota_raft_store::{Transaction, View, WriteTx};

/// Makes the transaction with which a cluster begins. `view` is that of an empty store; `now` is the wall clock's.
pub fn first_entry(
    view: View,
    id: &ClusterId,
    ca: &RootCa,
    node: (&NodeId, &str, &str),
    now: Timestamp,
    rng: &mut impl Rng,
) -> Transaction {
    let (node_id, hostname, address) = node;
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
        id: node_id.clone(),
        role: Role::Manager,
        raft_id: Some(1),
        address: address.to_owned(),
        description: NodeDescription {
            hostname: hostname.to_owned(),
            program_version: VERSION.to_owned(),
            feature_level: FEATURE_LEVEL,
            ..NodeDescription::default()
        },
        state_since: now,
        ..Node::default()
    });
    tx.finish()
}
