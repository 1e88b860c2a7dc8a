//! Opens the log and verifies every record from the first to the last.
//!
//! The log ends at the first position without a valid record. That is a torn write unless a later record, a later
//! segment or the note proves that the position had been acknowledged. If one does, the log is damaged, and this
//! manager must not continue under its Raft id.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::record::{self, ALIGNMENT, Kind, Position};
use super::{Head, NOTE, SPARES, Segment, Wal, begin_segment, bytes, decode_note, later};
use crate::raft::disk::{self, Disk, DiskFile};
use crate::raft::storage::OpenError;
use crate::raft::type_config::{LogId, Vote};
use flota_api::seal::Sealer;
use openraft::entry::RaftEntry as _;
use serde::de::DeserializeOwned;

use crate::raft::type_config::RaftEntry;

/// A part of a segment that was never written.
static ZEROS: [u8; 4096] = [0; 4096];

/// An entry that was found, and its position.
#[derive(Debug)]
pub(in crate::raft::storage) struct RecoveredEntry {
    pub(in crate::raft::storage) id: LogId,
    pub(in crate::raft::storage) at: Position,
    pub(in crate::raft::storage) entry: RaftEntry,
    /// Size of its body in bytes.
    pub(in crate::raft::storage) size: usize,
}

/// The log after recovery.
#[derive(Debug)]
pub(in crate::raft::storage) struct Recovered {
    pub(in crate::raft::storage) wal: Wal,
    /// The entries after the purge mark, without gaps.
    pub(in crate::raft::storage) entries: VecDeque<RecoveredEntry>,
}

/// Why the log can't be opened.
enum OpenFault {
    Io(io::Error),
    Damage(String),
    NewerFormat(u8),
}

impl From<io::Error> for OpenFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damage<T>(what: impl Into<String>) -> Result<T, OpenFault> {
    Err(OpenFault::Damage(what.into()))
}

/// The state that the records read so far have led to.
#[derive(Default)]
struct Replay {
    head: Head,
    entries: VecDeque<RecoveredEntry>,
    /// Index of the first entry that can be in the segments.
    first: Option<u64>,
    /// Everything before this position was synced.
    synced: Position,
}

impl Wal {
    /// Opens the log on `disk`, or creates one if there is none. `was_here`: this manager has run under its Raft id
    /// before, so a missing log was lost.
    ///
    /// # Errors
    /// Acknowledged data is missing or changed, or an I/O error.
    pub(in crate::raft::storage) fn open(
        disk: Arc<dyn Disk>,
        sealer: Sealer,
        was_here: bool,
        segment_bytes: u64,
    ) -> Result<Recovered, OpenError> {
        let place = disk.place();
        open(disk, sealer, was_here, segment_bytes).map_err(|fault| match fault {
            OpenFault::Io(source) => OpenError::Io { place, source },
            OpenFault::Damage(what) => OpenError::Damaged { place, what },
            OpenFault::NewerFormat(found) => {
                OpenError::NewerFormat { place, what: "Raft log", found, known: record::FORMAT }
            }
        })
    }
}

