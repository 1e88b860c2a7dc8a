//! A container's output on disk, in two files. When the newer file is full, the older one is dropped.
//!
//! A file begins with the number of its first line, so that a reader notices lines that it has missed. Then follow
//! entries `<ms since 1970> <1|2> <text>`. A long line takes several entries; those that the line continues after have
//! a `+` behind the stream. Where lines could not be written, the number of the next line follows. The supervisor writes
//! ([`LogWriter`]), and the daemon reads ([`LogReader`]).

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest line in bytes; a longer one is split.
const LINE_BOUND: usize = 1 << 20;
/// Bytes of a line that the writer keeps in memory.
const ENTRY_BOUND: usize = 16 << 10;

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("old")
}

/// The line that a stream is writing.
#[derive(Debug, Default)]
struct Unfinished {
    /// Its last bytes, which have no entry yet.
    pending: Vec<u8>,
    /// Number of its bytes that have entries.
    logged: usize,
    /// Whether one of its entries could not be written. The rest of the line is then dropped.
    is_lost: bool,
}

/// Writes the output of the container's two pipes.
pub(crate) struct LogWriter {
    path: PathBuf,
    file: File,
    /// Size of the file.
    size: u64,
    /// Largest size of each file.
    most: u64,
    /// Number of lines that have ended, also in files that are gone.
    lines: u64,
    /// Whether lines were lost since the last entry that was written.
    has_gap: bool,
    /// The line of each stream.
    unfinished: [Unfinished; 2],
}

impl LogWriter {
    /// Opens the log to append after its last line. `most` bounds the size of both files together.
    pub(crate) fn open(path: &Path, most: u64) -> io::Result<Self> {
        let mut file = File::options().create(true).read(true).append(true).open(path)?;
        let mut found = Found::read(&mut file)?;
        // A writer that was killed while it rotated has left only the older file.
        if found.size == 0
            && let Ok(mut older) = File::open(older(path))
        {
            found.lines = Found::read(&mut older)?.lines;
        }
        // A writer that was killed, or whose disk was full, may have left a part of an entry.
        file.set_len(found.size)?;
        let unfinished = found.goes_on.map(|goes_on| Unfinished { logged: goes_on.into(), ..Unfinished::default() });
        let (path, lines, has_gap) = (path.to_owned(), found.lines, false);
        let mut writer = Self { path, file, size: found.size, most: most / 2, lines, has_gap, unfinished };
        if writer.size == 0 {
            writer.append(&writer.header())?;
        }
        writer.finish()?;
        Ok(writer)
    }

    /// Appends bytes of stream 1 or 2. Lines that can't be written are lost; the others are written nevertheless.
    pub(crate) fn write(&mut self, stream: usize, bytes: &[u8]) -> io::Result<()> {
        let mut written = Ok(());
        for chunk in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = &mut self.unfinished[stream - 1];
            line.pending.extend_from_slice(chunk.strip_suffix(b"\n").unwrap_or(chunk));
            let is_end = chunk.ends_with(b"\n") || line.logged + line.pending.len() >= LINE_BOUND;
            if is_end || line.pending.len() >= ENTRY_BOUND {
                written = written.and(self.entry(stream, is_end));
            }
        }
        written
    }

    /// Ends the unfinished lines.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        for stream in [1, 2] {
            let line = &self.unfinished[stream - 1];
            if line.logged + line.pending.len() > 0 {
                self.entry(stream, true)?;
            }
        }
        Ok(())
    }

    /// Writes the pending bytes of a line. If that fails, the line is lost.
    fn entry(&mut self, stream: usize, is_end: bool) -> io::Result<()> {
        let line = &mut self.unfinished[stream - 1];
        let (pending, was_lost) = (std::mem::take(&mut line.pending), line.is_lost);
        line.logged = if is_end { 0 } else { line.logged + pending.len() };
        let written = if was_lost { Ok(()) } else { self.append_entry(stream, is_end, &pending) };
        let is_lost = was_lost || written.is_err();
        self.unfinished[stream - 1].is_lost = is_lost && !is_end;
        if is_lost && is_end {
            self.has_gap = true;
            // At the gap, a reader drops what it has of both streams' lines.
            let other = &mut self.unfinished[2 - stream];
            other.is_lost |= other.logged > 0;
        }
        self.lines += u64::from(is_end);
        written
    }

    fn append_entry(&mut self, stream: usize, is_end: bool, text: &[u8]) -> io::Result<()> {
        let mut out = if self.has_gap { self.header() } else { Vec::new() };
        let goes_on = if is_end { "" } else { "+" };
        out.extend_from_slice(format!("{} {stream}{goes_on} ", now()).as_bytes());
        out.extend_from_slice(text);
        out.push(b'\n');
        if self.size + out.len() as u64 > self.most {
            self.rotate()?;
        }
        self.append(&out)?;
        self.has_gap = false;
        Ok(())
    }

    /// The number of the next line.
    fn header(&self) -> Vec<u8> {
        format!("{}\n", self.lines).into_bytes()
    }

    /// Begins a new file. The new file is complete before it takes its place, so after an error the log is as it was,
    /// and the next entry tries again.
    fn rotate(&mut self) -> io::Result<()> {
        let next = self.path.with_extension("new");
        let mut file = File::create(&next)?;
        let header = self.header();
        file.write_all(&header)?;
        match std::fs::rename(&self.path, older(&self.path)) {
            // An earlier try ended here.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
        std::fs::rename(&next, &self.path)?;
        (self.file, self.size) = (file, header.len() as u64);
        Ok(())
    }

    /// Appends all of `bytes` or nothing.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.file.set_len(self.size)?;
            self.file.seek(io::SeekFrom::End(0))?;
            return Err(error);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// The state in which an earlier writer left a file.
struct Found {
    /// Size without an incomplete entry at the end.
    size: u64,
    /// Number of lines up to the end of the file.
    lines: u64,
    /// Whether the last line of each stream has no end.
    goes_on: [bool; 2],
}

impl Found {
    fn read(file: &mut File) -> io::Result<Self> {
        let mut found = Self { size: 0, lines: 0, goes_on: [false; 2] };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            let text = &line[..line.len() - 1];
            match parse(text) {
                Some(entry) => {
                    found.goes_on[usize::from(entry.stream == 2)] = entry.goes_on;
                    found.lines += u64::from(!entry.goes_on);
                }
                None => {
                    let first = number(text).unwrap_or(found.lines);
                    if first != found.lines {
                        found.goes_on = [false; 2];
                    }
                    found.lines = first;
                }
            }
            found.size += line.len() as u64;
            line.clear();
        }
        Ok(found)
    }
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Its number in the log, from 0. Lines between two numbers that were read are lost: a newer file replaced theirs.
    pub number: u64,
    /// Time of writing its end, in ms since 1970.
    pub at: u64,
    /// 1 for standard output, 2 for standard error.
    pub stream: u32,
    /// Content without the line end.
    pub text: Vec<u8>,
}

