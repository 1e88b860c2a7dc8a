//! A container's output on disk, as lines of `<ms since 1970> <1|2> <text>` in two files. When the newer file is full,
//! the older one is dropped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest line in bytes; a longer one is split.
const LINE_BOUND: usize = 16 << 10;

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("old")
}

/// Writes the output of the container's two pipes.
pub(crate) struct LogWriter {
    path: PathBuf,
    file: File,
    written: u64,
    most: u64,
    /// The incomplete line of each stream.
    partial: [Vec<u8>; 2],
}

impl LogWriter {
    pub(crate) fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, most: most / 2, partial: [Vec::new(), Vec::new()] })
    }

    /// Appends bytes of stream 1 or 2.
    pub(crate) fn write(&mut self, stream: usize, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.split_inclusive(|byte| *byte == b'\n') {
            let partial = &mut self.partial[stream - 1];
            partial.extend_from_slice(chunk);
            if chunk.ends_with(b"\n") || partial.len() >= LINE_BOUND {
                let mut line = std::mem::take(partial);
                if line.ends_with(b"\n") {
                    line.pop();
                }
                self.line(stream, &line)?;
            }
        }
        Ok(())
    }

    /// Writes the incomplete lines.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        for stream in [1, 2] {
            let line = std::mem::take(&mut self.partial[stream - 1]);
            if !line.is_empty() {
                self.line(stream, &line)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, stream: usize, line: &[u8]) -> io::Result<()> {
        let mut out = format!("{} {stream} ", now()).into_bytes();
        out.extend_from_slice(line);
        out.push(b'\n');
        if self.written + out.len() as u64 > self.most {
            std::fs::rename(&self.path, older(&self.path))?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(&out)?;
        self.written += out.len() as u64;
        Ok(())
    }
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Time of writing in ms since 1970.
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
    partial: Vec<u8>,
}

impl LogReader {
    /// Opens the log at the oldest line that is kept.
    pub fn open(path: &Path) -> Self {
        let current = File::open(older(path)).or_else(|_| File::open(path)).ok().map(BufReader::new);
        Self { path: path.to_owned(), current, partial: Vec::new() }
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
            if file.read_until(b'\n', &mut self.partial)? == 0 {
                if !self.moved_on()? {
                    return Ok(None);
                }
                continue;
            }
            if !self.partial.ends_with(b"\n") {
                return Ok(None);
            }
            let line = std::mem::take(&mut self.partial);
            if let Some(line) = parse(&line[..line.len() - 1]) {
                return Ok(Some(line));
            }
        }
    }

    /// Switches to the newest file at the end of an older one. Returns whether it did.
    fn moved_on(&mut self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let own = self.current.as_ref().map(|file| file.get_ref().metadata()).transpose()?.map(|it| it.ino());
        match std::fs::metadata(&self.path) {
            Ok(newest) if Some(newest.ino()) != own => {
                self.current = Some(BufReader::new(File::open(&self.path)?));
                self.partial.clear();
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let at = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    Some(LogLine { at, stream, text: parts.next()?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back_in_order_through_rotation_and_growth() {
        let dir = std::env::temp_dir().join(format!("flota-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("in a temporary folder");
        let path = dir.join("log");
        let mut writer = LogWriter::open(&path, 2_000).expect("opened");
        writer.write(1, b"one\ntw").expect("written");
        writer.write(2, b"error\n").expect("written");
        let mut reader = LogReader::open(&path);
        let mut next =
            || reader.next_line().expect("read").map(|it| (it.stream, String::from_utf8_lossy(&it.text).into_owned()));
        assert_eq!(next(), Some((1, "one".into())));
        assert_eq!(next(), Some((2, "error".into())), "a line without an end is not read yet");
        assert_eq!(next(), None);
        writer.write(1, b"o\n").expect("written");
        assert_eq!(next(), Some((1, "two".into())));
        for number in 0..100 {
            writer.write(1, format!("line {number}\n").as_bytes()).expect("written");
            assert_eq!(next(), Some((1, format!("line {number}"))), "a reader that keeps up misses nothing");
        }
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |it| it.len());
        assert!(size(&path) + size(&older(&path)) <= 2_000);
        std::fs::remove_dir_all(dir).expect("its own folder");
    }
}