fn open(disk: Arc<dyn Disk>, sealer: Sealer, was_here: bool, segment_bytes: u64) -> Result<Recovered, OpenFault> {
    let names = disk.list()?;
    let numbers = segment_numbers(&names)?;
    let mut spares: Vec<String> = names.iter().filter(|name| name.starts_with("spare.")).cloned().collect();
    let note = match disk.open(NOTE) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(NOTE)?,
        Err(error) => return Err(error.into()),
    };
    let acknowledged = decode_note(note.as_ref());
    let mut replay = Replay::default();
    let mut segments = VecDeque::new();
    let (mut unborn, mut is_torn) = (None, false);
    for (place, number) in numbers.iter().copied().enumerate() {
        let is_last = place + 1 == numbers.len();
        let read = read_segment(disk.as_ref(), &sealer, &mut replay, number, segments.back())?;
        match read {
            Some((segment, torn)) => {
                segments.push_back(segment);
                is_torn = torn;
            }
            None if is_last => unborn = Some(number),
            None => return damage(format!("segment {number} has no head, but a later segment is there")),
        }
    }
    let tail = segments.back().map(|it: &Segment| Position { segment: it.number, offset: it.end });
    if let Some(acknowledged) = acknowledged
        && tail.is_none_or(|tail| tail < acknowledged)
    {
        return damage("it ends before what was acknowledged");
    }
    if tail.is_none() && was_here {
        return damage("the log of this manager is gone");
    }
    if let Some(number) = unborn {
        // A crash while a segment was created: the file exists, but nothing in it was acknowledged.
        disk.remove(&super::segment_name(number))?;
        disk.sync_names()?;
    }
    replay.check_beginning()?;
    if let Some(last) = segments.back().filter(|_| is_torn) {
        // Erase only now, so that a folder that the checks above refuse stays unchanged.
        erase(last.file.as_ref(), last.end, last.length)?;
    }
    for spare in spares.drain(SPARES.min(spares.len())..) {
        disk.remove(&spare)?;
    }
    let durable = replay.synced.max(acknowledged.unwrap_or_default());
    let entries = replay.entries;
    let is_new = segments.is_empty();
    let current = match segments.pop_back() {
        Some(segment) => segment,
        None => {
            let number = numbers.first().copied().unwrap_or(1);
            begin_segment(disk.as_ref(), spares.pop(), number, segment_bytes)?
        }
    };
    let synced = Position { segment: current.number, offset: current.end };
    let mut wal = Wal {
        disk,
        sealer,
        closed: segments,
        current,
        buffer: Vec::new(),
        head: replay.head,
        synced,
        segment_bytes,
        spares,
        note,
        counters: Arc::default(),
    };
    if is_new {
        let body = postcard::to_stdvec(&Head::default()).map_err(io::Error::other)?;
        wal.append(Kind::Head, (0, 0), &body)?;
    }
    rewrite(&wal.current, durable)?;
    wal.synced = Position::default();
    wal.sync()?;
    Ok(Recovered { wal, entries })
}

/// Returns the numbers of the segments among the files, in order.
fn segment_numbers(names: &[String]) -> Result<Vec<u64>, OpenFault> {
    let mut numbers = Vec::new();
    for name in names {
        let Some(Ok(number)) = name.strip_prefix("log.").map(str::parse) else { continue };
        if *name != super::segment_name(number) {
            return damage(format!("{name} is not how a segment is named; that is {}", super::segment_name(number)));
        }
        numbers.push(number);
    }
    Ok(numbers)
}

/// Reads one segment to its end. Returns the segment and whether a torn write follows its end; `None` if it has no
/// head, so that nothing in it was acknowledged.
fn read_segment(
    disk: &dyn Disk,
    sealer: &Sealer,
    replay: &mut Replay,
    number: u64,
    before: Option<&Segment>,
) -> Result<Option<(Segment, bool)>, OpenFault> {
    let file = disk.open(&super::segment_name(number))?;
    let content = disk::read(file.as_ref())?;
    let (mut end, mut highest) = (0, None);
    while let Some((header, body, size)) = record::decode(sealer, at(number, end), &content[end..]) {
        let is_head = header.kind == Kind::Head;
        if is_head != (end == 0) {
            return damage(format!("segment {number} has a head in a wrong place"));
        }
        if is_head {
            replay.begin_segment(number, parse(&body)?, before)?;
        } else {
            replay.take(header, &body, at(number, end))?;
        }
        if header.kind == Kind::Entry {
            highest = highest.max(Some(header.index));
        }
        replay.synced = replay.synced.max(header.synced);
        end += size;
    }
    if let Some(format) = record::newer_format(&content[end..]) {
        return Err(OpenFault::NewerFormat(format));
    }
    let is_torn = check_tail(sealer, number, &content, end)?;
    if end == 0 {
        return Ok(None);
    }
    let segment = Segment { number, file, length: bytes(content.len()), end: bytes(end), highest };
    Ok(Some((segment, is_torn)))
}

/// Searches behind the end for a record that proves that this position had been acknowledged. Returns whether the rest
/// must be erased: otherwise, a whole record of the torn write could later pass for one that follows the next record.
fn check_tail(sealer: &Sealer, number: u64, content: &[u8], end: usize) -> Result<bool, OpenFault> {
    let mut torn = false;
    // Nearly all of the rest was never written.
    let pages = (end..content.len()).step_by(ZEROS.len()).filter(|start| {
        let page = &content[*start..content.len().min(start + ZEROS.len())];
        *page != ZEROS[..page.len()]
    });
    for offset in pages.flat_map(|start| (start..content.len().min(start + ZEROS.len())).step_by(ALIGNMENT)) {
        let Some((header, _)) = record::decode_header(at(number, offset), &content[offset..]) else { continue };
        torn = true;
        let is_whole = record::decode(sealer, at(number, offset), &content[offset..]).is_some();
        if is_whole && header.synced > at(number, end) {
            return damage(format!("the record at {end} of segment {number} was acknowledged and can't be read"));
        }
    }
    Ok(torn)
}

