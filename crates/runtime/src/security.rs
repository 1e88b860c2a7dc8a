//! The rights of a container's processes: capabilities, no new privileges, and a seccomp filter. The defaults are
//! Docker's.

pub mod capabilities;
mod default_profile;
pub mod seccomp;

pub use default_profile::default_profile;
pub(crate) use seccomp::Filter;
