//! How a node changes its role: which may become a manager, what a promotion and a demotion write, and how far a node is
//! from its role. Users ask for it with `ctl node promote` and `demote` (`control/roles.rs`); the leader replaces dead
//! managers ([`crate::roles`]). Nothing here acts.
//!
//! A promoted node gets a certificate of a manager and asks for a Raft id; [`crate::roles`] then makes it a voter once it has
//! caught up. A demoted one votes until Raft's membership no longer has it, and has no other rights of a manager meanwhile
//! ([`crate::rights`]).

use std::sync::Arc;
use std::time::Duration;

use flota_api::defaults::CLOCK_AHEAD;
use flota_api::model::{Availability, Node, NodeState, Role, RoleChange};
use flota_api::version::Timestamp;
use flota_raft_store::raft::Member;
use flota_raft_store::{Tables, WriteTx};

use crate::departure::{self, Quorum};

/// Why a node can't become a manager now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PromotionError {
    /// It has no session, so it can't take over what managers have.
    #[error("it is {0}, and only a node that is ready can follow")]
    NotReady(NodeState),
    /// Its build does not know what the cluster's entries may hold.
    #[error("{0}")]
    Outdated(#[from] Outdated),
    /// It was a manager until a moment ago.
    #[error("it was a manager, and has not yet erased what managers have; try again in a moment")]
    Demoting,
}

/// A build is older than a manager of the cluster may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its build supports feature level {supported}, and the cluster uses {used}: install a newer one there, as the other \
     managers have"
)]
pub(crate) struct Outdated {
    supported: u32,
    used: u32,
}

impl Outdated {
    /// Checks the level that the build of a manager, or of a node that is to be one, supports.
    pub(crate) fn check(view: &Tables, supported: u32) -> Result<(), Self> {
        let used = view.cluster().map_or(0, |cluster| cluster.feature_level);
        if supported < used { Err(Self { supported, used }) } else { Ok(()) }
    }
}

/// Returns how far the node is from its role; `None` if it has taken it. `members` are those of Raft.
pub(crate) fn role_change(view: &Tables, node: &Node, members: &[Member]) -> Option<RoleChange> {
    let member = members.iter().find(|member| Some(member.id) == node.raft_id);
    match node.role {
        Role::Manager if member.is_some_and(|it| it.votes) => None,
        Role::Manager => Some(RoleChange::Promoting),
        Role::Worker if node.has_left() => None,
        Role::Worker if member.is_some() || holds_retired(view, node) => Some(RoleChange::Demoting),
        Role::Worker => None,
    }
}

/// Whether the newest certificate of the node is one that made it a manager. A node that was demoted gets another one before
/// it erases its copy of the store.
fn holds_retired(view: &Tables, node: &Node) -> bool {
    let newest = node.certificates.last();
    view.cluster().zip(newest).is_some_and(|(cluster, newest)| cluster.is_retired(&newest.key))
}

/// Checks that the node can become a manager. `members` are those of Raft.
pub(crate) fn check(view: &Tables, node: &Node, members: &[Member]) -> Result<(), PromotionError> {
    if node.state != NodeState::Ready {
        return Err(PromotionError::NotReady(node.state));
    }
    Outdated::check(view, node.description.feature_level)?;
    match role_change(view, node, members) {
        Some(RoleChange::Demoting) => Err(PromotionError::Demoting),
        _ => Ok(()),
    }
}

/// Makes the node a manager. It gets a new Raft id when it asks for one.
pub(crate) fn promote(tx: &mut WriteTx, node: &Node) {
    tx.update(Node { role: Role::Manager, raft_id: None, ..node.clone() });
}

/// Makes the manager a worker. Its certificates, which say otherwise, are retired. `now` is the wall clock's time.
pub(crate) fn demote(tx: &mut WriteTx, view: &Tables, node: &Node, now: Timestamp) {
    // The Raft id stays, so that it can be seen when the membership has it no more.
    tx.update(Node { role: Role::Worker, ..node.clone() });
    if let Some(cluster) = view.cluster() {
        let mut cluster = cluster.as_ref().clone();
        cluster.retired.retain(|it| it.expires_at + CLOCK_AHEAD > now && !node.certificates.contains(it));
        cluster.retired.extend(node.certificates.iter().filter(|it| !it.is_unknown()).cloned());
        tx.update(cluster);
    }
}

