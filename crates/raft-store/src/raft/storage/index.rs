//! The entries of the log by index: their positions on disk, and the newest entries themselves.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;

use super::wal::{Position, RecoveredEntry, later};
use crate::raft::disk::DiskFile;
use crate::raft::type_config::{LogId, RaftEntry, Vote};

/// Bytes of entries that are kept in memory. Followers and the state machine nearly always read recent entries.
const CACHE: usize = 16 << 20;

/// Number and bytes of entries that are kept although a snapshot contains them, for followers that are slightly behind.
const ENTRIES_KEPT: usize = 1_000;
const BYTES_KEPT: usize = 8 << 20;

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) id: LogId,
    /// Approximate bytes of its payload.
    pub(super) size: usize,
    /// Position on disk; `None` while the entry is only in memory.
    pub(super) at: Option<Position>,
    /// The entry itself; `None` if it is only on disk.
    pub(super) entry: Option<RaftEntry>,
}

/// Facts about the log that are known without reading it.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    slots: VecDeque<Slot>,
    /// Bytes of the entries in memory.
    cached: usize,
    /// Slots before this one have no entry in memory.
    first_cached: usize,
    /// Open segments for reading, by number.
    pub(super) files: BTreeMap<u64, Arc<dyn DiskFile>>,
}

impl Index {
    /// Adds the entries that were found when the log was opened, in order.
    pub(super) fn recover(&mut self, entries: VecDeque<RecoveredEntry>) {
        for found in entries {
            self.cached += found.size;
            let (at, entry) = (Some(found.at), Some(found.entry));
            self.slots.push_back(Slot { id: found.id, size: found.size, at, entry });
            self.evict();
        }
    }

    /// Id of the last entry, or of the last one that a snapshot contains.
    pub(super) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    /// Adds a new entry, which must follow the last one.
    ///
    /// # Errors
    /// The entry does not follow the last one.
    pub(super) fn push(&mut self, entry: &RaftEntry) -> io::Result<()> {
        let id = entry.log_id();
        // An empty log may begin at any index.
        let next = self.last().map_or(id.index, |last| last.index + 1);
        if id.index != next {
            return Err(io::Error::other(format!("entry {} does not follow the last one, {next} does", id.index)));
        }
        let size = match &entry.payload {
            EntryPayload::Normal(bytes) => bytes.0.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        };
        self.cached += size;
        self.slots.push_back(Slot { id, size, at: None, entry: Some(entry.clone()) });
        Ok(())
    }

    /// Records that the entry was written at `at`, unless it was truncated meanwhile.
    pub(super) fn written(&mut self, id: LogId, at: Position) {
        if let Some(place) = self.place(id.index)
            && let Some(slot) = self.slots.get_mut(place).filter(|slot| slot.id == id)
        {
            slot.at = Some(at);
        }
    }

    /// Drops the oldest written entries from memory until the cache is within its bound.
    pub(super) fn evict(&mut self) {
        while self.cached > CACHE
            && let Some(slot) = self.slots.get_mut(self.first_cached)
            && slot.at.is_some()
        {
            if slot.entry.take().is_some() {
                self.cached -= slot.size;
            }
            self.first_cached += 1;
        }
    }

    /// Removes the entries after `last`.
    pub(super) fn truncate(&mut self, last: Option<LogId>) {
        let next = last.map_or(0, |id| id.index + 1);
        while let Some(slot) = self.slots.pop_back_if(|slot| slot.id.index >= next) {
            if slot.entry.is_some() {
                self.cached -= slot.size;
            }
        }
        self.first_cached = self.first_cached.min(self.slots.len());
    }

    /// Removes the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        self.purged = later(self.purged, Some(upto));
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.id.index <= upto.index) {
            if slot.entry.is_some() {
                self.cached -= slot.size;
            }
            self.first_cached = self.first_cached.saturating_sub(1);
        }
    }

    /// Returns the entries in this range that exist, in order.
    pub(super) fn range(&self, range: impl RangeBounds<u64>) -> Vec<Slot> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let first = self.slots.front().map_or(0, |slot| slot.id.index);
        let skipped = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        self.slots.iter().skip(skipped).take_while(|slot| range.contains(&slot.id.index)).cloned().collect()
    }

    /// Returns the index up to which the log can be purged after a snapshot at `snapshot`; `None` if nothing can be
    /// purged.
    pub(super) fn purge_point(&self, snapshot: u64) -> Option<u64> {
        let (mut bytes, mut count) = (0, 0);
        let behind = self.slots.iter().rev().skip_while(|slot| slot.id.index > snapshot);
        let mut too_much = behind.skip_while(|slot| {
            bytes += slot.size;
            count += 1;
            bytes <= BYTES_KEPT && count <= ENTRIES_KEPT
        });
        too_much.next().map(|slot| slot.id.index)
    }

    fn place(&self, index: u64) -> Option<usize> {
        let first = self.slots.front()?.id.index;
        usize::try_from(index.checked_sub(first)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId as _;

    use super::*;
    use crate::raft::type_config::{EntryBytes, LeaderId};

    /// A log of this many entries of this size, from index 0.
    fn log(count: u64, size: usize) -> Index {
        let mut index = Index::default();
        for number in 0..count {
            let log_id = LogId::new(LeaderId::new(1, 1).to_committed(), number);
            let payload = EntryPayload::Normal(EntryBytes(vec![0; size].into()));
            index.push(&RaftEntry { log_id, payload }).expect("it is the next one");
        }
        index
    }

    #[test]
    fn a_bounded_number_of_entries_and_bytes_stays_behind_a_snapshot() {
        let kept = u64::try_from(ENTRIES_KEPT).expect("it is small");
        assert_eq!(log(kept + 50, 1).purge_point(kept + 9), Some(9));
        assert_eq!(log(kept + 50, 1).purge_point(kept - 1), None);
        assert_eq!(log(20, 1 << 20).purge_point(15), Some(7), "eight of them have the bytes that are kept");
        assert_eq!(log(0, 0).purge_point(15), None);
    }
}
