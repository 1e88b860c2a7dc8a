//! Finds the processes of a container, including those in subgroups that it created, and sends signals to all of them.
//!
//! A process is in one group of each hierarchy, so a single hierarchy lists all of them. Only processes whose creator
//! died between two joins are in some hierarchies and not in others; `sweep` checks each hierarchy.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::folder::{self, Patience, below, is_gone};
use super::{Folder, Groups};
use crate::error::{Act, StepError};

/// Bound for killing all processes, more than a few thousand of them take to end.
const KILL_BOUND: Duration = Duration::from_secs(5);

impl Groups {
    /// Returns the ids of all processes in the caller's PID namespace; empty if there is no group.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub fn processes(&self) -> Result<Vec<i32>, StepError> {
        self.counted().map_or(Ok(Vec::new()), Folder::processes)
    }

    /// Returns the folder that is read for processes.
    fn counted(&self) -> Option<&Folder> {
        let v1 = || self.folders.iter().find(|folder| folder.has_v1("freezer"));
        self.folders.iter().find(|folder| folder.v2).or_else(v1).or(self.folders.first())
    }

    /// Sends a signal to every process, including those that are forked in the meantime. SIGKILL also thaws a frozen
    /// container; other signals arrive once it is thawed. Does not wait for the processes to end.
    ///
    /// # Errors
    /// The processes can't be read, or they are created faster than they are killed.
    pub fn kill_all(&self, signal: i32) -> Result<(), StepError> {
        let kill = signal == libc::SIGKILL;
        if kill && self.kill_at_once() {
            // v1's freezer also holds killed processes.
            let _ = self.thaw();
            return Ok(());
        }
        let was_frozen = self.is_frozen();
        let mut signalled = BTreeSet::new();
        let mut patience = Patience::new(KILL_BOUND);
        loop {
            // Without a freezer a fork may escape one round and is found in the next.
            let frozen = was_frozen || self.freeze().is_ok();
            let new: Vec<i32> = self.processes()?.into_iter().filter(|pid| signalled.insert(*pid)).collect();
            new.iter().for_each(|pid| send(*pid, signal));
            if frozen && (kill || !was_frozen) {
                let _ = self.thaw();
            }
            if frozen || new.is_empty() {
                return Ok(());
            }
            if !patience.wait() {
                return Err(StepError::refuse("kill the container", "its processes fork faster than they are killed"));
            }
        }
    }

    /// Kills all processes with v2's cgroup.kill, available since Linux 5.14. Returns whether it is available.
    fn kill_at_once(&self) -> bool {
        self.folders.iter().any(|folder| folder.v2 && folder.write("cgroup.kill", "1").is_ok())
    }
}

impl Folder {
    /// Returns all processes in this group and below.
    pub(super) fn processes(&self) -> Result<Vec<i32>, StepError> {
        let mut found = Vec::new();
        collect(&self.path, &mut found).act(|| format!("read the processes of the cgroup {}", self.path.display()))?;
        Ok(found)
    }
}

fn collect(path: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    let mut text = folder::read(&path.join("cgroup.procs"));
    // A threaded group can't list its processes (cgroups(7), "Threaded cgroups").
    if text.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
        text = folder::read(&path.join("cgroup.threads"));
    }
    match text {
        // A zero stands for a process in a PID namespace that is not visible from here.
        Ok(text) => found.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid != 0)),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    below(path).try_for_each(|path| collect(&path, found))
}

/// Sends a signal to a process and ignores that it may have ended.
#[expect(unsafe_code, reason = "nix knows no real-time signals")]
pub(super) fn send(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes two integers.
    unsafe { libc::kill(pid, signal) };
}
