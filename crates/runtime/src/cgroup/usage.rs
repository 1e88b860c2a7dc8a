//! CPU time and memory of a container, for whoever looks often: two or three files instead of all of `stats.rs`.

use super::{Folder, Groups};

/// Factor from microseconds to nanoseconds.
const MICROSECOND: u64 = 1_000;

/// What a container has used so far. What its groups do not count is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_nanos: Option<u64>,
    /// The memory that it uses now, in bytes, without the page cache that is not in use.
    pub memory_bytes: Option<u64>,
}

impl Groups {
    /// Returns the container's usage.
    pub fn usage(&self) -> Usage {
        let accounting = self.folders.iter().find(|folder| folder.has_v1("cpuacct"));
        // v2 counts time in each group, with its controller or without.
        let unified = || self.folders.iter().find(|folder| folder.v2);
        let cpu_nanos = match accounting {
            Some(folder) => folder.number("cpuacct.usage"),
            None => unified().and_then(|folder| folder.key("cpu.stat", "usage_usec")).map(|it| it * MICROSECOND),
        };
        let memory_bytes = self.folders.iter().find(|folder| folder.has("memory")).and_then(memory);
        Usage { cpu_nanos, memory_bytes }
    }
}

/// Returns the memory that is in use in this group, with those below it. v1 counts a group alone without `total_`
/// (cgroup-v1/memory.rst, 5.2).
fn memory(folder: &Folder) -> Option<u64> {
    let (file, idle) =
        if folder.v2 { ("memory.current", "inactive_file") } else { ("memory.usage_in_bytes", "total_inactive_file") };
    let idle = folder.key("memory.stat", idle).unwrap_or_default();
    Some(folder.number(file)?.saturating_sub(idle))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The usage in a group of these controllers with these files.
    fn usage(controllers: &str, v2: bool, files: &[(&str, &str)]) -> Usage {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (file, text) in files {
            std::fs::write(folder.path().join(file), text).expect("in a temporary folder");
        }
        let controllers = controllers.split(' ').map(str::to_owned).collect();
        let path = folder.path().to_owned();
        let folder = Folder { path: path.clone(), point: path.clone(), root: path, controllers, v2, made: 0 };
        Groups { folders: vec![folder] }.usage()
    }

    #[test]
    fn both_versions_count_the_same_in_other_files() {
        let stat = "cache 9\ninactive_file 1\ntotal_inactive_file 300\n";
        let files = [("cpuacct.usage", "7000\n"), ("memory.usage_in_bytes", "1000\n"), ("memory.stat", stat)];
        let expected = Usage { cpu_nanos: Some(7_000), memory_bytes: Some(700) };
        assert_eq!(usage("cpuacct memory", false, &files), expected);
        let stat = "anon 5\ninactive_file 300\n";
        let files = [("cpu.stat", "usage_usec 7\n"), ("memory.current", "1000\n"), ("memory.stat", stat)];
        assert_eq!(usage("memory", true, &files), expected);
        assert_eq!(usage("pids", true, &files), Usage { memory_bytes: None, ..expected });
        assert_eq!(usage("pids", false, &[]), Usage::default());
    }
}
