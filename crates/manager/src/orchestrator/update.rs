//! The steps of a rolling update, one slot after the other. The new task is prepared (it has a node, and its image is
//! there) before the old one is stopped, so a spec that can't run never stops a running task. The one exception is a
//! new task that only lacks the resources that the old one holds.

use std::time::Duration;

use flota_api::model::{PendingReason, Service, TaskStatus};
use flota_api::state::TaskState;
use flota_api::version::Timestamp;

use super::slot::Slot;

/// How long a new task must run before the next slot follows.
const MONITOR: Duration = Duration::from_secs(1);

/// The next step of an update.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is left to replace.
    Done,
    /// A slot is being updated; its next event continues the update.
    Wait,
    /// A new task has just begun to run; the update continues at this time if it still does.
    Look(Timestamp),
    /// Make a successor for the task of this slot and prepare it.
    Prepare(u64),
    /// Stop the task of this slot; its successor runs once it has ended.
    Replace(u64),
    /// Pause the update for this reason: a task of the new spec does not run.
    Pause(String),
}

/// Whether the task has failed and was, or will be, started again by its worker.
fn does_not_stay_up(status: &TaskStatus) -> bool {
    status.is_unhealthy() || status.attempt > 1 && status.exit_code != Some(0)
}

/// Returns the next step of an update, given the slots of the service in the order of their numbers.
pub(super) fn next_step<'a>(
    service: &Service,
    slots: impl Iterator<Item = (&'a u64, &'a Slot)> + Clone,
    now: Timestamp,
) -> Step {
    let outdated = |slot: &Slot| slot.current().is_some_and(|task| task.spec_version < service.spec_version);
    if !slots.clone().any(|(_, slot)| outdated(slot)) {
        return Step::Done;
    }
    for (number, slot) in slots.clone() {
        let Some(newest) = slot.newest().filter(|task| task.spec_version == service.spec_version) else { continue };
        match newest.status.state {
            TaskState::Failed | TaskState::Rejected => {
                return Step::Pause(format!("{}.{number}: {}", service.spec.name, newest.status.error));
            }
            state if slot.successor().is_some_and(|it| it.id == newest.id) && slot.current().is_some() => {
                // The old task is stopped early only if that gives its successor room.
                let needs_room = matches!(newest.pending_reason, Some(PendingReason::NeedsRoom(_)));
                return if state == TaskState::Ready || needs_room { Step::Replace(*number) } else { Step::Wait };
            }
            _ if newest.is_live() && does_not_stay_up(&newest.status) => {
                let why = match (newest.status.error.as_str(), newest.status.exit_code) {
                    ("", None) => String::new(),
                    ("", Some(code)) => format!(" (exit code {code})"),
                    (error, _) => format!(" ({error})"),
                };
                return Step::Pause(format!("{}.{number}: it does not stay up{why}", service.spec.name));
            }
            state if newest.is_live() && state < TaskState::Running => return Step::Wait,
            TaskState::Running if newest.is_live() && newest.meta.updated_at + MONITOR > now => {
                return Step::Look(newest.meta.updated_at + MONITOR);
            }
            _ => {}
        }
    }
    if slots.clone().any(|(_, slot)| slot.is_stopping() && slot.current().is_none()) {
        return Step::Wait;
    }
    // Slots that do not run come first, because nothing is lost with them.
    let running = |slot: &Slot| slot.current().is_some_and(|task| task.status.state == TaskState::Running);
    let next = slots.filter(|(_, slot)| outdated(slot)).min_by_key(|(number, slot)| (running(slot), **number));
    next.map_or(Step::Done, |(number, _)| Step::Prepare(*number))
}
