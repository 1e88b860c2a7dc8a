//! The container of a task as its runner knows it.

use std::time::Duration;

use tokio::time::Instant;

use flota_runtime::ExitStatus;

use crate::executor::Running;
use crate::step::Presence;

/// The state of its task's container as a runner knows it.
#[derive(Debug)]
pub(super) enum TaskContainer {
    Absent,
    /// It runs; it was found at `found`.
    Runs {
        running: Running,
        found: Instant,
    },
    /// It has ended after running for this time.
    Ended {
        status: ExitStatus,
        ran: Duration,
        /// Whether its program has ended by itself: this runner has not asked it to.
        by_itself: bool,
    },
}

impl TaskContainer {
    pub(super) fn presence(&self) -> Presence {
        match self {
            Self::Absent => Presence::Absent,
            Self::Runs { .. } => Presence::Runs,
            Self::Ended { .. } => Presence::Ended,
        }
    }

    /// Waits until the container ends, and records that; never returns if none runs.
    pub(super) async fn ended(&mut self) {
        let Self::Runs { running, found } = self else { return std::future::pending().await };
        let status = (&mut running.end).await;
        // The container may have run for days before this daemon started.
        let ran = running.age + found.elapsed();
        *self = Self::Ended { status, ran, by_itself: true };
    }
}
