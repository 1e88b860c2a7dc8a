//! The next steps of an update: as many slots at once, in the order and at the pace that its policy says, and which of the
//! new tasks have failed. A rollback is an update to an earlier spec, by a policy of its own.
//!
//! Stop-first: the new task is prepared (it has a node, and its image is there) before the old one is stopped, so a spec
//! that can't run never stops a running task. The one exception is a new task that only lacks the resources that the old
//! one holds. Start-first: the old task is stopped once the new one serves (`stop_doubles` of `service_tasks/slot_tasks.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flota_api::defaults;
use flota_api::id::NodeId;
use flota_api::model::{NodeState, PendingReason, RestartCondition, Service, Task, UpdateOrder, UpdatePolicy};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::Timestamp;
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use super::slot::Slot;
use crate::home;
use crate::plan::PlanContext;
use crate::wanted::Eligibility;

/// A step of an update.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a successor for the task of this slot and prepare it.
    Prepare(u64),
    /// Make a task that runs beside the task of this slot.
    Start(u64),
    /// Run the prepared successor of the task of this slot beside it. The slot has one because its newer task had to leave
    /// its node before it served.
    StartPrepared(u64),
    /// Stop the task of this slot; its successor runs once it has ended.
    Replace(u64),
}

impl Step {
    /// Whether the update begins with a slot.
    pub(super) fn begins(&self) -> bool {
        matches!(self, Self::Prepare(_) | Self::Start(_))
    }
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
pub(super) fn outlook(service: &Service, slots: &BTreeMap<u64, &Slot>, view: &Tables, cx: &PlanContext) -> Outlook {
    let mut survey = Survey::new(service, cx.now);
    let eligible = Eligibility::of(service, view);
    for (number, slot) in slots.iter().filter(|(_, slot)| !waits_for_node(&eligible, slot, view)) {
        let new = newest_of(service, slot);
        let is_known = service.update.failed_slots.contains(number);
        if let Some(new) = new.filter(|_| !is_known) {
            match judge(service, slot, new, view, cx) {
                Judgement::Failed(why) => {
                    survey.outlook.failures.insert(*number, why);
                    continue;
                }
                Judgement::Watched { until } => {
                    survey.is_watching = true;
                    survey.outlook.look_at(until);
                }
                Judgement::Preparing => survey.is_watching = true,
                Judgement::Good => {}
            }
            survey.last_served = survey.last_served.max(new.served_at);
        }
        match (is_known, is_outdated(slot)) {
            (true, _) => {}
            (false, true) => survey.add_old(*number, slot),
            (false, false) => survey.add_new(slot, new),
        }
    }
    survey.end()
}

/// The state of a slot that an update has not touched yet. Slots in the first of these states are updated first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// Its task does not serve: nothing is lost with it.
    Idle,
    /// It has two tasks: the update before has not let the old one go. While it waits, no other slot may get a second one.
    Doubled,
    Serving,
}

/// What the slots of a service have shown so far.
struct Survey<'a> {
    policy: &'a UpdatePolicy,
    now: Timestamp,
    outlook: Outlook,
    /// Number of slots between their old and their new task.
    in_flight: usize,
    /// Slots that are to follow, each in its turn.
    waiting: Vec<(Turn, u64)>,
    /// When a new task has begun to serve last.
    last_served: Option<Timestamp>,
    /// Whether a new task may still fail.
    is_watching: bool,
}

impl<'a> Survey<'a> {
    fn new(service: &'a Service, now: Timestamp) -> Self {
        let (outlook, waiting) = (Outlook::default(), Vec::new());
        Self { policy: policy(service), now, outlook, in_flight: 0, waiting, last_served: None, is_watching: false }
    }

    /// Adds a slot whose current task has an earlier spec.
    fn add_old(&mut self, number: u64, slot: &Slot) {
        let Some(successor) = slot.successor().filter(|it| slot.is_present(it)) else {
            let serves = slot.current().is_some_and(|task| task.is_serving());
            let turn = match slot.predecessor() {
                _ if !serves => Turn::Idle,
                Some(_) => Turn::Doubled,
                None => Turn::Serving,
            };
            self.waiting.push((turn, number));
            return;
        };
        self.in_flight += 1;
        if self.policy.order == UpdateOrder::StartFirst && slot.current().is_some_and(|task| task.is_serving()) {
            self.outlook.steps.push(Step::StartPrepared(number));
            return;
        }
        // The old task is stopped early only if that gives its successor room, or if it has no node itself. It would
        // take the next one that there is, while the time runs in which the new one has to serve.
        let needs_room = successor.pending_reason.as_deref().is_some_and(PendingReason::needs_room);
        let does_nothing = slot.current().is_some_and(|task| task.node_id.is_none());
        if successor.status.state == TaskState::Ready || needs_room || does_nothing {
            self.outlook.steps.push(Step::Replace(number));
        }
    }

