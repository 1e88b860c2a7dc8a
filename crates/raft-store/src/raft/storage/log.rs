//! The log as the Raft library sees it: entries by index, the vote and the commit mark.
//!
//! Appending changes the index at once; the writer acknowledges it after the sync. Everything that the library reads is
//! either in memory or has been written.

use std::io;
use std::ops::RangeBounds;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot, watch};

use super::index::{Index, Slot};
use super::sled_format;
use super::wal::{Counters, Wal, read_entry};
use super::writer::{Command, Writer};
use super::{LogBounds, OpenError};
use crate::raft::disk::Disk;
use crate::raft::threads::Threads;
use crate::raft::type_config::{LogId, RaftEntry, TypeConfig, Vote};
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::seal::Sealer;

/// Bytes of entries in one message to a follower: half the limit of a message. A larger entry is sent alone.
const BATCH_BOUND: usize = MESSAGE_BOUND / 2;
/// Approximate size of an entry in a message beside its payload, in bytes.
const ENTRY_OVERHEAD: usize = 32;

/// Counts of what the log has written since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatistics {
    /// Number of fdatasync(2) calls.
    pub syncs: u64,
    /// Number of entries written.
    pub entries: u64,
    /// Number of bytes written.
    pub bytes: u64,
    /// Total time in fdatasync(2), in microseconds.
    pub sync_micros: u64,
    /// Longest fdatasync(2), in microseconds.
    pub longest_sync_micros: u64,
}

/// The log of one manager. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    index: Arc<Mutex<Index>>,
    commands: mpsc::UnboundedSender<Command>,
    sealer: Sealer,
    counters: Arc<Counters>,
    failed: watch::Receiver<bool>,
}

