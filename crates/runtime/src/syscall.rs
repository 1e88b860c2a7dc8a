//! System calls that no crate in use wraps, each as a safe function that does one call. Beside `process/clone.rs`,
//! `security/` and `cgroup/` the only place with unsafe code.

pub(crate) mod files;
pub(crate) mod messages;
pub(crate) mod mounts;
pub(crate) mod process;
