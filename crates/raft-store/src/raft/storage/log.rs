//! The log as the Raft library sees it: entries by index, the vote, what is committed.
//!
//! Appending changes the index at once and is acknowledged by the writer after the sync. Whatever the library reads is
//! either in memory or was written before.

use std::io;
use std::ops::RangeBounds;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot, watch};

use super::OpenError;
use super::index::{Index, Slot};
use super::sled_format;
use super::wal::{Counters, Wal, read_entry};
use super::writer::{Command, Writer};
use crate::raft::disk::Disk;
use crate::raft::threads::Threads;
use crate::raft::type_config::{LogId, RaftEntry, TypeConfig, Vote};
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::seal::Sealer;

/// Bytes of entries in one message to a follower; a larger entry goes alone. Half of what a message may have.
const BATCH_BOUND: usize = MESSAGE_BOUND / 2;
/// What an entry has in a message beside its payload, about.
const ENTRY_OVERHEAD: usize = 32;

/// What the log has written since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatistics {
    /// Calls of fdatasync.
    pub syncs: u64,
    /// Entries that were written.
    pub entries: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// Time in fdatasync, in microseconds.
    pub sync_micros: u64,
    /// The longest one, in microseconds.
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
    /// Opens (or begins) the log and verifies every record of it. A folder of the format before this one is converted.
    ///
    /// # Errors
    /// Something that was acknowledged is gone or changed, or an I/O error.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        sealer: Sealer,
        was_here: bool,
        threads: Threads,
    ) -> Result<Self, OpenError> {
        sled_format::convert(&disk, &sealer, was_here)?;
        let recovered = Wal::open(Arc::clone(&disk), sealer.clone(), was_here)?;
        let wal = recovered.wal;
        let head = wal.head();
        let mut index = Index::default();
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

    /// Index of the last entry that a snapshot stands for: a state machine that is older lacks what was removed here.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.index().purged.map(|id| id.index)
    }

    /// What was written so far.
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

    /// Up to which entry the log may go behind a snapshot at this index: followers that are a little late still find the
    /// newest entries, as far as they are few and small. `None`: there is nothing to let go.
    pub(crate) fn purge_point(&self, snapshot: u64) -> Option<u64> {
        self.index().purge_point(snapshot)
    }

    /// Until the log can't be written any more.
    pub(crate) async fn failed(&self) {
        let mut failed = self.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            // The writer ends with its last user.
            std::future::pending().await
        }
    }

    /// Nothing is appended for a while: what was acknowledged is made provable on disk. Does nothing the second time.
    pub(crate) fn settle(&self) {
        // A writer that has stopped has said why to those who appended.
        let _ = self.send(Command::Settle);
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no holder panics")
    }

    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::other("the writer of the log has stopped"))
    }

    /// The entry of a slot; `None`: it was purged meanwhile.
    fn entry(&self, slot: Slot) -> io::Result<Option<RaftEntry>> {
        if let Some(entry) = slot.entry {
            return Ok(Some(entry));
        }
        let at = slot.at.ok_or_else(|| io::Error::other("an entry is neither in memory nor on disk"))?;
        let file = self.index().files.get(&at.segment).cloned();
        let read = file.map(|file| read_entry(file.as_ref(), &self.sealer, at, slot.id));
        match read {
            Some(Ok(entry)) => Ok(Some(entry)),
            // Its segment may be in use again.
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

    // In parts: after a restart all of the log may be applied.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        let slots: std::collections::VecDeque<Slot> = self.index().range(range).into();
        let log = self.clone();
        futures::stream::iter(slots.into_iter().filter_map(move |slot| log.entry(slot).transpose()))
    }

    // What is sent as one message: entries that are small each may be too much together.
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
        Ok(found)
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

    // Not synced by itself: it only spares a restarted manager the wait for a leader, and may be behind.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // The writer takes it along.
        let mut index = self.index();
        index.committed = committed.or(index.committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let index = self.index();
        // It was noted before its entries were synced, perhaps.
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

    // Waited for: a snapshot that is installed next may be older in its terms than the entries that are given up.
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
