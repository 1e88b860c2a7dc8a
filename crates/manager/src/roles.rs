//! Makes Raft's membership follow the node objects: it adds managers that have a Raft id, and removes Raft ids without
//! a manager. It also replaces managers that have been dead for too long. It acts on the outside world, so it is not a
//! control loop. It compares at every change of a node and once a second, and the leader runs it.
//!
//! Changes are made one at a time. None is begun that would leave the cluster without a majority that answers.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use flota_api::object::Kind;
use flota_raft_store::raft::{Member, MembershipError, RaftNode};
use flota_raft_store::{ProposeError, Tables, WriteTx};

use crate::departure::Quorum;
use crate::promotion;
use crate::replica::Replica;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One change of the membership.
#[derive(Debug, PartialEq, Eq)]
enum MembershipChange {
    Add(u64, String),
    Remove(u64),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
enum ChangeError {
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error("without the manager with Raft id {0}, no majority of the others would answer and be up to date")]
    NoMajority(u64),
}

/// Returns the changes that are needed. They are made one at a time, because each must be committed before the next.
fn changes(view: &Tables, members: &[Member], own: u64) -> Vec<MembershipChange> {
    let managers: Vec<_> = view.managers().filter_map(|node| Some((node.raft_id?, &node.address))).collect();
    // The leader never removes itself: it hands over leadership first.
    let gone = |member: &&Member| member.id != own && !managers.iter().any(|(id, _)| *id == member.id);
    let removals = members.iter().filter(gone).map(|member| MembershipChange::Remove(member.id));
    let known = |id, address: &str| members.iter().any(|it| it.id == id && it.votes && it.address == address);
    let missing = managers.iter().filter(|(id, address)| !known(*id, address));
    removals.chain(missing.map(|(id, address)| MembershipChange::Add(*id, (*address).clone()))).collect()
}

/// Runs until leadership ends.
pub(crate) async fn run(replica: Replica, scope: CancellationToken) {
    let Replica { store, raft, .. } = &replica;
    let mut reported = None;
    // Changes that failed since the last round. They wait, so that one manager that does not answer can't block the
    // others.
    let mut failed: Vec<MembershipChange> = Vec::new();
    loop {
        let mut nodes = store.watch_kinds(&[Kind::Node]);
        let needed = changes(&store.view(), &raft.members(), raft.id());
        let change = needed.into_iter().find(|change| !failed.contains(change));
        let step = async {
            match (apply(raft, change.as_ref()).await, change) {
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
            if let Err(error) = replace_dead(&replica).await {
                tracing::warn!(%error, "a dead manager could not be replaced yet");
            }
            tokio::select! {
                biased;
                () = nodes.next() => {}
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
async fn apply(raft: &RaftNode, change: Option<&MembershipChange>) -> Result<(), ChangeError> {
    match change {
        None => raft.finish_change().await?,
        Some(MembershipChange::Add(id, address)) => raft.add_member(*id, address).await?,
        Some(MembershipChange::Remove(id)) => {
            if raft.members().iter().any(|it| it.id == *id && it.votes) && !Quorum::of(raft).await.goes_on_without(*id)
            {
                return Err(ChangeError::NoMajority(*id));
            }
            raft.remove_member(*id).await?;
        }
    }
    Ok(())
}

/// Gives the role of a manager that has been dead for too long to another node, if one may have it and the voters that are
/// left have a majority that answers.
async fn replace_dead(replica: &Replica) -> Result<(), ProposeError> {
    let Replica { store, raft, clock, .. } = replica;
    if promotion::replacement(&store.view(), &raft.members(), |_| false, clock.now()).is_none() {
        return Ok(());
    }
    let quorum = Quorum::of(raft).await;
    let replaced = replica.write_if_needed(|view| {
        let answers = |id| quorum.caught_up.contains(&id);
        let replacement = promotion::replacement(&view, &raft.members(), answers, clock.now())?;
        if !promotion::is_safe(&view, &quorum, &replacement) {
            return None;
        }
        let mut tx = WriteTx::new(view.clone(), None);
        promotion::demote(&mut tx, &view, &replacement.dead, clock.wall().now());
        promotion::promote(&mut tx, &replacement.by);
        Some((tx.finish(), replacement))
    });
    if let Some(promotion::Replacement { dead, by }) = replaced.await? {
        let (dead, by) = (&dead.description.hostname, &by.description.hostname);
        tracing::warn!(node.name = dead, by, "a manager was down for too long: another node replaces it");
    }
    Ok(())
}

/// Whether the store has a manager with this Raft id.
fn is_manager(view: &Tables, raft_id: u64) -> bool {
    view.managers().any(|node| node.raft_id == Some(raft_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Node, Role};
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
