//! What the leader wants for a task.

use flota_api::model::{Assignment, TaskStatus};
use flota_api::state::DesiredState;

/// The leader's last message about the task.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) assignment: Assignment,
    /// The leader no longer names the task: it is stopped and everything of it is removed.
    pub(crate) removed: bool,
    /// A full set did not name the task, and its grace period runs.
    pub(crate) unnamed: bool,
    /// Whether the leader has named the task since this boot.
    pub(crate) confirmed: bool,
}

/// The leader's current instruction for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    /// The task is prepared and then waits.
    Ready,
    Run,
    Stop,
}

impl Order {
    pub(crate) fn instruction(&self) -> Instruction {
        match self.assignment.desired_state {
            _ if self.removed => Instruction::Stop,
            DesiredState::Ready => Instruction::Ready,
            DesiredState::Running | DesiredState::Complete => Instruction::Run,
            DesiredState::Shutdown | DesiredState::Remove => Instruction::Stop,
        }
    }

    /// Adds the secrets and configs that are here already: the leader sends the bytes of each version once.
    pub(crate) fn keep_values(&self, next: &mut Assignment) {
        for value in next.values.iter_mut().filter(|it| it.bytes.is_none()) {
            let same = self.assignment.values.iter().find(|known| known.data == value.data);
            value.bytes = same.and_then(|known| known.bytes.clone());
        }
    }

    /// Returns whether this assignment changes anything for the runner. The task's status in the store does not
    /// matter.
    pub(crate) fn is_changed_by(&self, assignment: &Assignment) -> bool {
        let order = |it: &Assignment| Assignment { status: TaskStatus::default(), ..it.clone() };
        !self.confirmed || order(&self.assignment) != order(assignment)
    }
}
