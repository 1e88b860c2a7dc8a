//! Turns services into tasks: their number, slots and specs, and the replacement of tasks that ended or were lost.

mod moves;
pub(crate) mod orphan;
pub(crate) mod reaper;
pub(crate) mod service_tasks;
mod slot;
mod task_factory;
mod update;
