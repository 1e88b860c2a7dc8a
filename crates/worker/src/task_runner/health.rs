//! The effect of a container's health on its task: the task is `starting` until the first check succeeds, and an
//! unhealthy container is stopped once its node gets no more connections for it.

use std::time::Duration;

use tokio::time::Instant;

use flota_api::defaults::WITHDRAWAL_WAIT;
use flota_api::model::{Health, HealthCheck, HealthState};
use flota_api::state::TaskState;

use super::TaskRunner;
use crate::health::{Monitor, unhealthy_error};

/// How long an unhealthy container waits for the leader, which waits at most half as long for the nodes.
const PATIENCE: Duration = Duration::from_secs(2 * WITHDRAWAL_WAIT.as_secs());

impl TaskRunner {
    /// Begins to check the health of a container of this age, if the task has a check. A container of an earlier daemon
    /// has the health that this daemon has recorded.
    pub(super) async fn watch_health(&mut self, age: Duration) {
        let shared = &self.shared;
        let check = shared.executor.health_check(&self.spec, self.digest().as_deref()).await;
        let unrecorded =
            if self.status.state == TaskState::Running { HealthState::Healthy } else { HealthState::Starting };
        let known =
            self.status.health.take().map(|it| *it).unwrap_or(Health { state: unrecorded, ..Health::default() });
        // Only the changes of the state are recorded, so the number of failures in a row is out of date.
        let decides_within = check.as_ref().map(HealthCheck::decides_within).unwrap_or_default();
        let health = Health { failing_streak: 0, decides_within, ..known };
        let means = (shared.executor.clone(), shared.clock.clone(), shared.health.clone());
        self.health = check.map(|check| Monitor::new(means, self.task.clone(), check, health, age));
        self.status.health = self.health.as_ref().map(|it| Box::new(it.health().clone()));
    }

    /// Reports that the container runs. As long as no check has succeeded, the task is `starting`.
    pub(super) async fn report_running(&mut self) {
        if self.awaits_health() {
            self.set(TaskState::Starting, "waits for its first successful health check").await;
        } else {
            self.set(TaskState::Running, "").await;
        }
    }

    /// Takes over the state of health if it has changed. That a task is unhealthy is saved and reported at once; that it
    /// is healthy is reported with the state that it has then.
    pub(super) async fn take_health(&mut self) {
        let Some(health) = self.health.as_ref().map(Monitor::health) else { return };
        if self.status.health.as_ref().is_some_and(|it| it.state == health.state) {
            return;
        }
        self.status.health = Some(Box::new(health.clone()));
        if health.state == HealthState::Unhealthy {
            self.status.error = unhealthy_error(health);
            self.set(self.status.state, "is stopped because it is unhealthy").await;
        }
    }

    /// Whether the container is checked and no check has succeeded yet.
    pub(super) fn awaits_health(&self) -> bool {
        self.health.as_ref().is_some_and(|it| it.health().state == HealthState::Starting)
    }

    /// Returns when the container is stopped because it is unhealthy, at the latest; `None` if it is not unhealthy.
    pub(super) fn unhealthy_until(&self) -> Option<Instant> {
        let since = self.health.as_ref()?.unhealthy_since()?;
        let assignment = &self.orders.borrow().assignment;
        // No connections are sent to a task that has not been healthy, or has no address.
        let is_reached = self.status.state == TaskState::Running
            && assignment.attachments.iter().any(|it| !it.addresses.is_empty())
            && assignment.withdrawn_attempt != Some(self.status.attempt);
        Some(if is_reached { since + PATIENCE } else { since })
    }
}

/// Waits until the state of health changes; never returns if there is no check.
pub(super) async fn changed(health: &mut Option<Monitor>) {
    match health {
        Some(health) => health.changed().await,
        None => std::future::pending().await,
    }
}
