//! The commands: one file for each noun, one function for each verb. A command gets parsed values and a client, and
//! reads the environment only where Docker's does: for variables without a value, and for its logins.

mod affinity_flags;
pub(crate) mod context;
mod dependency_flags;
mod env_flags;
pub(crate) mod events;
pub(crate) mod exec;
mod health_flags;
pub(crate) mod image;
pub(crate) mod logs;
mod mount_flags;
pub(crate) mod network;
mod network_flags;
pub(crate) mod node;
pub(crate) mod port_forward;
mod privilege_flags;
pub(crate) mod registry;
mod scale_flags;
mod schedule_flags;
pub(crate) mod service;
mod setting_flags;
mod spec_flags;
pub(crate) mod stack;
pub(crate) mod swarm;
pub(crate) mod system;
pub(crate) mod task;
#[cfg(test)]
mod tests;
mod update_flags;
pub(crate) mod value;
mod value_flags;
pub(crate) mod volume;
