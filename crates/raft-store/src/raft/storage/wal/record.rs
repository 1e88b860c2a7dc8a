//! One record of the log in a segment: a plain header, then the sealed body, padded to a multiple of eight bytes.
//!
//! ```text
//! magic 4 | length of the sealed body 4 | kind 4 | checksum 4 | term 8 | index 8 | synced: segment 8, offset 8 | body
//! ```
//!
//! The checksum and the seal of the body cover the header and the position of the record. A record that an earlier use
//! of a recycled segment left is therefore invalid. `synced` is the position up to which the log was on disk when the
//! record was written: everything before it had been acknowledged, so damage there is not a torn write.

use flota_api::seal::{OVERHEAD, Sealer};

/// What a record begins with: a mark, and the format of the log in the lowest byte.
const MAGIC: u32 = 0xf107_a100 | FORMAT as u32;
/// Format of the log. A record of another format is none.
pub(super) const FORMAT: u8 = 9;
/// Bytes before the sealed body.
pub(super) const HEADER: usize = 48;
/// Records begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::raft::storage) enum Kind {
    /// The first record of each segment: the state of all records before it except for the entries.
    Head = 1,
    /// An entry of the Raft log.
    Entry = 2,
    /// Truncates the log after an entry.
    Truncate = 3,
    /// A snapshot contains the entries up to this one.
    Purge = 4,
    /// The vote.
    Vote = 5,
    /// The last entry that is known to be committed.
    Committed = 6,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        [Self::Head, Self::Entry, Self::Truncate, Self::Purge, Self::Vote, Self::Committed]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// A position in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::raft::storage) struct Position {
    /// Number of the segment; it is never used twice.
    pub(in crate::raft::storage) segment: u64,
    /// Offset in the segment, in bytes.
    pub(in crate::raft::storage) offset: u64,
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Term of an entry; zero for other kinds.
    pub(super) term: u64,
    /// Index of an entry; zero for other kinds.
    pub(super) index: u64,
    /// Everything before this position was on disk when the record was written.
    pub(super) synced: Position,
}

/// Size in bytes of a record with a body of `plain` bytes.
pub(super) fn size(plain: usize) -> usize {
    (HEADER + plain + OVERHEAD).next_multiple_of(ALIGNMENT)
}

/// Appends the record to `out`.
pub(super) fn encode(out: &mut Vec<u8>, sealer: &Sealer, at: Position, header: Header, body: &[u8]) {
    let length = u32::try_from(body.len() + OVERHEAD).expect("an entry is far shorter");
    let start = out.len();
    let bytes = header_bytes(header, length, at);
    out.extend_from_slice(&bytes);
    out.extend_from_slice(&sealer.seal(&place(&bytes, at), body));
    out.resize(start + size(body.len()), 0);
}

/// Decodes the record at the beginning of `bytes`, which are at position `at`; returns its size too. `None` if there is
/// no valid record.
pub(super) fn decode(sealer: &Sealer, at: Position, bytes: &[u8]) -> Option<(Header, Vec<u8>, usize)> {
    let (header, length) = decode_header(at, bytes)?;
    let sealed = bytes.get(HEADER..HEADER + length)?;
    let body = sealer.open(&place(bytes.first_chunk::<HEADER>()?, at), sealed).ok()?;
    let size = size(body.len());
    (bytes.len() >= size).then_some((header, body, size))
}

/// Decodes the header alone, and the length of the sealed body.
pub(super) fn decode_header(at: Position, bytes: &[u8]) -> Option<(Header, usize)> {
    let number = |from: usize| Some(u32::from_le_bytes(*bytes.get(from..from + 4)?.first_chunk()?));
    let long = |from: usize| Some(u64::from_le_bytes(*bytes.get(from..from + 8)?.first_chunk()?));
    if number(0)? != MAGIC {
        return None;
    }
    let (length, kind) = (number(4)?, Kind::from_number(number(8)?)?);
    let header =
        Header { kind, term: long(16)?, index: long(24)?, synced: Position { segment: long(32)?, offset: long(40)? } };
    let expected = header_bytes(header, length, at);
    let length = usize::try_from(length).ok()?;
    (bytes.get(..HEADER)? == expected && length >= OVERHEAD).then_some((header, length))
}

// A single damaged bit must not turn this format into the next one.
const _: () = assert!((FORMAT ^ (FORMAT + 1)).count_ones() > 1);

/// Returns the format of these records, if it is the one after this build's. No other is recognised.
pub(super) fn newer_format(bytes: &[u8]) -> Option<u8> {
    let [format, mark @ ..] = *bytes.first_chunk::<4>()?;
    (mark == MAGIC.to_le_bytes()[1..] && format == FORMAT + 1).then_some(format)
}

fn header_bytes(header: Header, length: u32, at: Position) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..12].copy_from_slice(&(header.kind as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&header.term.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.index.to_le_bytes());
    bytes[32..40].copy_from_slice(&header.synced.segment.to_le_bytes());
    bytes[40..48].copy_from_slice(&header.synced.offset.to_le_bytes());
    let checksum = crc32fast::hash(&place(&bytes, at));
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The bytes that the seal and the checksum are bound to: the header, including term and index, and the position.
fn place(header: &[u8; HEADER], at: Position) -> [u8; HEADER + 16] {
    let mut bytes = [0; HEADER + 16];
    bytes[..HEADER].copy_from_slice(header);
    bytes[HEADER..HEADER + 8].copy_from_slice(&at.segment.to_le_bytes());
    bytes[HEADER + 8..].copy_from_slice(&at.offset.to_le_bytes());
    bytes
}
