//! Decides whether a slot whose newest task has ended gets another task, and when.

use flota_api::model::{RestartCondition, Service, Task};
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_raft_store::faults::{self, Fault};

use super::slot::Slot;

/// The decision about a slot whose newest task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterEnd {
    /// It stays as it is.
    Stay,
    /// It gets another task at once.
    Replace,
    /// It gets another task, which starts after the delay of its service's policy.
    ReplaceLater,
}

/// Whether a task of the slot has done all that the service asks of it.
pub(super) fn is_done(service: &Service, slot: &Slot) -> bool {
    !faults::is_on(Fault::JobAgain) && service.spec.restart.condition != RestartCondition::Any && slot.is_done()
}

/// Whether the task belongs to an earlier run of a job. A rollback and another one can bring back the spec that it has.
pub(super) fn is_of_earlier_run(service: &Service, task: &Task) -> bool {
    service.job_run.is_some() && task.run != service.job_run
}

/// Returns what follows the end of `last`, the newest task of its slot.
pub(super) fn after_end(service: &Service, last: &Task) -> AfterEnd {
    // While an update is paused, a slot keeps the spec that it has.
    let is_present = last.spec_version == service.spec_version && !is_of_earlier_run(service, last);
    if !is_present && !service.update.is_paused() {
        return AfterEnd::Replace;
    }
    let policy = &service.spec.restart;
    // The time is that of the end, so that every leader decides the same, however late.
    let within_budget = policy.has_budget(&last.restarts_so_far(), last.meta.updated_at);
    match last.status.state {
        // The task was stopped, but its slot remains: it was moved, or removed by a user.
        _ if last.desired_state.is_stopping() => AfterEnd::Replace,
        TaskState::Failed if policy.condition == RestartCondition::None => AfterEnd::Stay,
        TaskState::Complete if policy.condition != RestartCondition::Any && !faults::is_on(Fault::JobAgain) => {
            AfterEnd::Stay
        }
        TaskState::Failed | TaskState::Rejected | TaskState::Complete if within_budget => AfterEnd::ReplaceLater,
        TaskState::Failed | TaskState::Rejected | TaskState::Complete => AfterEnd::Stay,
        _ => AfterEnd::Replace,
    }
}

/// Whether the slot of this task, its newest one, stays without a running task because the task has failed for good.
pub(crate) fn is_given_up(service: &Service, last: &Task) -> bool {
    let has_failed = matches!(last.status.state, TaskState::Failed | TaskState::Rejected);
    has_failed && after_end(service, last) == AfterEnd::Stay
}

/// When the task that replaces this failed one may start. The delay counts from when the leader learned of the end,
/// because the clock of the node may be wrong.
pub(super) fn delayed(service: &Service, failed: &Task) -> Timestamp {
    let ended_at = failed.meta.updated_at;
    ended_at + service.spec.restart.restart(&mut failed.restarts_so_far(), ended_at)
}
