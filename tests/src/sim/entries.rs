//! Records every entry that a leader has sent, committed or not. Two different entries of the same index and term
//! violate Raft's Log Matching property (Raft paper §5.3).

use std::collections::BTreeMap;

use flota_raft_store::raft::SentEntry;

use super::host::Host;

/// The entries seen so far, and the first conflict.
#[derive(Default)]
pub struct Entries {
    seen: BTreeMap<(u64, u64), (Host, u64)>,
    conflict: Option<String>,
}

impl Entries {
    /// Records an entry that `from` sends.
    pub fn add(&mut self, from: Host, entry: SentEntry) {
        let SentEntry { index, term, content } = entry;
        let (first, known) = *self.seen.entry((index, term)).or_insert((from, content));
        if known != content && self.conflict.is_none() {
            self.conflict = Some(format!("{first} and {from} have sent different entries {index} of term {term}"));
        }
    }

    /// Returns the first two entries of the same index and term that differ.
    pub fn conflict(&self) -> Option<String> {
        self.conflict.clone()
    }
}