impl LogStore {
    /// Opens or creates the log and verifies every record. A folder in the previous format is converted.
    ///
    /// # Errors
    /// Acknowledged data is missing or changed, or an I/O error.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        sealer: Sealer,
        was_here: bool,
        threads: Threads,
        bounds: LogBounds,
    ) -> Result<Self, OpenError> {
        sled_format::convert(&disk, &sealer, was_here)?;
        let recovered = Wal::open(Arc::clone(&disk), sealer.clone(), was_here, bounds.segment_bytes)?;
        let wal = recovered.wal;
        let head = wal.head();
        let mut index = Index::new(bounds);
        (index.vote, index.committed, index.purged) = (head.vote, head.committed, head.purged);
        index.files = wal.files().collect();
        index.recover(recovered.entries);
        let (index, counters) = (Arc::new(Mutex::new(index)), wal.counters());
        let place = disk.place();
        let (sender, failed) = watch::channel(false);
        let commands = Writer::new(wal, Arc::clone(&index), disk, sender).start(threads);
        let commands = commands.map_err(|source| OpenError::Io { place, source })?;
        Ok(Self { index, commands, sealer, counters, failed })
    }

    /// Index of the last purged entry. A state machine that is older than it lacks entries.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.index().purged.map(|id| id.index)
    }

    /// Brings the log in line with the newest snapshot on disk, at the start: a crash may come between the installation of a
    /// snapshot and the purge of the log. Entries that follow the snapshot's last one are kept; entries of which a leader
    /// has never heard are not, although their term may be later (Raft paper §7).
    ///
    /// # Errors
    /// The log can't be written.
    pub(crate) async fn follow_snapshot(&mut self, snapshot: LogId) -> io::Result<()> {
        let (purged, own) = {
            let index = self.index();
            (index.purged, index.range(snapshot.index..=snapshot.index).first().map(|slot| slot.id))
        };
        if own == Some(snapshot) || purged.is_some_and(|purged| purged.index >= snapshot.index) {
            return Ok(());
        }
        self.truncate_after(purged).await?;
        self.purge(snapshot).await
    }

    /// Returns what was written so far.
    pub(crate) fn statistics(&self) -> LogStatistics {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        LogStatistics {
            syncs: read(&self.counters.syncs),
            entries: read(&self.counters.entries),
            bytes: read(&self.counters.bytes),
            sync_micros: read(&self.counters.sync_time),
            longest_sync_micros: read(&self.counters.longest_sync),
        }
    }

    /// Index up to which the log can be purged after a snapshot at `snapshot`. It keeps the newest entries within a
    /// bound, for followers that are slightly behind. `None` if nothing can be purged.
    pub(crate) fn purge_point(&self, snapshot: u64) -> Option<u64> {
        self.index().purge_point(snapshot)
    }

    /// Waits until the log can no longer be written.
    pub(crate) async fn failed(&self) {
        let mut failed = self.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            // The writer has ended without a failure.
            std::future::pending().await
        }
    }

    /// Makes it provable on disk that the last entries were acknowledged; call it when the log is idle. A repeated call
    /// does nothing.
    pub(crate) fn settle(&self) {
        // A writer that has stopped has already reported the error to those who appended.
        let _ = self.send(Command::Settle);
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no holder panics")
    }

    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::other("the writer of the log has stopped"))
    }

    /// Returns the entry of a slot; `None` if it was purged meanwhile.
    fn entry(&self, slot: Slot) -> io::Result<Option<RaftEntry>> {
        if let Some(entry) = slot.entry {
            return Ok(Some(entry));
        }
        let at = slot.at.ok_or_else(|| io::Error::other("an entry is neither in memory nor on disk"))?;
        let file = self.index().files.get(&at.segment).cloned();
        let read = file.map(|file| read_entry(file.as_ref(), &self.sealer, at, slot.id));
        match read {
            Some(Ok(entry)) => Ok(Some(entry)),
            // The segment of a purged entry may have been reused.
            _ if self.index().purged.is_some_and(|purged| purged.index >= slot.id.index) => Ok(None),
            Some(Err(error)) => Err(error),
            None => Err(io::Error::other(format!("segment {} of the log is not open", at.segment))),
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        let slots = self.index().range(range);
        let mut found = Vec::with_capacity(slots.len());
        for slot in slots {
            found.extend(self.entry(slot)?);
        }
        Ok(found)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.index().vote)
    }

    // In parts, because after a restart the whole log may be applied.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        let slots: std::collections::VecDeque<Slot> = self.index().range(range).into();
        let log = self.clone();
        futures::stream::iter(slots.into_iter().filter_map(move |slot| log.entry(slot).transpose()))
    }

    // Limits the size of one message: many small entries together may be too large. Nothing is sent if the first entry
    // was purged: the library purges what a follower still lacks once its replication has failed, and the stream that
    // has failed may read once more. It would send later entries as if they followed the last one that it has sent.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        let slots = self.index().range(start..end);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for slot in slots {
            bytes += slot.size + ENTRY_OVERHEAD;
            if bytes > BATCH_BOUND && !found.is_empty() {
                break;
            }
            found.extend(self.entry(slot)?);
        }
        let is_whole = found.first().is_some_and(|first: &RaftEntry| first.log_id.index == start);
        Ok(if is_whole { found } else { Vec::new() })
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let index = self.index();
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.index().vote = Some(*vote);
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Vote(*vote, sender))?;
        receiver.await.map_err(|_| io::Error::other("the writer of the log has stopped"))?
    }

    // The mark is not synced by itself. It only saves a restarted manager the wait for a leader, and may be behind.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // The writer writes it together with other records.
        let mut index = self.index();
        index.committed = committed.or(index.committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let index = self.index();
        // The mark may have been written before its entries were synced.
        let last = index.last().map(|id| id.index);
        Ok(index.committed.filter(|committed| Some(committed.index) <= last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<RaftEntry> = entries.into_iter().collect();
        {
            let mut index = self.index();
            for entry in &entries {
                index.push(entry)?;
            }
        }
        self.send(Command::Append(entries, callback))
    }

    // Waits for the sync, because a snapshot that is installed next may have an older term than the truncated entries.
    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.index().truncate(last);
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Truncate(last, sender))?;
        receiver.await.map_err(|_| io::Error::other("the writer of the log has stopped"))?
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.index().purge(upto);
        self.send(Command::Purge(upto))
    }
}

#[cfg(test)]
mod tests;
