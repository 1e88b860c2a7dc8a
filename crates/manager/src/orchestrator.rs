//! Services to tasks: how many, in which slots, of which spec, and what happens to those that ended or were lost.

pub(crate) mod orphan;
pub(crate) mod reaper;
pub(crate) mod replicated;
mod slot;
mod task_factory;
mod update;
