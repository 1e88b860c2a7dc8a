//! Removes groups, including those that a container created in them.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::folder::{Patience, below};
use super::processes::send;
use super::{Folder, Groups};
use crate::error::{Act, StepError};

/// Longest wait for a busy group: the kernel takes a while to release a group after its last process has been reaped.
const BUSY_BOUND: Duration = Duration::from_millis(500);

impl Groups {
    /// Removes the container's groups with everything below, and the groups above that were created for it, if they
    /// are empty. A busy group is retried for a short time. Missing groups are ignored.
    ///
    /// # Errors
    /// The first group that could not be removed, after trying all. A later sweep finds what is left.
    pub fn remove(&self) -> Result<(), StepError> {
        let mut result = Ok(());
        for folder in &self.folders {
            let removed = folder.remove().act(|| format!("remove the cgroup {}", folder.path.display()));
            result = result.and(removed);
        }
        result
    }

    /// Kills everything in the groups and removes them. This cleans up after a process that died between two steps.
    ///
    /// # Errors
    /// The same as for [`Groups::remove`].
    pub fn sweep(&self) -> Result<(), StepError> {
        let left = |folder: &Folder| match fs::remove_dir(&folder.path) {
            Ok(()) => folder.remove_above().is_err(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        let folders: Vec<Folder> = self.folders.iter().filter(|folder| left(folder)).cloned().collect();
        if folders.is_empty() {
            return Ok(());
        }
        let rest = Self { folders };
        let _ = rest.kill_all(libc::SIGKILL);
        for folder in &rest.folders {
            folder.processes().unwrap_or_default().into_iter().for_each(|pid| send(pid, libc::SIGKILL));
        }
        rest.remove()
    }

    /// Undoes a failed `create`: removes only the groups that it created.
    pub(super) fn undo(&mut self) {
        for folder in self.folders.iter_mut().rev().filter(|folder| folder.made > 0) {
            let _ = folder.remove();
            folder.made = 0;
        }
    }
}

impl Folder {
    fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path)?;
        self.remove_above()
    }

    /// Removes the groups above that were created for this one. A group that others use by now stays.
    fn remove_above(&self) -> io::Result<()> {
        for path in self.path.ancestors().skip(1).take(self.made.saturating_sub(1)) {
            match fs::remove_dir(path) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EBUSY | libc::ENOTEMPTY)) => {
                    return Err(error);
                }
                _ => (),
            }
        }
        Ok(())
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let mut patience = Patience::new(BUSY_BOUND);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => return Err(error),
            Err(error) => {
                // Subgroups of the container can keep a group busy as well as processes.
                below(path).try_for_each(|path| remove_tree(&path))?;
                if !patience.wait() {
                    return Err(error);
                }
            }
        }
    }
}
