//! Records every entry that a leader has sent, committed or not. Two different entries of the same index and term
//! violate Raft's Log Matching property (Raft paper §5.3).

use std::collections::BTreeMap;

use flota_raft_store::raft::SentEntry;

use super::host::Host;

/// The entries seen so far, and the first conflict.
#[derive(Default)]
pub(super) struct Entries {
    seen: BTreeMap<(u64, u64), (Host, u64)>,
    conflict: Option<String>,
}

impl Entries {
    /// Records an entry that `from` sends.
    pub(super) fn add(&mut self, from: Host, entry: SentEntry) {
        let SentEntry { index, term, content } = entry;
        let (first, known) = *self.seen.entry((index, term)).or_insert((from, content));
        if known != content && self.conflict.is_none() {
            self.conflict = Some(format!("{first} and {from} have sent different entries {index} of term {term}"));
        }
    }

    /// Returns the first two entries of the same index and term that differ.
    pub(super) fn conflict(&self) -> Option<String> {
        self.conflict.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_index_and_term_must_be_the_same() {
        let mut entries = Entries::default();
        let entry = SentEntry { index: 7, term: 2, content: 1 };
        entries.add(Host(1), entry);
        entries.add(Host(1), entry);
        entries.add(Host(2), SentEntry { term: 3, content: 2, ..entry });
        entries.add(Host(2), SentEntry { index: 8, content: 2, ..entry });
        assert_eq!(entries.conflict(), None);
        entries.add(Host(1), SentEntry { content: 2, ..entry });
        assert!(entries.conflict().unwrap().ends_with("have sent different entries 7 of term 2"));
    }
}
