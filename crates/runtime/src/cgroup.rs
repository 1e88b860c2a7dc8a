//! Control groups: where a container's limits are set, its use is counted, and its processes are found.
//!
//! A machine has one hierarchy for each controller (v1), one for all (v2), or both (hybrid). A container has a group in
//! each: together its [`Groups`], which stand in its state file, so that any later process can go on with them.
//!
//! ```text
//!  hierarchies() ─▶ Groups::new ─▶ create(limits) ─▶ join(pid) ─▶ … apply, freeze, stats … ─▶ kill_all ─▶ remove
//!     table            place         make, limits      make         limits, freezer, stats     processes    remove
//! ```
//!
//! What a limit means on v1 and on v2 is decided in `limits`, one file for each controller, and in `devices`. A limit
//! that can't be set is an error, never silence; nothing that was made stays after an error.

mod devices;
mod folder;
mod freezer;
mod limits;
mod make;
mod oom;
mod place;
mod processes;
mod remove;
mod stats;
mod table;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use devices::default_device_rules;
pub use folder::Folder;
pub use make::prepare;
pub use oom::{OomEvent, OomWatch};
pub use stats::{
    BlockIo, BlockIoEntry, Cpu, CpuUsage, Cpuset, Hugetlb, IntelRdt, Memory, MemoryEntry, Pids, Pressure, PressureData,
    Stats, Throttling,
};
pub use table::{Hierarchy, hierarchies};

use crate::error::StepError;
use crate::oci::Resources;

/// A container's groups in all hierarchies. Where there are none, each act does nothing, but a limit is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    folders: Vec<Folder>,
}

impl Groups {
    /// One for each hierarchy, in the order of the hierarchies.
    pub fn folders(&self) -> &[Folder] {
        &self.folders
    }

    /// Makes the groups and sets the limits. What was made is removed again when a step fails. A group that is there
    /// already is taken if it is empty; what was made is remembered, so write the state down after this.
    ///
    /// # Errors
    /// A limit needs a controller that is not here, a group has processes, or the kernel refuses.
    pub fn create(&mut self, resources: &Resources) -> Result<(), StepError> {
        let made = self.make().and_then(|fresh| limits::apply(self, resources, fresh));
        if made.is_err() {
            self.undo();
        }
        made
    }

    /// Whether all are new.
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

    /// Sets limits of groups that are there. What is absent is left as it is. Refusals of our own come before the first
    /// change; after one of the kernel's some limits may be set, and the caller sets the old ones again.
    ///
    /// # Errors
    /// A limit needs a controller that is not here, or the kernel refuses.
    pub fn apply(&self, resources: &Resources) -> Result<(), StepError> {
        limits::apply(self, resources, false)
    }

    /// Puts a process into every group; on v2 into the leaf beside what it hands its controllers down to, if it has one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join(&self, pid: i32) -> Result<(), StepError> {
        self.folders.iter().try_for_each(|folder| folder.join(pid, None))
    }

    /// The same beside a process of the container, which may have moved into a group below: one that hands its
    /// controllers down takes none itself.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join_beside(&self, pid: i32, other: i32) -> Result<(), StepError> {
        self.folders.iter().try_for_each(|folder| folder.join(pid, Some(other)))
    }

    /// Whether device rules are enforced here: a container may make nodes only where they are.
    pub fn guards_devices(&self) -> bool {
        devices::controlled(self).is_some()
    }

    /// Without any v1.
    fn is_pure_v2(&self) -> bool {
        !self.folders.is_empty() && self.folders.iter().all(|folder| folder.v2)
    }
}
