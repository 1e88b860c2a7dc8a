//! Updates, step by step: a service of two replicas whose tasks `t1` and `t2` are of the old spec, and the new task
//! `n1` of slot 1.

use std::collections::BTreeMap;

use super::*;
use flota_api::model::{Filter, Health, HealthState, PendingReason};

/// The running task of the old spec in this slot.
fn old(slot: u64) -> Task {
    task(&format!("t{slot}"), slot, "a", TaskState::Running)
}

fn told_to_stop(task: Task) -> Task {
    Task { desired_state: DesiredState::Shutdown, ..task }
}

fn stopped(task: Task) -> Task {
    in_state(TaskState::Shutdown, told_to_stop(task))
}

fn in_state(state: TaskState, task: Task) -> Task {
    Task { status: TaskStatus { state, ..task.status }, ..task }
}

/// The new task of slot 1, which was told to run.
fn new(state: TaskState) -> Task {
    Task { spec_version: 2, meta: Meta { created: 100, ..Meta::default() }, ..task("n1", 1, "a", state) }
}

/// The new task of slot 1, which is prepared beside the old one.
fn successor(state: TaskState) -> Task {
    Task { desired_state: DesiredState::Ready, ..new(state) }
}

fn failing(error: &str, task: Task) -> Task {
    Task { status: TaskStatus { error: error.into(), ..task.status }, ..task }
}

/// A successor without a node.
fn waiting(reason: PendingReason) -> Task {
    Task { pending_reason: Some(reason), node_id: None, ..successor(TaskState::Pending) }
}

fn planned_with(tasks: impl IntoIterator<Item = Task>) -> Vec<String> {
    let service = Service { spec_version: 2, ..service(2) }.into_object();
    planned(&view([service].into_iter().chain(tasks.into_iter().map(StoreObject::into_object))))
}

#[test]
fn an_update_begins_with_a_successor_in_the_first_slot() {
    assert_eq!(planned_with([old(1), old(2)]), ["+1 ready after 0 ms"]);
}

#[test]
fn the_old_task_runs_while_its_successor_is_prepared() {
    assert_eq!(planned_with([old(1), successor(TaskState::Preparing), old(2)]), [""; 0]);
}

#[test]
fn the_old_task_stops_once_its_successor_is_ready() {
    assert_eq!(planned_with([old(1), successor(TaskState::Ready), old(2)]), ["t1:shutdown"]);
}

#[test]
fn a_rejected_successor_pauses_the_update_and_the_old_task_runs_on() {
    let rejected = failing("no such image", successor(TaskState::Rejected));
    assert_eq!(planned_with([old(1), rejected, old(2)]), ["! web.1: no such image"]);
}

#[test]
fn the_old_task_stops_for_a_successor_that_needs_its_room() {
    let reason = PendingReason::NeedsRoom(BTreeMap::from([(Filter::Memory, 2)]));
    assert_eq!(planned_with([old(1), waiting(reason), old(2)]), ["t1:shutdown"]);
}

#[test]
fn a_successor_that_fits_nowhere_leaves_the_old_task_alone() {
    for filter in [Filter::Constraint, Filter::NotReady, Filter::Memory] {
        let reason = PendingReason::NoNodeFits(BTreeMap::from([(filter, 2)]));
        assert_eq!(planned_with([old(1), waiting(reason), old(2)]), [""; 0], "{filter}");
    }
    assert_eq!(planned_with([old(1), waiting(PendingReason::NoNode), old(2)]), [""; 0]);
}

#[test]
fn a_successor_of_an_earlier_update_is_stopped() {
    let earlier = Task { spec_version: 1, ..successor(TaskState::Ready) };
    assert_eq!(planned_with([old(1), earlier, old(2)]), ["n1:shutdown"]);
}

#[test]
fn the_end_of_the_old_task_is_waited_for() {
    assert_eq!(planned_with([told_to_stop(old(1)), successor(TaskState::Ready), old(2)]), [""; 0]);
}

#[test]
fn the_end_of_a_task_on_a_node_that_is_gone_is_not_waited_for() {
    let lost = told_to_stop(task("t0", 1, "gone", TaskState::Running));
    assert_eq!(planned_with([lost, stopped(old(1)), successor(TaskState::Ready), old(2)]), ["n1:running"]);
}

#[test]
fn the_successor_runs_once_the_old_task_has_ended() {
    assert_eq!(planned_with([stopped(old(1)), successor(TaskState::Ready), old(2)]), ["n1:running"]);
}

#[test]
fn the_next_slot_waits_until_the_new_task_runs() {
    assert_eq!(planned_with([stopped(old(1)), new(TaskState::Preparing), old(2)]), [""; 0]);
}

#[test]
fn the_next_slot_follows_a_task_that_has_run_for_a_while() {
    assert_eq!(planned_with([stopped(old(1)), new(TaskState::Running), old(2)]), ["+2 ready after 0 ms"]);
}

#[test]
fn the_next_slot_waits_for_a_moment_after_the_new_task_began_to_run() {
    let just_now = new(TaskState::Running);
    let just_now = Task { meta: Meta { updated_at: NOW, ..just_now.meta }, ..just_now };
    assert_eq!(planned_with([stopped(old(1)), just_now, old(2)]), [""; 0]);
}

#[test]
fn a_new_task_that_does_not_stay_up_pauses_the_update() {
    let again = new(TaskState::Running);
    let again = Task { status: TaskStatus { attempt: 2, exit_code: Some(3), ..again.status }, ..again };
    let planned = planned_with([stopped(old(1)), again, old(2)]);
    assert_eq!(planned, ["! web.1: it does not stay up (exit code 3)"]);
}

#[test]
fn a_new_task_that_is_unhealthy_pauses_the_update_before_and_after_its_restart_even_if_it_obeys() {
    let health = Health { state: HealthState::Unhealthy, ..Health::default() };
    let runs = failing("unhealthy: no", new(TaskState::Running));
    let runs = Task { status: TaskStatus { health: Some(health), ..runs.status }, ..runs };
    let again = failing("unhealthy: no", new(TaskState::Ready));
    let again = Task { status: TaskStatus { attempt: 2, exit_code: None, ..again.status }, ..again };
    for task in [runs, again] {
        let planned = planned_with([stopped(old(1)), task, old(2)]);
        assert_eq!(planned, ["! web.1: it does not stay up (unhealthy: no)"]);
    }
}

#[test]
fn a_new_task_that_is_rejected_pauses_the_update() {
    let rejected = failing("no image", new(TaskState::Rejected));
    assert_eq!(planned_with([stopped(old(1)), rejected, old(2)]), ["! web.1: no image"]);
}
