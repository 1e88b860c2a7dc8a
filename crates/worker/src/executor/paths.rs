//! Where the files and control groups of this node's tasks are, and how they are removed. All of it blocks: callers
//! within the runtime use `spawn_blocking`, except for single looks at a file in memory.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flota_runtime::cgroup::{Groups, Hierarchy};

/// The folders and control groups of a worker's tasks.
#[derive(Clone, Debug)]
pub(crate) struct TaskPaths {
    /// On disk: what a container writes, and its output.
    pub(crate) data_dir: PathBuf,
    /// In memory: specs, states, sockets. Gone after a boot, as the containers are.
    pub(crate) run_dir: PathBuf,
    pub(crate) hierarchies: Vec<Hierarchy>,
    pub(crate) cgroup_parent: PathBuf,
}

impl TaskPaths {
    pub(crate) fn run_folder(&self, task: &str) -> PathBuf {
        self.run_dir.join("tasks").join(task)
    }

    pub(crate) fn data_folder(&self, task: &str) -> PathBuf {
        self.data_dir.join("tasks").join(task)
    }

    /// Where the task's output is.
    pub(crate) fn log(&self, task: &str) -> PathBuf {
        self.data_folder(task).join("log")
    }

    pub(crate) fn cgroups(&self, task: &str) -> Groups {
        Groups::below(&self.hierarchies, &self.cgroup_parent, task)
    }

    /// Removes what an ended container leaves, except its output.
    pub(crate) fn clean(&self, task: &str) {
        let data = self.data_folder(task);
        let _ = std::fs::remove_dir_all(self.run_folder(task));
        for name in ["upper", "work", "merged", "root"] {
            let _ = std::fs::remove_dir_all(data.join(name));
        }
    }

    /// Kills what still runs of a task and removes everything of it.
    pub(crate) fn remove(&self, task: &str) {
        let _ = self.cgroups(task).sweep();
        self.clean(task);
        let _ = std::fs::remove_dir_all(self.data_folder(task));
    }

    /// Tasks of which something is here.
    pub(crate) fn leftovers(&self) -> BTreeSet<String> {
        let cgroups = self.hierarchies.iter().map(|it| it.root.join(&self.cgroup_parent));
        let folders = [self.run_dir.join("tasks"), self.data_dir.join("tasks")].into_iter().chain(cgroups);
        let names = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok())
        };
        folders.flat_map(names).filter(|it| flota_api::id::is_id(it)).collect()
    }
}
