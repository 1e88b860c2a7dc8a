//! The paths of the files and control groups of this node's tasks. All functions block: callers
//! within tokio use `spawn_blocking`, except for single accesses to files in memory.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flota_api::id::{TaskId, is_id};
use flota_runtime::cgroup::{Groups, Hierarchy};

use crate::networks::NamespaceFolder;
use crate::task_ids::TaskIds;

/// The folders and control groups of a worker's tasks.
#[derive(Clone, Debug)]
pub(crate) struct TaskPaths {
    /// Folder on disk for what a container writes, and for its output.
    pub(crate) data_dir: PathBuf,
    /// Folder in memory for specs, states and sockets. It is lost at boot, as the containers are.
    pub(crate) run_dir: PathBuf,
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// Path of the group of all tasks, below the mount point of each hierarchy.
    pub(crate) cgroup_parent: PathBuf,
}

impl TaskPaths {
    pub(crate) fn run_folder(&self, task: &TaskId) -> PathBuf {
        self.run_dir.join("tasks").join(task.as_str())
    }

    pub(crate) fn data_folder(&self, task: &TaskId) -> PathBuf {
        self.data_dir.join("tasks").join(task.as_str())
    }

    /// Returns the file that holds the task's output.
    pub(crate) fn log(&self, task: &TaskId) -> PathBuf {
        self.data_folder(task).join("log")
    }

    /// Returns the folder of secrets and configs, with a folder for each task.
    pub(crate) fn values(&self) -> PathBuf {
        self.run_dir.join("values")
    }

    /// Returns the folder of network namespaces, which belongs to `networks/folder.rs`.
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.run_dir.join("namespaces")
    }

    /// Returns the ids of tasks that have their own.
    pub(crate) fn ids(&self) -> TaskIds {
        TaskIds::at(self.run_dir.join("ids"))
    }

    /// Returns the group of all tasks in the hierarchy of cgroup2, if the machine has one.
    pub(crate) fn unified_group(&self) -> Option<PathBuf> {
        self.hierarchies.iter().find(|it| it.v2).map(|it| it.point.join(&self.cgroup_parent))
    }

    pub(crate) fn cgroups(&self, task: &TaskId) -> Groups {
        Groups::below(&self.hierarchies, &self.cgroup_parent, task.as_str())
    }

    /// Returns the tasks that have a folder, a control group, a namespace or ids.
    pub(crate) fn leftovers(&self) -> BTreeSet<TaskId> {
        let cgroups = self.hierarchies.iter().map(|it| it.point.join(&self.cgroup_parent));
        let folders =
            [self.run_dir.join("tasks"), self.data_dir.join("tasks"), self.values()].into_iter().chain(cgroups);
        let names = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok())
        };
        let found = folders.flat_map(names).filter(|it| is_id(it)).map(Into::into);
        found.chain(NamespaceFolder::at(self.namespaces()).tasks()).chain(self.ids().tasks()).collect()
    }
}