/// A dead manager, and the node that takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replacement {
    /// The manager that is down.
    pub(crate) dead: Arc<Node>,
    /// The worker that becomes a manager.
    pub(crate) by: Arc<Node>,
}

/// Returns the replacement that is due. A manager that `answers` by its Raft id is not dead, whatever its session is like.
/// `now` is the time of the leader. At most one replacement is under way at a time.
pub(crate) fn replacement(
    view: &Tables,
    members: &[Member],
    answers: impl Fn(u64) -> bool,
    now: Timestamp,
) -> Option<Replacement> {
    let after = view.cluster()?.dead_manager_after?;
    let is_down = |node: &Node| node.state == NodeState::Down;
    let votes = |node: &Node| members.iter().any(|member| member.votes && Some(member.id) == node.raft_id);
    if view.managers().any(|node| !is_down(node) && !votes(node)) {
        return None;
    }
    let is_dead = |node: &&Arc<Node>| {
        is_down(node) && node.state_since.until(now) >= after && !node.raft_id.is_some_and(&answers)
    };
    let dead = view.managers().filter(is_dead).min_by_key(|node| (node.state_since, node.id.clone()))?;
    let may_manage = |node: &&Arc<Node>| {
        node.role == Role::Worker
            && node.spec.manager_candidate
            && node.spec.availability != Availability::Drain
            && check(view, node, members).is_ok()
    };
    // The one that has been ready for the longest time.
    let by = view.nodes().filter(may_manage).min_by_key(|node| (node.state_since, node.id.clone()))?;
    Some(Replacement { dead: Arc::clone(dead), by: Arc::clone(by) })
}

/// Whether the replacement leaves a majority of the voters that answers.
pub(crate) fn is_safe(view: &Tables, quorum: &Quorum, replacement: &Replacement) -> bool {
    departure::check(view, quorum, &replacement.dead).is_ok()
}

