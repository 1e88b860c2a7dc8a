//! Tests of the task pool on a simulated node.

use super::*;
use crate::executor::{FakeProgram, WhatHappened};
use crate::fake_node::{Daemon, HOUR, Node, SECOND, full_set, task};

fn assign(daemon: &Daemon, ids: &[&str], grace: Duration) {
    daemon.pool.assign(full_set(ids.iter().map(|id| task(id)).collect()), grace);
}

/// Waits until exactly these tasks have a runner.
async fn until_only(daemon: &Daemon, ids: &[&str]) {
    let found = daemon.pool.wait_until(|pool| pool.tasks() == ids);
    tokio::time::timeout(24 * HOUR, found).await.expect("a day is enough");
}

#[tokio::test(start_paused = true)]
async fn what_a_restored_cluster_does_not_name_is_removed_when_its_grace_is_over() {
    let (node, begin) = (Node::new(), tokio::time::Instant::now());
    let daemon = node.daemon();
    assign(&daemon, &["kept", "named"], Duration::ZERO);
    assign(&daemon, &["named"], HOUR);
    // A later set of the same epoch does not shorten the grace.
    assign(&daemon, &["named"], Duration::ZERO);
    until_only(&daemon, &["named"]).await;
    assert!((HOUR..HOUR + SECOND).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_a_restored_cluster_names_within_the_grace_is_kept_for_good() {
    let node = Node::new();
    let daemon = node.daemon();
    assign(&daemon, &["kept", "named"], Duration::ZERO);
    assign(&daemon, &["named"], HOUR);
    assign(&daemon, &["kept", "named"], Duration::ZERO);
    let removed = daemon.pool.wait_until(|pool| pool.tasks() != ["kept", "named"]);
    assert!(tokio::time::timeout(10 * HOUR, removed).await.is_err());
}

/// Returns a node on which the tasks `a` and `t` run, and whose records are lost with its daemon.
async fn without_records() -> Node {
    let node = Node::with(FakeProgram { undo_delay: SECOND, ..FakeProgram::default() });
    let mut daemon = node.daemon();
    assign(&daemon, &["a", "t"], Duration::ZERO);
    daemon.is(TaskState::Running).await;
    daemon.crash();
    node.records.clear();
    node
}

fn running(node: &Node) -> Vec<String> {
    node.machine.running().into_iter().map(|it| it.task).collect()
}

/// Waits until exactly these tasks have something on the machine.
async fn until_left(node: &Node, ids: &[&str]) {
    let left = async {
        while node.machine.tasks().iter().map(String::as_str).collect::<Vec<_>>() != ids {
            tokio::time::advance(SECOND).await;
        }
    };
    tokio::time::timeout(HOUR, left).await.expect("an hour is enough");
}

#[tokio::test(start_paused = true)]
async fn a_container_without_a_record_runs_on_if_the_leader_names_its_task() {
    let node = without_records().await;
    node.machine.take_events();
    let mut daemon = node.daemon();
    tokio::time::advance(HOUR).await;
    assert_eq!(running(&node), ["a", "t"], "it is not known yet what they are");
    assign(&daemon, &["t"], Duration::ZERO);
    daemon.is(TaskState::Running).await;
    until_left(&node, &["t"]).await;
    let events: Vec<_> = node.machine.take_events().into_iter().map(|it| (it.task, it.what)).collect();
    assert_eq!(events, [("a".into(), WhatHappened::Ended(137))], "the other one was never started again");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_gone_with_its_record_is_not_reported_to_run() {
    let node = without_records().await;
    node.machine.reboot();
    node.machine.set_default_program(FakeProgram { prepare_delay: SECOND, ..FakeProgram::default() });
    let mut daemon = node.daemon();
    let status = TaskStatus { attempt: 1, state: TaskState::Running, ..TaskStatus::default() };
    daemon.pool.assign(full_set(vec![Assignment { status, ..task("t") }]), Duration::ZERO);
    let first = daemon.until(|_| true).await;
    assert_eq!((first.attempt, first.state), (2, TaskState::Preparing), "{first:?}");
    daemon.until(|status| status.attempt == 2 && status.state == TaskState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_without_a_record_that_a_restored_cluster_does_not_name_has_its_grace() {
    let node = without_records().await;
    let daemon = node.daemon();
    let begin = tokio::time::Instant::now();
    assign(&daemon, &["t"], HOUR / 2);
    assign(&daemon, &["t"], Duration::ZERO);
    until_left(&node, &["t"]).await;
    assert!(begin.elapsed() >= HOUR / 2, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_can_not_be_understood_is_rejected_unless_it_runs_or_has_ended() {
    let node = Node::new();
    let mut daemon = node.daemon();
    assign(&daemon, &["t"], Duration::ZERO);
    daemon.is(TaskState::Running).await;
    let refused = |task: &str, state| Refused {
        task: task.into(),
        known: TaskStatus { attempt: 3, state, ..TaskStatus::default() },
        why: "it is odd".into(),
    };
    let refused = vec![
        refused("t", TaskState::Running),
        refused("new", TaskState::Assigned),
        refused("over", TaskState::Complete),
    ];
    daemon.pool.assign(AssignmentSet { refused, ..full_set(Vec::new()) }, Duration::ZERO);
    let reports = daemon.reporter.next().await.reports;
    assert_eq!(reports.iter().map(|it| it.task.as_str()).collect::<Vec<_>>(), ["new"]);
    assert_eq!((reports[0].status.attempt, reports[0].status.state), (3, TaskState::Rejected));
    assert_eq!(reports[0].status.error, "this node does not understand the task: it is odd");
    assert_eq!(daemon.pool.tasks(), ["t"], "running tasks continue");
}
