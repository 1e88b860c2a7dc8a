//! What a task runner is told: what the leader wants of the task, and whether there is a leader.

use tokio::time::Instant;

use flota_api::proto::dispatcher::TaskAssignment;
use flota_api::proto::types::DesiredState;

/// What the leader last said of the task.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) assignment: TaskAssignment,
    /// The leader no longer names it: stop it and remove everything of it.
    pub(crate) removed: bool,
    /// A whole set did not name it, and its grace runs.
    pub(crate) unnamed: bool,
    /// Whether the leader has named it since this boot.
    pub(crate) confirmed: bool,
}

impl Order {
    /// The task is to be made ready, but not to run yet.
    pub(crate) fn waits(&self) -> bool {
        !self.stops() && self.assignment.desired_state == i32::from(DesiredState::Ready)
    }

    /// The task is to stop.
    pub(crate) fn stops(&self) -> bool {
        self.removed || self.assignment.desired_state >= i32::from(DesiredState::Shutdown)
    }
}

/// The link to the leader, as the tasks see it: since when it is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) lost: Option<Instant>,
}
