//! The parameters of a supervisor: the part that only it handles, besides the container's `config.json`, which any
//! runtime reads. For the embedded runtime the rules of `linux.seccomp` are compiled, in the file `seccomp` beside the
//! configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::Groups;
use crate::ids::IdRange;

/// The source of the root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootSource {
    /// Layers, topmost first, under a writable one. They are mounted at `rootfs` in the bundle, in the supervisor's
    /// own mount namespace, so the mount ends with the supervisor.
    Overlay {
        /// Read-only layers, topmost first.
        lower: Vec<PathBuf>,
        /// Folder of the writable layer.
        upper: PathBuf,
        /// Scratch folder of overlayfs, beside `upper`.
        work: PathBuf,
    },
    /// A folder that is used as it is.
    Folder(PathBuf),
}

/// Where the files of an image are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageFiles {
    /// In read-only layers, topmost first, which overlayfs merges.
    Layers(Vec<PathBuf>),
    /// In a folder, all of them.
    Folder(PathBuf),
}

/// An image that is mounted in a container. The supervisor mounts it in its own mount namespace, so the mount ends with the
/// supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// Path in the container. The bind mount of the configuration with this destination, which has no source there, shows
    /// the image and decides whether it can be written to.
    pub target: PathBuf,
    /// The files of the image.
    pub files: ImageFiles,
    /// Path in the image of the file or folder that is mounted; all of the image if `None`. If a link leads it out of the
    /// image, the start fails.
    pub subpath: Option<PathBuf>,
}

/// A file system that is mounted in a container (fsopen(2)), with no devices and no set-user-id programs. The supervisor
/// mounts it in its own mount namespace, so the mount ends with the supervisor, and in the network of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemMount {
    /// Its type, as `nfs` or `ext4`.
    pub kind: String,
    /// What is mounted.
    pub device: String,
    /// Options, as in fstab(5).
    pub options: Vec<String>,
    /// What of it the container sees.
    pub parts: Vec<Part>,
}

/// A part of a file system that is mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Path in the container. The bind mount of the configuration with this destination, which has no source there, shows
    /// the part.
    pub target: PathBuf,
    /// Path in the file system of the file or folder that is mounted; all of it if `None`. If a link leads it out of the file
    /// system, the start fails.
    pub subpath: Option<PathBuf>,
}

/// The parameters for one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Id of the container for the runtime.
    pub id: String,
    /// Source of the root file system.
    pub root: RootSource,
    /// User as `user[:group]`, by name or number, resolved with the container's own /etc/passwd and /etc/group; root
    /// if empty.
    pub user: String,
    /// Supplementary groups in addition to the user's own, by name or number, resolved as the user is.
    #[serde(default)]
    pub extra_groups: Vec<String>,
    /// Content of /etc/hostname, without the end of its line.
    pub hostname: String,
    /// Content of /etc/hosts.
    pub hosts: String,
    /// Content of /etc/resolv.conf; `None` for that of the machine.
    pub resolver: Option<String>,
    /// The container's control groups. Another runtime creates the same ones by the configuration's `linux.cgroupsPath`
    /// ([`Groups::cgroups_path`]).
    pub groups: Groups,
    /// Path of the output log, which consists of two files.
    pub log: PathBuf,
    /// Largest size of the log in bytes; `None` if no log is kept.
    pub log_bytes: Option<u64>,
    /// Whether its program runs at a terminal.
    pub terminal: bool,
    /// An OCI command line that creates the container instead of the embedded runtime.
    pub runtime: Option<PathBuf>,
    /// Absolute paths without links: sources of bind mounts of the configuration that others can change. If one of them has
    /// a link when the container starts, the start fails, instead of showing the container what the link names.
    #[serde(default)]
    pub pinned: Vec<PathBuf>,
    /// The ids that the container has of its own. Its configuration has a user namespace with the same ones
    /// ([`IdRange::mapping`]). Its root, its images, its file systems, and the sources in `pinned` and `mapped` show ids on
    /// disk as these.
    #[serde(default)]
    pub ids: Option<IdRange>,
    /// Sources of bind mounts of the configuration, besides those in `pinned`, which show the ids on disk as `ids`.
    #[serde(default)]
    pub mapped: Vec<PathBuf>,
    /// Images that are mounted in the container.
    #[serde(default)]
    pub images: Vec<ImageMount>,
    /// File systems that are mounted in the container.
    #[serde(default)]
    pub file_systems: Vec<FileSystemMount>,
}

/// A further process to start in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables as `NAME=value`, after the container's own.
    pub env: Vec<String>,
    /// Working directory; the container's if empty.
    pub cwd: String,
    /// User, in the same form as for the container; the container's if empty.
    pub user: String,
    /// Whether it runs at a terminal. Then one descriptor is passed, a socket that receives the terminal's other end.
    pub tty: bool,
    /// Whether everything that the process has started ends with it, as far as the embedded runtime runs the container.
    /// A container has one such process at a time: those that overlap end together.
    pub contained: bool,
}
