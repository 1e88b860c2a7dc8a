//! The write-ahead log under Raft's log: records in preallocated segments, written in order, synced by the one thread
//! that owns it.
//!
//! ```text
//! log.7  │ head │ entry │ entry │ vote │ entry │ …      the oldest that is still needed
//! log.8  │ head │ entry │ truncate │ entry │ ░░░░        the current one; behind its end stands anything
//! spare.6                                                a segment whose entries are purged, to be used again
//! acknowledged                                           up to where a sync has answered; itself not synced
//! ```
//!
//! Nothing is ever changed in place: entries that Raft gives up and entries that a snapshot holds are marked by records
//! behind them. A segment begins only when the one before it is synced to its end, and its head repeats the vote and
//! the marks, so that the oldest segments can go. Numbers of segments only rise.

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
use openraft::entry::RaftEntry as _;
use flota_api::seal::Sealer;

/// Bytes of a segment. A record that is larger has a segment of its own length.
const SEGMENT: u64 = 4 << 20;
/// Segments that wait to be used again; more are removed.
const SPARES: usize = 2;
const NOTE: &str = "acknowledged";

/// What a segment's first record repeats of all before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Where the segment before this one ends.
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
    /// Where the next record goes.
    end: u64,
    /// Highest index of an entry in it; `None`: it has none.
    highest: Option<u64>,
}

/// Counters for people and for the benchmark. Times are in microseconds.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) syncs: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) sync_time: AtomicU64,
    pub(super) longest_sync: AtomicU64,
}

/// The open log. After an error nothing more is written: what is on disk is not known then.
#[derive(Debug)]
pub(super) struct Wal {
    disk: Arc<dyn Disk>,
    sealer: Sealer,
    closed: VecDeque<Segment>,
    current: Segment,
    /// Records of the current segment that are not written yet; they end at its end.
    buffer: Vec<u8>,
    head: Head,
    /// Everything before this place is on disk.
    synced: Position,
    spares: Vec<String>,
    note: Arc<dyn DiskFile>,
    counters: Arc<Counters>,
}

impl Wal {
    /// The vote and the marks.
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// Its counters, which it goes on raising.
    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// A handle to read a record of this segment with; it stays good while the segment is not used again.
    pub(super) fn file(&self, segment: u64) -> Option<Arc<dyn DiskFile>> {
        let mut all = self.closed.iter().chain([&self.current]);
        all.find(|it| it.number == segment).map(|it| Arc::clone(&it.file))
    }

    /// Handles to read all segments with, by number.
    pub(super) fn files(&self) -> impl Iterator<Item = (u64, Arc<dyn DiskFile>)> {
        self.closed.iter().chain([&self.current]).map(|it| (it.number, Arc::clone(&it.file)))
    }

    /// The oldest segment that is still here.
    pub(super) fn first_segment(&self) -> u64 {
        self.closed.front().unwrap_or(&self.current).number
    }

    /// Puts an entry behind everything else. Not written before [`Wal::write`].
    pub(super) fn append_entry(&mut self, id: LogId, body: &[u8]) -> io::Result<Position> {
        let term = id.leader_id.term;
        let at = self.append(Kind::Entry, (term, id.index), body)?;
        self.current.highest = self.current.highest.max(Some(id.index));
        self.head.last = Some(id);
        self.counters.entries.fetch_add(1, Ordering::Relaxed);
        Ok(at)
    }

