//! Updates, step by step: a service of two replicas whose tasks `t1` and `t2` are of the old spec, and the new task
//! `n1` of slot 1.

use std::collections::BTreeMap;

use super::*;
use flota_api::model::{Filter, Health, HealthState, PendingReason, UpdateOrder, UpdatePhase, UpdatePolicy};

/// The running task of the old spec in this slot.
pub(super) fn old(slot: u64) -> Task {
    task(&format!("t{slot}"), slot, "a", TaskState::Running)
}

pub(super) fn told_to_stop(task: Task) -> Task {
    Task { desired_state: DesiredState::Shutdown, meta: Meta { updated_at: NOW, ..task.meta }, ..task }
}

pub(super) fn stopped(task: Task) -> Task {
    in_state(TaskState::Shutdown, Task { desired_state: DesiredState::Shutdown, ..task })
}

pub(super) fn in_state(state: TaskState, task: Task) -> Task {
    Task { status: TaskStatus { state, ..task.status }, ..task }
}

/// The new task of slot 1, which was told to run.
pub(super) fn new(state: TaskState) -> Task {
    let meta = Meta { created: 100, created_at: NOW, ..Meta::default() };
    Task { spec_version: 2, meta, ..task("n1", 1, "a", state) }
}

/// The new task of slot 1, which is prepared beside the old one.
pub(super) fn successor(state: TaskState) -> Task {
    Task { desired_state: DesiredState::Ready, ..new(state) }
}

pub(super) fn failing(error: &str, task: Task) -> Task {
    Task { status: TaskStatus { error: error.into(), ..task.status }, ..task }
}

/// A successor without a node.
pub(super) fn waiting(reason: PendingReason) -> Task {
    Task { pending_reason: Some(Box::new(reason)), node_id: None, ..successor(TaskState::Pending) }
}

pub(super) fn planned_with(tasks: impl IntoIterator<Item = Task>) -> Vec<String> {
    planned_by(UpdatePolicy::default(), tasks)
}

/// The service of two replicas, which is updated by this policy.
pub(super) fn updated(policy: UpdatePolicy) -> Service {
    let service = service(2);
    let spec = Arc::new(ServiceSpec { update: policy, ..service.spec.as_ref().clone() });
    Service { spec, spec_version: 2, spec_set_at: Some(Timestamp(1)), update: UpdateStatus::begun(1), ..service }
}

pub(super) fn planned_by(policy: UpdatePolicy, tasks: impl IntoIterator<Item = Task>) -> Vec<String> {
    planned_of(updated(policy), tasks)
}

pub(super) fn planned_of(service: Service, tasks: impl IntoIterator<Item = Task>) -> Vec<String> {
    let tasks = tasks.into_iter().map(StoreObject::into_object);
    planned(&view([service.into_object()].into_iter().chain(tasks)))
}

/// When the update looks at the service again although nothing has changed, in milliseconds from now.
fn looks_at(policy: UpdatePolicy, tasks: impl IntoIterator<Item = Task>) -> Option<u64> {
    let tasks = tasks.into_iter().map(StoreObject::into_object);
    let view = view([updated(policy).into_object()].into_iter().chain(tasks));
    let plan = ServiceTasks::default().plan(&Key::of("s"), &view, &mut PlanContext::at(NOW));
    plan.retry_at.map(|at| at.0 - NOW.0)
}

