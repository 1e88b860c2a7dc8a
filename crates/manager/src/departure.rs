//! How a node ends its membership: what a manager's departure must leave behind, and what every departure writes. Users
//! ask for it with `ctl node rm` (`control/nodes.rs`), and a node itself with `ctl swarm leave` (`ca.rs`).
//!
//! A manager that departs votes until Raft's membership no longer has it ([`crate::roles`]): with two managers, both must
//! agree on that change. The leader therefore waits for it before the manager learns of its removal.

use std::collections::BTreeSet;

use flota_api::defaults::{CERTIFICATE_LIFE, CLOCK_AHEAD};
use flota_api::id::NodeId;
use flota_api::model::{Node, NodeState, NodeStateReason, Revoked, Role};
use flota_api::version::Timestamp;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::raft::RaftNode;
use flota_raft_store::{Tables, WriteTx};

/// Why a manager can't depart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DepartureError {
    /// No other manager votes.
    #[error("it is the last manager: the cluster would be gone")]
    Last,
    /// Too few of the others answer the leader and have every entry.
    #[error(
        "of the {left} managers that it would leave behind, {needed} must answer and be up to date, and these do not: \
         {}; start them again, or remove them first with `ctl node rm --force`",
        silent.join(", ")
    )]
    NoMajority {
        /// Number of managers that stay.
        left: usize,
        /// Number of them that must answer.
        needed: usize,
        /// Hostnames of those that do not.
        silent: Vec<String>,
    },
}

/// The voters, as the leader knows them now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quorum {
    /// Raft ids of all voters.
    pub(crate) voters: BTreeSet<u64>,
    /// Raft ids of those that answer and have every entry.
    pub(crate) caught_up: BTreeSet<u64>,
}

impl Quorum {
    /// Asks the voters; takes up to 1 s if one of them does not answer.
    pub(crate) async fn of(raft: &RaftNode) -> Self {
        let voters = raft.members().into_iter().filter(|member| member.votes).map(|member| member.id).collect();
        Self { voters, caught_up: raft.caught_up_voters().await }
    }

    /// Whether the voters other than this one have a majority that answers and has every entry.
    pub(crate) fn goes_on_without(&self, raft_id: u64) -> bool {
        let left = self.voters.iter().filter(|id| **id != raft_id);
        let (left, caught_up) =
            left.fold((0, 0), |(left, caught_up), id| (left + 1, caught_up + usize::from(self.caught_up.contains(id))));
        caught_up > left / 2
    }
}

/// Returns the Raft ids of the managers that vote and stay if `node` departs.
///
/// # Errors
/// The managers that stay have no majority without it.
pub(crate) fn check(view: &Tables, quorum: &Quorum, node: &Node) -> Result<BTreeSet<u64>, DepartureError> {
    let votes = |it: &&std::sync::Arc<Node>| {
        it.role == Role::Manager && it.raft_id.is_some_and(|id| quorum.voters.contains(&id))
    };
    let others: Vec<_> = view.nodes().filter(votes).filter(|it| it.id != node.id).collect();
    let ids = || others.iter().filter_map(|it| it.raft_id).collect();
    if node.role != Role::Manager || !node.raft_id.is_some_and(|id| quorum.voters.contains(&id)) {
        return Ok(ids());
    }
    if others.is_empty() {
        return Err(DepartureError::Last);
    }
    let (left, needed) = (others.len(), others.len() / 2 + 1);
    let is_silent = |it: &&&std::sync::Arc<Node>| !it.raft_id.is_some_and(|id| quorum.caught_up.contains(&id));
    let silent: Vec<_> = others.iter().filter(is_silent).map(|it| it.description.hostname.clone()).collect();
    if left - silent.len() < needed && !faults::is_on(Fault::CarelessDeparture) {
        return Err(DepartureError::NoMajority { left, needed, silent });
    }
    Ok(ids())
}

/// Makes the node one that has left: it is no longer a manager, and its certificate opens nothing. `now` is the wall
/// clock's time, `since` that of the leader.
pub(crate) fn depart(tx: &mut WriteTx, view: &Tables, node: &Node, now: Timestamp, since: Timestamp) {
    // The Raft id stays, so that a retry knows what to wait for.
    tx.update(Node {
        role: Role::Worker,
        state: NodeState::Down,
        state_reason: Some(NodeStateReason::Left),
        state_since: since,
        ..node.clone()
    });
    revoke(tx, view, &node.id, now);
}

