//! Control groups: which hierarchies are mounted here, and one folder for a container in each.
//!
//! Whether a machine has v1, v2 or both is taken from the mount table, never from names.

pub(crate) mod limits;
mod table;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use table::{Hierarchy, hierarchies};

use crate::error::{Act, StepError};

/// Where the processes of a group go that hands its controllers down.
const LEAF: &str = "flota-daemon";

/// A container's cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Absolute.
    pub path: PathBuf,
    /// `memory`, `cpu`, …; of v2: those that its parent offers.
    pub controllers: Vec<String>,
    /// Whether it is cgroup2.
    pub v2: bool,
}

impl Folder {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|it| it == controller)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), StepError> {
        let path = self.path.join(file);
        fs::write(&path, value).act(|| format!("write `{value}` to {}", path.display()))
    }
}

/// Makes the folders and sets the limits. What was made is removed again when a step fails.
///
/// # Errors
/// A limit needs a controller that is not here, or the kernel refuses.
pub fn create(folders: &[Folder], limits: &crate::Limits) -> Result<(), StepError> {
    let made = folders.iter().try_for_each(make).and_then(|()| limits::apply(folders, limits));
    if made.is_err() {
        remove(folders);
    }
    made
}

fn make(folder: &Folder) -> Result<(), StepError> {
    fs::create_dir_all(&folder.path).act(|| format!("make the cgroup {}", folder.path.display()))?;
    if !folder.v2 && folder.has("cpuset") {
        inherit_cpuset(&folder.path)?;
    }
    Ok(())
}

/// A cpuset cgroup takes no process before it has CPUs and memory nodes (cpusets(7)): give it its parent's.
fn inherit_cpuset(path: &Path) -> Result<(), StepError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let read = |path: &Path| fs::read_to_string(path).act(|| format!("read {}", path.display()));
        if !read(&own)?.trim().is_empty() {
            continue;
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        if read(&parent.join(file))?.trim().is_empty() {
            inherit_cpuset(parent)?;
        }
        let value = read(&parent.join(file))?;
        fs::write(&own, value.trim()).act(|| format!("write {}", own.display()))?;
    }
    Ok(())
}

/// Puts a process into every folder; on v2 into the leaf beside what it hands its controllers down to, if it has one.
///
/// # Errors
/// The kernel refuses.
pub fn join(folders: &[Folder], pid: i32) -> Result<(), StepError> {
    folders.iter().try_for_each(|folder| {
        let leaf = folder.path.join(LEAF);
        let file = if folder.v2 && leaf.exists() { leaf } else { folder.path.clone() }.join("cgroup.procs");
        fs::write(&file, pid.to_string()).act(|| format!("write `{pid}` to {}", file.display()))
    })
}

/// Removes the folders; one that is still busy is tried again for a moment. What stays is found by the next sweep.
pub fn remove(folders: &[Folder]) {
    let until = Instant::now() + Duration::from_millis(500);
    for folder in folders {
        while let Err(error) = fs::remove_dir(&folder.path) {
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > until {
                break;
            }
            // The last process has been reaped, but the kernel takes its time to let go of the group.
            let _ = nix::poll::poll(&mut [], 2u8);
        }
    }
}

/// Whether the kernel has killed in this container for want of memory.
pub fn out_of_memory(folders: &[Folder]) -> bool {
    folders.iter().filter(|folder| folder.has("memory")).any(|folder| {
        let file = if folder.v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(folder.path.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.is_some_and(|count| count.trim() != "0")
    })
}

/// The folders of a container called `name` below `parent` (relative to each hierarchy's root).
pub fn folders(hierarchies: &[Hierarchy], parent: &Path, name: &str) -> Vec<Folder> {
    let folder = |it: &Hierarchy| Folder {
        path: it.root.join(parent).join(name),
        controllers: it.controllers.clone(),
        v2: it.v2,
    };
    hierarchies.iter().map(folder).collect()
}

/// Makes `<root>/<parent>` in each hierarchy; on v2 with its controllers handed down. Processes that stand in a v2 root
/// are moved to a leaf where they are in the way: a group with processes can't hand controllers down (cgroups(7), "no
/// internal processes"), but the machine's own root can.
///
/// # Errors
/// The kernel refuses.
pub fn prepare(hierarchies: &[Hierarchy], parent: &Path) -> Result<(), StepError> {
    for hierarchy in hierarchies {
        let path = hierarchy.root.join(parent);
        fs::create_dir_all(&path).act(|| format!("make the cgroup {}", path.display()))?;
        if !hierarchy.v2 && hierarchy.controllers.iter().any(|it| it == "cpuset") {
            inherit_cpuset(&path)?;
        }
        if hierarchy.v2 && !hierarchy.controllers.is_empty() {
            hand_down(hierarchy, parent)?;
        }
    }
    Ok(())
}

fn hand_down(hierarchy: &Hierarchy, parent: &Path) -> Result<(), StepError> {
    let wanted = ["cpu", "memory", "pids"].iter().filter(|it| hierarchy.controllers.iter().any(|has| has == *it));
    let wanted: Vec<String> = wanted.map(|it| format!("+{it}")).collect();
    let wanted = wanted.join(" ");
    let mut path = hierarchy.root.clone();
    let mut parts = parent.components();
    loop {
        let file = path.join("cgroup.subtree_control");
        let mut written = fs::write(&file, &wanted);
        if written.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
            move_to_leaf(&path)?;
            written = fs::write(&file, &wanted);
        }
        written.act(|| format!("write {}", file.display()))?;
        match parts.next() {
            Some(part) => path.push(part),
            None => return Ok(()),
        }
    }
}

fn move_to_leaf(group: &Path) -> Result<(), StepError> {
    let leaf = group.join(LEAF);
    fs::create_dir_all(&leaf).act(|| format!("make the cgroup {}", leaf.display()))?;
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        // A kernel thread can't be moved, and a process may have ended meanwhile.
        let _ = fs::write(leaf.join("cgroup.procs"), pid);
    }
    Ok(())
}

/// Kills everything in the folders and removes them: what a daemon that died between two steps left behind.
///
/// # Errors
/// Says what could not be read.
pub fn sweep(folders: &[Folder]) -> io::Result<()> {
    for folder in folders {
        let Ok(processes) = fs::read_to_string(folder.path.join("cgroup.procs")) else { continue };
        for pid in processes.lines().filter_map(|line| line.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    remove(folders);
    Ok(())
}