    /// Adds a slot whose current task has the present spec, or that has none.
    fn add_new(&mut self, slot: &Slot, new: Option<&Arc<Task>>) {
        // The old task has not ended, or serves on because the new one does not.
        if slot.current().is_none() && slot.is_stopping() || slot.predecessor().is_some() {
            self.in_flight += 1;
            return;
        }
        let Some(new) = new.filter(|task| task.is_live()) else { return };
        match settled_at(self.policy, new) {
            Some(at) if at <= self.now => {}
            settled => {
                self.in_flight += 1;
                settled.into_iter().for_each(|at| self.outlook.look_at(at));
            }
        }
    }

    /// Begins with as many of the waiting slots as the policy allows now.
    fn end(mut self) -> Outlook {
        self.outlook.is_done =
            self.waiting.is_empty() && self.in_flight == 0 && !self.is_watching && self.outlook.failures.is_empty();
        // A group of slots follows the one before it after the delay.
        let has_delay = !self.policy.delay.is_zero();
        let due = self.last_served.filter(|_| has_delay).map(|at| at + self.policy.delay).filter(|due| *due > self.now);
        if let Some(due) = due.filter(|_| !self.waiting.is_empty()) {
            self.outlook.look_at(due);
        }
        if has_delay && (self.in_flight > 0 || due.is_some()) {
            return self.outlook;
        }
        self.waiting.sort_unstable();
        let step = |(_, number)| match self.policy.order {
            UpdateOrder::StopFirst => Step::Prepare(number),
            UpdateOrder::StartFirst => Step::Start(number),
        };
        let in_flight = if faults::is_on(Fault::OverlappingUpdate) { 0 } else { self.in_flight };
        let room = self.policy.at_once().saturating_sub(in_flight);
        self.outlook.steps.extend(self.waiting.into_iter().take(room).map(step));
        self.outlook
    }
}

/// Whether the current task of the slot has another spec than the present one.
pub(super) fn is_outdated(slot: &Slot) -> bool {
    slot.current().is_some_and(|task| !slot.is_present(task))
}

/// Whether the slot belongs to a node that takes no tasks now, or that is lost and keeps it. Its task stays as it is
/// until the node does.
pub(super) fn waits_for_node(eligible: &Eligibility, slot: &Slot, view: &Tables) -> bool {
    let takes = |id: &NodeId| view.node(id).is_some_and(|node| eligible.takes(node));
    let is_lost = |task: &Task| view.node_of(task).is_some_and(|node| node.state == NodeState::Down);
    slot.pinned_to().is_some_and(|id| !takes(id))
        || slot.current().is_some_and(|task| is_lost(task) && home::waits_for_node(task, view))
}

/// Returns the newest task of the present spec that this update has made in the slot. Those that had ended when a user let
/// the update go on do not count, and neither does one that is prepared because the slot moves to another node.
fn newest_of<'a>(service: &Service, slot: &'a Slot) -> Option<&'a Arc<Task>> {
    // An older build, which did not note when it set the spec, did not note either since when tasks serve.
    let spec_set_at = service.spec_set_at?;
    let counts_from = |task: &Task| if task.is_live() { spec_set_at } else { service.update.started_at };
    let moves = slot.current().is_some_and(|task| slot.is_present(task));
    let is_new = |task: &Task| {
        slot.is_present(task)
            && task.meta.created_at >= counts_from(task)
            && !(moves && task.desired_state == DesiredState::Ready)
    };
    slot.tasks.iter().rev().find(|task| is_new(task))
}

