//! Reads tar archives as all common tools write them: ustar, GNU and PAX, sparse files included. [`tar_core`] parses the
//! headers; this module feeds it from a reader, gives out the content of files, and says which failures are the
//! archive's fault.
//!
//! [`HEADERS_BOUND`] bounds the memory that an archive takes in this process, whatever its headers claim.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt;

use tar_core::parse::{Limits, ParseError, ParseEvent, ParsedEntry, Parser};
use tar_core::{HEADER_SIZE, PaxExtensions, SparseEntry};

pub(crate) use tar_core::EntryType;

/// Largest number of bytes that the headers of one entry may have, with the map of a sparse file.
const HEADERS_BOUND: usize = 8 << 20;
/// Largest number of regions of a sparse file.
const REGIONS: usize = 100_000;
const CHUNK: usize = 64 << 10;

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The archive has a malformed header.
    #[error("it is not a tar archive, or damaged")]
    Malformed(#[from] ParseError),
    /// The archive ends within an entry.
    #[error("it is cut off")]
    CutOff,
    /// The archive's compression is damaged or not supported.
    #[error("failed to decompress it")]
    Compression(#[source] io::Error),
    /// The headers of an entry are too large.
    #[error("the headers of an entry have more than {HEADERS_BOUND} bytes")]
    Headers,
    /// An I/O error.
    #[error("failed to read it")]
    Read(#[source] io::Error),
}

/// A file of an archive, without its content.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryType,
    pub(crate) path: OsString,
    pub(crate) link: OsString,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Modification time in seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes.
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
    /// Size of the file, with the holes of a sparse one.
    pub(crate) size: u64,
    /// Number of bytes that the archive holds of the file.
    pub(crate) stored: u64,
    /// The regions of a sparse file that the archive holds, in their order.
    pub(crate) regions: Option<Vec<SparseEntry>>,
}

impl Entry {
    fn new(parsed: &ParsedEntry<'_>, sparse: Option<(Vec<SparseEntry>, u64)>) -> Self {
        let bytes = |given: &[u8], header: &[u8]| {
            // An empty PAX record leaves what the header says, as in Go's archive/tar and thus in all common tools.
            OsString::from_vec(if given.is_empty() { header.to_vec() } else { given.to_vec() })
        };
        let path = bytes(&parsed.path, parsed.header.path_bytes());
        let kind = match parsed.entry_type {
            // Archives older than POSIX have no type for folders.
            EntryType::Regular if path.as_encoded_bytes().ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous | EntryType::GnuSparse => EntryType::Regular,
            other => other,
        };
        // Only files have content, whatever the header says.
        let stored = if matches!(kind, EntryType::Regular | EntryType::Other(_)) { parsed.size } else { 0 };
        let xattrs = parsed.xattrs.iter().map(|(name, value)| (OsString::from_vec(name.to_vec()), value.to_vec()));
        Self {
            kind,
            path,
            link: bytes(parsed.link_target.as_deref().unwrap_or_default(), parsed.header.link_name_bytes()),
            mode: parsed.mode & 0o7777,
            uid: parsed.uid,
            gid: parsed.gid,
            mtime: precise_mtime(parsed).unwrap_or((parsed.mtime.cast_signed(), 0)),
            device: (parsed.dev_major.unwrap_or(0), parsed.dev_minor.unwrap_or(0)),
            xattrs: xattrs.collect(),
            size: sparse.as_ref().map_or(stored, |(_, size)| *size),
            stored,
            regions: sparse.map(|(regions, _)| regions),
        }
    }
}

/// Returns the time of the PAX record `mtime`, which may have a sign and a fraction.
fn precise_mtime(parsed: &ParsedEntry<'_>) -> Option<(i64, i64)> {
    let records = PaxExtensions::new(parsed.pax?).flatten().filter(|it| it.key() == Ok("mtime"));
    let text = records.last()?.value().ok()?.to_owned();
    let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let (whole, part) = (seconds.parse::<i64>().ok()?, digits.parse::<i64>().ok()?);
    // -1.25 s is 0.75 s after second -2.
    Some(if seconds.starts_with('-') && part > 0 {
        (whole.checked_sub(1)?, 1_000_000_000 - part)
    } else {
        (whole, part)
    })
}

/// Reads the entries of an archive one after the other.
pub(crate) struct TarReader<R> {
    input: R,
    parser: Parser,
    /// Bytes that were read and not used yet, from `used` on.
    buffer: Vec<u8>,
    used: usize,
    /// Bytes of the current entry's content, and of the padding behind it, that are left.
    content: u64,
    padding: u64,
}

/// The result of the parser, without a borrow of the buffer.
enum Step {
    Entry(usize, Box<Entry>),
    Skip(usize),
    Need(usize),
    End,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        let mut parser = Parser::new(Limits { max_sparse_entries: REGIONS, ..Limits::default() });
        parser.set_allow_empty_path(true);
        parser.set_ignore_pax_errors(true);
        Self { input, parser, buffer: Vec::new(), used: 0, content: 0, padding: 0 }
    }

    /// Returns the next entry, or `None` at the end of the archive. What is left of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        loop {
            match self.step()? {
                Step::Skip(consumed) => self.used += consumed,
                Step::End => return Ok(None),
                Step::Entry(consumed, entry) => {
                    self.used += consumed;
                    self.content = entry.stored;
                    self.padding = entry.stored.wrapping_neg() % HEADER_SIZE as u64;
                    return Ok(Some(*entry));
                }
                Step::Need(bytes) => {
                    if self.fill(bytes)? {
                        continue;
                    }
                    // Not every tool writes two blocks of zeros at the end.
                    let ends = self.buffer[self.used..].iter().all(|byte| *byte == 0);
                    return if ends { Ok(None) } else { Err(TarError::CutOff) };
                }
            }
        }
    }

    /// Skips what is left of the current entry.
    fn skip(&mut self) -> Result<(), TarError> {
        let left = std::mem::take(&mut self.content).saturating_add(std::mem::take(&mut self.padding));
        let buffered = left.min((self.buffer.len() - self.used) as u64);
        self.used += usize::try_from(buffered).expect("it is no more than the buffer has");
        let left = left - buffered;
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink()).map_err(read_error)?;
        if skipped < left { Err(TarError::CutOff) } else { Ok(()) }
    }

    fn step(&mut self) -> Result<Step, TarError> {
        Ok(match self.parser.parse(&self.buffer[self.used..])? {
            ParseEvent::NeedData { min_bytes } => Step::Need(min_bytes),
            ParseEvent::Entry { consumed, entry } => Step::Entry(consumed, Entry::new(&entry, None).into()),
            ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                Step::Entry(consumed, Entry::new(&entry, Some((sparse_map, real_size))).into())
            }
            // Global records say nothing that concerns an image, and other tools ignore them, too.
            ParseEvent::GlobalExtensions { consumed, .. } => Step::Skip(consumed),
            ParseEvent::End { .. } => Step::End,
        })
    }

    /// Reads more, so that the buffer has at least this many unused bytes. Returns `false` if the input ends before.
    ///
    /// The buffer doubles, because the parser begins again with each try and may not know how much it needs.
    fn fill(&mut self, bytes: usize) -> Result<bool, TarError> {
        self.buffer.drain(..std::mem::take(&mut self.used));
        let had = self.buffer.len();
        if bytes > HEADERS_BOUND || had > HEADERS_BOUND {
            return Err(TarError::Headers);
        }
        let missing = bytes.max(2 * had).max(had + CHUNK) - had;
        (&mut self.input).take(missing as u64).read_to_end(&mut self.buffer).map_err(read_error)?;
        Ok(self.buffer.len() > had && self.buffer.len() >= bytes)
    }

    /// Reads from the content of the current entry. Returns 0 at its end.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        let most = into.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = match (&self.buffer[self.used..]).read(&mut into[..most]).map_err(TarError::Read)? {
            0 => self.input.read(&mut into[..most]).map_err(read_error)?,
            buffered => {
                self.used += buffered;
                buffered
            }
        };
        if count == 0 {
            return Err(TarError::CutOff);
        }
        self.content -= count as u64;
        Ok(count)
    }
}

/// Tells a failure of the machine from an archive whose compression is damaged.
fn read_error(error: io::Error) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::CutOff,
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => TarError::Compression(error),
        _ if error.raw_os_error().is_none() => TarError::Compression(error),
        _ => TarError::Read(error),
    }
}

/// Returns a reader of the archive without its compression, if it has one.
pub(crate) fn decompressed<'a>(mut archive: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>, TarError> {
    let start = archive.fill_buf().map_err(TarError::Read)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(archive)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::Decoder::with_buffer(archive).map_err(TarError::Compression)?)
        }
        [b'B', b'Z', b'h', ..] => return Err(unsupported("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(unsupported("xz")),
        _ => Box::new(archive),
    })
}

fn unsupported(compression: &str) -> TarError {
    let why = format!("{compression} is not supported; gzip and zstd are");
    TarError::Compression(io::Error::new(io::ErrorKind::Unsupported, why))
}
