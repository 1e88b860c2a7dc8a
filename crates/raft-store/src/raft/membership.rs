//! The set of managers: its members, and how it changes (Raft paper §6), one change at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{BasicNode, ChangeMembers};

use super::node::{QUORUM_WAIT, RaftNode};

/// How long a manager may take to say that it is at an address.
const FIND_WAIT: Duration = Duration::from_secs(2);

/// How long a new learner may take to catch up. After that, it stays a learner and catches up further; the caller
/// retries.
const CATCH_UP_WAIT: Duration = Duration::from_secs(5);

/// Why the set of managers did not change.
#[derive(Debug, Clone, thiserror::Error)]
#[error("failed to {act} the manager with Raft id {id}: {why}")]
pub struct MembershipError {
    act: &'static str,
    id: u64,
    why: String,
}

/// One manager in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its Raft id.
    pub id: u64,
    /// `host:port`.
    pub address: String,
    /// Whether it votes; a learner only receives entries.
    pub votes: bool,
}

impl RaftNode {
    /// Returns every manager in the newest committed configuration.
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        membership
            .nodes()
            .map(|(id, node)| Member { id: *id, address: node.addr.clone(), votes: voters.contains(id) })
            .collect()
    }

    /// Looks for the other managers at these addresses, because theirs have changed while none could tell the others. The
    /// leader that they elect records the new ones. Returns the addresses at which one was found.
    pub async fn find_members(&self, addresses: &[String]) -> Vec<String> {
        let (own, members, peers) = (self.id(), self.members(), self.peers());
        let tries = members.iter().filter(|member| member.id != own).flat_map(|member| {
            addresses.iter().map(async |address| {
                peers.find(member.id, &member.address, address, FIND_WAIT).await.then(|| address.clone())
            })
        });
        futures::future::join_all(tries).await.into_iter().flatten().collect()
    }

    /// Adds a manager as a learner and makes it a voter when it has caught up. Does nothing if it is a voter already.
    ///
    /// # Errors
    /// This manager does not lead, another change takes too long, or the new manager does not answer.
    pub async fn add_member(&self, id: u64, address: &str) -> Result<(), MembershipError> {
        let fail = |why: String| MembershipError { act: "add", id, why };
        if let Some(member) = self.members().into_iter().find(|member| member.id == id) {
            if member.address != address {
                let nodes = BTreeMap::from([(id, BasicNode::new(address))]);
                self.change(ChangeMembers::SetNodes(nodes)).await.map_err(fail)?;
            }
            if member.votes {
                return Ok(());
            }
        }
        let learner = self.raft().add_learner(id, BasicNode::new(address), false);
        match tokio::time::timeout(QUORUM_WAIT, learner).await {
            Ok(result) => drop(result.map_err(|error| fail(error.to_string()))?),
            Err(_) => return Err(fail("no quorum of managers answered in time".into())),
        }
        self.caught_up(id).await.map_err(fail)?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await.map_err(fail)
    }

    /// Waits until a learner has every entry that is in the log now. The library's own wait succeeds while the log is
    /// short even if the learner was never reached; as a voter, such a learner could cost the cluster its quorum.
    async fn caught_up(&self, id: u64) -> Result<(), String> {
        let target = self.raft().metrics().borrow_watched().last_log_index;
        let wait = self.raft().wait(Some(CATCH_UP_WAIT));
        let there = wait.metrics(
            |metrics| {
                let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
                matched.map(|matched| matched.index) >= target
            },
            "a new manager has every entry",
        );
        there.await.map(drop).map_err(|_| format!("it has not caught up within {CATCH_UP_WAIT:?}"))
    }

    /// Removes a manager from the set. Does nothing if it is not a member.
    ///
    /// # Errors
    /// The manager is the only one, this manager does not lead, or no quorum answered.
    pub async fn remove_member(&self, id: u64) -> Result<(), MembershipError> {
        let fail = |why: String| MembershipError { act: "remove", id, why };
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.id == id) else { return Ok(()) };
        if member.votes {
            if members.iter().filter(|member| member.votes).count() == 1 {
                return Err(fail("it is the last one".into()));
            }
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await.map_err(fail)?;
        }
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await.map_err(fail)
    }

    /// Whether a change of the set is incomplete. Entries then need a majority of both the old and the new set (Raft
    /// paper §6).
    pub fn is_changing(&self) -> bool {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().len() > 1
    }

    /// Completes a change of the set that an earlier leader began. Until then, entries need a quorum of both the old
    /// and the new set (Raft paper §6). Does nothing if no change is incomplete.
    ///
    /// # Errors
    /// This manager does not lead, or no quorum answered.
    pub async fn finish_change(&self) -> Result<(), MembershipError> {
        if !self.is_changing() {
            return Ok(());
        }
        let fail = |why: String| MembershipError { act: "finish the change for", id: self.id(), why };
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await.map_err(fail)
    }

    /// Waits until this Raft id is no longer in the set.
    ///
    /// # Errors
    /// The id is still in the set after 4 s.
    pub async fn gone(&self, id: u64) -> Result<(), MembershipError> {
        let wait = self.raft().wait(Some(QUORUM_WAIT));
        let gone = wait.metrics(
            |metrics| metrics.membership_config.membership().get_node(&id).is_none(),
            "a manager left the set",
        );
        let fail = |error: &dyn std::fmt::Display| MembershipError { act: "remove", id, why: error.to_string() };
        gone.await.map(drop).map_err(|error| fail(&error))
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), String> {
        match tokio::time::timeout(QUORUM_WAIT, self.raft().change_membership(change, false)).await {
            Ok(result) => result.map(|_| ()).map_err(|error| error.to_string()),
            Err(_) => Err("no quorum of managers answered in time".into()),
        }
    }
}
