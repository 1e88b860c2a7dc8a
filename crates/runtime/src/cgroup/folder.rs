//! A container's group in one hierarchy, and its files: one open and one write each, for a start has little time.
//!
//! Nothing here knows what the files mean.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// No file of a group is larger: the process ids of the kernel's largest table.
const READ_BOUND: u64 = 64 << 20;

/// A container's cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Absolute.
    pub path: PathBuf,
    /// Of its hierarchy; groups above are not touched.
    pub root: PathBuf,
    /// `memory`, `cpu`, …; of v2: those that the root offers.
    pub controllers: Vec<String>,
    /// Whether it is cgroup2.
    pub v2: bool,
    /// How many groups were made for it: itself, and those above that were missing.
    #[serde(default)]
    pub made: usize,
}

impl Folder {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|it| it == controller)
    }

    /// Whether the controller's v1 files are here.
    pub(super) fn has_v1(&self, controller: &str) -> bool {
        !self.v2 && self.has(controller)
    }

    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        write(&self.path.join(file), value)
    }

    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        read(&self.path.join(file))
    }

    /// The only number of a file; `max` is the largest.
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        parse_number(self.read(file).ok()?.trim())
    }

    /// A number in a file of lines `key number`.
    pub(super) fn key(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.read(file).ok()?;
        text.lines().filter_map(|line| line.split_once(' ')).find(|(found, _)| *found == key)?.1.trim().parse().ok()
    }
}

/// A number as cgroup files have it. v1 has -1 for none in places.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// Writes to a file that is there: one call of write(2), as the kernel wants it.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Reads a file whole. `take` keeps the library from asking for a size that these files don't have.
pub(super) fn read(path: &Path) -> io::Result<String> {
    // Most hold a number; the kernel does not say how long a file is.
    let mut text = String::with_capacity(64);
    File::open(path)?.take(READ_BOUND).read_to_string(&mut text)?;
    Ok(text)
}

/// The groups directly below one.
pub(super) fn below(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Whether a group went away meanwhile: its folder, or it under an open file.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Tries again after longer and longer pauses, up to a bound.
pub(super) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    const FIRST: Duration = Duration::from_micros(100);
    const LONGEST: Duration = Duration::from_millis(10);

    pub(super) fn new(bound: Duration) -> Self {
        Self { until: Instant::now() + bound, pause: Self::FIRST }
    }

    /// Pauses; whether there is time for another try.
    pub(super) fn wait(&mut self) -> bool {
        if Instant::now() > self.until {
            return false;
        }
        let _ = nix::poll::ppoll(&mut [], Some(self.pause.into()), None);
        self.pause = (self.pause * 2).min(Self::LONGEST);
        true
    }
}
