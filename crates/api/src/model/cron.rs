//! The runs of a service of the mode cron. They are kept beside its spec, which the system never changes.

use std::num::NonZeroU64;
use std::sync::Arc;

use serde::Serialize;

use super::task::Task;
use super::text_or_empty;
use crate::schedule::Schedule;
use crate::state::states;
use crate::version::Timestamp;

states! {
    /// How far a run has come.
    RunState {
        /// It is under way.
        Running = "running",
        /// All its tasks have done their work.
        Complete = "complete",
        /// None of its tasks runs any more, and some have failed for good.
        Failed = "failed",
        /// It was stopped, or is being stopped, because another one was due.
        Replaced = "replaced",
        /// It was stopped, or is being stopped, with its service.
        Stopped = "stopped",
        /// It has not begun, because an earlier one was under way.
        Skipped = "skipped",
    }
}

/// One time of the schedule, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CronRun {
    /// Number of the run. Each run has a higher one than those before it.
    pub number: NonZeroU64,
    /// The time for which it was planned.
    pub scheduled_at: Timestamp,
    /// When it began, or was skipped.
    pub began_at: Timestamp,
    /// When its last task had ended; `None` while one runs or may run.
    #[serde(serialize_with = "text_or_empty")]
    pub ended_at: Option<Timestamp>,
    /// How far it has come.
    pub state: RunState,
    /// Number of the service's spec from which all of its tasks are made.
    pub spec_version: u64,
    /// The number of tasks whose program must end well.
    pub completions: u64,
}

impl CronRun {
    /// Returns whether a task of it runs or may run.
    pub fn is_live(&self) -> bool {
        self.ended_at.is_none()
    }
}

/// Up to which time a schedule has been looked after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Handled {
    /// The schedule. Another one counts anew.
    #[serde(flatten)]
    pub schedule: Arc<Schedule>,
    /// A run has begun for each of its times up to this one, or will never begin.
    pub until: Timestamp,
}

/// The runs of a service of the mode cron.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CronStatus {
    /// Up to which time its schedule has been looked after; `None` while it is stopped.
    pub handled: Option<Handled>,
    /// Number of its last run; 0 before the first.
    pub last_number: u64,
    /// The runs that are under way and the last of those that are over or were skipped, the oldest first.
    pub runs: Vec<CronRun>,
    /// How many times of its schedules have passed without a run, because no manager led, or a clock jumped.
    pub missed: u64,
    /// Whether a user wants a run now that has not begun yet.
    pub requested: bool,
}

impl CronStatus {
    /// Returns whether there is nothing in it, as in a service of another mode.
    pub fn is_unused(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the runs of which a task runs or may run.
    pub fn live(&self) -> impl Iterator<Item = &CronRun> {
        self.runs.iter().filter(|run| run.is_live())
    }

    /// Returns the run with this number, if it is kept.
    pub fn run(&self, number: NonZeroU64) -> Option<&CronRun> {
        self.runs.iter().find(|run| run.number == number)
    }

    /// Returns the run to which a task belongs, if it is kept.
    pub fn run_of(&self, task: &Task) -> Option<&CronRun> {
        self.run(task.run?)
    }
}
