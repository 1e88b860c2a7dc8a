//! Tests of tasks with a health check.

use std::future::Future;
use std::num::NonZeroU32;

use super::*;
use crate::executor::FakeHealth;
use crate::fake_node::Daemon;
use flota_api::defaults::HEALTH_RESULTS;
use flota_api::model::{Attachment, HealthSpec, HealthState, HealthTest};

/// A check every second; the second failure in a row is one too many.
fn spec() -> ServiceSpec {
    let healthcheck = HealthSpec {
        test: Some(HealthTest::Shell("well".into())),
        interval: Some(SECOND),
        timeout: Some(SECOND / 2),
        retries: NonZeroU32::new(2),
        ..HealthSpec::default()
    };
    ServiceSpec { healthcheck, ..ServiceSpec::default() }
}

/// Returns a node whose programs take a moment to stop. Otherwise the report of the next attempt would replace the one
/// that says why this attempt is stopped.
fn node(health: FakeHealth) -> Node {
    let on_stop = OnStop::Exit { after: Duration::from_millis(1), code: 143 };
    Node::with(FakeProgram { on_stop, health, ..FakeProgram::default() })
}

fn started(node: &Node, spec: &ServiceSpec) -> Daemon {
    let daemon = node.daemon();
    daemon.assign_spec(spec, DesiredState::Running, None);
    daemon
}

/// Waits for a condition that holds within an hour.
async fn soon<T>(condition: impl Future<Output = T>) -> T {
    tokio::time::timeout(HOUR, condition).await.expect("an hour is enough")
}

fn state(status: &TaskStatus) -> Option<HealthState> {
    status.health.as_ref().map(|it| it.state)
}

