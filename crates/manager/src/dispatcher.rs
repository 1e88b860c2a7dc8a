//! One session for each worker, with the leader: who lives, what each shall run, and what became of it.

mod assignments;
mod image_report;
mod liveness;
mod server;
mod session;
mod status_sink;

pub use server::DispatcherService;

pub(crate) use liveness::{Liveness, judge_nodes};
pub(crate) use session::Sessions;
