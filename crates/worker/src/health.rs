//! The health of one container: when it is checked next, and what follows from a result. The rules are Docker's.
//!
//! A [`Monitor`] belongs to one attempt of a task and is dropped with its container, and a check that is under way with
//! it, so no result counts for a later attempt. It has one check at a time, and does nothing but when its task runner
//! polls it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::defaults::HEALTH_RESULTS;
use flota_api::id::TaskId;
use flota_api::model::{Health, HealthCheck, HealthResult, HealthState};
use flota_api::version::Timestamp;

use crate::executor::{CheckEnd, Executor};

/// Returns the state after a check that began at this age of its container, and the number of failures that count since
/// the last success. An unhealthy container stays so.
fn judge(check: &HealthCheck, health: &Health, success: bool, age: Duration) -> (HealthState, u32) {
    let (state, failures) = (health.state, health.failing_streak);
    match state {
        HealthState::Unhealthy => (state, failures),
        HealthState::Starting | HealthState::Healthy if success => (HealthState::Healthy, 0),
        HealthState::Starting if age < check.start_period => (state, failures),
        HealthState::Starting | HealthState::Healthy if failures + 1 >= check.retries.get() => {
            (HealthState::Unhealthy, failures + 1)
        }
        HealthState::Starting | HealthState::Healthy => (state, failures + 1),
    }
}

/// Returns the time until the next check of a container of this age.
fn pause(check: &HealthCheck, state: HealthState, age: Duration) -> Duration {
    let starts = state == HealthState::Starting && age < check.start_period;
    if starts { check.start_interval } else { check.interval }
}

/// The current activity of a monitor.
enum Stage {
    /// It waits for this time.
    Waits(Instant),
    /// It has begun a check at this time, by both clocks.
    Checks { began: Instant, at: Timestamp, end: BoxFuture<'static, CheckEnd> },
}

/// Checks the health of one container.
pub(crate) struct Monitor {
    executor: Arc<dyn Executor>,
    clock: Clock,
    board: HealthBoard,
    task: TaskId,
    check: HealthCheck,
    health: Health,
    /// When the container was started.
    started: Instant,
    /// When it became unhealthy, or was found so.
    unhealthy_since: Option<Instant>,
    stage: Stage,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("task", &self.task).field("health", &self.health).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Returns a monitor of a container of this age and health, whose first check is due after an interval.
    pub(crate) fn new(
        (executor, clock, board): (Arc<dyn Executor>, Clock, HealthBoard),
        task: TaskId,
        check: HealthCheck,
        health: Health,
        age: Duration,
    ) -> Self {
        let now = Instant::now();
        let stage = Stage::Waits(now + pause(&check, health.state, age));
        let unhealthy_since = (health.state == HealthState::Unhealthy).then_some(now);
        // A container may be older than the clock.
        let started = now.checked_sub(age).unwrap_or(now);
        Self { executor, clock, board, task, check, health, started, unhealthy_since, stage }
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Returns since when the container is known to be unhealthy; `None` if it is not.
    pub(crate) fn unhealthy_since(&self) -> Option<Instant> {
        self.unhealthy_since
    }

    /// Checks the container until its state changes; never returns once it is unhealthy. If the future is dropped, the
    /// next one continues with the same check.
    pub(crate) async fn changed(&mut self) {
        let before = self.health.state;
        while self.health.state == before {
            if self.unhealthy_since.is_some() {
                return std::future::pending().await;
            }
            self.advance().await;
        }
    }

    /// Waits for the next check, or for the end of the one that is under way.
    async fn advance(&mut self) {
        match &mut self.stage {
            Stage::Waits(due) => {
                tokio::time::sleep_until(*due).await;
                let end = self.executor.check_health(&self.task, &self.check.test);
                self.stage = Stage::Checks { began: Instant::now(), at: self.clock.now(), end };
            }
            Stage::Checks { began, at, end } => {
                let (began, at) = (*began, *at);
                let end = tokio::time::timeout_at(began + self.check.timeout, end).await.ok();
                self.record(began, at, end);
                // This also drops a check that has not ended, which kills it.
                let now = Instant::now();
                self.stage = Stage::Waits(now + pause(&self.check, self.health.state, now - self.started));
            }
        }
    }

    /// Takes the result of a check; `end` is `None` if it has not ended in time.
    fn record(&mut self, began: Instant, at: Timestamp, end: Option<CheckEnd>) {
        let exit_code = end.as_ref().map(|it| it.exit_code);
        let late = || format!("the check did not end within {:?}", self.check.timeout);
        let output = end.map_or_else(late, |it| it.output);
        let (state, failing_streak) = judge(&self.check, &self.health, exit_code == Some(0), began - self.started);
        tracing::debug!(task.id = %self.task, exit_code, health.from = %self.health.state, health.to = %state, "health checked");
        self.health.log.push(HealthResult { at, exit_code, output });
        let surplus = self.health.log.len().saturating_sub(HEALTH_RESULTS);
        self.health.log.drain(..surplus);
        (self.health.state, self.health.failing_streak) = (state, failing_streak);
        self.board.put(&self.task, &self.health);
        if state == HealthState::Unhealthy {
            self.unhealthy_since = Some(Instant::now());
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.board.remove(&self.task);
    }
}

/// The health of each container that has been checked, for those who ask this node. The leader is told only of changes
/// of the state. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct HealthBoard(Arc<Mutex<BTreeMap<TaskId, Health>>>);

impl HealthBoard {
    /// Returns the health of the task's container; `None` before its first check has ended, and once it has ended.
    pub(crate) fn of(&self, task: &TaskId) -> Option<Health> {
        self.0.lock().expect("no holder panics").get(task).cloned()
    }

    fn put(&self, task: &TaskId, health: &Health) {
        self.0.lock().expect("no holder panics").insert(task.clone(), health.clone());
    }

    fn remove(&self, task: &TaskId) {
        self.0.lock().expect("no holder panics").remove(task);
    }
}

/// Returns why a container with this health is stopped.
pub(crate) fn unhealthy_error(health: &Health) -> String {
    let Some(last) = health.log.last() else { return "unhealthy".to_owned() };
    match (last.output.trim(), last.exit_code) {
        ("", Some(code)) => format!("unhealthy: the check ended with exit code {code}"),
        (output, _) => format!("unhealthy: {output}"),
    }
}

#[cfg(test)]
mod tests;