/// Assigns the task with an address, as one that others connect to.
fn assign_reachable(daemon: &Daemon, withdrawn_attempt: Option<u32>) {
    let attachments = vec![Attachment { network: "n".into(), addresses: vec![[10, 0, 1, 2].into()] }];
    let task = Assignment { spec: Arc::new(spec()), attachments, withdrawn_attempt, ..task("t") };
    daemon.pool.assign(full_set(vec![task]), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_starting_until_its_first_check_succeeds() {
    let node = node(FakeHealth::From(3 * SECOND));
    // Both failures before are in the start period.
    let begin = HealthSpec { start_period: Some(4 * SECOND), start_interval: Some(SECOND), ..spec().healthcheck };
    let mut daemon = started(&node, &ServiceSpec { healthcheck: begin, ..spec() });
    let status = daemon.until(|status| status.health.is_some()).await;
    assert_eq!((status.state, state(&status)), (TaskState::Starting, Some(HealthState::Starting)));
    // The manager gives an update this time.
    assert_eq!(status.health.expect("it has a check").decides_within, (4 + 2) * SECOND);
    let begin = Instant::now();
    let status = daemon.is(TaskState::Running).await;
    assert_eq!((status.attempt, state(&status)), (1, Some(HealthState::Healthy)));
    assert_about(&[begin.elapsed().as_millis()], &[3_000]);
    let codes: Vec<_> = status.health.expect("it has a check").log.iter().map(|it| it.exit_code).collect();
    assert_eq!(codes, [Some(1), Some(1), Some(0)]);
}

#[tokio::test(start_paused = true)]
async fn who_asks_gets_the_last_results_until_the_container_has_ended() {
    let mut daemon = started(&node(FakeHealth::Until(7 * SECOND + SECOND / 2)), &spec());
    daemon.is(TaskState::Running).await;
    tokio::time::sleep(5 * SECOND).await;
    let health = daemon.health.of(&"t".into()).expect("it was checked");
    let codes: Vec<_> = health.log.iter().map(|it| it.exit_code).collect();
    assert_eq!((health.state, codes), (HealthState::Healthy, vec![Some(0); HEALTH_RESULTS]));
    daemon.until(|status| status.attempt == 2).await;
    assert_eq!(daemon.health.of(&"t".into()), None, "the next container was not checked yet");
}

#[tokio::test(start_paused = true)]
async fn a_task_without_a_check_has_no_health() {
    let mut daemon = started(&node(FakeHealth::Hangs), &ServiceSpec::default());
    assert_eq!(daemon.is(TaskState::Running).await.health, None);
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_task_is_reported_stopped_and_restarted_with_the_reason() {
    let node = node(FakeHealth::Until(3 * SECOND + SECOND / 2));
    let mut daemon = started(&node, &spec());
    let begin = Instant::now();
    let status = daemon.until(|status| state(status) == Some(HealthState::Unhealthy)).await;
    assert_eq!((status.state, status.error.as_str()), (TaskState::Running, "unhealthy: the program is not well"));
    let health = status.health.expect("it has a check");
    assert_eq!((health.failing_streak, health.log.len()), (2, 5));
    let status = daemon.until(|status| status.attempt == 2 && status.state < TaskState::Running).await;
    assert_eq!((status.error.as_str(), status.exit_code), ("unhealthy: the program is not well", Some(143)));
    let status = daemon.until(|status| status.attempt == 2 && status.state == TaskState::Running).await;
    let log = status.health.expect("it has a check").log;
    assert_eq!((log.len(), log[0].exit_code), (1, Some(0)), "nothing is left of the first attempt");
    // Three successes and two failures, and then the first check of the second attempt.
    assert_about(&node.times(begin, |_| true), &[0, 5_000, 5_000]);
}

#[tokio::test(start_paused = true)]
async fn unhealthy_is_a_failure_even_if_the_program_obeys_and_ends_with_zero() {
    let on_stop = OnStop::Exit { after: Duration::ZERO, code: 0 };
    for (condition, expected) in
        [(RestartCondition::OnFailure, TaskState::Ready), (RestartCondition::None, TaskState::Failed)]
    {
        let node = Node::with(FakeProgram { on_stop, health: FakeHealth::From(HOUR), ..FakeProgram::default() });
        let restart = RestartPolicy { condition, ..RestartPolicy::default() };
        let mut daemon = started(&node, &ServiceSpec { restart, ..spec() });
        let status = daemon.until(|status| status.state == expected && !status.error.is_empty()).await;
        assert_eq!((status.error.as_str(), status.exit_code), ("unhealthy: the program is not well", None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_fails_when_its_time_is_over() {
    let (node, begin) = (node(FakeHealth::Hangs), Instant::now());
    let mut daemon = started(&node, &spec());
    let status = daemon.until(|status| state(status) == Some(HealthState::Unhealthy)).await;
    assert_eq!(status.error, "unhealthy: the check did not end within 500ms");
    assert!(status.health.expect("it has a check").log.iter().all(|it| it.exit_code.is_none()));
    daemon.until(|status| status.attempt == 2).await;
    // The next check begins an interval after the end of the last one.
    assert_about(&node.times(begin, |what| matches!(what, WhatHappened::Ended(_))), &[3_000]);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_is_under_way_when_its_container_ends_counts_for_no_attempt() {
    let runs = Some(SECOND + SECOND / 4);
    let node = Node::with(FakeProgram { runs, exit_code: 1, health: FakeHealth::Hangs, ..FakeProgram::default() });
    let once = HealthSpec { retries: NonZeroU32::new(1), ..spec().healthcheck };
    let mut daemon = started(&node, &ServiceSpec { healthcheck: once, ..spec() });
    let status = daemon.until(|status| status.attempt == 4 && status.health.is_some()).await;
    assert_eq!((status.error.as_str(), state(&status)), ("exit code 1", Some(HealthState::Starting)));
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_task_that_others_reach_is_stopped_when_it_is_withdrawn() {
    let node = node(FakeHealth::Until(SECOND + SECOND / 2));
    let mut daemon = node.daemon();
    assign_reachable(&daemon, None);
    daemon.until(|status| state(status) == Some(HealthState::Unhealthy)).await;
    let begin = Instant::now();
    let early = tokio::time::timeout(SECOND, daemon.until(|status| status.attempt == 2)).await;
    assert!(early.is_err() && node.machine.running().len() == 1, "it is not withdrawn yet");
    assign_reachable(&daemon, Some(1));
    daemon.until(|status| status.attempt == 2).await;
    assert_about(&[begin.elapsed().as_millis()], &[1_000]);
    // The withdrawal of the first attempt does not count for the second, which is not withdrawn.
    daemon.until(|status| status.attempt == 2 && state(status) == Some(HealthState::Unhealthy)).await;
    let begin = Instant::now();
    daemon.until(|status| status.attempt == 3).await;
    assert_about(&[begin.elapsed().as_millis()], &[2_000]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_never_was_healthy_waits_for_no_withdrawal() {
    let node = node(FakeHealth::From(HOUR));
    let mut daemon = node.daemon();
    assign_reachable(&daemon, None);
    let begin = Instant::now();
    daemon.until(|status| status.attempt == 2).await;
    assert_about(&[begin.elapsed().as_millis()], &[2_000]);
}

#[tokio::test(start_paused = true)]
async fn a_healthy_task_stays_so_when_the_daemon_restarts() {
    let node = node(FakeHealth::Until(60 * SECOND));
    let mut daemon = started(&node, &spec());
    daemon.is(TaskState::Running).await;
    daemon.crash();
    let mut daemon = node.daemon();
    let first = daemon.until(|_| true).await;
    assert_eq!((first.state, state(&first)), (TaskState::Running, Some(HealthState::Healthy)));
    let next = daemon.until(|status| (status.state, state(status)) != (first.state, state(&first))).await;
    assert_eq!((next.attempt, state(&next)), (1, Some(HealthState::Unhealthy)), "its checks continue");
    assert_eq!(node.times(Instant::now() - HOUR, is_start).len(), 1, "it is not started again meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_restarts_while_it_stops_an_unhealthy_task_takes_the_end_for_a_failure() {
    let on_stop = OnStop::Exit { after: 5 * SECOND, code: 0 };
    let node = Node::with(FakeProgram { on_stop, health: FakeHealth::From(HOUR), ..FakeProgram::default() });
    let restart = RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() };
    let mut daemon = started(&node, &ServiceSpec { restart, ..spec() });
    daemon.until(|status| state(status) == Some(HealthState::Unhealthy)).await;
    soon(node.machine.stopping("t")).await;
    daemon.crash();
    soon(node.machine.wait("t")).await;
    let mut daemon = node.daemon();
    assert_eq!(daemon.is(TaskState::Failed).await.error, "unhealthy: the program is not well");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_told_to_stop_stops_whatever_its_health() {
    for health in [FakeHealth::From(HOUR), FakeHealth::Until(SECOND + SECOND / 2), FakeHealth::Hangs] {
        let node = node(health);
        let mut daemon = started(&node, &spec());
        daemon.until(|status| status.health.is_some()).await;
        soon(node.machine.checked()).await;
        daemon.assign_spec(&spec(), DesiredState::Shutdown, None);
        assert_eq!(daemon.is(TaskState::Shutdown).await.attempt, 1);
    }
}
