//! The write-ahead log below Raft's log: records in preallocated segments, written in order and synced by the thread
//! that owns it.
//!
//! ```text
//! log.7  │ head │ entry │ entry │ vote │ entry │ …      the oldest that is still needed
//! log.8  │ head │ entry │ truncate │ entry │ ░░░░        the current one; its end is undefined
//! spare.6                                                a purged segment that can be reused
//! acknowledged                                           the note: position of the last sync; not synced itself
//! ```
//!
//! Nothing is changed in place. Records that follow mark entries that Raft has truncated or that a snapshot contains. A
//! segment begins only when the one before it is synced to its end, and its head repeats the vote and the marks, so
//! that the oldest segments can be removed. Segment numbers only increase.

mod record;
mod recover;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::record::Header;
pub(super) use self::record::{Kind, Position};
pub(super) use self::recover::RecoveredEntry;
use crate::raft::disk::{Disk, DiskFile};
use crate::raft::type_config::{LogId, RaftEntry, Vote};
use flota_api::seal::Sealer;
use openraft::entry::RaftEntry as _;

/// Number of unused segments that are kept for reuse; others are removed.
const SPARES: usize = 2;
const NOTE: &str = "acknowledged";

/// The first record of each segment: the state that the records before it led to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Offset at which the segment before this one ends.
    previous_end: u64,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// The last entry before this segment.
    pub(super) last: Option<LogId>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: Arc<dyn DiskFile>,
    length: u64,
    /// Offset of the next record.
    end: u64,
    /// Highest index of an entry in the segment; `None` if it has no entries.
    highest: Option<u64>,
}

/// Counters for logs and benchmarks. Times are in microseconds.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) syncs: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) sync_time: AtomicU64,
    pub(super) longest_sync: AtomicU64,
}

/// The open log. After an error it must not be written again, because the content of the disk is unknown.
#[derive(Debug)]
pub(super) struct Wal {
    disk: Arc<dyn Disk>,
    sealer: Sealer,
    /// Bytes in a segment. A larger record gets a segment of its own length.
    segment_bytes: u64,
    closed: VecDeque<Segment>,
    current: Segment,
    /// Records at the end of the current segment that are not written yet.
    buffer: Vec<u8>,
    head: Head,
    /// Everything before this position is on disk.
    synced: Position,
    spares: Vec<String>,
    note: Arc<dyn DiskFile>,
    counters: Arc<Counters>,
}

impl Wal {
    /// The current vote and marks.
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// The live counters of this log.
    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Returns a handle for reading this segment. It stays valid until the segment is reused.
    pub(super) fn file(&self, segment: u64) -> Option<Arc<dyn DiskFile>> {
        let mut all = self.closed.iter().chain([&self.current]);
        all.find(|it| it.number == segment).map(|it| Arc::clone(&it.file))
    }

    /// Returns handles for reading all segments, by number.
    pub(super) fn files(&self) -> impl Iterator<Item = (u64, Arc<dyn DiskFile>)> {
        self.closed.iter().chain([&self.current]).map(|it| (it.number, Arc::clone(&it.file)))
    }

    /// Number of the oldest segment.
    pub(super) fn first_segment(&self) -> u64 {
        self.closed.front().unwrap_or(&self.current).number
    }

    /// Appends an entry. It is not written before [`Wal::write`].
    pub(super) fn append_entry(&mut self, id: LogId, body: &[u8]) -> io::Result<Position> {
        let term = id.leader_id.term;
        let at = self.append(Kind::Entry, (term, id.index), body)?;
        self.current.highest = self.current.highest.max(Some(id.index));
        self.head.last = Some(id);
        self.counters.entries.fetch_add(1, Ordering::Relaxed);
        Ok(at)
    }

