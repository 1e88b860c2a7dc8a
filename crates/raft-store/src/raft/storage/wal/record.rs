//! One record of the log as it stands in a segment: a header in the clear, then the sealed body, padded to eight bytes.
//!
//! ```text
//! magic 4 | length of the sealed body 4 | kind 4 | checksum 4 | term 8 | index 8 | synced: segment 8, offset 8 | body
//! ```
//!
//! The checksum covers the header and the record's own place, and so does the body's seal: what an earlier use of a
//! recycled segment left is no record in this one. `synced` says up to where the log was on disk when the record was
//! written: everything before that place had been acknowledged, so damage there is no torn write.

use flota_api::seal::{OVERHEAD, Sealer};

const MAGIC: u32 = 0xf107_a109;
/// Bytes before the sealed body.
pub(super) const HEADER: usize = 48;
/// Records begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::raft::storage) enum Kind {
    /// The first of each segment: everything that earlier segments say and that is no entry.
    Head = 1,
    /// An entry of the Raft log.
    Entry = 2,
    /// Entries after this one are given up.
    Truncate = 3,
    /// Entries up to this one stand in a snapshot.
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

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::raft::storage) struct Position {
    /// Number of the segment; never used twice.
    pub(in crate::raft::storage) segment: u64,
    /// Bytes from its beginning.
    pub(in crate::raft::storage) offset: u64,
}

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Of an entry; zero for other kinds.
    pub(super) term: u64,
    /// Of an entry; zero for other kinds.
    pub(super) index: u64,
    /// Everything before this place was on disk when the record was written.
    pub(super) synced: Position,
}

/// Bytes of a record with a body of `plain` bytes.
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

/// The record at the beginning of `bytes`, which stand at `at`; with its size. `None`: there is none, or it was changed.
pub(super) fn decode(sealer: &Sealer, at: Position, bytes: &[u8]) -> Option<(Header, Vec<u8>, usize)> {
    let (header, length) = decode_header(at, bytes)?;
    let sealed = bytes.get(HEADER..HEADER + length)?;
    let body = sealer.open(&place(bytes.first_chunk::<HEADER>()?, at), sealed).ok()?;
    let size = size(body.len());
    Some((header, body, size))
}

/// The header alone, and the length of the sealed body.
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

/// What a seal and the checksum are bound to: the header, with its term and index, and the place.
fn place(header: &[u8; HEADER], at: Position) -> [u8; HEADER + 16] {
    let mut bytes = [0; HEADER + 16];
    bytes[..HEADER].copy_from_slice(header);
    bytes[HEADER..HEADER + 8].copy_from_slice(&at.segment.to_le_bytes());
    bytes[HEADER + 8..].copy_from_slice(&at.offset.to_le_bytes());
    bytes
}
