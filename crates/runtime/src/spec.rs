//! What a container is made from: plain data, one file, no cluster words.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// Layers, topmost first, under a writable one; mounted in the container's own mount namespace.
    Overlay {
        /// Read-only layers, topmost first.
        lower: Vec<PathBuf>,
        /// What the container writes.
        upper: PathBuf,
        /// Overlayfs's own scratch folder, beside `upper`.
        work: PathBuf,
    },
    /// A folder that is used as it is.
    Folder(PathBuf),
}

/// What a container can't exceed; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    pub memory: u64,
    /// 10^-9 cores.
    pub nano_cpus: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Root file system.
    pub root: Root,
    /// Program and arguments; the program is looked up in the container's own `PATH`.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; made where it is missing.
    pub cwd: String,
    /// `user[:group]`, by name or number, as the container's own /etc/passwd and /etc/group have it; empty: root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// What it can't exceed.
    pub limits: Limits,
    /// The container's cgroup in each hierarchy.
    pub cgroups: Vec<crate::cgroup::Folder>,
    /// Where output goes, and how much of it is kept (in two files).
    pub log: PathBuf,
    /// Bytes of output that are kept.
    pub log_bytes: u64,
}

/// A further process in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, after the container's own.
    pub env: Vec<String>,
    /// Working directory; empty: the container's.
    pub cwd: String,
    /// As for the container; empty: the container's.
    pub user: String,
    /// Whether standard input is a terminal that the process shall own.
    pub tty: bool,
}