/// Returns from when on the next slot may follow this task, and the task that it replaces may stop; `None` before it serves.
/// The health check of a task has told that it works. One without a check has a moment in which it may still show that it
/// can't, as most programs that lack something do.
pub(super) fn settled_at(policy: &UpdatePolicy, task: &Task) -> Option<Timestamp> {
    let settles = if task.status.health.is_some() { Duration::ZERO } else { defaults::UPDATE_SETTLE };
    let early = faults::is_on(Fault::BlindUpdate) && task.status.state == TaskState::Starting;
    let served_at = task.served_at.or(early.then_some(task.meta.updated_at));
    served_at.map(|at| at + settles.min(policy.monitor))
}

/// Returns from when on the task that serves until this one does may stop; `None` while this one does not serve. One that
/// was started again is watched anew, as it may come and go.
pub(super) fn proven_at(policy: &UpdatePolicy, task: &Task) -> Option<Timestamp> {
    let settled = settled_at(policy, task)?;
    match task.status.attempt {
        _ if !task.is_proven() && !faults::is_on(Fault::BlindUpdate) => None,
        0..=1 => Some(settled),
        _ => Some(settled.max(task.meta.updated_at + policy.monitor)),
    }
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

fn judge(service: &Service, slot: &Slot, task: &Task, view: &Tables, cx: &PlanContext) -> Judgement {
    // It was stopped for a task of a higher priority, which says nothing about its spec.
    if task.preempted_by.is_some() {
        return Judgement::Good;
    }
    let (policy, now) = (policy(service), cx.now);
    let monitored_until = task.served_at.map(|at| at + policy.monitor);
    // The end was reported when the task was last changed.
    let was_watched = monitored_until.is_none_or(|until| task.meta.updated_at <= until);
    if was_watched && let Some(why) = failure(service, task) {
        return Judgement::Failed(why);
    }
    if let Some(until) = monitored_until {
        return if until > now { Judgement::Watched { until } } else { Judgement::Good };
    }
    if task.desired_state == DesiredState::Ready && task.status.state == TaskState::Ready {
        return held_up(service, slot, view, cx);
    }
    let waits = task.node_id.is_none() && (task.claim().is_some() || slot.is_preempted_before(task));
    if waits || task.status.state == TaskState::Preparing {
        return Judgement::Preparing;
    }
    if task.status.state.is_terminal() {
        return Judgement::Good;
    }
    // It may have waited for long for the room of others. Its node has just got it.
    let is_new_there = matches!(task.status.state, TaskState::Assigned | TaskState::Accepted);
    let made = if is_new_there { task.meta.updated_at } else { task.meta.created_at };
    // It starts when those before it have ended. Until the last of them has said so, it may take all of its grace period.
    let (ended, stopping): (Vec<_>, Vec<_>) =
        slot.tasks.iter().filter(|it| it.id != task.id).partition(|it| it.status.state.is_terminal());
    let freed = ended.iter().map(|it| it.meta.updated_at).max().unwrap_or_default();
    let begun = match task.prepared_at {
        Some(at) if !stopping.is_empty() || freed < at => (at + service.spec.stop_grace).max(freed),
        Some(_) => freed,
        None => made.max(freed),
    };
    // While no manager led, nobody could tell it so.
    let begun = begun.max(service.update.started_at).max(cx.led_since);
    let deadline = policy.deadline(&service.spec.healthcheck, task.status.health.as_deref());
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

/// Judges a task that is ready and waits for its turn. It has failed if the one that it replaces does not stop. One on a lost
/// node has not been told to.
fn held_up(service: &Service, slot: &Slot, view: &Tables, cx: &PlanContext) -> Judgement {
    // Its node may have been away when it was told.
    let told_at = |task: &Arc<Task>| {
        let node = view.node_of(task).filter(|node| node.state != NodeState::Down)?;
        let grace = view.spec_of(task).map_or(service.spec.stop_grace, |spec| spec.stop_grace);
        Some((task.meta.updated_at.max(node.state_since), grace + defaults::PROGRESS_MARGIN))
    };
    let stopping = slot.stopping().filter(|_| slot.current().is_none());
    let since = service.update.started_at.max(cx.led_since);
    let ends = stopping.filter_map(told_at).map(|(told_at, grace)| (told_at.max(since) + grace, grace));
    match ends.max() {
        None => Judgement::Preparing,
        Some((until, _)) if until > cx.now => Judgement::Watched { until },
        Some((_, grace)) => {
            Judgement::Failed(format!("the task that it replaces has not stopped within {} s", grace.as_secs()))
        }
    }
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
