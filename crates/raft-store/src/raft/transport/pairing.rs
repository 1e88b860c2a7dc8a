//! Which request an answer of an AppendEntries stream belongs to.
//!
//! The library takes an answer "matched up to here" for the answer to every request under way that ends at or before
//! that entry, also to an empty one that was sent later. Such a request proves by its answer that a quorum still follows
//! (a read round, Raft dissertation §6.4), so an answer that was long under way must not stand for it: the follower may
//! have another leader by now. An answer is therefore passed on only when no later request would be taken for answered
//! by it; the answer to that one, which follows, says as much.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::raft::type_config::LogId;

/// The requests of one stream that have no answer yet, by the last entry of each. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairing(Arc<Mutex<VecDeque<Option<LogId>>>>);

impl Pairing {
    /// A request that ends with this entry was sent.
    pub(super) fn sent(&self, last: Option<LogId>) {
        self.0.lock().expect("no holder panics").push_back(last);
    }

    /// The next answer has come: the follower has everything up to `matched`. Whether it can be passed on.
    pub(super) fn answered(&self, matched: Option<LogId>) -> bool {
        let mut waiting = self.0.lock().expect("no holder panics");
        waiting.pop_front();
        waiting.iter().all(|last| *last > matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::type_config::LeaderId;
    use openraft::vote::RaftLeaderId as _;

    #[test]
    fn an_answer_does_not_stand_for_an_empty_request_that_was_sent_later() {
        let id = |index| Some(LogId::new(LeaderId::new(1, 1).to_committed(), index));
        let pairing = Pairing::default();
        pairing.sent(id(5));
        pairing.sent(id(6));
        pairing.sent(id(6));
        assert!(pairing.answered(id(5)), "the others end later");
        assert!(!pairing.answered(id(6)), "the empty one behind it has no answer yet");
        pairing.sent(id(7));
        assert!(pairing.answered(id(6)));
        assert!(pairing.answered(id(7)));
    }
}
