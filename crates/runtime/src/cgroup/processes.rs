//! The processes of a container, also those in groups that it made itself, and signals to all of them.
//!
//! A process is in one group of each hierarchy, so one hierarchy knows them all. Only what died between two joins is in
//! some and not in others: `sweep` looks into each.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::folder::{self, Patience, below, is_gone};
use super::{Folder, Groups};
use crate::error::{Act, StepError};

/// Longer than a few thousand processes take to end.
const KILL_BOUND: Duration = Duration::from_secs(5);

impl Groups {
    /// The ids of all processes, in the caller's PID namespace; none where there is no group.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn processes(&self) -> Result<Vec<i32>, StepError> {
        self.counted().map_or(Ok(Vec::new()), Folder::processes)
    }

    /// The folder that is asked for processes.
    fn counted(&self) -> Option<&Folder> {
        let v1 = || self.folders.iter().find(|folder| folder.has_v1("freezer"));
        self.folders.iter().find(|folder| folder.v2).or_else(v1).or(self.folders.first())
    }

    /// Sends a signal to every process: none is missed for having been forked meanwhile. SIGKILL also thaws what is
    /// frozen; other signals arrive when the container goes on. Does not wait until they have ended.
    ///
    /// # Errors
    /// The processes can't be read, or new ones come faster than they are killed.
    pub fn kill_all(&self, signal: i32) -> Result<(), StepError> {
        let kill = signal == libc::SIGKILL;
        if kill && self.kill_at_once() {
            // v1's freezer holds even the dead.
            let _ = self.thaw();
            return Ok(());
        }
        let was_frozen = self.is_frozen();
        let mut signalled = BTreeSet::new();
        let mut patience = Patience::new(KILL_BOUND);
        loop {
            // Without a freezer a fork may escape one round, and is found by the next.
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

    /// v2's own way, since Linux 5.14. Whether there is one.
    fn kill_at_once(&self) -> bool {
        self.folders.iter().any(|folder| folder.v2 && folder.write("cgroup.kill", "1").is_ok())
    }
}

impl Folder {
    /// All processes in this group and below.
    pub(super) fn processes(&self) -> Result<Vec<i32>, StepError> {
        let mut found = Vec::new();
        collect(&self.path, &mut found).act(|| format!("read the processes of the cgroup {}", self.path.display()))?;
        Ok(found)
    }
}

fn collect(path: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    let mut text = folder::read(&path.join("cgroup.procs"));
    // A threaded group has no processes of its own to show (cgroups(7), "Threaded cgroups").
    if text.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
        text = folder::read(&path.join("cgroup.threads"));
    }
    match text {
        // 0: in a PID namespace that can't be seen from here.
        Ok(text) => found.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid != 0)),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    below(path).try_for_each(|path| collect(&path, found))
}

/// One that has ended needs no signal.
#[expect(unsafe_code, reason = "nix knows no real-time signals")]
pub(super) fn send(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes two integers.
    unsafe { libc::kill(pid, signal) };
}
