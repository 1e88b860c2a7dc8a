//! The Raft log and vote in sled, used as if it could lie.
//!
//! Keys: index (8 bytes, big endian) and part (2): an entry is sealed as a whole and cut into parts below
//! sled's 32 KiB page, since larger values would go to files that nobody syncs. Opening reads every record from
//! the first to the last; a hole, a foreign or a changed record means that acknowledged entries may be lost,
//! and the folder is refused.

use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};

use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::OpenError;
use super::flusher::{Acknowledged, Flusher, open_data_file};
use crate::raft::type_config::{LogId, RaftEntry, TypeConfig, Vote};
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::seal::Sealer;

/// Below sled's page of 32 KiB with its own overhead.
const PART: usize = 30 << 10;
/// Removing more at once would stall appends.
const PURGE_CHUNK: u64 = 1_000;
const CACHE: u64 = 8 << 20;
/// Bytes of entries in one message to a follower; a larger entry goes alone. Half of what a message may have.
const BATCH_BOUND: usize = MESSAGE_BOUND / 2;

/// The log of one manager.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: sled::Tree,
    meta: sled::Tree,
    sealer: Sealer,
    flusher: Flusher,
    acknowledged: Acknowledged,
}

impl LogStore {
    /// Opens (or makes) the log in `dir/db` and verifies every record of it. sled panics over some damage: that is
    /// damage like any other, and must not end the daemon.
    pub(crate) fn open(dir: &Path, sealer: Sealer, was_here: bool) -> Result<Self, OpenError> {
        let opened = std::panic::catch_unwind(|| Self::try_open(dir, sealer, was_here));
        opened.unwrap_or_else(|_| Err(damaged(&dir.join("db"), "sled can't read it")))
    }

    fn try_open(dir: &Path, sealer: Sealer, was_here: bool) -> Result<Self, OpenError> {
        let path = dir.join("db");
        let fail = |source: io::Error| OpenError::Io { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(fail)?;
        let db = sled::Config::new()
            .path(&path)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .open()
            .map_err(|error| open_error(&path, error))?;
        let blobs = std::fs::read_dir(path.join("blobs")).map_or(0, Iterator::count);
        if blobs > 0 {
            return Err(damaged(&path, "a record lies outside of the synced file"));
        }
        let file = open_data_file(&path).map_err(fail)?;
        let acknowledged = Acknowledged::open(&dir.join("acknowledged")).map_err(fail)?;
        let flusher = Flusher::start(db.clone(), file, acknowledged.clone()).map_err(fail)?;
        let open_tree = |name: &str| db.open_tree(name).map_err(|error| open_error(&path, error));
        let store = Self { log: open_tree("log")?, meta: open_tree("meta")?, sealer, flusher, acknowledged };
        store.verify(&path)?;
        let vote = store.read_meta::<Vote>("vote").map_err(fail)?;
        if was_here && vote.is_none() {
            return Err(damaged(&path, "the vote of this manager is gone"));
        }
        Ok(store)
    }

    /// The last entry that a snapshot stands for: a state machine that is older lacks what was removed here.
    pub(crate) fn purged(&self) -> io::Result<u64> {
        Ok(self.read_meta::<LogId>("purged")?.map_or(0, |id| id.index))
    }

    fn verify(&self, path: &Path) -> Result<(), OpenError> {
        let fail = |error: io::Error| damaged(path, &error.to_string());
        let mut next = self.read_meta::<LogId>("purged").map_err(fail)?.map_or(0, |id| id.index + 1);
        self.read_meta::<Vote>("vote").map_err(fail)?;
        let committed = self.read_meta::<LogId>("committed").map_err(fail)?;
        for index in self.indexes(next..).map_err(fail)? {
            if index != next {
                return Err(damaged(path, &format!("entry {next} is missing, but {index} is there")));
            }
            self.entry(index).map_err(fail)?;
            next += 1;
        }
        if let Some(last) = self.acknowledged.read().filter(|last| *last >= next) {
            return Err(damaged(path, &format!("it ends before entry {next}, but entry {last} was acknowledged")));
        }
        if let Some(committed) = committed
            && committed.index >= next
        {
            return Err(damaged(path, &format!("it ends before entry {}, which was committed", committed.index)));
        }
        Ok(())
    }

    fn indexes(&self, range: impl RangeBounds<u64>) -> io::Result<impl Iterator<Item = u64>> {
        let mut found = Vec::new();
        for key in self.log.range(keys(range)).keys() {
            let (index, part) = split_key(&key.map_err(io::Error::other)?)?;
            if part == 0 {
                found.push(index);
            }
        }
        Ok(found.into_iter())
    }

    fn entry(&self, index: u64) -> io::Result<RaftEntry> {
        self.sized_entry(index).map(|(entry, _)| entry)
    }

    /// An entry, and how many bytes it has.
    fn sized_entry(&self, index: u64) -> io::Result<(RaftEntry, usize)> {
        let mut sealed = Vec::new();
        for (expected, item) in (0u16..).zip(self.log.range(keys(index..=index))) {
            let (key, part) = item.map_err(io::Error::other)?;
            if split_key(&key)? != (index, expected) {
                return Err(io::Error::other(format!("a part of entry {index} is missing")));
            }
            sealed.extend_from_slice(&part);
        }
        let plain = self.sealer.open(&what(index), &sealed);
        let plain = plain.map_err(|error| io::Error::other(format!("entry {index}: {error}")))?;
        let entry: RaftEntry = postcard::from_bytes(&plain).map_err(io::Error::other)?;
        if entry.log_id().index != index {
            return Err(io::Error::other(format!("entry {index} says that it is {}", entry.log_id().index)));
        }
        Ok((entry, plain.len()))
    }

    fn read_meta<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let Some(sealed) = self.meta.get(name).map_err(io::Error::other)? else { return Ok(None) };
        let plain = self.sealer.open(name.as_bytes(), &sealed);
        let plain = plain.map_err(|error| io::Error::other(format!("the record `{name}`: {error}")))?;
        postcard::from_bytes(&plain).map(Some).map_err(io::Error::other)
    }

