//! Turns services into tasks: their number, slots and specs, and the replacement of tasks that ended or were lost.

mod after_end;
mod credentials;
mod keep_order;
mod moves;
pub(crate) mod orphan;
mod places;
pub(crate) mod reaper;
mod runs;
pub(crate) mod service_tasks;
mod slot;
mod task_factory;
mod update;

pub(crate) use after_end::is_given_up;
pub(crate) use runs::refusal as refusal_of_run;
