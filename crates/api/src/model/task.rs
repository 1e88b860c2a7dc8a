//! Tasks: placed instances of a service.

use serde::Serialize;

use super::device::DeviceId;
use super::pending::PendingReason;
use super::text_or_empty;
use crate::id::{NodeId, ServiceId, TaskId};
use crate::state::{DesiredState, TaskState};
use crate::version::{Meta, Timestamp};

/// What was observed of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// Counts the starts of this task, from 1.
    pub attempt: u32,
    /// How far this attempt is.
    pub state: TaskState,
    /// When that was seen.
    pub at: Timestamp,
    /// What is going on, where there is something to say.
    pub message: String,
    /// Why it is not as wanted.
    pub error: String,
    /// Of the last container that ended; 128 + the signal's number where one killed it.
    pub exit_code: Option<i32>,
    /// When the next start is due; zero: it waits for none.
    pub not_before: Timestamp,
}

impl Default for TaskStatus {
    fn default() -> Self {
        Self {
            attempt: 1,
            state: TaskState::New,
            at: Timestamp::default(),
            message: String::new(),
            error: String::new(),
            exit_code: None,
            not_before: Timestamp::default(),
        }
    }
}

impl TaskStatus {
    /// What orders statuses: only a higher one is taken.
    pub fn rank(&self) -> (u32, TaskState) {
        (self.attempt, self.state)
    }
}

/// A task as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Of the task.
    pub id: TaskId,
    /// Times and version.
    pub meta: Meta,
    /// Whose it is.
    pub service_id: ServiceId,
    /// Which of the service's specs it was made from.
    pub spec_version: u64,
    /// Its place among the replicas, from 1.
    pub slot: u64,
    /// Where it runs; empty until it is assigned, and never changed after.
    pub node_id: NodeId,
    /// What is wanted.
    pub desired_state: DesiredState,
    /// What was observed.
    pub status: TaskStatus,
    /// Restarts of its slot before it.
    pub inherited_restarts: u64,
    /// How many of these no failure caused: its node was lost or drained, or a user removed the task.
    pub moves: u64,
    /// What the image's name stood for when it was made; empty: the worker asks the registry.
    pub image_digest: String,
    /// It is not started before.
    pub not_before: Timestamp,
    /// Its processes stand still.
    pub paused: bool,
    /// Why it has no node yet; `None` until the scheduler has looked for one, and once it has one.
    #[serde(serialize_with = "text_or_empty")]
    pub pending_reason: Option<PendingReason>,
    /// Devices of its node that are its own until it has ended; chosen with the node.
    pub device_ids: Vec<DeviceId>,
}

impl Default for Task {
    fn default() -> Self {
        Self {
            id: TaskId::default(),
            meta: Meta::default(),
            service_id: ServiceId::default(),
            spec_version: 0,
            slot: 1,
            node_id: NodeId::default(),
            desired_state: DesiredState::Running,
            status: TaskStatus::default(),
            inherited_restarts: 0,
            moves: 0,
            image_digest: String::new(),
            not_before: Timestamp::default(),
            paused: false,
            pending_reason: None,
            device_ids: Vec::new(),
        }
    }
}

impl Task {
    /// Whether it may still run: it has not ended, and nobody told it to.
    pub fn is_live(&self) -> bool {
        !self.status.state.is_terminal() && !self.desired_state.is_stopping()
    }

    /// Whether it holds its node's resources.
    pub fn holds_resources(&self) -> bool {
        !self.node_id.is_empty() && !self.status.state.is_terminal()
    }

    /// What is used up of its slot's budget: restarts that a failure caused.
    pub fn failures(&self) -> u64 {
        self.restarts().saturating_sub(self.moves)
    }

    /// Starts of its slot beyond the first.
    pub fn restarts(&self) -> u64 {
        self.inherited_restarts + u64::from(self.status.attempt.saturating_sub(1))
    }
}