/// Shortest time after which a dead manager can be replaced: a machine that restarts is not dead.
pub(crate) const LEAST_DEAD_MANAGER_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Cluster, NodeCertificate, NodeSpec, NodeStateReason};
    use flota_api::object::StoreObject;

    const NOW: Timestamp = Timestamp(1_000_000);
    const AFTER: Duration = Duration::from_secs(60);

    fn node(id: &str, role: Role, raft_id: Option<u64>) -> Node {
        let certificates = vec![NodeCertificate { key: id.into(), expires_at: NOW + AFTER }];
        Node { id: id.into(), role, raft_id, state: NodeState::Ready, certificates, ..Node::default() }
    }

    fn candidate(id: &str) -> Node {
        let spec = NodeSpec { manager_candidate: true, ..NodeSpec::default() };
        Node { spec, ..node(id, Role::Worker, None) }
    }

    /// A manager that has been down for this many seconds.
    fn down(id: &str, raft_id: u64, seconds: u64) -> Node {
        let state_since = Timestamp(NOW.0 - seconds * 1_000);
        Node { state: NodeState::Down, state_since, ..node(id, Role::Manager, Some(raft_id)) }
    }

    fn tables(nodes: impl IntoIterator<Item = Node>) -> Tables {
        let mut view = Tables::default();
        view.put(Cluster { dead_manager_after: Some(AFTER), ..Cluster::default() }.into_object());
        nodes.into_iter().for_each(|node| view.put(node.into_object()));
        view
    }

    fn members(votes: &[(u64, bool)]) -> Vec<Member> {
        votes.iter().map(|(id, votes)| Member { id: *id, address: String::new(), votes: *votes }).collect()
    }

    #[test]
    fn a_node_is_on_its_way_until_raft_and_its_certificate_agree_with_its_role() {
        use RoleChange::{Demoting, Promoting};
        let view = tables([]);
        let change = |node: &Node, votes: &[(u64, bool)]| role_change(&view, node, &members(votes));
        let manager = |raft_id| node("m", Role::Manager, raft_id);
        assert_eq!(change(&manager(None), &[(1, true)]), Some(Promoting), "it has not asked for a Raft id");
        assert_eq!(change(&manager(Some(2)), &[(1, true)]), Some(Promoting));
        assert_eq!(change(&manager(Some(2)), &[(1, true), (2, false)]), Some(Promoting), "it learns");
        assert_eq!(change(&manager(Some(2)), &[(1, true), (2, true)]), None);
        let worker = node("m", Role::Worker, Some(2));
        assert_eq!(change(&worker, &[(1, true), (2, true)]), Some(Demoting));
        assert_eq!(change(&worker, &[(1, true)]), None);
        let left = Node { state_reason: Some(NodeStateReason::Left), ..worker.clone() };
        assert_eq!(change(&left, &[(2, true)]), None, "it is gone anyway");
        let mut view = tables([]);
        view.put(Cluster { retired: worker.certificates.clone(), ..Cluster::default() }.into_object());
        assert_eq!(role_change(&view, &worker, &[]), Some(Demoting), "it holds a manager's certificate");
        assert_eq!(check(&view, &worker, &[]), Err(PromotionError::Demoting));
        let mut renewed = worker;
        renewed.certificates.push(NodeCertificate { key: "new".into(), expires_at: NOW });
        assert_eq!(role_change(&view, &renewed, &[]), None);
        assert_eq!(check(&view, &renewed, &[]), Ok(()));
        let silent = Node { state: NodeState::Unknown, ..renewed };
        assert_eq!(check(&view, &silent, &[]), Err(PromotionError::NotReady(NodeState::Unknown)));
        view.put(Cluster { feature_level: 1, ..Cluster::default() }.into_object());
        let refused = check(&view, &Node { state: NodeState::Ready, ..silent }, &[]).expect_err("its level is 0");
        assert!(refused.to_string().starts_with("its build supports feature level 0, and the cluster uses 1"));
    }

    #[test]
    fn a_dead_manager_is_replaced_once_its_time_is_over_and_a_candidate_is_ready() {
        let due = |nodes: Vec<Node>, votes: &[(u64, bool)]| {
            let replacement = replacement(&tables(nodes), &members(votes), |id| id == 5, NOW)?;
            Some((replacement.dead.id.to_string(), replacement.by.id.to_string()))
        };
        let all = [(1, true), (2, true), (3, true)];
        let live = || vec![node("a", Role::Manager, Some(1)), node("b", Role::Manager, Some(2))];
        let with = |more: Vec<Node>| [live(), more].concat();
        let pair = |dead: &str, by: &str| Some((dead.to_owned(), by.to_owned()));
        assert_eq!(due(with(vec![down("c", 3, 60), candidate("w")]), &all), pair("c", "w"));
        assert_eq!(due(with(vec![down("c", 3, 59), candidate("w")]), &all), None, "it may come back");
        let answers = [(1, true), (2, true), (5, true)];
        assert_eq!(due(with(vec![down("c", 5, 60), candidate("w")]), &answers), None, "its session alone is down");
        let plain = node("w", Role::Worker, None);
        assert_eq!(due(with(vec![down("c", 3, 60), plain]), &all), None, "no node is allowed to be one");
        let draining = |it: Node| Node { spec: NodeSpec { availability: Availability::Drain, ..it.spec }, ..it };
        let silent = |it: Node| Node { state: NodeState::Unknown, ..it };
        let unfit = vec![down("c", 3, 60), draining(candidate("v")), silent(candidate("w"))];
        assert_eq!(due(with(unfit), &all), None);
        let since = |it: Node, at: u64| Node { state_since: Timestamp(at), ..it };
        let several = vec![down("c", 3, 60), since(candidate("v"), 9), since(candidate("w"), 5)];
        assert_eq!(due(with(several), &all), pair("c", "w"), "it has been ready for longer");
        let two = vec![down("c", 3, 60), down("d", 4, 90), candidate("w")];
        assert_eq!(due(with(two), &[(1, true), (2, true), (3, true), (4, true)]), pair("d", "w"));
    }

    #[test]
    fn one_replacement_is_under_way_at_a_time() {
        let nodes = || vec![node("a", Role::Manager, Some(1)), down("c", 3, 60), candidate("w")];
        let votes = members(&[(1, true), (3, true), (4, false)]);
        let with = |more: Node| replacement(&tables(nodes().into_iter().chain([more])), &votes, |_| false, NOW);
        assert_eq!(with(node("new", Role::Manager, None)), None, "it has not begun");
        assert_eq!(with(node("new", Role::Manager, Some(4))), None, "it only learns");
        assert!(with(down("new", 4, 10)).is_some(), "it will not finish");
    }
}
