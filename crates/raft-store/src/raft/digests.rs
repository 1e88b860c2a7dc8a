//! Whether all managers have the same tables. The leader puts the digest of its own into the log now and then; each
//! manager compares it with what its own tables digested to after the same entry.
//!
//! The log can't differ where the tables do, so a difference means that applying is not the same everywhere, or that
//! memory or a snapshot went bad. Whoever differs from a majority is wrong, the leader too: see [`judge`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::digest::Digest;

/// Entries whose digests are remembered.
const KEPT: usize = 8_192;

/// The digests of this manager's tables, by entry. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Digests {
    known: Arc<Mutex<VecDeque<(u64, Digest)>>>,
    /// The entry after which another manager's tables were found to differ.
    suspect: Arc<watch::Sender<Option<u64>>>,
}

impl Default for Digests {
    fn default() -> Self {
        Self { known: Arc::default(), suspect: Arc::new(watch::Sender::new(None)) }
    }
}

impl Digests {
    /// The tables digest to this after the entry at `index`.
    pub(super) fn record(&self, index: u64, digest: Digest) {
        let mut known = self.known.lock().expect("no holder panics");
        if known.len() == KEPT {
            known.pop_front();
        }
        known.push_back((index, digest));
    }

    /// A snapshot replaces the tables: what they digested to in between is not known.
    pub(super) fn forget(&self) {
        self.known.lock().expect("no holder panics").clear();
    }

    /// What this manager's tables digested to after the entry at `index`; `None`: that is not remembered, or the entry
    /// is not applied yet.
    pub(super) fn at(&self, index: u64) -> Option<Digest> {
        let known = self.known.lock().expect("no holder panics");
        let place = known.binary_search_by_key(&index, |(at, _)| *at).ok()?;
        known.get(place).map(|(_, digest)| *digest)
    }

    /// Compares with what the leader's tables digested to.
    pub(super) fn check(&self, index: u64, theirs: Digest) {
        if self.at(index).is_some_and(|own| own != theirs) {
            tracing::error!(entry = index, "the tables of this manager and of the leader differ");
            self.suspect.send_replace(Some(index));
        }
    }

    /// Each entry after which tables were found to differ.
    pub(super) fn suspects(&self) -> watch::Receiver<Option<u64>> {
        self.suspect.subscribe()
    }
}

/// Who is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A majority has the same tables as this manager.
    Right,
    /// A majority has the same tables, and this manager has others.
    Wrong,
    /// No majority is known to agree.
    Unknown,
}

/// Judges from what the voters' tables digest to after the same entry; `others`: of the voters that answered.
pub(super) fn judge(own: Digest, others: &[Digest], voters: usize) -> Verdict {
    let majority = voters / 2 + 1;
    let agreeing = |digest: Digest| others.iter().filter(|other| **other == digest).count();
    if agreeing(own) + 1 >= majority {
        Verdict::Right
    } else if others.iter().any(|other| *other != own && agreeing(*other) >= majority) {
        Verdict::Wrong
    } else {
        Verdict::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 16])
    }

    #[test]
    fn the_majority_is_right_also_against_the_leader() {
        let cases: [(&[u8], usize, Verdict); 7] = [
            (&[1, 2], 3, Verdict::Right),
            (&[2, 2], 3, Verdict::Wrong),
            (&[2, 3], 3, Verdict::Unknown),
            (&[2], 2, Verdict::Unknown),
            (&[2], 3, Verdict::Unknown),
            (&[], 1, Verdict::Right),
            (&[1, 1, 2, 2], 5, Verdict::Right),
        ];
        for (others, voters, verdict) in cases {
            let others: Vec<Digest> = others.iter().map(|number| digest(*number)).collect();
            assert_eq!(judge(digest(1), &others, voters), verdict, "{others:?} of {voters}");
        }
    }

    #[test]
    fn a_difference_is_noticed_where_the_entry_is_remembered() {
        let digests = Digests::default();
        let suspects = digests.suspects();
        digests.record(5, digest(5));
        digests.record(8, digest(8));
        assert_eq!(digests.at(4), None);
        assert_eq!(digests.at(9), None, "it is not applied yet: the tables before it say nothing");
        digests.check(4, digest(1));
        digests.check(9, digest(1));
        digests.check(8, digest(8));
        assert_eq!(*suspects.borrow(), None);
        digests.check(5, digest(8));
        assert_eq!(*suspects.borrow(), Some(5));
        digests.forget();
        assert_eq!(digests.at(8), None);
    }
}