    /// Appends the vote.
    pub(super) fn append_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.head.vote = Some(vote);
        self.append_mark(Kind::Vote, &vote)
    }

    /// Appends the mark of the last committed entry.
    pub(super) fn append_committed(&mut self, committed: LogId) -> io::Result<()> {
        self.head.committed = Some(committed);
        self.append_mark(Kind::Committed, &committed)
    }

    /// Appends a mark that truncates the log after `last`.
    pub(super) fn append_truncation(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.head.last = later(last, self.head.purged);
        self.append_mark(Kind::Truncate, &last)
    }

    /// Appends a mark that a snapshot contains the entries up to `upto`. [`Wal::recycle`] then reuses their segments.
    pub(super) fn append_purge(&mut self, upto: LogId) -> io::Result<()> {
        self.head.purged = later(self.head.purged, Some(upto));
        self.head.last = later(self.head.last, self.head.purged);
        self.append_mark(Kind::Purge, &upto)
    }

    fn append_mark(&mut self, kind: Kind, mark: &impl Serialize) -> io::Result<()> {
        let body = postcard::to_stdvec(mark).map_err(io::Error::other)?;
        self.append(kind, (0, 0), &body).map(drop)
    }

    fn append(&mut self, kind: Kind, (term, index): (u64, u64), body: &[u8]) -> io::Result<Position> {
        let size = bytes(record::size(body.len()));
        if self.current.end + size > self.current.length {
            self.rotate(size)?;
        }
        let at = Position { segment: self.current.number, offset: self.current.end };
        let header = Header { kind, term, index, synced: self.synced };
        record::encode(&mut self.buffer, &self.sealer, at, header, body);
        self.current.end += size;
        Ok(at)
    }

    /// Writes everything that was appended. It is not durable before [`Wal::sync`].
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let offset = self.current.end - bytes(self.buffer.len());
        self.current.file.write_at(offset, &self.buffer)?;
        self.counters.bytes.fetch_add(bytes(self.buffer.len()), Ordering::Relaxed);
        self.buffer.clear();
        // Do not keep the memory of a large entry.
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }

    /// Makes everything that was appended durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.write()?;
        let end = Position { segment: self.current.number, offset: self.current.end };
        if end == self.synced {
            return Ok(());
        }
        let begun = Instant::now();
        self.current.file.sync()?;
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.counters.sync_time.fetch_add(took, Ordering::Relaxed);
        self.counters.longest_sync.fetch_max(took, Ordering::Relaxed);
        self.synced = end;
        self.note.write_at(0, &encode_note(end))
    }

    /// Appends a mark after the last record and syncs it. The mark proves that the last record was acknowledged, even
    /// if a power failure loses the note. This is worth a sync when the log is idle.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        match (self.head.committed, self.head.vote) {
            (Some(committed), _) => self.append_committed(committed)?,
            (None, Some(vote)) => self.append_vote(vote)?,
            (None, None) => return Ok(()),
        }
        self.sync()
    }

    /// Begins the next segment. The current one is synced first, so that a valid head proves that everything before it
    /// was synced.
    fn rotate(&mut self, record: u64) -> io::Result<()> {
        self.sync()?;
        let number = self.current.number + 1;
        let mut head = self.head.clone();
        head.previous_end = self.current.end;
        let length = segment_length(self.segment_bytes, record);
        let spare = if length == self.segment_bytes { self.spares.pop() } else { None };
        let next = begin_segment(self.disk.as_ref(), spare, number, length)?;
        self.closed.push_back(std::mem::replace(&mut self.current, next));
        let body = postcard::to_stdvec(&head).map_err(io::Error::other)?;
        self.append(Kind::Head, (0, 0), &body).map(drop)
    }

    /// Frees the oldest segments if a snapshot contains all their entries. Everything appended must be synced, because
    /// the purge mark has to be durable before the segments go.
    pub(super) fn recycle(&mut self) -> io::Result<()> {
        let purged = self.head.purged.map(|id| id.index);
        let mut changed = false;
        while let Some(oldest) = self.closed.front()
            && oldest.highest <= purged
        {
            let (number, length) = (oldest.number, oldest.length);
            let name = segment_name(number);
            if self.spares.len() < SPARES && length == self.segment_bytes {
                let spare = format!("spare.{number:020}");
                self.disk.rename(&name, &spare)?;
                self.spares.push(spare);
            } else {
                self.disk.remove(&name)?;
            }
            self.closed.pop_front();
            changed = true;
        }
        if changed { self.disk.sync_names() } else { Ok(()) }
    }
}

/// Reads the entry with this id at its position.
pub(super) fn read_entry(file: &dyn DiskFile, sealer: &Sealer, at: Position, id: LogId) -> io::Result<RaftEntry> {
    let bad = || io::Error::other(format!("entry {} can't be read any more", id.index));
    let mut header = [0; record::HEADER];
    file.read_at(at.offset, &mut header)?;
    let (_, length) = record::decode_header(at, &header).ok_or_else(bad)?;
    let mut whole = vec![0; (record::HEADER + length).next_multiple_of(record::ALIGNMENT)];
    file.read_at(at.offset, &mut whole)?;
    let (_, body, _) = record::decode(sealer, at, &whole).ok_or_else(bad)?;
    let entry: RaftEntry = postcard::from_bytes(&body).map_err(io::Error::other)?;
    if entry.log_id() == id { Ok(entry) } else { Err(bad()) }
}

/// Length of a segment that begins with this many bytes of records after its head.
fn segment_length(segment_bytes: u64, record: u64) -> u64 {
    // The head record is far smaller than a page.
    segment_bytes.max((record + 4096).next_multiple_of(4096))
}

/// Begins a segment of this length, in the place of a spare if there is one.
fn begin_segment(disk: &dyn Disk, spare: Option<String>, number: u64, length: u64) -> io::Result<Segment> {
    let name = segment_name(number);
    let file = match spare {
        Some(spare) => {
            disk.rename(&spare, &name)?;
            disk.open(&name)?
        }
        None => {
            let file = disk.create(&name)?;
            file.allocate(length)?;
            file
        }
    };
    disk.sync_names()?;
    Ok(Segment { number, file, length, end: 0, highest: None })
}

/// Returns the id with the higher index. `LogId` orders by term first, which is wrong here: uncommitted entries may
/// have a later term than a snapshot.
pub(super) fn later(one: Option<LogId>, other: Option<LogId>) -> Option<LogId> {
    if other.map(|id| id.index) > one.map(|id| id.index) { other } else { one }
}

fn segment_name(number: u64) -> String {
    format!("log.{number:020}")
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).expect("memory is counted in 64 bits")
}

/// Encodes the position up to which a sync has succeeded. The note is written after each sync and not synced itself, so
/// it is never ahead of the disk. After a power failure it may be behind; then less damage is detected.
fn encode_note(end: Position) -> [u8; 20] {
    let mut note = [0; 20];
    note[..8].copy_from_slice(&end.segment.to_le_bytes());
    note[8..16].copy_from_slice(&end.offset.to_le_bytes());
    let checksum = crc32fast::hash(&note[..16]);
    note[16..].copy_from_slice(&checksum.to_le_bytes());
    note
}

/// Decodes the note; `None` if nothing was acknowledged or the note is damaged.
fn decode_note(file: &dyn DiskFile) -> Option<Position> {
    let mut note = [0; 20];
    file.read_at(0, &mut note).ok()?;
    let number = |from: usize| Some(u64::from_le_bytes(*note.get(from..from + 8)?.first_chunk()?));
    let position = Position { segment: number(0)?, offset: number(8)? };
    (encode_note(position) == note).then_some(position)
}

#[cfg(test)]
mod tests;
