//! A group below a container's own, for a process that ends with everything that it has started, wherever in the
//! container's process tree that is by then. One hierarchy is enough, because it only serves to find the processes.
//!
//! The group stays until the container is deleted, so that a check every second makes it once.

use std::fs;
use std::io;

use super::Groups;
use crate::error::{Act, StepError};

/// Name of the group.
const NAME: &str = "flota-check";

/// The group of a process that is run with everything that it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nested {
    groups: Groups,
    /// The group as [`Groups::subgroups`] reads it.
    pub(crate) name: String,
}

impl Groups {
    /// Returns the nested group in the hierarchy of v1's freezer, which can kill all processes of a group, or else of
    /// v2, which can too; `None` where there is neither.
    pub(crate) fn nested(&self) -> Option<Nested> {
        let v1 = self.folders.iter().find(|folder| folder.has_v1("freezer"));
        let v2 = || self.folders.first().filter(|_| self.is_pure_v2());
        let mut folder = v1.or_else(v2)?.clone();
        let name = if folder.v2 { NAME.to_owned() } else { format!("freezer:{NAME}") };
        folder.path.push(NAME);
        Some(Nested { groups: Self { folders: vec![folder] }, name })
    }
}

impl Nested {
    /// Creates the group, unless it is there.
    ///
    /// # Errors
    /// The kernel refuses to make the group.
    pub(crate) fn make(&self) -> Result<(), StepError> {
        self.groups.folders.iter().try_for_each(|folder| match fs::create_dir(&folder.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).act(|| format!("make the cgroup {}", folder.path.display()))
            }
            _ => Ok(()),
        })
    }

    /// Kills every process in the group if there is one beside `spared`. Returns whether it has killed. What can't be killed
    /// ends with the container.
    pub(crate) fn kill_unless_only(&self, spared: Option<i32>) -> bool {
        let more = self.groups.processes().is_ok_and(|left| left.iter().any(|pid| Some(*pid) != spared));
        if more {
            let _ = self.groups.kill_all(libc::SIGKILL);
        }
        more
    }
}
