//! Makes Raft's membership follow the node objects: it adds managers that have a Raft id, and removes Raft ids without
//! a manager. It acts on the outside world, so it is not a control loop. It compares at every change and once a second,
//! and the leader runs it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use flota_api::model::Role;
use flota_raft_store::raft::{Member, MembershipError, RaftNode};
use flota_raft_store::{Store, Tables};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One change of the membership.
#[derive(Debug, PartialEq, Eq)]
enum MembershipChange {
    Add(u64, String),
    Remove(u64),
}

/// Returns the changes that are needed. They are made one at a time, because each must be committed before the next.
fn changes(view: &Tables, members: &[Member], own: u64) -> Vec<MembershipChange> {
    let managers: Vec<_> = view
        .nodes()
        .filter(|node| node.role == Role::Manager)
        .filter_map(|node| Some((node.raft_id?, &node.address)))
        .collect();
    // The leader never removes itself: it hands over leadership first.
    let gone = |member: &&Member| member.id != own && !managers.iter().any(|(id, _)| *id == member.id);
    let removals = members.iter().filter(gone).map(|member| MembershipChange::Remove(member.id));
    let known = |id, address: &str| members.iter().any(|it| it.id == id && it.votes && it.address == address);
    let missing = managers.iter().filter(|(id, address)| !known(*id, address));
    removals.chain(missing.map(|(id, address)| MembershipChange::Add(*id, (*address).clone()))).collect()
}

/// Runs until leadership ends.
pub(crate) async fn run(store: Store, raft: RaftNode, scope: CancellationToken) {
    let mut reported = None;
    // Changes that failed since the last round. They wait, so that one manager that does not answer can't block the
    // others.
    let mut failed: Vec<MembershipChange> = Vec::new();
    loop {
        let (view, mut watch) = store.view_and_watch();
        let needed = changes(&view, &raft.members(), raft.id());
        let change = needed.into_iter().find(|change| !failed.contains(change));
        let step = async {
            match (apply(&raft, change.as_ref()).await, change) {
                (Ok(()), Some(change)) => {
                    tracing::info!(?change, "the set of managers changed");
                    return;
                }
                (Ok(()), None) => failed.clear(),
                (Err(error), change) => {
                    let error = error.to_string();
                    if reported.as_ref() != Some(&error) {
                        tracing::warn!(%error, "the set of managers could not be changed yet");
                        reported = Some(error);
                    }
                    if let Some(change) = change {
                        failed.push(change);
                        return;
                    }
                }
            }
            tokio::select! {
                biased;
                _ = watch.next() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        };
        tokio::select! {
            biased;
            () = scope.cancelled() => return,
            () = step => {}
        }
        let view = store.view();
        if !is_manager(&view, raft.id()) {
            // `None` if no other manager answers: the next round tries again.
            let _ = raft.hand_over(|id| is_manager(&view, id)).await;
        }
    }
}

/// Makes one change, or completes one that an earlier leader began.
async fn apply(raft: &RaftNode, change: Option<&MembershipChange>) -> Result<(), MembershipError> {
    match change {
        None => raft.finish_change().await,
        Some(MembershipChange::Add(id, address)) => raft.add_member(*id, address).await,
        Some(MembershipChange::Remove(id)) => raft.remove_member(*id).await,
    }
}

/// Whether the store has a manager with this Raft id.
fn is_manager(view: &Tables, raft_id: u64) -> bool {
    view.nodes().any(|node| node.role == Role::Manager && node.raft_id == Some(raft_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::Node;
    use flota_api::object::StoreObject;

    fn manager(id: &str, raft_id: u64) -> Node {
        let raft_id = Some(raft_id);
        Node { id: id.into(), role: Role::Manager, raft_id, address: format!("{id}:1"), ..Node::default() }
    }

    fn member(id: u64, address: &str, votes: bool) -> Member {
        Member { id, address: address.into(), votes }
    }

    #[test]
    fn membership_follows_the_nodes() {
        let mut view = Tables::default();
        view.put(manager("a", 1).into_object());
        view.put(manager("b", 2).into_object());
        view.put(Node { role: Role::Worker, raft_id: None, ..manager("w", 0) }.into_object());
        let one = vec![member(1, "a:1", true)];
        assert_eq!(changes(&view, &one, 1), [MembershipChange::Add(2, "b:1".into())]);
        let learner = vec![member(1, "a:1", true), member(2, "b:1", false)];
        assert_eq!(changes(&view, &learner, 1), [MembershipChange::Add(2, "b:1".into())]);
        let moved = vec![member(1, "a:1", true), member(2, "old:1", true)];
        assert_eq!(changes(&view, &moved, 1), [MembershipChange::Add(2, "b:1".into())]);
        let extra = vec![member(1, "a:1", true), member(2, "b:1", true), member(3, "c:1", true)];
        assert_eq!(changes(&view, &extra, 1), [MembershipChange::Remove(3)]);
        assert_eq!(changes(&view, &extra, 3), [], "the leader does not remove itself");
    }
}