    /// Notes the vote.
    pub(super) fn append_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.head.vote = Some(vote);
        self.append_mark(Kind::Vote, &vote)
    }

    /// Notes what is committed.
    pub(super) fn append_committed(&mut self, committed: LogId) -> io::Result<()> {
        self.head.committed = Some(committed);
        self.append_mark(Kind::Committed, &committed)
    }

    /// Gives up the entries after this one.
    pub(super) fn append_truncation(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.head.last = last.max(self.head.purged);
        self.append_mark(Kind::Truncate, &last)
    }

    /// Notes that a snapshot holds the entries up to this one. Their segments are used again by [`Wal::recycle`].
    pub(super) fn append_purge(&mut self, upto: LogId) -> io::Result<()> {
        self.head.purged = self.head.purged.max(Some(upto));
        self.head.last = self.head.last.max(self.head.purged);
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

    /// Writes what was appended. It is not durable before [`Wal::sync`].
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let offset = self.current.end - bytes(self.buffer.len());
        self.current.file.write_at(offset, &self.buffer)?;
        self.counters.bytes.fetch_add(bytes(self.buffer.len()), Ordering::Relaxed);
        self.buffer.clear();
        // One large entry must not keep its memory for ever.
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

    /// Puts a mark behind the last record, so that this one is proved to have been acknowledged also where a power
    /// failure takes the note. Worth a sync when nothing else is to be written.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        match (self.head.committed, self.head.vote) {
            (Some(committed), _) => self.append_committed(committed)?,
            (None, Some(vote)) => self.append_vote(vote)?,
            (None, None) => return Ok(()),
        }
        self.sync()
    }

    /// Begins the next segment. The one before is synced first: a valid head proves that all before it was.
    fn rotate(&mut self, record: u64) -> io::Result<()> {
        self.sync()?;
        let number = self.current.number + 1;
        let mut head = self.head.clone();
        head.previous_end = self.current.end;
        let next = begin_segment(self.disk.as_ref(), &mut self.spares, number, record)?;
        self.closed.push_back(std::mem::replace(&mut self.current, next));
        let body = postcard::to_stdvec(&head).map_err(io::Error::other)?;
        self.append(Kind::Head, (0, 0), &body).map(drop)
    }

    /// Lets go of the oldest segments whose entries all stand in a snapshot. What was appended must be synced: the mark
    /// that allows their absence has to be there first.
    pub(super) fn recycle(&mut self) -> io::Result<()> {
        let purged = self.head.purged.map(|id| id.index);
        let mut changed = false;
        while let Some(oldest) = self.closed.front()
            && oldest.highest <= purged
        {
            let (number, length) = (oldest.number, oldest.length);
            let name = segment_name(number);
            if self.spares.len() < SPARES && length == SEGMENT {
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

/// Reads the entry with this id from its place.
pub(super) fn read_entry(file: &dyn DiskFile, sealer: &Sealer, at: Position, id: LogId) -> io::Result<RaftEntry> {
    let bad = || io::Error::other(format!("entry {} can't be read any more", id.index));
    let mut header = [0; record::HEADER];
    file.read_at(at.offset, &mut header)?;
    let (_, length) = record::decode_header(at, &header).ok_or_else(bad)?;
    let mut whole = vec![0; record::HEADER + length];
    file.read_at(at.offset, &mut whole)?;
    let (_, body, _) = record::decode(sealer, at, &whole).ok_or_else(bad)?;
    let entry: RaftEntry = postcard::from_bytes(&body).map_err(io::Error::other)?;
    if entry.log_id() == id { Ok(entry) } else { Err(bad()) }
}

fn begin_segment(disk: &dyn Disk, spares: &mut Vec<String>, number: u64, record: u64) -> io::Result<Segment> {
    let name = segment_name(number);
    // A head with its marks is far smaller than a page.
    let length = SEGMENT.max((record + 4096).next_multiple_of(4096));
    let file = match spares.pop().filter(|_| length == SEGMENT) {
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

fn segment_name(number: u64) -> String {
    format!("log.{number:020}")
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).expect("memory is counted in 64 bits")
}

/// Up to where a sync has answered. Written after each and not synced itself, so it is never ahead of what is on disk;
/// after a power failure it may be behind, which only makes it notice less.
fn encode_note(end: Position) -> [u8; 20] {
    let mut note = [0; 20];
    note[..8].copy_from_slice(&end.segment.to_le_bytes());
    note[8..16].copy_from_slice(&end.offset.to_le_bytes());
    let checksum = crc32fast::hash(&note[..16]);
    note[16..].copy_from_slice(&checksum.to_le_bytes());
    note
}

/// `None`: nothing was acknowledged, or the note itself is damaged.
fn decode_note(file: &dyn DiskFile) -> Option<Position> {
    let mut note = [0; 20];
    file.read_at(0, &mut note).ok()?;
    let number = |from: usize| Some(u64::from_le_bytes(*note.get(from..from + 8)?.first_chunk()?));
    let position = Position { segment: number(0)?, offset: number(8)? };
    (encode_note(position) == note).then_some(position)
}

#[cfg(test)]
mod tests;
