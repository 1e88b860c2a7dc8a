//! What a node may do, by the store. Its certificate has the role that the node had when it was issued, and may be older than a
//! demotion or a removal. `flotad` asks for each call of a node (`node/rpc.rs`).
//!
//! A copy of the store may lag behind: it then takes a new manager for a worker, which asks again elsewhere. Raft's messages
//! must get through all the same, since a copy that lags catches up by them; only a certificate that was retired is refused
//! there, and that not before the membership is without its node, so that a demoted manager's vote for its own removal counts.

use flota_api::defaults::FIRST_EPOCH;
use flota_api::model::Role;
use flota_identity::Peer;
use flota_raft_store::Tables;

/// Begin of the paths of Raft's messages.
const RAFT: &str = "/flota.raft.RaftTransport/";

/// Returns the role in which the caller of the method at `path` acts; `None` if it is not a node, or may do nothing.
/// `is_member` says whether Raft's membership has an id.
pub(crate) fn role_for(view: &Tables, peer: &Peer, path: &str, is_member: impl Fn(u64) -> bool) -> Option<Role> {
    let Peer::Node { id, role, key, .. } = peer else { return None };
    let node = view.node(id);
    let cluster = view.cluster();
    if cluster.is_some_and(|it| it.revoked.iter().any(|it| it.node_id == *id)) {
        return None;
    }
    let has_begun_anew = cluster.is_some_and(|it| it.epoch > FIRST_EPOCH);
    let is_retired = cluster.is_some_and(|it| it.is_retired(key));
    let is_manager = match path.starts_with(RAFT) {
        true => !is_retired || node.and_then(|node| node.raft_id).is_some_and(is_member),
        // A copy that lags does not know a new manager yet. A cluster that began anew from older tables may not know a manager
        // of the cluster before, and can't tell whether that one was removed.
        false => !is_retired && node.map_or(!has_begun_anew, |node| node.role == Role::Manager),
    };
    Some(if is_manager { *role } else { Role::Worker })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Cluster, Node, NodeCertificate, Revoked};
    use flota_api::object::StoreObject;
    use flota_api::version::Timestamp;

    const CONTROL: &str = "/flota.control.Control/ListNodes";
    const VOTE: &str = "/flota.raft.RaftTransport/Vote";

    fn peer(role: Role, key: &str) -> Peer {
        Peer::Node { id: "n".into(), role, address: ([127, 0, 0, 1], 1).into(), key: key.into() }
    }

    /// A store in which the node has this role and Raft id 7.
    fn store(role: Option<Role>, retired: &[&str]) -> Tables {
        let mut view = Tables::default();
        let certificate = |key: &&str| NodeCertificate { key: (*key).into(), expires_at: Timestamp(9) };
        let retired = retired.iter().map(certificate).collect();
        view.put(Cluster { retired, ..Cluster::default() }.into_object());
        let node = role.map(|role| Node { id: "n".into(), role, raft_id: Some(7), ..Node::default() });
        node.into_iter().for_each(|node| view.put(node.into_object()));
        view
    }

    #[test]
    fn the_role_is_that_of_the_certificate_only_if_the_store_agrees() {
        use Role::{Manager, Worker};
        let cases = [
            (Some(Manager), Manager, Manager),
            (Some(Manager), Worker, Worker),
            (Some(Worker), Manager, Worker),
            (Some(Worker), Worker, Worker),
            // A copy of the store that lags does not know a new node.
            (None, Manager, Manager),
            (None, Worker, Worker),
        ];
        for (stored, shown, expected) in cases {
            let view = store(stored, &[]);
            assert_eq!(role_for(&view, &peer(shown, "k"), CONTROL, |_| false), Some(expected), "{stored:?} {shown:?}");
        }
        let mut anew = Tables::default();
        anew.put(Cluster { epoch: FIRST_EPOCH + 1, ..Cluster::default() }.into_object());
        assert_eq!(role_for(&anew, &peer(Manager, "k"), CONTROL, |_| true), Some(Worker), "of the cluster before");
        let again = store(Some(Manager), &["old"]);
        assert_eq!(role_for(&again, &peer(Manager, "old"), CONTROL, |_| true), Some(Worker), "of before its demotion");
        assert_eq!(role_for(&again, &peer(Manager, "new"), CONTROL, |_| true), Some(Manager));
        assert_eq!(role_for(&again, &Peer::Local, CONTROL, |_| true), None);
    }

    #[test]
    fn raft_hears_a_demoted_manager_until_the_membership_is_without_it() {
        use Role::{Manager, Worker};
        let demoted = store(Some(Worker), &["old"]);
        assert_eq!(role_for(&demoted, &peer(Manager, "old"), VOTE, |id| id == 7), Some(Manager));
        assert_eq!(role_for(&demoted, &peer(Manager, "old"), VOTE, |_| false), Some(Worker));
        assert_eq!(role_for(&demoted, &peer(Manager, "old"), CONTROL, |id| id == 7), Some(Worker));
        // A copy that lags, to which a leader that was promoted later sends entries.
        assert_eq!(role_for(&store(Some(Worker), &[]), &peer(Manager, "new"), VOTE, |_| false), Some(Manager));
        assert_eq!(role_for(&demoted, &peer(Worker, "new"), VOTE, |_| true), Some(Worker));
    }

    #[test]
    fn a_node_that_was_removed_may_do_nothing() {
        let mut view = store(Some(Role::Manager), &[]);
        let revoked = vec![Revoked { node_id: "n".into(), until: Timestamp(9) }];
        view.put(Cluster { revoked, ..Cluster::default() }.into_object());
        for path in [CONTROL, VOTE] {
            assert_eq!(role_for(&view, &peer(Role::Manager, "k"), path, |_| true), None);
        }
    }
}
