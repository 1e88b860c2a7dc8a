//! Control groups, in which a container's limits are set, its usage is counted, and its processes are found.
//!
//! A machine has one hierarchy for each controller (v1), one for all (v2), or both (hybrid). A container has a group
//! in each of them. Together they are its [`Groups`], which are kept in its state file, so that any later process can
//! use them.
//!
//! ```text
//!  hierarchies() ─▶ Groups::new ─▶ create(limits) ─▶ join(pid) ─▶ … apply, freeze, stats … ─▶ kill_all ─▶ remove
//!     table            place         make, limits      make         limits, freezer, stats     processes    remove
//! ```
//!
//! The meaning of a limit on v1 and on v2 is defined in `limits`, one file for each controller, and in `devices`. A
//! limit that can't be set is always an error, and a failed operation removes what it created.

mod delegation;
mod devices;
mod folder;
mod freezer;
mod limits;
mod make;
mod nested;
mod oom;
mod place;
mod processes;
mod remove;
mod stats;
mod systemd;
mod table;
mod usage;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use delegation::delegate;
pub use devices::default_device_rules;
pub use folder::Folder;
pub use make::prepare;
pub(crate) use nested::Nested;
pub use oom::{OomEvent, OomWatch};
pub use stats::{
    BlockIoEntry, BlockIoStats, CpuStats, CpuUsage, CpusetStats, Hugetlb, IntelRdtStats, MemoryEntry, MemoryStats,
    PidsStats, Pressure, PressureData, Stats, Throttling,
};
pub use systemd::Scope;
pub use table::{Hierarchy, hierarchies};
pub use usage::Usage;

use crate::error::StepError;
use crate::oci::Resources;

/// A container's groups in all hierarchies. If there are none, every operation does nothing, except that limits are
/// refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    folders: Vec<Folder>,
}

impl Groups {
    /// Returns the groups, in the order of the hierarchies.
    pub fn folders(&self) -> &[Folder] {
        &self.folders
    }

    /// Creates the groups and sets the limits. If a step fails, created groups are removed. An existing group is used
    /// if it is empty. The result records which groups were created, so the state must be saved after this.
    ///
    /// # Errors
    /// A limit needs a missing controller, a group has processes, or the kernel refuses.
    pub fn create(&mut self, resources: &Resources) -> Result<(), StepError> {
        let made = self.make().and_then(|fresh| limits::apply(self, resources, fresh));
        if made.is_err() {
            self.undo();
        }
        made
    }

    /// Takes over groups in which systemd has put a process of the container, creates those that it has not, and sets
    /// the limits. Their removal is the container's.
    ///
    /// # Errors
    /// The same as for [`Groups::create`].
    pub(crate) fn adopt(&mut self, resources: &Resources) -> Result<(), StepError> {
        for folder in &mut self.folders {
            folder.make()?;
            folder.made = folder.made.max(1);
        }
        self.apply(resources)
    }

    /// Creates the groups and returns whether all of them are new.
    fn make(&mut self) -> Result<bool, StepError> {
        for folder in &mut self.folders {
            folder.make()?;
        }
        for folder in self.folders.iter().filter(|folder| folder.made == 0) {
            if let Some(pid) = folder.processes()?.first() {
                let act = format!("make the cgroup {}", folder.path.display());
                return Err(StepError::refuse(act, format!("it is there already, and has processes ({pid})")));
            }
        }
        Ok(self.folders.iter().all(|folder| folder.made > 0))
    }

    /// Sets limits of existing groups. Absent fields are left unchanged. Invalid values are refused before the first
    /// change; after a refusal by the kernel some limits may be set, and the caller restores the old ones.
    ///
    /// # Errors
    /// A limit needs a missing controller, or the kernel refuses.
    pub fn apply(&self, resources: &Resources) -> Result<(), StepError> {
        limits::apply(self, resources, false)
    }

    /// Moves a process into every group. On v2, if the group delegates controllers, the process goes into its leaf
    /// group.
    ///
    /// # Errors
    /// The kernel refuses the move.
    pub fn join(&self, pid: i32) -> Result<(), StepError> {
        self.folders.iter().try_for_each(|folder| folder.join(pid, None))
    }

    /// Moves a process into the groups of another process of the container, which may have moved
    /// into a subgroup: a group that delegates controllers accepts no processes itself.
    ///
    /// # Errors
    /// The kernel refuses the move.
    pub fn join_beside(&self, pid: i32, other: i32) -> Result<(), StepError> {
        self.folders.iter().try_for_each(|folder| folder.join(pid, Some(other)))
    }

    /// Returns whether device rules are enforced. Only then may a container create device nodes.
    pub fn guards_devices(&self) -> bool {
        devices::controlled(self).is_some()
    }

    /// Returns whether all hierarchies are v2.
    pub(crate) fn is_pure_v2(&self) -> bool {
        !self.folders.is_empty() && self.folders.iter().all(|folder| folder.v2)
    }
}
