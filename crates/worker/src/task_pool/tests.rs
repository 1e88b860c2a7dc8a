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

#[tokio::test(start_paused = true)]
async fn what_no_record_names_is_removed_before_its_task_begins_again() {
    let node = Node::with(FakeProgram { undo_delay: SECOND, ..FakeProgram::default() });
    let mut daemon = node.daemon();
    assign(&daemon, &["a", "t"], Duration::ZERO);
    daemon.is(TaskState::Running).await;
    daemon.crash();
    node.records.clear();
    let mut daemon = node.daemon();
    assign(&daemon, &["a", "t"], Duration::ZERO);
    daemon.is(TaskState::Running).await;
    let events = node.machine.take_events().into_iter().filter(|it| it.task == "t").map(|it| it.what);
    let expected = [WhatHappened::Started, WhatHappened::Ended(137), WhatHappened::Started];
    assert_eq!(events.collect::<Vec<_>>(), expected, "a container that is to be removed is not adopted");
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
    assert_eq!(daemon.pool.tasks(), ["t"], "what runs goes on");
}
