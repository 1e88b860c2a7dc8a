//! What a supervisor is told: beside the container's `config.json`, which any runtime reads, what only it does itself.
//! For the embedded runtime the rules of `linux.seccomp` are compiled, in the file `seccomp` beside the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::Groups;

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// Layers, topmost first, under a writable one; mounted at `rootfs` in the bundle, in a mount namespace of the
    /// supervisor's own: when it goes, the mount goes.
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

/// One container to be supervised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Of the container, for the runtime.
    pub id: String,
    /// Root file system.
    pub root: Root,
    /// `user[:group]`, by name or number, as the container's own /etc/passwd and /etc/group have it; empty: root.
    pub user: String,
    /// Written to /etc/hostname and /etc/hosts.
    pub hostname: String,
    /// The container's control groups, as `linux.cgroupsPath` of its configuration leads to.
    pub groups: Groups,
    /// Where output goes, and how much of it is kept (in two files).
    pub log: PathBuf,
    /// Bytes of output that are kept.
    pub log_bytes: u64,
    /// Whether its program is at a terminal.
    pub terminal: bool,
    /// An OCI command line that makes the container in the place of the embedded runtime.
    pub runtime: Option<PathBuf>,
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
    /// Whether it is at a terminal: then one descriptor comes along, a socket that gets the terminal's other end.
    pub tty: bool,
}
