//! Checks that all managers have the same tables. The leader regularly proposes the digest of its tables; each manager
//! compares it with the digest of its own tables after the same entry.
//!
//! The log is the same on all managers, so a difference means that applying is not deterministic, or that memory or a
//! snapshot is corrupt. A manager that differs from a majority is wrong, even if it leads: see [`judge`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::digest::Digest;

/// Number of digests that are kept.
const KEPT: usize = 8_192;

/// The digests of this manager's tables by entry. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Digests {
    known: Arc<Mutex<VecDeque<(u64, Digest)>>>,
    /// The last entry after which the tables of the leader and this manager differed.
    suspect: Arc<watch::Sender<Option<u64>>>,
}

impl Default for Digests {
    fn default() -> Self {
        Self { known: Arc::default(), suspect: Arc::new(watch::Sender::new(None)) }
    }
}

impl Digests {
    /// Records the digest of the tables after the entry at `index`.
    pub(super) fn record(&self, index: u64, digest: Digest) {
        let mut known = self.known.lock().expect("no holder panics");
        if known.len() == KEPT {
            known.pop_front();
        }
        known.push_back((index, digest));
    }

    /// Drops all digests. Called when a snapshot replaces the tables, because the digests of the entries in between are
    /// unknown.
    pub(super) fn forget(&self) {
        self.known.lock().expect("no holder panics").clear();
    }

    /// The digest of this manager's tables after the entry at `index`; `None` if it is no longer kept or the entry is
    /// not applied yet.
    pub(super) fn at(&self, index: u64) -> Option<Digest> {
        let known = self.known.lock().expect("no holder panics");
        let place = known.binary_search_by_key(&index, |(at, _)| *at).ok()?;
        known.get(place).map(|(_, digest)| *digest)
    }

    /// Compares the digest of the leader's tables with this manager's.
    pub(super) fn check(&self, index: u64, theirs: Digest) {
        if self.at(index).is_some_and(|own| own != theirs) {
            tracing::error!(entry = index, "the tables of this manager and of the leader differ");
            self.suspect.send_replace(Some(index));
        }
    }

    /// Returns a receiver of the entries after which tables differed.
    pub(super) fn suspects(&self) -> watch::Receiver<Option<u64>> {
        self.suspect.subscribe()
    }
}

/// The result of a comparison for this manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This manager's tables are those of a majority.
    Right,
    /// A majority agrees on tables that differ from this manager's.
    Wrong,
    /// No majority agrees, as far as is known.
    Unknown,
}

/// Judges this manager's digest by those of the other voters that answered, all after the same entry. `voters` is the
/// number of all voters.
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