/// Revokes the node's certificate, which stays valid until it expires.
pub(crate) fn revoke(tx: &mut WriteTx, view: &Tables, node: &NodeId, now: Timestamp) {
    if let Some(cluster) = view.cluster() {
        let mut cluster = cluster.as_ref().clone();
        cluster.revoked.retain(|it| it.until + CLOCK_AHEAD > now && it.node_id != *node);
        let issued = view.node(node).into_iter().flat_map(|it| &it.certificates).map(|it| it.expires_at).max();
        // A build that recorded no certificates has issued none that lives longer than the default.
        let until = issued.unwrap_or(now + CERTIFICATE_LIFE).max(now + CERTIFICATE_LIFE);
        cluster.revoked.push(Revoked { node_id: node.clone(), until });
        tx.update(cluster);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::object::StoreObject;

    fn manager(raft_id: u64) -> Node {
        let id = NodeId::from(format!("m{raft_id}"));
        let mut node = Node { id: id.clone(), role: Role::Manager, raft_id: Some(raft_id), ..Node::default() };
        node.description.hostname = id.to_string();
        node
    }

    /// Result of the departure of manager 1, among managers with the Raft ids from 1 to `managers`.
    fn departure(managers: u64, voters: &[u64], caught_up: &[u64]) -> Result<Vec<u64>, DepartureError> {
        let mut view = Tables::default();
        (1..=managers).for_each(|id| view.put(manager(id).into_object()));
        let set = |ids: &[u64]| ids.iter().copied().collect();
        let quorum = Quorum { voters: set(voters), caught_up: set(caught_up) };
        check(&view, &quorum, &manager(1)).map(|left| left.into_iter().collect())
    }

    #[test]
    fn what_is_left_has_a_majority_that_answers() {
        let refused = |left, needed, silent: &[&str]| {
            let silent = silent.iter().map(ToString::to_string).collect();
            Err(DepartureError::NoMajority { left, needed, silent })
        };
        assert_eq!(departure(3, &[1, 2, 3], &[1, 2, 3]), Ok(vec![2, 3]));
        assert_eq!(departure(3, &[1, 2, 3], &[2, 3]), Ok(vec![2, 3]), "it is dead itself");
        assert_eq!(departure(3, &[1, 2, 3], &[1, 2]), refused(2, 2, &["m3"]));
        assert_eq!(departure(2, &[1, 2], &[1, 2]), Ok(vec![2]));
        assert_eq!(departure(5, &[1, 2, 3, 4, 5], &[1, 2, 3]), refused(4, 3, &["m4", "m5"]));
        assert_eq!(departure(4, &[1, 2, 3, 4], &[1, 2, 3]), Ok(vec![2, 3, 4]));
        assert_eq!(departure(1, &[1], &[1]), Err(DepartureError::Last));
    }

    #[test]
    fn a_removal_that_would_leave_no_majority_is_not_begun() {
        let without = |id: u64, voters: &[u64], caught_up: &[u64]| {
            let set = |ids: &[u64]| ids.iter().copied().collect();
            Quorum { voters: set(voters), caught_up: set(caught_up) }.goes_on_without(id)
        };
        assert!(without(3, &[1, 2, 3], &[1, 2]));
        assert!(!without(2, &[1, 2, 3], &[1, 2]), "of 1 and 3, one is dead");
        assert!(without(2, &[1, 2], &[1]));
        assert!(!without(1, &[1], &[1]), "nobody is left");
        assert!(!without(5, &[1, 2, 3, 4, 5], &[1, 2, 5]), "half is not more than half");
    }

    #[test]
    fn a_manager_that_does_not_vote_may_leave_and_one_that_has_left_is_not_counted() {
        assert_eq!(departure(2, &[2], &[2]), Ok(vec![2]), "a learner");
        assert_eq!(departure(2, &[1], &[1]), Err(DepartureError::Last), "the other one only learns");
        // Raft still has the voter 3, whose node is no longer a manager.
        assert_eq!(departure(2, &[1, 2, 3], &[1, 2, 3]), Ok(vec![2]));
    }
}
