//! Tests of a task runner on a simulated node with paused time.

mod health;

use std::num::NonZeroU64;

use super::*;
use crate::executor::{FakeFailure, FakeProgram, OnStop, WhatHappened};
use crate::fake_node::{HOUR, Node, SECOND, full_set, task};
use flota_api::model::{RestartCondition, RestartPolicy};

/// Largest delay of tokio's timer.
const TICK: Duration = Duration::from_millis(2);

fn is_start(what: WhatHappened) -> bool {
    what == WhatHappened::Started
}

fn fails_after(runs: Duration) -> FakeProgram {
    FakeProgram { runs: Some(runs), exit_code: 1, ..FakeProgram::default() }
}

/// Asserts that the values match, within the precision of the timer.
fn assert_about(values: &[u128], wanted: &[u128]) {
    let close = values.iter().zip(wanted).all(|(value, wanted)| (*wanted..wanted + 30).contains(value));
    assert!(values.len() == wanted.len() && close, "{values:?}, not {wanted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_is_restarted_after_a_delay_that_doubles() {
    let node = Node::with(fails_after(SECOND));
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.until(|status| status.attempt == 6 && status.state == TaskState::Running).await;
    // The delays are 0, 200, 400, 800 and 1,600 ms.
    assert_about(&node.times(begin, is_start), &[0, 1_000, 2_200, 3_600, 5_400, 8_000]);
}

#[tokio::test(start_paused = true)]
async fn the_budget_of_restarts_ends() {
    let node = Node::with(fails_after(SECOND));
    let mut daemon = node.daemon();
    daemon
        .assign(&RestartPolicy { max_attempts: NonZeroU64::new(2), ..RestartPolicy::default() }, DesiredState::Running);
    let status = daemon.is(TaskState::Failed).await;
    assert_eq!((status.attempt, status.exit_code), (3, Some(1)));
    tokio::time::advance(HOUR).await;
    assert_eq!(node.times(Instant::now() - HOUR - HOUR, is_start).len(), 3, "a start and two restarts");
}

#[tokio::test(start_paused = true)]
async fn restarts_leave_the_window_by_time_that_passes_and_not_by_the_wall_clock() {
    let node = Node::with(fails_after(40 * SECOND));
    let mut daemon = node.daemon();
    // The budget is one restart in a minute; a container that lives for 40 s exceeds it with its second restart.
    let policy =
        RestartPolicy { max_attempts: NonZeroU64::new(1), window: Some(60 * SECOND), ..RestartPolicy::default() };
    daemon.assign(&policy, DesiredState::Running);
    daemon.until(|status| status.attempt == 2 && status.state == TaskState::Running).await;
    node.step_wall(3_600_000);
    let status = daemon.until(|status| status.attempt > 2 || status.state.is_terminal()).await;
    assert_eq!((status.attempt, status.state), (2, TaskState::Failed));
    // A container that lives for 70 s never exceeds it.
    let mut other = Node::with(fails_after(70 * SECOND)).daemon();
    other.assign(&policy, DesiredState::Running);
    other.until(|status| status.attempt == 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_ends_again_and_again_is_given_up_so_that_another_node_is_tried() {
    let node = Node::with(fails_after(SECOND));
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    let status = daemon.is(TaskState::Failed).await;
    let restarts = status.restarts.expect("it was restarted");
    assert_eq!((status.attempt, restarts.in_a_row, restarts.count), (7, 6, 6));
}

#[tokio::test(start_paused = true)]
async fn without_a_manager_a_program_is_never_given_up() {
    let node = Node::with(fails_after(SECOND));
    let mut daemon = node.daemon();
    daemon.contact.send_replace(Contact { lost: Some(Instant::now()) });
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.until(|status| status.attempt == 20).await;
}

#[tokio::test(start_paused = true)]
async fn neither_a_reboot_nor_a_new_daemon_is_a_restart_that_counts() {
    let node = Node::with(fails_after(HOUR));
    let policy = RestartPolicy { max_attempts: NonZeroU64::new(1), ..RestartPolicy::default() };
    let mut daemon = node.daemon();
    daemon.assign(&policy, DesiredState::Running);
    for attempt in 2..5 {
        daemon.is(TaskState::Running).await;
        daemon.crash();
        node.machine.reboot();
        daemon = node.daemon();
        daemon.assign(&policy, DesiredState::Running);
        daemon.until(|status| status.attempt == attempt && status.state == TaskState::Running).await;
        daemon.crash();
        daemon = node.daemon();
    }
    let status = daemon.until(|status| status.state.is_terminal()).await;
    let restarts = status.restarts.expect("it was restarted");
    assert_eq!((status.attempt, restarts.count), (5, 1), "the budget was one restart");
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_preparation_ends_the_task_without_a_container() {
    let node = Node::with(FakeProgram { prepare_delay: HOUR, ..FakeProgram::default() });
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Preparing).await;
    daemon.assign(&RestartPolicy::default(), DesiredState::Shutdown);
    daemon.is(TaskState::Shutdown).await;
    assert!(begin.elapsed() < SECOND, "the image is not waited for");
    tokio::time::advance(2 * HOUR).await;
    assert!(node.machine.take_events().is_empty());
    assert!(node.machine.tasks().is_empty(), "nothing is left of the preparation");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ignores_the_signal_is_killed_when_its_grace_is_over() {
    let node = Node::with(FakeProgram { on_stop: OnStop::Ignore, ..FakeProgram::default() });
    let mut daemon = node.daemon();
    let spec = ServiceSpec { stop_grace: 7 * SECOND, ..ServiceSpec::default() };
    daemon.assign_spec(&spec, DesiredState::Running, None);
    daemon.is(TaskState::Running).await;
    let begin = Instant::now();
    daemon.assign_spec(&spec, DesiredState::Shutdown, None);
    let status = daemon.is(TaskState::Shutdown).await;
    assert_eq!(status.exit_code, Some(137));
    assert_about(&node.times(begin, |what| what == WhatHappened::Ended(137)), &[7_000]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_stops_within_its_grace_is_not_killed() {
    let on_stop = OnStop::Exit { after: 3 * SECOND, code: 0 };
    let node = Node::with(FakeProgram { on_stop, ..FakeProgram::default() });
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Running).await;
    let begin = Instant::now();
    daemon.assign(&RestartPolicy::default(), DesiredState::Shutdown);
    let status = daemon.is(TaskState::Shutdown).await;
    assert_eq!(status.exit_code, Some(0));
    assert_about(&[begin.elapsed().as_millis()], &[3_000]);
}

/// Asserts that a task's end is reported, and what it has on the machine removed, when what its program has sent has
/// arrived.
async fn assert_end_follows_flush(program: FakeProgram, desired: DesiredState, end: TaskState) {
    let node = Node::with(FakeProgram { flush_delay: SECOND, ..program });
    let mut daemon = node.daemon();
    let policy = RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() };
    daemon.assign(&policy, DesiredState::Running);
    daemon.is(TaskState::Running).await;
    let begin = Instant::now();
    daemon.assign(&policy, desired);
    let (ended_at, _) = node.machine.wait("t").await;
    assert!(ended_at - begin < SECOND, "the container has ended long before");
    assert!(!node.machine.tasks().is_empty(), "the task has its network");
    daemon.is(end).await;
    assert_about(&[begin.elapsed().as_millis()], &[1_000]);
}

#[tokio::test(start_paused = true)]
async fn a_task_has_ended_when_what_it_has_sent_has_arrived() {
    let stops = FakeProgram::default();
    assert_end_follows_flush(stops, DesiredState::Shutdown, TaskState::Shutdown).await;
    let ends = FakeProgram { runs: Some(TICK), ..FakeProgram::default() };
    assert_end_follows_flush(ends, DesiredState::Running, TaskState::Complete).await;
}

/// Returns the time of each start if the wall clock steps by this many milliseconds in the middle of the second
/// restart's delay, which is 10 s.
async fn restart_with_a_step(step: i64) -> Vec<u128> {
    let node = Node::with(fails_after(SECOND));
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.assign(&RestartPolicy { delay: 10 * SECOND, ..RestartPolicy::default() }, DesiredState::Running);
    daemon.until(|status| status.attempt == 3 && status.state == TaskState::Ready).await;
    tokio::time::advance(5 * SECOND).await;
    node.step_wall(step);
    // An order makes the runner check again.
    daemon.assign(
        &RestartPolicy { delay: 10 * SECOND, max_attempts: NonZeroU64::new(100), ..Default::default() },
        DesiredState::Running,
    );
    daemon.until(|status| status.attempt == 3 && status.state == TaskState::Running).await;
    node.times(begin, is_start)
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_changes_no_delay() {
    let wanted = [0, 1_000, 12_000];
    assert_about(&restart_with_a_step(0).await, &wanted);
    assert_about(&restart_with_a_step(3_600_000).await, &wanted);
    assert_about(&restart_with_a_step(-3_600_000).await, &wanted);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_stepped_while_no_daemon_ran_makes_no_task_wait_longer_than_its_delay() {
    let node = Node::with(fails_after(SECOND));
    let mut daemon = node.daemon();
    let policy = RestartPolicy { delay: 10 * SECOND, ..RestartPolicy::default() };
    daemon.assign(&policy, DesiredState::Running);
    daemon.until(|status| status.attempt == 3 && status.state == TaskState::Ready).await;
    daemon.crash();
    node.step_wall(-3_600_000);
    node.machine.take_events();
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.until(|status| status.attempt == 3 && status.state == TaskState::Running).await;
    assert_about(&node.times(begin, is_start), &[10_000]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_with_another_clock_delays_no_start_longer_than_the_policy_can() {
    let node = Node::new();
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    let spec = ServiceSpec::default();
    daemon.assign_spec(&spec, DesiredState::Running, Some(node.clock().now() + HOUR));
    daemon.is(TaskState::Running).await;
    assert_about(&node.times(begin, is_start), &[spec.restart.longest_delay().as_millis()]);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_was_killed_finds_its_container_and_starts_no_second_one() {
    let node = Node::new();
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Running).await;
    daemon.crash();
    tokio::time::advance(HOUR).await;
    let mut daemon = node.daemon();
    let status = daemon.is(TaskState::Running).await;
    tokio::time::advance(HOUR).await;
    tokio::task::yield_now().await;
    assert_eq!(status.attempt, 1);
    assert_eq!(node.machine.take_events().len(), 1, "one start, no end");
    // This daemon must be able to stop the container.
    daemon.assign(&RestartPolicy::default(), DesiredState::Shutdown);
    daemon.is(TaskState::Shutdown).await;
    assert!(node.machine.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_container_that_the_killed_daemon_had_not_recorded_is_found_all_the_same() {
    let node = Node::with(FakeProgram { answer_delay: SECOND, ..FakeProgram::default() });
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Starting).await;
    tokio::time::advance(TICK).await;
    assert_eq!(node.machine.running().len(), 1);
    daemon.crash();
    let mut daemon = node.daemon();
    daemon.is(TaskState::Running).await;
    tokio::time::advance(HOUR).await;
    assert_eq!(node.machine.take_events().len(), 1, "one start, no end");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ended_while_no_daemon_ran_is_restarted_by_the_next() {
    let node = Node::with(fails_after(10 * SECOND));
    let mut daemon = node.daemon();
    let policy = RestartPolicy { condition: RestartCondition::OnFailure, ..RestartPolicy::default() };
    daemon.assign(&policy, DesiredState::Running);
    daemon.is(TaskState::Running).await;
    daemon.crash();
    tokio::time::advance(HOUR).await;
    assert!(node.machine.running().is_empty());
    let mut daemon = node.daemon();
    let status = daemon.until(|status| status.attempt == 2 && status.state == TaskState::Running).await;
    assert_eq!(status.exit_code, Some(1));
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_nothing_starts_before_the_leader_confirms_it() {
    let node = Node::new();
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Running).await;
    daemon.crash();
    node.machine.reboot();
    assert!(node.machine.running().is_empty());
    node.machine.take_events();
    let mut daemon = node.daemon();
    daemon.until(|status| status.attempt == 2 && status.state == TaskState::Ready).await;
    let early = tokio::time::timeout(HOUR, daemon.is(TaskState::Running)).await;
    assert!(early.is_err() && node.machine.take_events().is_empty(), "the leader may have replaced it");
    // A second daemon in the same boot knows no more than the first.
    daemon.crash();
    let mut daemon = node.daemon();
    let early = tokio::time::timeout(HOUR, daemon.is(TaskState::Running)).await;
    assert!(early.is_err() && node.machine.take_events().is_empty(), "the leader may have replaced it");
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    let status = daemon.is(TaskState::Running).await;
    assert_eq!((status.attempt, node.machine.running().len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_can_not_be_fetched_is_tried_again_and_a_start_that_fails_for_good_is_not() {
    let node = Node::with(FakeProgram {
        prepare_failure: Some(FakeFailure::always("no holder answers")),
        ..FakeProgram::default()
    });
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    assert_eq!(daemon.is(TaskState::Rejected).await.error, "no holder answers");
    assert_about(&[begin.elapsed().as_millis()], &[2_500]);
    let node =
        Node::with(FakeProgram { start_failure: Some(FakeFailure::always("no such file")), ..FakeProgram::default() });
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    assert_eq!(daemon.is(TaskState::Rejected).await.error, "no such file");
    assert_about(&[begin.elapsed().as_millis()], &[0]);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_tasks_that_come_and_go_leave_nothing() {
    let node = Node::with(FakeProgram { prepare_delay: SECOND, ..FakeProgram::default() });
    let daemon = node.daemon();
    let tasks = (0..1_000).map(|slot| Assignment { slot, ..task(&format!("t{slot}")) });
    daemon.pool.assign(full_set(tasks.collect()), Duration::ZERO);
    tokio::time::timeout(HOUR, async {
        while node.machine.running().len() < 1_000 {
            daemon.reporter.acknowledged(daemon.reporter.next().await.sequence);
        }
    })
    .await
    .expect("all of them run");
    daemon.pool.remove_all().await;
    assert!(node.machine.tasks().is_empty() && node.records.load().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_image_that_can_be_fetched_at_the_third_try_is_used() {
    let failure = FakeFailure::first(2, "no holder answers");
    let node = Node::with(FakeProgram { prepare_failure: Some(failure), ..FakeProgram::default() });
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Running).await;
    assert_about(&[begin.elapsed().as_millis()], &[2_500]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_ended_holds_nothing_although_it_is_still_assigned() {
    let node = Node::with(fails_after(SECOND));
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy { condition: RestartCondition::None, ..Default::default() }, DesiredState::Running);
    daemon.is(TaskState::Failed).await;
    assert!(node.machine.tasks().is_empty());
    let node =
        Node::with(FakeProgram { start_failure: Some(FakeFailure::always("no such file")), ..Default::default() });
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Rejected).await;
    assert!(node.machine.tasks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_once_does_not_keep_a_task_from_its_restart() {
    let failure = FakeFailure::first(1, "busy");
    let node = Node::with(FakeProgram { undo_failure: Some(failure), ..fails_after(SECOND) });
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.until(|status| status.attempt == 2 && status.state == TaskState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn no_container_starts_among_what_another_one_left() {
    let node = Node::with(FakeProgram { undo_failure: Some(FakeFailure::always("busy")), ..fails_after(SECOND) });
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    let status = daemon.is(TaskState::Rejected).await;
    assert_eq!(status.error, "failed to remove the container of a task: busy");
    assert_eq!(node.times(Instant::now() - HOUR, is_start).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_must_not_run_unheard_is_stopped_until_a_manager_is_heard() {
    let node = Node::new();
    let mut daemon = node.daemon();
    let spec = ServiceSpec { on_partition: OnPartition::Stop(10 * SECOND), ..ServiceSpec::default() };
    daemon.assign_spec(&spec, DesiredState::Running, None);
    daemon.is(TaskState::Running).await;
    let begin = Instant::now();
    daemon.contact.send_replace(Contact { lost: Some(begin) });
    daemon.until(|status| status.attempt == 2 && status.state == TaskState::Ready).await;
    assert_about(&[begin.elapsed().as_millis()], &[10_000]);
    let early = tokio::time::timeout(HOUR, daemon.is(TaskState::Running)).await;
    assert!(early.is_err() && node.machine.running().is_empty());
    let begin = Instant::now();
    daemon.contact.send_replace(Contact::default());
    daemon.is(TaskState::Running).await;
    assert_about(&[begin.elapsed().as_millis()], &[0]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_for_want_of_something_is_tried_again_after_a_delay() {
    let program = |times| FakeProgram {
        start_failure: Some(FakeFailure::first(times, "the launcher is busy")),
        ..FakeProgram::default()
    };
    let node = Node::with(program(2));
    let (mut daemon, begin) = (node.daemon(), Instant::now());
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    let status = daemon.is(TaskState::Running).await;
    assert_eq!((status.attempt, status.error.as_str()), (3, ""));
    assert_about(&node.times(begin, is_start), &[3_000]);
    let node = Node::with(program(3));
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    let status = daemon.is(TaskState::Rejected).await;
    assert_eq!((status.attempt, status.error.as_str()), (3, "the launcher is busy"));
}

/// Runs a container that reacts to a stop like this, and whose first signals are lost. Returns the status of the
/// stopped task, and the milliseconds from the order to stop to the end of the container.
async fn stopped(on_stop: OnStop, lost: u32) -> (TaskStatus, Vec<u128>) {
    let signal_failure = Some(FakeFailure::first(lost, "no descriptor is available"));
    let node = Node::with(FakeProgram { on_stop, signal_failure, ..FakeProgram::default() });
    let mut daemon = node.daemon();
    let spec = ServiceSpec { stop_grace: 7 * SECOND, ..ServiceSpec::default() };
    daemon.assign_spec(&spec, DesiredState::Running, None);
    daemon.is(TaskState::Running).await;
    let begin = Instant::now();
    daemon.assign_spec(&spec, DesiredState::Shutdown, None);
    let status = daemon.is(TaskState::Shutdown).await;
    (status, node.times(begin, |what| what != WhatHappened::Started))
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_can_not_be_sent_is_sent_again() {
    let (status, times) = stopped(OnStop::Exit { after: Duration::ZERO, code: 0 }, 5).await;
    assert_eq!(status.exit_code, Some(0));
    assert_about(&times, &[500]);
    let (status, times) = stopped(OnStop::Ignore, 75).await;
    assert_eq!(status.exit_code, Some(137));
    assert_about(&times, &[7_400]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_stops_without_the_confirmation_of_some_nodes_names_them() {
    let node = Node::new();
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Running).await;
    let unconfirmed_nodes = vec!["w2".to_owned(), "w3".to_owned()];
    daemon.assign_task(Assignment { desired_state: DesiredState::Shutdown, unconfirmed_nodes, ..task("t") });
    let status = daemon.is(TaskState::Shutdown).await;
    assert_eq!(status.message, "stopped, although these nodes may still have sent it connections: w2, w3");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_end_after_its_kill_is_ended_through_its_control_groups() {
    let (status, times) = stopped(OnStop::Hang, 0).await;
    assert_eq!(status.exit_code, Some(137));
    assert_about(&times, &[17_000]);
}

#[tokio::test(start_paused = true)]
async fn a_digest_that_the_worker_resolved_is_reported_and_used_again() {
    let node = Node::with(fails_after(SECOND));
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    let status = daemon.until(|status| status.attempt == 2 && status.state == TaskState::Running).await;
    let digest = status.image_digest.expect("it was resolved");
    daemon.crash();
    let record = node.records.load().pop().expect("it is kept");
    assert_eq!(record.assignment.digest(), Some(digest.as_str()));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_is_removed_later() {
    let failure = FakeFailure::first(3, "busy");
    let node = Node::with(FakeProgram { undo_failure: Some(failure), ..FakeProgram::default() });
    let mut daemon = node.daemon();
    daemon.assign(&RestartPolicy::default(), DesiredState::Running);
    daemon.is(TaskState::Running).await;
    daemon.pool.remove_all().await;
    assert!(node.machine.tasks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_program_that_has_done_its_work_before_it_is_stopped_has_done_it() {
    use RestartCondition::{Any, OnFailure};
    let end = async |condition, exit_code| {
        let node = Node::with(FakeProgram { runs: Some(10 * SECOND), exit_code, ..FakeProgram::default() });
        let policy = RestartPolicy { condition, ..RestartPolicy::default() };
        let mut daemon = node.daemon();
        daemon.assign(&policy, DesiredState::Running);
        daemon.is(TaskState::Running).await;
        daemon.crash();
        tokio::time::advance(HOUR).await;
        let mut daemon = node.daemon();
        // The order is there before the runner has looked for its container.
        daemon.assign(&policy, DesiredState::Shutdown);
        daemon.until(|status| status.state.is_terminal()).await.state
    };
    assert_eq!(end(OnFailure, 0).await, TaskState::Complete);
    assert_eq!(end(OnFailure, 3).await, TaskState::Shutdown);
    assert_eq!(end(Any, 0).await, TaskState::Shutdown, "a service is never done");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_an_earlier_daemon_has_stopped_has_not_done_its_work() {
    let node = Node::with(FakeProgram { on_stop: OnStop::Exit { after: SECOND, code: 0 }, ..FakeProgram::default() });
    let policy = RestartPolicy { condition: RestartCondition::OnFailure, ..RestartPolicy::default() };
    let mut daemon = node.daemon();
    daemon.assign(&policy, DesiredState::Running);
    daemon.is(TaskState::Running).await;
    daemon.assign(&policy, DesiredState::Shutdown);
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(node.machine.running().len(), 1, "it obeys after a second");
    daemon.crash();
    tokio::time::advance(HOUR).await;
    assert!(node.machine.running().is_empty());
    let status = node.daemon().until(|status| status.state.is_terminal()).await;
    assert_eq!((status.state, status.exit_code), (TaskState::Shutdown, Some(0)));
}
