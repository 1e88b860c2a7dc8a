//! Brings Raft's membership to what the nodes' objects say: a manager with a Raft id is added, a Raft id without
//! a manager is removed. Acts on the world, so it is no control loop; it looks again at every change and each second.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use flota_api::model::Role;
use flota_raft_store::Tables;
use flota_raft_store::raft::Member;

use crate::manager::Manager;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One change of the membership.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Add(u64, String),
    Remove(u64),
}

/// The changes that are needed. One is made at a time: each must be committed before the next.
fn changes(view: &Tables, members: &[Member], own: u64) -> Vec<Change> {
    let managers: Vec<_> = view
        .nodes()
        .filter(|node| node.role == Role::Manager)
        .filter_map(|node| Some((node.raft_id?, &node.address)))
        .collect();
    // The leader never takes itself out: it hands over first.
    let gone = |member: &&Member| member.id != own && !managers.iter().any(|(id, _)| *id == member.id);
    let removals = members.iter().filter(gone).map(|member| Change::Remove(member.id));
    let known = |id, address: &str| members.iter().any(|it| it.id == id && it.votes && it.address == address);
    let missing = managers.iter().filter(|(id, address)| !known(*id, address));
    removals.chain(missing.map(|(id, address)| Change::Add(*id, (*address).clone()))).collect()
}

/// Runs until leadership ends.
pub(crate) async fn run(manager: Manager, scope: CancellationToken) {
    let mut reported = None;
    // What failed since the last round: one that does not answer must not keep the others from their turn.
    let mut failed: Vec<Change> = Vec::new();
    loop {
        let (view, mut watch) = manager.store.view_and_watch();
        let needed = changes(&view, &manager.raft.members(), manager.raft.id());
        let change = needed.into_iter().find(|change| !failed.contains(change));
        let act = async {
            let result = match &change {
                None => manager.raft.finish_change().await,
                Some(Change::Add(id, address)) => manager.raft.add_member(*id, address).await,
                Some(Change::Remove(id)) => manager.raft.remove_member(*id).await,
            };
            match (result, change) {
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
            () = act => {}
        }
        if let Some(id) = leaving_self(&manager) {
            manager.raft.hand_over(id).await;
        }
    }
}

/// Where this leader is to leave the set: the voter that takes over.
fn leaving_self(manager: &Manager) -> Option<u64> {
    let view = manager.store.view();
    let own = manager.raft.id();
    let stays = view.nodes().any(|node| node.role == Role::Manager && node.raft_id == Some(own));
    let other = manager.raft.members().into_iter().find(|member| member.votes && member.id != own);
    if stays { None } else { other.map(|member| member.id) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::Node;
    use flota_api::object::StoreObject;

    #[test]
    fn membership_follows_the_nodes() {
        let mut view = Tables::default();
        let node = |id: &str, raft_id| Node {
            id: id.into(),
            role: Role::Manager,
            raft_id,
            address: format!("{id}:1"),
            ..Node::default()
        };
        view.put(node("a", Some(1)).into_object());
        view.put(node("b", Some(2)).into_object());
        view.put(Node { role: Role::Worker, ..node("w", None) }.into_object());
        let member = |id, address: &str, votes| Member { id, address: address.into(), votes };
        let one = vec![member(1, "a:1", true)];
        assert_eq!(changes(&view, &one, 1), [Change::Add(2, "b:1".into())]);
        let learner = vec![member(1, "a:1", true), member(2, "b:1", false)];
        assert_eq!(changes(&view, &learner, 1), [Change::Add(2, "b:1".into())]);
        let moved = vec![member(1, "a:1", true), member(2, "old:1", true)];
        assert_eq!(changes(&view, &moved, 1), [Change::Add(2, "b:1".into())]);
        let extra = vec![member(1, "a:1", true), member(2, "b:1", true), member(3, "c:1", true)];
        assert_eq!(changes(&view, &extra, 1), [Change::Remove(3)]);
        assert_eq!(changes(&view, &extra, 3), [], "the leader does not remove itself");
    }
}
