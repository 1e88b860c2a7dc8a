//! The first entry of a new cluster: the cluster object and its first node. The daemon commits it when a cluster begins.

use std::time::Duration;

use ipnet::IpNet;
use rand::Rng;

use flota_api::defaults::FIRST_EPOCH;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{AddressPool, Cluster, Node, NodeCertificate, NodeDescription, Role, Secret};
use flota_api::version::Timestamp;
use flota_api::{FEATURE_LEVEL, VERSION};
use flota_identity::{GrantKey, RootCa, new_secret};
use flota_raft_store::{Transaction, View, WriteTx};

use crate::allocator::asked_pools;

/// Returns the address pools that a user names for a new cluster, with IPv4 subnets of this length.
///
/// # Errors
/// A prefix can't be used; the text says why.
pub fn address_pools(prefixes: &[String], subnet_length: u32) -> Result<Vec<AddressPool>, String> {
    let parse = |text: &String| text.parse::<IpNet>().map_err(|_| format!("`{}` is not a subnet", text.escape_debug()));
    let prefixes = prefixes.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let length = u8::try_from(subnet_length).map_err(|_| format!("{subnet_length} is not a length of a prefix"))?;
    asked_pools(&prefixes, if length == 0 { 24 } else { length })
}

/// The node with which a cluster begins.
#[derive(Clone, Copy, Debug)]
pub struct FirstNode<'a> {
    /// The id in the node's certificate.
    pub id: &'a NodeId,
    /// The machine's host name.
    pub hostname: &'a str,
    /// Its certificate, which the CA has issued.
    pub certificate: &'a NodeCertificate,
    /// `host:port` at which the other nodes reach it.
    pub address: &'a str,
    /// The cluster's address pools. The defaults are added for an address family without any.
    pub address_pools: &'a [AddressPool],
    /// Validity of the certificates that nodes get; the default if `None`.
    pub certificate_life: Option<Duration>,
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
    let mut tx = WriteTx::new(view, None);
    tx.create(Cluster {
        id: id.clone(),
        epoch: FIRST_EPOCH,
        feature_level: FEATURE_LEVEL,
        next_raft_id: 2,
        ca_certificate: ca.certificate().to_vec(),
        ca_key: Secret(ca.key().to_vec()),
        worker_token_secret: new_secret("", rng).into(),
        manager_token_secret: new_secret("", rng).into(),
        grant_key: Secret(GrantKey::generate()),
        address_pools: node.address_pools.to_vec(),
        certificate_life: node.certificate_life,
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
        certificates: vec![node.certificate.clone()],
        trusts: Some(ca.digest()),
        ..Node::default()
    });
    tx.finish()
}
