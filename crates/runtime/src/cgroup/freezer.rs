//! Stops all processes of a container where they are, and lets them go on. Nothing in the container can see or refuse it.
//!
//! v1's freezer where it is mounted, as other tools look there; else v2's own.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::folder::{Patience, is_gone};
use super::{Folder, Groups};
use crate::error::{Act, StepError};

/// A process that waits for a disk is frozen when the disk answers.
const BOUND: Duration = Duration::from_secs(10);

/// v1 can't always freeze while processes come: between so many tries they may go on for a moment (runc's fs/freezer.go,
/// found by trial).
const TRIES_IN_A_ROW: usize = 50;

impl Groups {
    /// Freezes the container; it is frozen when this returns.
    ///
    /// # Errors
    /// There is no freezer, or it does not come to an end in ten seconds: then the container goes on.
    pub fn freeze(&self) -> Result<(), StepError> {
        let folder = self.freezer()?;
        let frozen = if folder.v2 { freeze_v2(folder) } else { freeze_v1(folder) };
        if frozen.is_err() {
            let _ = thaw(folder);
        }
        frozen.act(|| format!("freeze the cgroup {}", folder.path.display()))
    }

    /// Lets a frozen container go on. Does nothing to another.
    ///
    /// # Errors
    /// There is no freezer.
    pub fn thaw(&self) -> Result<(), StepError> {
        let folder = self.freezer()?;
        thaw(folder).act(|| format!("thaw the cgroup {}", folder.path.display()))
    }

    /// Whether the container itself was frozen, and not a group above it.
    pub fn is_frozen(&self) -> bool {
        let Ok(folder) = self.freezer() else { return false };
        folder.number(if folder.v2 { "cgroup.freeze" } else { "freezer.self_freezing" }) == Some(1)
    }

    fn freezer(&self) -> Result<&Folder, StepError> {
        let v1 = self.folders.iter().find(|folder| folder.has_v1("freezer"));
        let found = v1.or_else(|| self.folders.iter().find(|folder| folder.v2));
        found
            .ok_or_else(|| StepError::refuse("freeze the container", "this machine has no `freezer` cgroup controller"))
    }
}

fn thaw(folder: &Folder) -> io::Result<()> {
    if folder.v2 { folder.write("cgroup.freeze", "0") } else { folder.write("freezer.state", "THAWED") }
}

fn freeze_v1(folder: &Folder) -> io::Result<()> {
    let state = OpenOptions::new().read(true).write(true).open(folder.path.join("freezer.state"))?;
    let mut patience = Patience::new(BOUND);
    loop {
        for _ in 0..TRIES_IN_A_ROW {
            state.write_at(b"FROZEN", 0)?;
            let mut text = [0; 16];
            let length = state.read_at(&mut text, 0)?;
            if text[..length].starts_with(b"FROZEN") {
                return Ok(());
            }
        }
        // FREEZING: a process came meanwhile, or waits.
        state.write_at(b"THAWED", 0)?;
        if !patience.wait() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

fn freeze_v2(folder: &Folder) -> io::Result<()> {
    folder.write("cgroup.freeze", "1")?;
    let mut events = std::fs::File::open(folder.path.join("cgroup.events"))?;
    let until = Instant::now() + BOUND;
    loop {
        let mut text = String::new();
        match events.read_to_string(&mut text) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => (),
        }
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel says so when the file has changed since it was read.
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
        events.rewind()?;
    }
}
