//! Matches the responses of an AppendEntries stream to its requests.
//!
//! The library counts a response "matched up to here" for every pending request that ends at or before that entry,
//! including an empty one that was sent later. The response to such a request also proves that a quorum still follows
//! (a read round, Raft dissertation §6.4). A delayed response must not count for it, because the follower may have
//! another leader by now. A response is therefore passed on only if the library does not count it for a later request;
//! the response to that request, which follows, carries the same information.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::raft::type_config::LogId;

/// The pending requests of one stream, each by its last entry. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairing(Arc<Mutex<VecDeque<Option<LogId>>>>);

impl Pairing {
    /// Records that a request that ends with this entry was sent.
    pub(super) fn sent(&self, last: Option<LogId>) {
        self.0.lock().expect("no holder panics").push_back(last);
    }

    /// Records the next response: the follower has everything up to `matched`. Returns whether to pass it on.
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
