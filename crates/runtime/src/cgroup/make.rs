//! Creates groups and moves processes into them.
//!
//! A v2 group has the controllers that each group above it delegates (cgroup.subtree_control). If the parent was
//! prepared, enabling them takes one write; otherwise they are delegated from the root on. A controller that can't be
//! delegated is not an error here, but a limit that needs it is refused.

use std::io;
use std::path::{Path, PathBuf};

use super::folder::{below, read, write};
use super::{Folder, Hierarchy};
use crate::error::{Act, StepError};

/// Name of the leaf group for the processes of a group that delegates controllers.
const LEAF: &str = "flota-daemon";

/// The controllers that every v2 group has if the root offers them. Others cost time at each start, so they are only
/// delegated when a limit needs them.
pub(super) const USUAL: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Number of tries, because another process may remove an empty parent between two steps.
const TRIES: usize = 8;

/// Creates the group `parent` (relative to the mount points) in each hierarchy, with its controllers delegated on v2.
/// Processes in a v2 root, such as the calling daemon, are moved to a leaf if necessary: a group with processes can't
/// delegate controllers (cgroups(7), "no internal processes"), except for the machine's own root.
///
/// # Errors
/// The kernel refuses an operation.
pub fn prepare(hierarchies: &[Hierarchy], parent: &Path) -> Result<(), StepError> {
    for hierarchy in hierarchies {
        let path = hierarchy.point.join(parent);
        make_dir(&path, &hierarchy.root).act(|| format!("make the cgroup {}", path.display()))?;
        let has = |name: &str| hierarchy.controllers.iter().any(|it| it == name);
        if !hierarchy.v2 && has("cpuset") {
            inherit_cpuset(&path)?;
            // With this, a container's cpuset group needs no further writes to get its parent's values.
            let _ = write(&path.join("cgroup.clone_children"), "1");
        }
        if hierarchy.v2 {
            let wanted: Vec<&str> = USUAL.into_iter().filter(|it| has(it)).collect();
            hand_down_from_busy(&hierarchy.root, &path, &wanted)?;
        }
    }
    Ok(())
}

/// Delegates controllers in each group from the root to `last`, after moving the root's processes to a leaf if they are
/// in the way.
pub(super) fn hand_down_from_busy(root: &Path, last: &Path, controllers: &[&str]) -> Result<(), StepError> {
    if is_busy(&hand_down_at(root, controllers)) {
        move_to_leaf(root)?;
    }
    hand_down(root, last, controllers)
}

impl Folder {
    /// Creates the group if it does not exist, and records how many groups were created.
    pub(super) fn make(&mut self) -> Result<(), StepError> {
        self.made = make_dir(&self.path, &self.root).act(|| format!("make the cgroup {}", self.path.display()))?;
        if self.v2 {
            let wanted: Vec<&str> = USUAL.into_iter().filter(|it| self.has(it)).collect();
            self.want(&wanted);
        }
        Ok(())
    }

    /// Copies CPUs and memory nodes to the v1 cpuset groups above this one, because a group can't have more than its
    /// parent.
    pub(super) fn inherit_above(&self) -> Result<(), StepError> {
        let above = self.path.parent().filter(|above| *above != self.root && above.starts_with(&self.root));
        above.map_or(Ok(()), inherit_cpuset)
    }

    /// Delegates controllers to this v2 group.
    pub(super) fn want(&self, controllers: &[&str]) {
        let Some(parent) = self.path.parent().filter(|parent| parent.starts_with(&self.root)) else { return };
        if !controllers.is_empty() && write(&parent.join("cgroup.subtree_control"), &plus(controllers)).is_err() {
            let _ = hand_down(&self.root, parent, controllers);
        }
    }

    /// Moves a process into this group.
    pub(super) fn join(&self, pid: i32, beside: Option<i32>) -> Result<(), StepError> {
        let value = pid.to_string();
        let file = self.path.join("cgroup.procs");
        let mut joined = write(&file, &value);
        match joined.as_ref().err().and_then(io::Error::raw_os_error) {
            // A cpuset group without CPUs and memory nodes accepts no process (cpusets(7)).
            Some(libc::ENOSPC) if self.has_v1("cpuset") => {
                inherit_cpuset(&self.path)?;
                joined = write(&file, &value);
            }
            // The container delegates controllers itself, and its processes are in subgroups.
            Some(libc::EBUSY) if self.v2 => {
                let other = beside.and_then(|other| holding(&self.path, other));
                joined = write(&other.unwrap_or_else(|| self.path.join(LEAF)).join("cgroup.procs"), &value);
            }
            _ => (),
        }
        joined.act(|| format!("write `{pid}` to {}", file.display()))
    }
}

/// Creates a group with all missing groups above it and returns their number. After an error all of them are removed.
fn make_dir(path: &Path, root: &Path) -> io::Result<usize> {
    let mut above = 0;
    let mut tries = 0..TRIES;
    let error = loop {
        let error = match std::fs::create_dir(path) {
            Ok(()) => return Ok(above + 1),
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::AlreadyExists => return Ok(0),
            io::ErrorKind::NotFound if path != root && tries.next().is_some() => match path.parent() {
                Some(parent) => above = make_dir(parent, root)?,
                None => break error,
            },
            _ => break error,
        }
    };
    for parent in path.ancestors().skip(1).take(above) {
        let _ = std::fs::remove_dir(parent);
    }
    Err(error)
}

