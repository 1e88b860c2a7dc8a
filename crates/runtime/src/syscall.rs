//! System calls that no used crate wraps, each as a safe function that does one call. Besides `process/clone.rs`,
//! `process/namespaces.rs`, `security/` and `cgroup/`, this is the only module of the library with unsafe code.

pub(crate) mod files;
pub(crate) mod messages;
pub(crate) mod mounts;
pub(crate) mod process;
