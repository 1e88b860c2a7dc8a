//! What a container's processes may do: capabilities, no new privileges, a seccomp filter. The defaults are Docker's.

pub mod capabilities;
mod default_profile;
pub mod seccomp;

pub use default_profile::default_profile;
pub(crate) use seccomp::Filter;
