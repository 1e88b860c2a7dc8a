//! The mounted hierarchies.
//!
//! Whether a machine has v1, v2 or both (hybrid) is read from the mount table, never derived from names. It is read
//! once by a daemon, and once by each call of the OCI command line.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Mount point of the hierarchy.
    pub point: PathBuf,
    /// The group above which nothing is changed: the mount point, or what [`super::delegate`] has found.
    pub root: PathBuf,
    /// The group of this process.
    pub own: PathBuf,
    /// Controllers of the hierarchy; empty for a named one.
    pub controllers: Vec<String>,
    /// Whether the hierarchy is cgroup2.
    pub v2: bool,
}

/// Returns every hierarchy, from this process's own tables.
///
/// # Errors
/// /proc can't be read.
pub fn hierarchies() -> std::io::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    Ok(parse(&mounts, &own, offered))
}

/// Returns the controllers that a v2 group can delegate.
pub(super) fn offered(group: &Path) -> Vec<String> {
    let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Parses proc_pid_mountinfo(5), which has fields up to ` - `, then type, source and options, and the lines
/// `id:controllers:path` of cgroups(7).
fn parse(mounts: &str, own: &str, offered: impl Fn(&Path) -> Vec<String>) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        let mut left = left.split(' ').skip(3);
        let (Some(mount_root), Some(point)) = (left.next(), left.next()) else { continue };
        let v2 = kind == "cgroup2";
        if kind != "cgroup" && !v2 {
            continue;
        }
        let known = ["rw", "ro", "xattr", "clone_children", "noprefix"];
        let named: Vec<&str> = options.split(',').filter(|it| !known.contains(it)).collect();
        let own_path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let same = if v2 { controllers.is_empty() } else { controllers.split(',').any(|it| named.contains(&it)) };
            same.then_some(path)
        });
        let point = PathBuf::from(point);
        let own = place(&point, mount_root, own_path);
        let controllers = if v2 {
            offered(&point)
        } else {
            named.iter().filter(|it| !it.starts_with("name=")).map(|it| (*it).to_owned()).collect()
        };
        if !found.iter().any(|it| it.v2 == v2 && it.controllers == controllers && (v2 || it.point == point)) {
            found.push(Hierarchy { root: point.clone(), point, own, controllers, v2 });
        }
    }
    found
}

/// Returns the path of a group of /proc/self/cgroup below a mount, or the mount point itself if the group is not
/// visible there.
fn place(point: &Path, mount_root: &str, own: Option<&str>) -> PathBuf {
    let own = own.and_then(|path| Path::new(path).strip_prefix(mount_root).ok());
    match own {
        // Neither the root, to which no name may be appended, nor a group outside of the namespace is accepted.
        Some(own) if matches!(own.components().next(), Some(Component::Normal(_))) => point.join(own),
        _ => point.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    fn points(mounts: &str, own: &str) -> Vec<(String, Vec<String>, bool)> {
        let found = parse(mounts, own, |_| vec!["hugetlb".into()]);
        found.into_iter().map(|it| (it.point.display().to_string(), it.controllers, it.v2)).collect()
    }

    #[test]
    fn hybrid_machines_show_every_hierarchy_once() {
        let own = "3:memory:/\n2:cpu:/\n1:name=systemd:/\n0::/";
        let expected = [
            ("/sys/fs/cgroup/cpu".to_owned(), vec!["cpu".to_owned()], false),
            ("/sys/fs/cgroup/memory".to_owned(), vec!["memory".to_owned()], false),
            ("/sys/fs/cgroup/systemd".to_owned(), vec![], false),
            ("/sys/fs/cgroup/unified".to_owned(), vec!["hugetlb".to_owned()], true),
        ];
        assert_eq!(points(HYBRID, own), expected);
    }

    #[test]
    fn the_own_group_is_found_below_what_is_mounted() {
        let own = |mount_root: &str, own: &str| place(Path::new("/cg"), mount_root, Some(own)).display().to_string();
        assert_eq!(own("/", "/"), "/cg");
        assert_eq!(own("/", "/a/b"), "/cg/a/b");
        assert_eq!(own("/a", "/a/b"), "/cg/b");
        // The first group is outside of the namespace, the second is outside of the mount.
        assert_eq!(own("/", "/../c"), "/cg");
        assert_eq!(own("/a", "/ab"), "/cg");
    }
}