    fn write_meta<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let plain = postcard::to_stdvec(value).map_err(io::Error::other)?;
        self.meta.insert(name, self.sealer.seal(name.as_bytes(), &plain)).map_err(io::Error::other)?;
        Ok(())
    }

    fn remove_range(&self, range: impl RangeBounds<u64>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for key in self.log.range(keys(range)).keys() {
            batch.remove(key.map_err(io::Error::other)?);
        }
        self.log.apply_batch(batch).map_err(io::Error::other)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        self.indexes(range)?.map(|index| self.entry(index)).collect()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.read_meta("vote")
    }

    // What is sent as one message: entries that are small each may be too much together.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for index in self.indexes(start..end)? {
            let (entry, size) = self.sized_entry(index)?;
            bytes += size;
            if bytes > BATCH_BOUND && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_purged_log_id = self.read_meta::<LogId>("purged")?;
        let last_log_id = match self.log.last().map_err(io::Error::other)? {
            Some((key, _)) => Some(self.entry(split_key(&key)?.0)?.log_id()),
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write_meta("vote", vote)?;
        self.flusher.sync().await
    }

    // Not synced: it only spares a restarted manager the wait for a leader, and may be behind.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        committed.map_or(Ok(()), |committed| self.write_meta("committed", &committed))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.read_meta("committed")
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = sled::Batch::default();
        let mut last = None;
        for entry in entries {
            let index = entry.log_id().index;
            last = Some(index);
            let plain = postcard::to_stdvec(&entry).map_err(io::Error::other)?;
            let sealed = self.sealer.seal(&what(index), &plain);
            for (part, bytes) in (0u16..).zip(sealed.chunks(PART)) {
                batch.insert(key(index, part).as_slice(), bytes);
            }
        }
        self.log.apply_batch(batch).map_err(io::Error::other)?;
        self.flusher.after_sync(last, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first = last.map_or(0, |id| id.index + 1);
        // What was appended before may still wait for its sync, and would note its higher index after this one.
        self.flusher.sync().await?;
        self.acknowledged.lower(first.saturating_sub(1))?;
        self.remove_range(first..)?;
        self.flusher.sync().await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        // First what is allowed to be missing, then its absence: a crash between must not look like a hole.
        let first = self.read_meta::<LogId>("purged")?.map_or(0, |id| id.index + 1);
        self.write_meta("purged", &upto)?;
        self.flusher.sync().await?;
        for start in (first..=upto.index).step_by(usize::try_from(PURGE_CHUNK).expect("it is small")) {
            self.remove_range(start..=(start + PURGE_CHUNK - 1).min(upto.index))?;
        }
        Ok(())
    }
}

fn what(index: u64) -> [u8; 11] {
    let mut what = *b"log........";
    what[3..].copy_from_slice(&index.to_be_bytes());
    what
}

fn key(index: u64, part: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

fn split_key(bytes: &[u8]) -> io::Result<(u64, u16)> {
    let whole: [u8; 10] = bytes.try_into().map_err(|_| io::Error::other("a key of the log has a wrong length"))?;
    let (index, part) = whole.split_at(8);
    let index = index.try_into().map(u64::from_be_bytes).expect("it was split at 8");
    let part = part.try_into().map(u16::from_be_bytes).expect("two bytes are left");
    Ok((index, part))
}

fn keys(range: impl RangeBounds<u64>) -> (Bound<[u8; 10]>, Bound<[u8; 10]>) {
    let start = match range.start_bound() {
        Bound::Included(index) => Bound::Included(key(*index, 0)),
        Bound::Excluded(index) => Bound::Excluded(key(*index, u16::MAX)),
        Bound::Unbounded => Bound::Unbounded,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => Bound::Included(key(*index, u16::MAX)),
        Bound::Excluded(index) => Bound::Excluded(key(*index, 0)),
        Bound::Unbounded => Bound::Unbounded,
    };
    (start, end)
}

fn open_error(path: &Path, error: sled::Error) -> OpenError {
    match error {
        sled::Error::Io(source) => OpenError::Io { path: path.to_owned(), source },
        other => damaged(path, &other.to_string()),
    }
}

fn damaged(path: &Path, what: &str) -> OpenError {
    OpenError::Damaged { path: PathBuf::from(path), what: what.to_owned() }
}

#[cfg(test)]
mod tests;
