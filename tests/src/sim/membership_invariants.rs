//! What holds at every moment of the set of managers and of the CA: no manager is demoted or leaves if those that stay have no
//! majority that works, and the former CA counts until every node has confirmed the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::NodeId;
use flota_api::model::{Cluster, Node};
use flota_identity::trust_digest;
use flota_raft_store::View;

use super::cluster::SimCluster;
use super::host::Host;
use super::violation::{Kind, Violation};

/// How long a manager must have been down for the leader to know it, in milliseconds.
const KNOWN_AFTER: u64 = 3_000;

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub(super) struct MembershipInvariants {
    /// Since when managers are down or paused.
    down: BTreeMap<Host, u64>,
    managers: BTreeSet<NodeId>,
    cluster: Option<Arc<Cluster>>,
}

impl MembershipInvariants {
    /// Notes which managers do not work.
    pub(super) fn note_down(&mut self, cluster: &SimCluster) {
        let now = cluster.world.now();
        for host in cluster.managers.iter().map(|it| it.host) {
            if cluster.world.is_up(host) && !cluster.world.is_paused(host) {
                self.down.remove(&host);
            } else {
                self.down.entry(host).or_insert(now);
            }
        }
    }

    /// Checks what a newer version of the store has.
    pub(super) fn check_tables(&mut self, cluster: &SimCluster, view: &View) -> Result<(), Violation> {
        let managers: BTreeSet<NodeId> = view.managers().map(|node| node.id.clone()).collect();
        let before = std::mem::replace(&mut self.managers, managers);
        if let Some(gone) = before.difference(&self.managers).next() {
            self.check_majority(cluster, gone)?;
        }
        let before = std::mem::replace(&mut self.cluster, view.cluster().cloned());
        match (before, &self.cluster) {
            (Some(before), Some(now)) => check_ca(&before, now, view),
            _ => Ok(()),
        }
    }

    /// Checks that a majority of the managers that stay works when a manager is removed or demoted.
    fn check_majority(&self, cluster: &SimCluster, gone: &NodeId) -> Result<(), Violation> {
        let now = cluster.world.now();
        let stays = cluster.members().filter(|it| self.managers.contains(&it.node_id));
        let is_dead = |host: &Host| self.down.get(host).is_some_and(|since| now - since > KNOWN_AFTER);
        let (dead, work): (Vec<Host>, Vec<Host>) = stays.map(|it| it.host).partition(is_dead);
        if work.len() <= dead.len() {
            let text =
                format!("{gone} is not a manager any more, and of those that stay, {dead:?} are dead, {work:?} work");
            return Err(Kind::NoMajority.because(text));
        }
        Ok(())
    }
}

/// The former CA counts until all nodes have confirmed the new one, and then join tokens of it count for nothing.
fn check_ca(before: &Cluster, now: &Cluster, view: &View) -> Result<(), Violation> {
    let Some(rotation) = before.ca_rotation.as_ref().filter(|_| now.ca_rotation.is_none()) else { return Ok(()) };
    let both = Some(trust_digest(&[before.ca_certificate.clone(), rotation.former_certificate.clone()]));
    let lacks = |node: &&Arc<Node>| !node.has_left() && node.trusts != both;
    if let Some(node) = view.nodes().find(lacks) {
        let text = format!("the former CA counts for nothing, and a node has confirmed {:?}: {node:?}", node.trusts);
        return Err(Kind::CaTooEarly.because(text));
    }
    if before.worker_token_secret == now.worker_token_secret {
        return Err(Kind::CaTooEarly.because("the join tokens outlive the CA that they name"));
    }
    Ok(())
}