/// Writes the records again that may be in the kernel's page cache alone, because the process was killed before their sync
/// or the sync failed. The kernel does not write the pages of a failed sync again unless they are changed again. Segments
/// before the current one were synced to their ends.
fn rewrite(current: &Segment, durable: Position) -> io::Result<()> {
    let from = if durable.segment == current.number { durable.offset } else { 0 };
    let length = usize::try_from(current.end.saturating_sub(from)).map_err(io::Error::other)?;
    let mut records = vec![0; length];
    current.file.read_at(from, &mut records)?;
    current.file.write_at(from, &records)
}

fn erase(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    const PART: u64 = 256 << 10;
    let zeros = vec![0; usize::try_from(PART).expect("it is small")];
    let mut offset = from;
    while offset < to {
        let part = PART.min(to - offset);
        file.write_at(offset, &zeros[..usize::try_from(part).expect("it is small")])?;
        offset += part;
    }
    file.sync()
}

fn at(segment: u64, offset: usize) -> Position {
    Position { segment, offset: bytes(offset) }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, OpenFault> {
    postcard::from_bytes(body).or_else(|error| damage(format!("a record can't be understood: {error}")))
}

impl Replay {
    fn begin_segment(&mut self, number: u64, head: Head, before: Option<&Segment>) -> Result<(), OpenFault> {
        match before {
            None => {
                self.first = Some(head.last.map_or(0, |id| id.index + 1));
                self.head = head;
                Ok(())
            }
            Some(before) if before.number + 1 != number => damage(format!("segment {} is missing", before.number + 1)),
            Some(before) if before.end != head.previous_end => {
                damage(format!("the record at {} of segment {} can't be read", before.end, before.number))
            }
            Some(_) => Ok(()),
        }
    }

    fn take(&mut self, header: record::Header, body: &[u8], at: Position) -> Result<(), OpenFault> {
        match header.kind {
            Kind::Entry => self.take_entry(header, body, at)?,
            Kind::Truncate => self.truncate(parse(body)?),
            Kind::Purge => {
                let upto: LogId = parse(body)?;
                self.head.purged = later(self.head.purged, Some(upto));
                self.head.last = later(self.head.last, self.head.purged);
                self.drop_purged();
            }
            Kind::Vote => self.head.vote = Some(parse::<Vote>(body)?),
            Kind::Committed => self.head.committed = Some(parse(body)?),
            Kind::Head => {}
        }
        Ok(())
    }

    fn take_entry(&mut self, header: record::Header, body: &[u8], at: Position) -> Result<(), OpenFault> {
        let entry: RaftEntry = parse(body)?;
        let id = entry.log_id();
        // An empty log may begin at any index.
        let next = self.head.last.map_or(id.index, |last| last.index + 1);
        if (id.leader_id.term, id.index) != (header.term, header.index) {
            return damage(format!("entry {} says that it is {}", header.index, id.index));
        }
        if id.index != next {
            return damage(format!("entry {next} is missing, but {} is there", id.index));
        }
        self.head.last = Some(id);
        self.entries.push_back(RecoveredEntry { id, at, entry, size: body.len() });
        Ok(())
    }

    fn truncate(&mut self, last: Option<LogId>) {
        let next = last.map_or(0, |id| id.index + 1);
        while self.entries.back().is_some_and(|entry| entry.id.index >= next) {
            self.entries.pop_back();
        }
        self.head.last = later(last, self.head.purged);
    }

    fn drop_purged(&mut self) {
        let purged = self.head.purged.map(|id| id.index);
        while self.entries.front().is_some_and(|entry| Some(entry.id.index) <= purged) {
            self.entries.pop_front();
        }
    }

    /// Checks that a snapshot contains all entries before the first segment.
    fn check_beginning(&mut self) -> Result<(), OpenFault> {
        self.drop_purged();
        let purged = self.head.purged.map_or(0, |id| id.index + 1);
        match self.first {
            Some(first) if first > purged => damage(format!("entries {purged} to {} are missing", first - 1)),
            _ => Ok(()),
        }
    }
}
