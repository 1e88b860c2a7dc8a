//! The tasks of one slot: stops those that it has too many of, and gives it the one that it lacks.

use std::sync::Arc;

use rand::Rng;

use flota_api::id::TaskId;
use flota_api::model::{Service, Task, UpdateOrder};
use flota_api::state::DesiredState;
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use super::super::after_end::{self, AfterEnd, after_end, delayed};
use super::super::slot::Slot;
use super::super::{credentials, moves, task_factory, update};
use crate::home;
use crate::plan::{Plan, PlanContext};

pub(super) fn plan_slot(
    service: &Service,
    number: u64,
    slot: &Slot,
    view: &Tables,
    plan: &mut Plan,
    cx: &mut PlanContext,
) {
    if let Some(task) = moves::given_up(slot) {
        plan.put(Task { relocates: false, ..task.as_ref().clone() });
        return;
    }
    stop_doubles(service, number, slot, plan, cx);
    fill(service, number, slot, view, plan, cx);
}

/// Stops every task of a slot that is neither its current task nor its successor, nor serves until its current one does. If
/// that has failed, it is stopped instead, and the one that serves stays.
fn stop_doubles(service: &Service, number: u64, slot: &Slot, plan: &mut Plan, cx: &PlanContext) {
    if faults::is_on(Fault::DoublePlacement) {
        return;
    }
    let settled = slot.current().and_then(|task| update::proven_at(update::policy(service), task));
    let is_settled = settled.is_some_and(|at| at <= cx.now) || faults::is_on(Fault::EarlyStop);
    let predecessor = slot.predecessor().filter(|_| !is_settled);
    if let Some(at) = settled.filter(|_| predecessor.is_some()) {
        plan.retry_at(at);
    }
    let has_failed = predecessor.is_some() && service.update.failed_slots.contains(&number);
    let current = slot.current().filter(|_| !has_failed);
    let kept = [current, slot.successor(), predecessor].map(|task| task.map(|task| &task.id));
    for task in slot.live().filter(|task| !kept.contains(&Some(&task.id))) {
        plan.set_desired(task, DesiredState::Shutdown);
    }
}

/// Gives the slot a task that may run if it should have one.
fn fill(service: &Service, number: u64, slot: &Slot, view: &Tables, plan: &mut Plan, cx: &mut PlanContext) {
    let lost = |task: &Arc<Task>| task.node_id.is_some() && view.is_lost(task) && !home::waits_for_node(task, view);
    if after_end::is_done(service, slot) {
        // A task that was prepared to take its place has nothing left to do.
        slot.live().for_each(|task| plan.set_desired(task, DesiredState::Shutdown));
        return;
    }
    if let Some(waiting) = credentials::waits_in_vain(slot, view) {
        plan.set_desired(waiting, DesiredState::Shutdown);
        return;
    }
    // Its task stays where it is after all, as its node is no longer drained.
    let stays = |task: &Arc<Task>| !moves::is_leaving(task, view) && !lost(task);
    if let Some((new, old)) = slot.move_under_way() {
        // With the next look at the slot, the old task is its current one again.
        if !new.is_serving() && stays(old) || !stays(new) {
            plan.set_desired(new, DesiredState::Shutdown);
            return;
        }
    }
    if let Some(successor) = slot.successor() {
        // A slot whose new task has failed keeps its old one until a user decides.
        let is_given_up = service.update.failed_slots.contains(&number) && update::is_outdated(slot);
        let is_needless = slot.current().is_some_and(|task| task.spec_version == service.spec_version && stays(task));
        let is_leaving = moves::is_leaving(successor, view);
        if lost(successor) || is_leaving || is_needless || is_given_up || successor.spec_version != service.spec_version
        {
            plan.set_desired(successor, DesiredState::Shutdown);
        } else if slot.current().is_none() && (stopping_is_lost(slot, view) || faults::is_on(Fault::EarlySuccessor)) {
            // The old task has ended, so its place is free.
            plan.set_desired(successor, DesiredState::Running);
        }
        if slot.current().is_none_or(|task| !lost(task)) {
            return;
        }
    }
    let not_before = match slot.current() {
        Some(task) if !lost(task) => return,
        Some(task) => {
            // The task was lost and did not fail: its successor starts at once elsewhere, as its node can't report its end.
            plan.set_desired(task, DesiredState::Shutdown);
            let starts_first = update::policy(service).order == UpdateOrder::StartFirst;
            // Another task of the slot may still be stopping elsewhere.
            if slot.successor().is_some() || !starts_first && !stopping_is_lost(slot, view) {
                return;
            }
            None
        }
        None => match slot.newest().map(|last| (last, after_end(service, last))) {
            // The slot gets a new task only once the old one has ended.
            _ if !stopping_is_lost(slot, view) => return,
            Some((last, _)) if credentials::have_changed_for(last, view) => None,
            Some((_, AfterEnd::Stay)) => return,
            Some((last, AfterEnd::ReplaceLater)) => Some(delayed(service, last)),
            Some((_, AfterEnd::Replace)) | None => None,
        },
    };
    let task = task_factory::make(service, number, slot.newest(), not_before, view, cx);
    put_new(task, plan, cx);
}

/// Creates this task; with the fault `DoublePlacement` on, sometimes also a second one in its slot.
pub(super) fn put_new(task: Task, plan: &mut Plan, cx: &mut PlanContext) {
    if faults::is_on(Fault::DoublePlacement) && cx.rng.random_ratio(1, 5) {
        plan.put(Task { id: TaskId::random(&mut cx.rng), ..task.clone() });
    }
    plan.put(task);
}

/// Whether every task that is stopping is on a node that can't report its end. Such tasks are not waited for, unless the
/// task belongs to that node: the container may still run there.
pub(super) fn stopping_is_lost(slot: &Slot, view: &Tables) -> bool {
    slot.stopping().all(|task| view.is_lost(task) && !home::waits_for_node(task, view))
}