/// Copies the CPUs and memory nodes of its parent to a cpuset group that has none.
fn inherit_cpuset(path: &Path) -> Result<(), StepError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let value = |path: &Path| read(path).act(|| format!("read {}", path.display()));
        if !value(&own)?.trim().is_empty() {
            continue;
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        if value(&parent.join(file))?.trim().is_empty() {
            inherit_cpuset(parent)?;
        }
        let value = value(&parent.join(file))?;
        write(&own, value.trim()).act(|| format!("write {}", own.display()))?;
    }
    Ok(())
}

fn plus(controllers: &[&str]) -> String {
    controllers.iter().map(|it| format!("+{it}")).collect::<Vec<_>>().join(" ")
}

/// Delegates controllers in each group from the root to `last`.
fn hand_down(root: &Path, last: &Path, controllers: &[&str]) -> Result<(), StepError> {
    let Ok(parts) = last.strip_prefix(root) else { return Ok(()) };
    let mut path = root.to_owned();
    let mut parts = parts.components();
    loop {
        hand_down_at(&path, controllers).act(|| format!("delegate controllers in {}", path.display()))?;
        match parts.next() {
            Some(part) => path.push(part),
            None => return Ok(()),
        }
    }
}

/// Delegates controllers in one group. The kernel refuses the whole write if the parent lacks one of them; then they
/// are written one by one.
fn hand_down_at(path: &Path, controllers: &[&str]) -> io::Result<()> {
    let file = path.join("cgroup.subtree_control");
    if controllers.is_empty() {
        return Ok(());
    }
    let written = write(&file, &plus(controllers));
    if written.is_ok() || is_busy(&written) {
        return written;
    }
    let each = controllers.iter().map(|it| write(&file, &plus(&[it])));
    each.reduce(|before, this| before.or(this)).unwrap_or(written)
}

/// Returns whether a group can't delegate because it has processes.
fn is_busy(delegated: &io::Result<()>) -> bool {
    delegated.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

fn move_to_leaf(group: &Path) -> Result<(), StepError> {
    let leaf = group.join(LEAF);
    make_dir(&leaf, group).act(|| format!("make the cgroup {}", leaf.display()))?;
    for pid in read(&group.join("cgroup.procs")).unwrap_or_default().lines() {
        // A kernel thread can't be moved, and a process may have ended in the meantime.
        let _ = write(&leaf.join("cgroup.procs"), pid);
    }
    Ok(())
}

/// Returns the group below `path` that a process is in.
fn holding(path: &Path, pid: i32) -> Option<PathBuf> {
    let pids = read(&path.join("cgroup.procs")).unwrap_or_default();
    if pids.lines().any(|line| line.parse() == Ok(pid)) {
        return Some(path.to_owned());
    }
    below(path).find_map(|path| holding(&path, pid))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_prepared_parent_hands_its_controllers_down_by_one_write() {
        let root = std::env::temp_dir().join(format!("flota-make-{}", std::process::id()));
        let file = |path: &str| root.join(path).join("cgroup.subtree_control");
        let text = |path: &str| fs::read_to_string(file(path)).expect("it is there");
        fs::create_dir_all(root.join("a/b")).expect("in a temporary folder");
        ["", "a", "a/b"].iter().for_each(|path| fs::write(file(path), "").expect("in a temporary folder"));
        let controllers = ["memory", "hugetlb", "cpu"].map(str::to_owned).to_vec();
        let own = root.clone();
        let hierarchy = Hierarchy { root: root.clone(), point: root.clone(), own, controllers, v2: true };
        prepare(std::slice::from_ref(&hierarchy), Path::new("a/b")).expect("ordinary files");
        assert_eq!(["", "a", "a/b"].map(text), ["+cpu +memory"; 3]);

        ["", "a", "a/b"].iter().for_each(|path| fs::write(file(path), "").expect("in a temporary folder"));
        let mut groups = super::super::Groups::below(&[hierarchy], Path::new("a/b"), "box");
        groups.folders[0].make().expect("ordinary folders");
        assert_eq!(
            (["", "a", "a/b"].map(text), groups.folders[0].made),
            (["", "", "+cpu +memory"].map(str::to_owned), 1)
        );

        // A parent without controllers to delegate makes the delegation start at the root.
        fs::remove_file(file("a/b")).expect("it was there");
        groups.folders[0].want(&["hugetlb"]);
        assert_eq!(["", "a"].map(text), ["+hugetlb"; 2]);
        fs::remove_dir_all(root).expect("its own folder");
    }

    #[test]
    fn parents_that_were_missing_are_counted() {
        let root = std::env::temp_dir().join(format!("flota-parents-{}", std::process::id()));
        fs::create_dir_all(&root).expect("in a temporary folder");
        assert_eq!(make_dir(&root.join("a/b/c"), &root).expect("made"), 3);
        assert_eq!(make_dir(&root.join("a/b/d"), &root).expect("made"), 1);
        assert_eq!(make_dir(&root.join("a/b"), &root).expect("it is there"), 0);
        // The name is too long, so the groups that were created for it are removed.
        let long = root.join("x/y").join("z".repeat(300));
        make_dir(&long, &root).expect_err("no such name");
        assert!(!root.join("x").exists());
        fs::remove_dir_all(root).expect("its own folder");
    }
}
