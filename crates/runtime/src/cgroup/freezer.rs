//! Freezes and thaws all processes of a container. The processes can neither notice nor prevent it.
//!
//! Uses v1's freezer if it is mounted, because other tools look there, and v2's otherwise.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::folder::{Patience, is_gone};
use super::{Folder, Groups};
use crate::error::{Act, StepError};

/// Longest wait for the freeze. A process in uninterruptible disk sleep freezes when the disk answers.
const BOUND: Duration = Duration::from_secs(10);

/// Number of tries after which the processes are thawed for a moment: v1 can't always freeze while processes are
/// created (runc's fs/freezer.go, an empirical value).
const TRIES_IN_A_ROW: usize = 50;

impl Groups {
    /// Freezes the container. All processes are frozen when this returns.
    ///
    /// # Errors
    /// There is no freezer, or the freeze does not complete in ten seconds, in which case the container is thawed.
    pub fn freeze(&self) -> Result<(), StepError> {
        let folder = self.freezer()?;
        let frozen = if folder.v2 { freeze_v2(folder) } else { freeze_v1(folder) };
        if frozen.is_err() {
            let _ = thaw(folder);
        }
        frozen.act(|| format!("freeze the cgroup {}", folder.path.display()))
    }

    /// Thaws a frozen container. Does nothing if the container is not frozen.
    ///
    /// # Errors
    /// There is no freezer.
    pub fn thaw(&self) -> Result<(), StepError> {
        let folder = self.freezer()?;
        thaw(folder).act(|| format!("thaw the cgroup {}", folder.path.display()))
    }

    /// Returns whether the container itself was frozen, as opposed to a group above it.
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
        // The state FREEZING means that a process was created in the meantime or can't be frozen yet.
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
        // The kernel signals a change of the file since it was read.
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
        events.rewind()?;
    }
}
