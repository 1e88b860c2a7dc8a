//! The next steps of an update: as many slots at once, in the order and at the pace that its policy says, and which of the
//! new tasks have failed. A rollback is an update to an earlier spec, by a policy of its own.
//!
//! Stop-first: the new task is prepared (it has a node, and its image is there) before the old one is stopped, so a spec
//! that can't run never stops a running task. The one exception is a new task that only lacks the resources that the old
//! one holds. Start-first: the old task is stopped once the new one serves (`service_tasks.rs: stop_doubles`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flota_api::defaults;
use flota_api::model::{PendingReason, RestartCondition, Service, Task, UpdateOrder, UpdatePolicy};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::Timestamp;

use super::slot::Slot;

/// A step of an update.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a successor for the task of this slot and prepare it.
    Prepare(u64),
    /// Make a task that runs beside the task of this slot.
    Start(u64),
    /// Stop the task of this slot; its successor runs once it has ended.
    Replace(u64),
}

/// How far an update has come, and what follows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outlook {
    /// Slots whose new task has failed, as far as the service does not say so yet, with the reason.
    pub(super) failures: BTreeMap<u64, String>,
    pub(super) steps: Vec<Step>,
    /// When to look again if nothing changes before.
    pub(super) look_at: Option<Timestamp>,
    /// Whether nothing is left to replace or to watch.
    pub(super) is_done: bool,
}

impl Outlook {
    fn look_at(&mut self, at: Timestamp) {
        self.look_at = Some(self.look_at.map_or(at, |known| known.min(at)));
    }
}

/// Returns the policy by which the service's tasks are replaced now.
pub(super) fn policy(service: &Service) -> &UpdatePolicy {
    if service.update.is_rollback() { &service.spec.rollback } else { &service.spec.update }
}

/// Returns how far the update has come, given the slots of the service in the order of their numbers.
pub(super) fn outlook(service: &Service, slots: &BTreeMap<u64, &Slot>, now: Timestamp) -> Outlook {
    let policy = policy(service);
    let mut outlook = Outlook::default();
    let (mut in_flight, mut watched, mut last_served) = (0, false, None);
    let mut candidates = Vec::new();
    for (number, slot) in slots {
        let new = newest_of(service, slot);
        let is_known = service.update.failed_slots.contains(number);
        if let Some(new) = new.filter(|_| !is_known) {
            match judge(service, policy, new, now) {
                Judgement::Failed(why) => {
                    outlook.failures.insert(*number, why);
                    continue;
                }
                Judgement::Watched { until } => {
                    watched = true;
                    outlook.look_at(until);
                }
                Judgement::Preparing => watched = true,
                Judgement::Good => {}
            }
            last_served = last_served.max(new.served_at);
        }
        let is_outdated = slot.current().is_some_and(|task| task.spec_version != service.spec_version);
        match slot.successor().filter(|it| it.spec_version == service.spec_version) {
            Some(successor) if slot.current().is_some() => {
                in_flight += usize::from(!is_known);
                // The old task is stopped early only if that gives its successor room.
                let needs_room = successor.pending_reason.as_ref().is_some_and(PendingReason::needs_room);
                if successor.status.state == TaskState::Ready || needs_room {
                    outlook.steps.push(Step::Replace(*number));
                }
            }
            _ if is_known => {}
            _ if is_outdated => candidates.push((is_serving(slot), *number)),
            _ if slot.current().is_none() && slot.is_stopping() => in_flight += 1,
            _ => match new.filter(|it| it.is_live()).map(|it| settled_at(policy, it)) {
                Some(None) => in_flight += 1,
                Some(Some(at)) if at > now => {
                    in_flight += 1;
                    outlook.look_at(at);
                }
                Some(Some(_)) | None => {}
            },
        }
    }
    outlook.is_done = candidates.is_empty() && in_flight == 0 && !watched && outlook.failures.is_empty();
    // A group of slots follows the one before it after the delay.
    let due = last_served.map(|at| at + policy.delay).filter(|_| !policy.delay.is_zero());
    let may_begin = policy.delay.is_zero() || in_flight == 0 && due.is_none_or(|due| due <= now);
    if let Some(due) = due.filter(|due| *due > now && !candidates.is_empty()) {
        outlook.look_at(due);
    }
    if may_begin {
        // Slots that do not serve come first, because nothing is lost with them.
        candidates.sort_unstable();
        let begin = |(_, number)| match policy.order {
            UpdateOrder::StopFirst => Step::Prepare(number),
            UpdateOrder::StartFirst => Step::Start(number),
        };
        let room = policy.at_once().saturating_sub(in_flight);
        outlook.steps.extend(candidates.into_iter().take(room).map(begin));
    }
    outlook
}

