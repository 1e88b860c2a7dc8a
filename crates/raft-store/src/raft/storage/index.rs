//! The entries of the log by their index: where each stands, and the newest ones themselves.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;

use super::wal::{Position, RecoveredEntry};
use crate::raft::disk::DiskFile;
use crate::raft::type_config::{LogId, RaftEntry, Vote};

/// Bytes of entries that are kept in memory: what followers and the state machine read is nearly always new.
const CACHE: usize = 16 << 20;

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) id: LogId,
    /// Bytes of its payload, about.
    pub(super) size: usize,
    /// `None`: it is not written yet, and in memory.
    pub(super) at: Option<Position>,
    /// `None`: it is on disk alone.
    pub(super) entry: Option<RaftEntry>,
}

/// What is known of the log without reading it.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    slots: VecDeque<Slot>,
    /// Bytes of the entries that are in memory.
    cached: usize,
    /// Slots before this one have no entry in memory.
    first_cached: usize,
    /// Open segments, to read from.
    pub(super) files: BTreeMap<u64, Arc<dyn DiskFile>>,
}

impl Index {
    /// Takes the entries that were found when the log was opened, in order.
    pub(super) fn recover(&mut self, entries: VecDeque<RecoveredEntry>) {
        for found in entries {
            self.cached += found.size;
            let (at, entry) = (Some(found.at), Some(found.entry));
            self.slots.push_back(Slot { id: found.id, size: found.size, at, entry });
            self.evict();
        }
    }

    /// The last entry, or the last that a snapshot holds.
    pub(super) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    /// A new entry, which must follow the last one.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn push(&mut self, entry: &RaftEntry) -> io::Result<()> {
        let id = entry.log_id();
        // A log that is empty may begin anywhere.
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

    /// The entry was written at `at`, unless it was given up meanwhile.
    pub(super) fn written(&mut self, id: LogId, at: Position) {
        if let Some(place) = self.place(id.index)
            && let Some(slot) = self.slots.get_mut(place).filter(|slot| slot.id == id)
        {
            slot.at = Some(at);
        }
    }

    /// Lets go of the oldest entries in memory that are written, as far as there are too many.
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

    /// Gives up the entries after `last`.
    pub(super) fn truncate(&mut self, last: Option<LogId>) {
        let next = last.map_or(0, |id| id.index + 1);
        while let Some(slot) = self.slots.pop_back_if(|slot| slot.id.index >= next) {
            if slot.entry.is_some() {
                self.cached -= slot.size;
            }
        }
        self.first_cached = self.first_cached.min(self.slots.len());
    }

    /// Forgets the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.id.index <= upto.index) {
            if slot.entry.is_some() {
                self.cached -= slot.size;
            }
            self.first_cached = self.first_cached.saturating_sub(1);
        }
    }

    /// The entries of this range that are here, in order.
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

    fn place(&self, index: u64) -> Option<usize> {
        let first = self.slots.front()?.id.index;
        usize::try_from(index.checked_sub(first)?).ok()
    }
}