/// Reads a log from its beginning, and follows it as it grows and rotates.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    current: Option<BufReader<File>>,
    /// An incomplete entry.
    partial: Vec<u8>,
    /// The entries of each stream's unfinished line.
    unfinished: [Vec<u8>; 2],
    /// Number of the next line.
    number: u64,
    /// Whether a newer file exists, so that nothing is appended to the current one any more.
    is_last_read: bool,
}

impl LogReader {
    /// Opens the log at the oldest line that is kept.
    pub fn open(path: &Path) -> Self {
        let current = File::open(older(path)).or_else(|_| File::open(path)).ok().map(BufReader::new);
        let (partial, unfinished) = Default::default();
        Self { path: path.to_owned(), current, partial, unfinished, number: 0, is_last_read: false }
    }

    /// Returns the next line, or `None` if there is none yet.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn next_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            let Some(file) = &mut self.current else {
                self.current = File::open(&self.path).ok().map(BufReader::new);
                if self.current.is_none() {
                    return Ok(None);
                }
                continue;
            };
            file.read_until(b'\n', &mut self.partial)?;
            if !self.partial.ends_with(b"\n") {
                if !self.move_on()? {
                    return Ok(None);
                }
                continue;
            }
            let mut entry = std::mem::take(&mut self.partial);
            entry.pop();
            if let Some(line) = self.join(&entry) {
                return Ok(Some(line));
            }
        }
    }

    /// Adds an entry to its line, and returns the line if it has ended.
    fn join(&mut self, text: &[u8]) -> Option<LogLine> {
        let Some(entry) = parse(text) else {
            let first = number(text)?;
            if first != self.number {
                self.unfinished = Default::default();
            }
            self.number = first;
            return None;
        };
        let line = &mut self.unfinished[usize::from(entry.stream == 2)];
        line.extend_from_slice(entry.text);
        if entry.goes_on {
            return None;
        }
        self.number += 1;
        Some(LogLine { number: self.number - 1, at: entry.at, stream: entry.stream, text: std::mem::take(line) })
    }

    /// Prepares the next read at the end of a file: of what was appended before the file became the older one, then of
    /// the next file. Returns whether there is something to read.
    fn move_on(&mut self) -> io::Result<bool> {
        let Some(file) = &self.current else { return Ok(false) };
        let own = file.get_ref().metadata()?.ino();
        let is_own = |path: &Path| std::fs::metadata(path).map(|it| it.ino() == own);
        if is_own(&self.path).unwrap_or(true) {
            return Ok(false);
        }
        if !std::mem::replace(&mut self.is_last_read, true) {
            return Ok(true);
        }
        // If this file is no longer the older one, the older one comes next.
        let older = older(&self.path);
        let next = if is_own(&older).unwrap_or(true) { &self.path } else { &older };
        self.current = Some(BufReader::new(File::open(next)?));
        self.partial.clear();
        self.is_last_read = false;
        Ok(true)
    }
}

/// An entry of a file.
struct LogEntry<'a> {
    at: u64,
    stream: u32,
    goes_on: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<LogEntry<'_>> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let at = number(parts.next()?)?;
    let stream = parts.next()?;
    let goes_on = stream.ends_with(b"+");
    let stream = if stream.starts_with(b"2") { 2 } else { 1 };
    Some(LogEntry { at, stream, goes_on, text: parts.next()? })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