/// Returns the newest task of the present spec that this update has made in the slot. Those that had ended when a user let
/// the update go on do not count.
fn newest_of<'a>(service: &Service, slot: &'a Slot) -> Option<&'a Arc<Task>> {
    let counts_from = |task: &Task| if task.is_live() { service.spec_set_at } else { service.update.started_at };
    let is_new = |task: &Task| task.spec_version == service.spec_version && task.meta.created_at >= counts_from(task);
    slot.tasks.iter().rev().find(|task| is_new(task))
}

/// Returns from when on the next slot may follow this task; `None` before it serves. The health check of a task has told
/// that it works. One without a check has a moment in which it may still show that it can't, as most programs that lack
/// something do.
fn settled_at(policy: &UpdatePolicy, task: &Task) -> Option<Timestamp> {
    let settles = if task.status.health.is_some() { Duration::ZERO } else { defaults::UPDATE_SETTLE };
    task.served_at.map(|at| at + settles.min(policy.monitor))
}

fn is_serving(slot: &Slot) -> bool {
    slot.current().is_some_and(|task| task.is_serving())
}

/// What is known of a new task.
enum Judgement {
    /// It has failed, for this reason.
    Failed(String),
    /// It is watched until then, or has until then to serve.
    Watched { until: Timestamp },
    /// Its image is being fetched, or it waits for its turn; its next change is an event.
    Preparing,
    /// It has served for long enough.
    Good,
}

fn judge(service: &Service, policy: &UpdatePolicy, task: &Task, now: Timestamp) -> Judgement {
    let monitored_until = task.served_at.map(|at| at + policy.monitor);
    // The end was reported when the task was last changed.
    let was_watched = monitored_until.is_none_or(|until| task.meta.updated_at <= until);
    if was_watched && let Some(why) = failure(service, task) {
        return Judgement::Failed(why);
    }
    if let Some(until) = monitored_until {
        return if until > now { Judgement::Watched { until } } else { Judgement::Good };
    }
    let waits = task.desired_state == DesiredState::Ready && task.status.state == TaskState::Ready;
    if waits || task.status.state == TaskState::Preparing {
        return Judgement::Preparing;
    }
    if task.status.state.is_terminal() {
        return Judgement::Good;
    }
    let begun = task.prepared_at.map_or(task.meta.created_at, |at| at + service.spec.stop_grace);
    let begun = begun.max(service.update.started_at);
    let deadline = policy.deadline(&service.spec.healthcheck);
    let until = begun + deadline;
    if until > now {
        return Judgement::Watched { until };
    }
    let why = match (&task.pending_reason, task.status.message.as_str()) {
        (Some(reason), _) => reason.to_string(),
        (None, "") => format!("it is {}", task.status.state),
        (None, message) => format!("it is {}: {message}", task.status.state),
    };
    Judgement::Failed(format!("it does not serve within {} s: {why}", deadline.as_secs()))
}

/// Returns why a new task has failed, if it has: an attempt of it has ended, or it is unhealthy.
fn failure(service: &Service, task: &Task) -> Option<String> {
    let status = &task.status;
    let ends_well = status.state == TaskState::Complete && service.spec.restart.condition != RestartCondition::Any;
    let has_ended = status.attempt > 1
        || matches!(status.state, TaskState::Failed | TaskState::Rejected)
        || status.state == TaskState::Complete && !ends_well;
    if !has_ended && !status.is_unhealthy() {
        return None;
    }
    let why = match (status.error.as_str(), status.exit_code) {
        ("", None) => String::new(),
        ("", Some(code)) => format!(" (exit code {code})"),
        (error, _) if status.state.is_terminal() => return Some(error.to_owned()),
        (error, _) => format!(" ({error})"),
    };
    Some(format!("it does not stay up{why}"))
}
