//! The traces of one test on this machine. Every name that a test makes holds its token, so that tests can run beside
//! each other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The traces that were found, sorted; empty where nothing is left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) processes: Vec<i32>,
    pub(crate) mounts: Vec<String>,
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) states: Vec<PathBuf>,
    pub(crate) network_namespaces: Vec<u64>,
}

impl Census {
    pub(crate) fn of(token: &str, states: &Path) -> Self {
        let processes = processes(token);
        Self {
            network_namespaces: network_namespaces(&processes),
            processes,
            mounts: mounts(token),
            cgroups: cgroups(token),
            states: entries(states),
        }
    }
}

pub(crate) fn entries(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().map(|it| it.path()).collect();
    found.sort();
    found
}

/// Whose arguments or control groups name the test.
fn processes(token: &str) -> Vec<i32> {
    let ids = entries(Path::new("/proc")).into_iter();
    let ids = ids.filter_map(|it| it.file_name()?.to_str()?.parse::<i32>().ok());
    let names = |pid: i32, file: &str| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.windows(token.len()).any(|it| it == token.as_bytes())
    };
    let is_alive = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    ids.filter(is_alive).filter(|pid| names(*pid, "cmdline") || names(*pid, "cgroup")).collect()
}

fn network_namespaces(processes: &[i32]) -> Vec<u64> {
    let inode = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net")).map(|it| it.ino()).ok();
    let own = inode("self");
    let mut found: Vec<u64> = processes.iter().filter_map(|pid| inode(&pid.to_string())).collect();
    found.retain(|it| Some(*it) != own);
    found.sort_unstable();
    found.dedup();
    found
}

fn mounts(token: &str) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.contains(token)).map(str::to_owned).collect()
}

/// In every hierarchy, at any depth, with the groups below.
fn cgroups(token: &str) -> Vec<PathBuf> {
    fn walk(path: &Path, token: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|it| it.is_dir()) {
                continue;
            }
            if entry.path().to_string_lossy().contains(token) {
                found.push(entry.path());
            }
            walk(&entry.path(), token, found);
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), token, &mut found);
    found.sort();
    found
}