/// The running new task of a slot, which has served for so long.
pub(super) fn served(slot: u64, ago: Duration) -> Task {
    let task = task(&format!("n{slot}"), slot, "a", TaskState::Running);
    let meta = Meta { created: 100 + slot, created_at: Timestamp(1), ..Meta::default() };
    Task { spec_version: 2, served_at: Some(Timestamp(NOW.0 - ago.as_millis() as u64)), meta, ..task }
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
    assert_eq!(planned_with([old(1), rejected, old(2)]), ["! paused (spec 2): web.1: no such image"]);
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
fn a_lost_task_is_replaced_once_the_one_before_it_has_ended() {
    let lost = Task { node_id: Some("gone".into()), ..new(TaskState::Running) };
    let planned = |before: Task| planned_with([before, lost.clone(), old(2)]);
    assert_eq!(planned(told_to_stop(old(1))), ["n1:shutdown"], "else the slot would run twice");
    assert_eq!(planned(stopped(old(1))), ["+1 after 0 ms", "n1:shutdown"]);
}

#[test]
fn the_successor_runs_once_the_old_task_has_ended() {
    assert_eq!(planned_with([stopped(old(1)), successor(TaskState::Ready), old(2)]), ["n1:running"]);
}

#[test]
fn the_next_slot_waits_until_the_new_task_runs() {
    assert_eq!(planned_with([stopped(old(1)), new(TaskState::Preparing), old(2)]), [""; 0]);
}

pub(super) const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_next_slot_follows_a_task_that_has_run_for_a_while() {
    assert_eq!(planned_with([stopped(old(1)), served(1, LONG), old(2)]), ["+2 ready after 0 ms"]);
}

#[test]
fn the_next_slot_waits_for_a_moment_after_a_task_without_a_check_began_to_run() {
    let tasks = |task| [stopped(old(1)), task, old(2)];
    let short = Duration::from_millis(40);
    assert_eq!(planned_with(tasks(served(1, short))), [""; 0]);
    assert_eq!(looks_at(UpdatePolicy::default(), tasks(served(1, short))), Some(60));
    let health = Health { state: HealthState::Healthy, ..Health::default() };
    let mut healthy = served(1, short);
    healthy.status.health = Some(Box::new(health));
    assert_eq!(planned_with(tasks(healthy)), ["+2 ready after 0 ms"], "its check has told that it works");
    let unwatched = UpdatePolicy { monitor: Duration::ZERO, ..UpdatePolicy::default() };
    assert_eq!(planned_by(unwatched, tasks(served(1, Duration::ZERO))), ["+2 ready after 0 ms"]);
}

#[test]
fn an_update_is_done_once_the_last_task_was_watched_for_long_enough() {
    let tasks = |ago| [stopped(old(1)), served(1, LONG), stopped(old(2)), served(2, ago)];
    let ago = Duration::from_secs(4);
    assert_eq!(planned_with(tasks(ago)), [""; 0]);
    assert_eq!(looks_at(UpdatePolicy::default(), tasks(ago)), Some(1_000));
    assert_eq!(planned_with(tasks(Duration::from_secs(5))), ["! completed (spec 2): "]);
}

#[test]
fn a_task_that_has_done_its_work_holds_nothing_up() {
    let mut service = updated(UpdatePolicy::default());
    let restart = RestartPolicy { condition: RestartCondition::OnFailure, ..RestartPolicy::default() };
    service.spec = Arc::new(ServiceSpec { restart, ..service.spec.as_ref().clone() });
    let complete = |served_at| Task { served_at, ..new(TaskState::Complete) };
    for served_at in [None, Some(NOW)] {
        let tasks = [stopped(old(1)), complete(served_at), old(2)];
        assert_eq!(planned_of(service.clone(), tasks), ["+2 ready after 0 ms"], "{served_at:?}");
    }
    let tasks = [stopped(old(1)), complete(None), old(2)];
    let failed = ["! paused (spec 2): web.1: it does not stay up"];
    assert_eq!(planned_with(tasks), failed, "it should run for ever");
}

#[test]
fn so_many_slots_are_replaced_at_once_as_the_policy_says() {
    let parallel = |count| UpdatePolicy { parallelism: NonZeroU64::new(count), ..UpdatePolicy::default() };
    assert_eq!(planned_by(parallel(2), [old(1), old(2)]), ["+1 ready after 0 ms", "+2 ready after 0 ms"]);
    assert_eq!(planned_by(parallel(0), [old(1), old(2)]), ["+1 ready after 0 ms", "+2 ready after 0 ms"]);
    assert_eq!(planned_by(parallel(2), [old(1), successor(TaskState::Preparing), old(2)]), ["+2 ready after 0 ms"]);
    let both = planned_by(parallel(2), [old(1), successor(TaskState::Ready), old(2)]);
    assert_eq!(both, ["+2 ready after 0 ms", "t1:shutdown"]);
}

#[test]
fn slots_that_do_not_serve_are_replaced_first() {
    let starting = in_state(TaskState::Starting, old(2));
    assert_eq!(planned_with([old(1), starting]), ["+2 ready after 0 ms"]);
}

#[test]
fn a_group_of_slots_waits_for_the_delay_after_the_one_before() {
    let policy = UpdatePolicy { delay: Duration::from_secs(10), ..UpdatePolicy::default() };
    let tasks = |ago| [stopped(old(1)), served(1, ago), old(2)];
    let ago = Duration::from_secs(9);
    assert_eq!(planned_by(policy, tasks(ago)), [""; 0]);
    assert_eq!(looks_at(policy, tasks(ago)), Some(1_000));
    assert_eq!(planned_by(policy, tasks(Duration::from_secs(10))), ["+2 ready after 0 ms"]);
}

#[test]
fn the_new_task_serves_before_the_old_one_is_stopped_if_it_starts_first() {
    let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
    assert_eq!(planned_by(policy, [old(1), old(2)]), ["+1 after 0 ms"]);
    assert_eq!(planned_by(policy, [old(1), new(TaskState::Starting), old(2)]), [""; 0]);
    let health = Health { state: HealthState::Starting, ..Health::default() };
    let mut unproven = new(TaskState::Running);
    unproven.status.health = Some(Box::new(health));
    assert_eq!(planned_by(policy, [old(1), unproven, old(2)]), [""; 0], "its check has not passed yet");
    assert_eq!(planned_by(policy, [old(1), served(1, LONG), old(2)]), ["t1:shutdown"]);
    assert_eq!(planned_by(policy, [stopped(old(1)), served(1, LONG), old(2)]), ["+2 after 0 ms"]);
    let failed = failing("it fell", new(TaskState::Failed));
    assert_eq!(planned_by(policy, [old(1), failed.clone(), old(2)]), ["! paused (spec 2): web.1: it fell"]);
    let paused = updated(policy).update.paused("web.1: it fell".into());
    let paused = Service { update: UpdateStatus { failed_slots: [1].into(), ..paused }, ..updated(policy) };
    assert_eq!(planned_of(paused, [old(1), failed, old(2)]), [""; 0], "the old task serves on");
    let mut unhealthy = new(TaskState::Running);
    unhealthy.status.attempt = 2;
    let mut known = updated(policy);
    known.update.failed_slots = [1].into();
    assert_eq!(planned_of(known, [old(1), unhealthy, old(2)]), ["n1:shutdown"], "the slot has one task again");
    let idle = in_state(TaskState::Starting, old(1));
    let planned = planned_by(policy, [idle, new(TaskState::Starting), old(2)]);
    assert_eq!(planned, ["t1:shutdown"], "nothing is lost with it");
}

#[test]
fn a_task_that_starts_to_serve_concerns_its_slot_while_the_update_is_paused_too() {
    let service = Service { update: updated(UpdatePolicy::default()).update.paused("x".into()), ..service(2) };
    let view = view([service.into_object()]);
    let [old, new] = [None, Some(NOW)].map(|served_at| Task { served_at, ..new(TaskState::Running) });
    let key = Key::slot_of(&new);
    let event = Event::Updated { old: old.into_object(), new: new.into_object() };
    assert_eq!(ServiceTasks::default().dirtied_by(&event, &view), [key]);
}

#[test]
fn a_new_task_that_does_not_stay_up_pauses_the_update() {
    let again = new(TaskState::Running);
    let again = Task { status: TaskStatus { attempt: 2, exit_code: Some(3), ..again.status }, ..again };
    let planned = planned_with([stopped(old(1)), again, old(2)]);
    assert_eq!(planned, ["! paused (spec 2): web.1: it does not stay up (exit code 3)"]);
}

#[test]
fn a_failure_counts_while_the_task_is_watched_and_not_later() {
    for (after, expected) in
        [(5_000, Some("! paused (spec 2): web.1: it does not stay up (exit code 3)")), (5_001, None)]
    {
        let served = served(1, LONG);
        let updated_at = Timestamp(served.served_at.expect("it has served").0 + after);
        let status = TaskStatus { attempt: 2, exit_code: Some(3), ..served.status };
        let again = Task { status, meta: Meta { updated_at, ..served.meta }, ..served };
        let planned = planned_with([stopped(old(1)), again, old(2)]);
        assert_eq!(planned, [expected.unwrap_or("+2 ready after 0 ms")], "{after}");
    }
}

#[test]
fn a_new_task_that_is_unhealthy_pauses_the_update_before_and_after_its_restart_even_if_it_obeys() {
    let health = Health { state: HealthState::Unhealthy, ..Health::default() };
    let runs = failing("unhealthy: no", new(TaskState::Running));
    let runs = Task { status: TaskStatus { health: Some(Box::new(health)), ..runs.status }, ..runs };
    let again = failing("unhealthy: no", new(TaskState::Ready));
    let again = Task { status: TaskStatus { attempt: 2, exit_code: None, ..again.status }, ..again };
    for task in [runs, again] {
        let planned = planned_with([stopped(old(1)), task, old(2)]);
        assert_eq!(planned, ["! paused (spec 2): web.1: it does not stay up (unhealthy: no)"]);
    }
}

#[test]
fn a_new_task_that_is_rejected_pauses_the_update() {
    let rejected = failing("no image", new(TaskState::Rejected));
    assert_eq!(planned_with([stopped(old(1)), rejected, old(2)]), ["! paused (spec 2): web.1: no image"]);
}

#[test]
fn a_task_that_does_not_serve_in_time_has_failed() {
    let policy = UpdatePolicy { progress_deadline: Some(Duration::from_secs(20)), ..UpdatePolicy::default() };
    let prepared = |ago: u64| Task { prepared_at: Some(Timestamp(NOW.0 - ago)), ..new(TaskState::Starting) };
    let tasks = |task| [stopped(old(1)), task, old(2)];
    // The old task may take all of its grace period before the new one starts.
    assert_eq!(planned_by(policy, tasks(prepared(29_000))), [""; 0]);
    assert_eq!(looks_at(policy, tasks(prepared(29_000))), Some(1_000));
    let late = "! paused (spec 2): web.1: it does not serve within 20 s: it is starting";
    assert_eq!(planned_by(policy, tasks(prepared(30_000))), [late]);
    // Here, it has ended after 2 s.
    let ended_at = |ago: u64| Meta { updated_at: Timestamp(NOW.0 - ago), ..stopped(old(1)).meta };
    let early = |ago| [Task { meta: ended_at(ago - 2_000), ..stopped(old(1)) }, prepared(ago), old(2)];
    assert_eq!(looks_at(policy, early(21_000)), Some(1_000));
    assert_eq!(planned_by(policy, early(22_000)), [late]);
    let created = Meta { created_at: Timestamp(NOW.0 - 100_000), created: 100, ..Meta::default() };
    let fetching = Task { meta: created.clone(), ..successor(TaskState::Preparing) };
    assert_eq!(planned_by(policy, [old(1), fetching, old(2)]), [""; 0], "an image may take long");
    let reason = PendingReason::NoNodeFits(BTreeMap::from([(Filter::Constraint, 2)]));
    let nowhere = Task { meta: created, ..waiting(reason) };
    let why = "! paused (spec 2): web.1: it does not serve within 20 s: no node fits: 2 of 2 excluded by a constraint";
    assert_eq!(planned_by(policy, [old(1), nowhere, old(2)]), [why]);
}

#[test]
fn what_follows_a_failure_is_what_the_policy_says() {
    let policy = |failure_action, ratio: &str| UpdatePolicy {
        failure_action,
        max_failure_ratio: ratio.parse().expect("a ratio"),
        ..UpdatePolicy::default()
    };
    let tasks = || [old(1), failing("no image", successor(TaskState::Rejected)), old(2)];
    for (action, ratio, expected) in [
        (FailureAction::Pause, "0", "! paused (spec 2): web.1: no image"),
        (FailureAction::Pause, "0.5", "! updating (spec 2): web.1: no image"),
        (FailureAction::Continue, "0", "! updating (spec 2): web.1: no image"),
        // The spec before is not kept.
        (FailureAction::Rollback, "0", "! paused (spec 2): web.1: no image"),
    ] {
        assert_eq!(planned_by(policy(action, ratio), tasks()), [expected], "{action} {ratio}");
    }
    let mut tolerant = updated(policy(FailureAction::Continue, "0"));
    tolerant.update.failed_slots = [1].into();
    assert_eq!(planned_of(tolerant.clone(), tasks()), ["+2 ready after 0 ms"], "a failure counts once");
    let rest = [old(1), failing("no image", successor(TaskState::Rejected)), stopped(old(2)), served(2, LONG)];
    assert_eq!(planned_of(tolerant, rest), ["! completed (spec 2): "]);
}

#[test]
fn an_update_of_an_older_build_goes_on_and_its_tasks_are_not_judged() {
    // The tasks have run for weeks, and nothing says since when they serve.
    let service = |update| Service { spec_set_at: None, update, ..updated(UpdatePolicy::default()) };
    let mut restarted = served(2, LONG);
    restarted.status.attempt = 7;
    let idle = planned_of(service(UpdateStatus::default()), [served(1, LONG), restarted.clone()]);
    assert_eq!(idle, [""; 0], "it had ended");
    let begun = planned_of(service(UpdateStatus::default()), [old(1), restarted.clone()]);
    assert_eq!(begun, ["! updating (spec 2): "]);
    let active = service(UpdateStatus { phase: UpdatePhase::Updating, ..UpdateStatus::default() });
    assert_eq!(planned_of(active.clone(), [old(1), restarted.clone()]), ["+1 ready after 0 ms"]);
    assert_eq!(planned_of(active, [served(1, LONG), restarted]), ["! completed (spec 2): "]);
}

#[test]
fn a_drain_during_an_update_stops_one_task_at_a_time_and_its_successors_are_not_judged() {
    let mut service = updated(UpdatePolicy { progress_deadline: Some(LONG), ..UpdatePolicy::default() });
    service.spec =
        Arc::new(ServiceSpec { mode: ServiceMode::Replicated { replicas: 4 }, ..service.spec.as_ref().clone() });
    let on = |node: &str, task: Task| Task { node_id: Some(node.into()), ..task };
    let ready = |slot: u64| {
        let meta = Meta { created: 300 + slot, created_at: Timestamp(1), ..Meta::default() };
        let task = task(&format!("m{slot}"), slot, "b", TaskState::Ready);
        Task { spec_version: 2, desired_state: DesiredState::Ready, prepared_at: Some(Timestamp(1)), meta, ..task }
    };
    let starting = Task { meta: Meta { created: 9, created_at: NOW, ..Meta::default() }, ..new(TaskState::Starting) };
    let starting = Task { id: "n4".into(), slot: 4, ..on("b", starting) };
    let mut drained = node("a", NodeState::Ready);
    drained.spec.availability = Availability::Drain;
    let planned_with = |fourth: &Task| {
        let mut objects = vec![service.clone().into_object(), drained.clone().into_object()];
        for slot in 1..=3 {
            objects.extend([served(slot, LONG).into_object(), ready(slot).into_object()]);
        }
        objects.push(fourth.clone().into_object());
        planned(&view(objects))
    };
    assert_eq!(planned_with(&starting), [""; 0], "one slot lacks a task already");
    let serves = Task { id: "n4".into(), slot: 4, ..on("b", served(4, LONG)) };
    assert_eq!(planned_with(&serves), ["! completed (spec 2): "], "the update has no part in the moves");
}

#[test]
fn a_successor_that_has_missed_its_deadline_is_given_up_and_stops_no_task_later() {
    let mut tolerant = updated(UpdatePolicy { failure_action: FailureAction::Continue, ..UpdatePolicy::default() });
    tolerant.update.failed_slots = [1].into();
    assert_eq!(planned_of(tolerant, [old(1), successor(TaskState::Ready), old(2)]), ["n1:shutdown"]);
}

#[test]
fn time_in_which_no_manager_led_does_not_count_against_a_new_task() {
    let policy = UpdatePolicy { progress_deadline: Some(Duration::from_secs(20)), ..UpdatePolicy::default() };
    let late = Task { prepared_at: Some(Timestamp(NOW.0 - 90_000)), ..new(TaskState::Starting) };
    let tasks = [stopped(old(1)), late, old(2)].map(StoreObject::into_object);
    let view = view([updated(policy).into_object()].into_iter().chain(tasks));
    let plan = |led_since| {
        let mut cx = PlanContext { led_since, ..PlanContext::at(NOW) };
        ServiceTasks::default().plan(&Key::of("s"), &view, &mut cx)
    };
    let plan_now = plan(Timestamp(NOW.0 - 5_000));
    assert_eq!((plan_now.changes.len(), plan_now.retry_at), (0, Some(NOW + Duration::from_secs(15))));
    assert_eq!(plan(Timestamp(NOW.0 - 20_000)).changes.len(), 1, "it has had its time");
}

#[test]
fn the_order_may_change_while_both_tasks_of_a_slot_run() {
    let started = new(TaskState::Starting);
    assert_eq!(planned_with([old(1), started, old(2)]), [""; 0], "what serves goes on until the new one does");
}

#[test]
fn the_old_task_of_a_start_first_update_stops_once_the_new_one_has_settled() {
    let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
    let just_now = || [old(1), served(1, Duration::from_millis(40)), old(2)];
    assert_eq!(planned_by(policy, just_now()), [""; 0]);
    assert_eq!(looks_at(policy, just_now()), Some(60));
}

#[test]
fn an_update_that_starts_first_keeps_the_task_that_is_proven_and_a_slot_has_two_tasks_at_most() {
    let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
    let third = Service { spec_version: 3, spec_set_at: Some(NOW), ..updated(policy) };
    let unsettled = served(1, Duration::from_millis(40));
    let planned = |second: Task| planned_of(third.clone(), [old(1), second, in_state(TaskState::Starting, old(2))]);
    assert_eq!(planned(unsettled.clone()), ["+2 after 0 ms", "t2:shutdown"], "a slot without a serving task is first");
    let both = UpdatePolicy { parallelism: None, ..policy };
    let third = Service { spec_version: 3, spec_set_at: Some(NOW), ..updated(both) };
    let planned = planned_of(third, [old(1), unsettled, old(2)]);
    assert_eq!(planned, ["+1 after 0 ms", "+2 after 0 ms", "n1:shutdown"]);
}

#[test]
fn the_task_that_serves_stays_while_the_one_that_was_to_take_its_place_comes_and_goes() {
    let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
    // An update failed in the first slot, and is being rolled back to the spec before it. That has not begun here.
    let back = Service { spec_version: 3, spec_set_at: Some(NOW), ..updated(policy) };
    let come_back = |state: TaskState, ago: u64| {
        let task = served(1, LONG);
        let status = TaskStatus { state, attempt: 2, ..task.status.clone() };
        let meta = Meta { updated_at: Timestamp(NOW.0 - ago), ..task.meta.clone() };
        Task { status, meta, ..task }
    };
    let planned = |task: Task| {
        // Another slot has the only turn.
        let meta = Meta { created: 200, created_at: NOW, ..Meta::default() };
        let first = Task { spec_version: 3, id: "f2".into(), meta, ..served(2, Duration::from_millis(40)) };
        planned_of(back.clone(), [old(1), task, first])
    };
    assert_eq!(planned(come_back(TaskState::Ready, 500)), [""; 0], "it does not serve");
    assert_eq!(planned(come_back(TaskState::Running, 500)), [""; 0], "it may fail again");
    assert_eq!(planned(come_back(TaskState::Running, 60_000)), ["t1:shutdown"]);
    // The slot is looked at again when the task serves again, also when the update has ended.
    let ended = Service { update: UpdateStatus::default(), spec_version: 2, ..back };
    let (old_task, new_task) = (come_back(TaskState::Ready, 500), come_back(TaskState::Running, 0));
    let mut view = view([ended.into_object(), old(1).into_object(), new_task.clone().into_object()]);
    let event = || Event::Updated { old: old_task.clone().into_object(), new: new_task.clone().into_object() };
    assert_eq!(ServiceTasks::default().dirtied_by(&event(), &view), [Key::slot_of(&new_task)]);
    let plan = ServiceTasks::default().plan(&Key::slot_of(&new_task), &view, &mut PlanContext::at(NOW));
    assert_eq!(plan.retry_at, Some(NOW + policy.monitor), "and once more when it is proven");
    view.remove(Kind::Task, "t1");
    assert_eq!(ServiceTasks::default().dirtied_by(&event(), &view), [], "it is alone");
}

#[test]
fn an_update_goes_on_first_with_the_slots_that_have_two_tasks() {
    let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
    let third = Service { spec_version: 3, spec_set_at: Some(NOW), ..updated(policy) };
    let tasks = [served(1, LONG), old(2), served(2, Duration::from_millis(40))];
    assert_eq!(planned_of(third, tasks), ["+2 after 0 ms", "n2:shutdown"], "slot 1 would be the second with two");
}

#[test]
fn a_successor_that_was_prepared_for_a_task_which_had_to_leave_runs_beside_the_one_that_serves() {
    let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
    // The new task was stopped because its node is drained, before it served.
    let left = told_to_stop(Task { id: "n0".into(), ..new(TaskState::Running) });
    let planned = planned_by(policy, [old(1), left, successor(TaskState::Ready), old(2)]);
    assert_eq!(planned, ["n1:running"], "the old task serves on");
}

#[test]
fn an_update_goes_on_with_a_task_that_its_lost_node_keeps_once_the_node_is_back() {
    let mut keeps = service(1);
    keeps.spec = Arc::new(ServiceSpec { keep_on_node_loss: true, ..keeps.spec.as_ref().clone() });
    let keeps = Service { spec_version: 2, spec_set_at: Some(Timestamp(1)), ..keeps };
    let old = task("t1", 1, "a", TaskState::Running);
    let view = |update, state| {
        let service = Service { update, ..keeps.clone() };
        view([service.into_object(), old.clone().into_object(), node("a", state).into_object()])
    };
    assert_eq!(planned(&view(UpdateStatus::begun(1), NodeState::Down)), ["! completed (spec 2): "]);
    let ended = UpdateStatus::begun(1).completed();
    assert_eq!(planned(&view(ended.clone(), NodeState::Down)), [""; 0]);
    let back = view(ended, NodeState::Ready);
    assert_eq!(planned(&back), ["! updating (spec 2): "]);
    let [old, new] = [NodeState::Down, NodeState::Ready].map(|state| node("a", state).into_object());
    assert_eq!(ServiceTasks::default().dirtied_by(&Event::Updated { old, new }, &back), [Key::of("s")]);
    let paused = UpdateStatus::begun(1).paused("it fell".into());
    assert_eq!(planned(&view(paused, NodeState::Ready)), [""; 0], "a user decides");
}

#[test]
fn an_old_task_that_does_not_stop_fails_the_update_unless_its_node_is_lost() {
    let told = |ago: Duration| {
        let meta = Meta { updated_at: Timestamp(NOW.0 - ago.as_millis() as u64), ..old(1).meta };
        Task { desired_state: DesiredState::Shutdown, meta, ..old(1) }
    };
    let tasks = |ago| [told(ago), successor(TaskState::Ready), old(2)];
    // The grace period is 10 s, and then it is killed.
    let late = Duration::from_secs(70);
    assert_eq!(planned_with(tasks(late - Duration::from_secs(1))), [""; 0]);
    assert_eq!(looks_at(UpdatePolicy::default(), tasks(late - Duration::from_secs(1))), Some(1_000));
    let why = "! paused (spec 2): web.1: the task that it replaces has not stopped within 70 s";
    assert_eq!(planned_with(tasks(late)), [why]);
    let objects = tasks(late).map(StoreObject::into_object);
    let lost = [updated(UpdatePolicy::default()).into_object(), node("a", NodeState::Down).into_object()];
    let still = planned(&view(lost.into_iter().chain(objects)));
    assert!(!still.iter().any(|it| it.starts_with('!')), "{still:?}");
    // Its node is back, and learns only now that the task is to stop.
    let back = Node { state_since: NOW, ..node("a", NodeState::Ready) };
    let objects = [updated(UpdatePolicy::default()).into_object(), back.into_object()];
    let tasks = tasks(late).map(StoreObject::into_object);
    assert_eq!(planned(&view(objects.into_iter().chain(tasks))), [""; 0]);
}

#[test]
fn a_slot_that_is_added_while_a_failed_update_is_paused_gets_the_spec_that_serves() {
    let paused = UpdateStatus { failed_slots: [1].into(), ..UpdateStatus::begun(1).paused("it fell".into()) };
    let spec =
        Arc::new(ServiceSpec { mode: ServiceMode::Replicated { replicas: 3 }, ..service(2).spec.as_ref().clone() });
    let spec_of_third = |update| {
        let service = Service { spec: Arc::clone(&spec), update, ..updated(UpdatePolicy::default()) };
        let tasks = [new(TaskState::Running), old(2)].map(StoreObject::into_object);
        // The spec before is kept as long as tasks have it.
        let view = view([super::service(2).into_object()].into_iter().chain(tasks).chain([service.into_object()]));
        let plan = ServiceTasks::default().plan(&Key::of("s"), &view, &mut PlanContext::at(NOW));
        plan.changes.iter().find_map(|change| match change {
            Change::Put(Object::Task(task)) if task.slot == 3 => Some(task.spec_version),
            _ => None,
        })
    };
    assert_eq!(spec_of_third(paused), Some(1));
    assert_eq!(spec_of_third(UpdateStatus::begun(1)), Some(2));
}
