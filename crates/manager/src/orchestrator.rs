//! Turns services into tasks: how many, in which slots, of which spec, and what follows a task that ended or was lost.

pub(crate) mod orphan;
pub(crate) mod reaper;
pub(crate) mod replicated;
mod slot;
mod task_factory;
mod update;
