//! A container's group in one hierarchy and access to its files, with one open and one write each, because container
//! starts are time-critical.
//!
//! This module does not interpret the files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Upper bound for the size of a group's file, which is the list of all process ids at the kernel's largest table.
const READ_BOUND: u64 = 64 << 20;

/// A container's cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Absolute path of the group.
    pub path: PathBuf,
    /// Mount point of the hierarchy.
    pub point: PathBuf,
    /// Root of the usable part of the hierarchy; groups above it are not touched.
    pub root: PathBuf,
    /// Controllers of the group, such as `memory` and `cpu`; on v2 those that the root offers.
    pub controllers: Vec<String>,
    /// Whether the hierarchy is cgroup2.
    pub v2: bool,
    /// Number of groups that were created for it: itself, and missing groups above it.
    #[serde(default)]
    pub made: usize,
}

impl Folder {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|it| it == controller)
    }

    /// Returns whether the hierarchy is v1 and has the controller.
    pub(super) fn has_v1(&self, controller: &str) -> bool {
        !self.v2 && self.has(controller)
    }

    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        write(&self.path.join(file), value)
    }

    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        read(&self.path.join(file))
    }

    /// Returns the only number of a file; `max` is the largest number.
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        parse_number(self.read(file).ok()?.trim())
    }

    /// Returns a number from a file of lines `key number`.
    pub(super) fn key(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.read(file).ok()?;
        text.lines().filter_map(|line| line.split_once(' ')).find(|(found, _)| *found == key)?.1.trim().parse().ok()
    }
}

/// Parses a number of a cgroup file. Some v1 files contain -1 for "none".
pub(super) fn parse_number(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// Writes to an existing file with a single write(2), as the kernel requires.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Reads a whole file. `take` prevents the library from querying the size, which these files do not have.
pub(super) fn read(path: &Path) -> io::Result<String> {
    // Most files hold one number; the kernel does not report their size.
    let mut text = String::with_capacity(64);
    File::open(path)?.take(READ_BOUND).read_to_string(&mut text)?;
    Ok(text)
}

/// Returns the groups directly below one.
pub(super) fn below(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Returns whether an error means that the group was removed: its folder, or the group under an open file.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Retries with growing pauses, up to a bound.
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

    /// Pauses; returns whether there is time for another try.
    pub(super) fn wait(&mut self) -> bool {
        if Instant::now() > self.until {
            return false;
        }
        let _ = nix::poll::ppoll(&mut [], Some(self.pause.into()), None);
        self.pause = (self.pause * 2).min(Self::LONGEST);
        true
    }
}
