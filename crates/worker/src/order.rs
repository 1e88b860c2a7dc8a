//! What a task runner is told: what the leader wants of the task, and whether there is a leader.

use tokio::time::Instant;

use flota_api::model::{Assignment, TaskStatus};
use flota_api::state::DesiredState;

/// What the leader last said of the task.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) assignment: Assignment,
    /// The leader no longer names the task: it is stopped, and everything of it is removed.
    pub(crate) removed: bool,
    /// A full set did not name it, and its grace runs.
    pub(crate) unnamed: bool,
    /// Whether the leader has named it since this boot.
    pub(crate) confirmed: bool,
}

/// What is wanted of a task now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is made ready, and then waits.
    Ready,
    Run,
    Stop,
}

impl Order {
    pub(crate) fn wanted(&self) -> Wanted {
        match self.assignment.desired_state {
            _ if self.removed => Wanted::Stop,
            DesiredState::Ready => Wanted::Ready,
            DesiredState::Running | DesiredState::Complete => Wanted::Run,
            DesiredState::Shutdown | DesiredState::Remove => Wanted::Stop,
        }
    }

    /// Whether this assignment changes anything for the runner. What the store knows of the task's status does not.
    pub(crate) fn is_changed_by(&self, assignment: &Assignment) -> bool {
        let order = |it: &Assignment| Assignment { status: TaskStatus::default(), ..it.clone() };
        !self.confirmed || order(&self.assignment) != order(assignment)
    }
}

/// The link to the leader, as the tasks see it: since when it is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) lost: Option<Instant>,
}
