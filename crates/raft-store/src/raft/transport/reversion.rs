//! Detects followers whose log went back, so that they lack entries that they had acknowledged to this leader.
//!
//! Raft relies on acknowledged entries being kept (Raft paper §5.4), so such a follower must not be treated as one that
//! merely lags. The leader stops replicating to it in this term. The follower detects the loss itself when it starts,
//! and returns under a new Raft id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::raft::type_config::{LogId, Vote};

/// The entries that each follower has acknowledged to this leader. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Acknowledged {
    matched: Arc<Mutex<HashMap<u64, (Vote, LogId)>>>,
    /// Followers that have lost entries, with the vote of the leader that detected it.
    lost: Arc<Mutex<HashMap<u64, Vote>>>,
}

impl Acknowledged {
    /// Records that the follower has acknowledged every entry up to `matched` to the leader with this vote.
    pub(super) fn matched(&self, peer: u64, leader: Vote, matched: LogId) {
        let mut all = self.matched.lock().expect("no holder panics");
        let known = all.entry(peer).or_insert((leader, matched));
        // A later leader may have truncated entries that were acknowledged to an earlier one.
        *known = if known.0 == leader { (leader, known.1.max(matched)) } else { (leader, matched) };
    }

    /// Whether a follower that lacks `conflict` had acknowledged it to the leader with this vote.
    pub(super) fn is_lost(&self, peer: u64, leader: Vote, conflict: LogId) -> bool {
        let all = self.matched.lock().expect("no holder panics");
        all.get(&peer).is_some_and(|(vote, matched)| *vote == leader && conflict.index <= matched.index)
    }

    /// Records the loss. Returns whether it is new.
    pub(super) fn set_lost(&self, peer: u64, leader: Vote) -> bool {
        self.lost.lock().expect("no holder panics").insert(peer, leader) != Some(leader)
    }

    /// Whether a loss of the follower was recorded in this leader's term.
    pub(super) fn has_lost(&self, peer: u64, leader: Vote) -> bool {
        self.lost.lock().expect("no holder panics").get(&peer) == Some(&leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::type_config::LeaderId;
    use openraft::vote::RaftLeaderId as _;

    #[test]
    fn only_what_was_acknowledged_to_this_leader_can_be_lost() {
        let vote = |term| Vote { leader_id: LeaderId::new(term, 1), committed: true };
        let id = |term, index| LogId::new(LeaderId::new(term, 1).to_committed(), index);
        let acknowledged = Acknowledged::default();
        assert!(!acknowledged.is_lost(2, vote(1), id(1, 5)));
        acknowledged.matched(2, vote(1), id(1, 7));
        acknowledged.matched(2, vote(1), id(1, 6));
        assert!(acknowledged.is_lost(2, vote(1), id(1, 7)));
        assert!(!acknowledged.is_lost(2, vote(1), id(1, 8)), "it never said that it has this one");
        assert!(!acknowledged.is_lost(3, vote(1), id(1, 7)), "another follower");
        assert!(!acknowledged.is_lost(2, vote(2), id(1, 7)), "another leader may have given it up");
        acknowledged.matched(2, vote(2), id(2, 3));
        assert!(!acknowledged.is_lost(2, vote(2), id(2, 4)));
    }
}
