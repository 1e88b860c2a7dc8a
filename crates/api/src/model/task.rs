//! Tasks: the instances of a service, each on one node.

use std::num::NonZeroU64;

use serde::Serialize;

use super::device::DeviceId;
use super::health::{Health, HealthState};
use super::network::Attachment;
use super::pending::PendingReason;
use super::pinned_image::PinnedImage;
use super::restart::RestartHistory;
use super::text_or_empty;
use super::value_use::PinnedValue;
use crate::id::{NodeId, ServiceId, TaskId};
use crate::state::{DesiredState, TaskState};
use crate::version::{Meta, Timestamp};

/// The state of a task as its worker observed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// Number of this start of the task, from 1.
    pub attempt: u32,
    /// State of this attempt.
    pub state: TaskState,
    /// When it was observed, by the clock of the worker.
    pub at: Timestamp,
    /// The current activity of the worker, for people; may be empty.
    pub message: String,
    /// Why the task is not in its desired state, for people; may be empty.
    pub error: String,
    /// Exit code of the last container that ended; 128 plus the number of the signal if one killed it.
    pub exit_code: Option<i32>,
    /// When the next start is due, by the clock of the worker; `None` if the task does not wait for one.
    pub not_before: Option<Timestamp>,
    /// Digest of the image that the worker has prepared last.
    pub image_digest: Option<String>,
    /// The health of this attempt; `None` if it has no check, or no container yet.
    pub health: Option<Box<Health>>,
    /// Whether the task was rejected because a registry did not send one of its images.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lacks_image: bool,
    /// The restarts of the task's slot, by the clock of the worker; `None` until the task itself is restarted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Box<RestartHistory>>,
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
            not_before: None,
            image_digest: None,
            health: None,
            lacks_image: false,
            restarts: None,
        }
    }
}

impl TaskStatus {
    /// Returns whether so many health checks of this attempt have failed that it is started again.
    pub fn is_unhealthy(&self) -> bool {
        self.health.as_ref().is_some_and(|it| it.state == HealthState::Unhealthy)
    }

    /// Returns how much of a batch of reports the status takes: 1, and 1 for each result of a health check.
    pub fn weight(&self) -> usize {
        1 + self.health.as_ref().map_or(0, |it| it.log.len())
    }

    /// Returns the rank of the status: it replaces one of lower or equal rank.
    pub fn rank(&self) -> (u32, TaskState) {
        (self.attempt, self.state)
    }
}

/// A task as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Identifier of the task.
    pub id: TaskId,
    /// Times and version.
    pub meta: Meta,
    /// The service that it belongs to.
    pub service_id: ServiceId,
    /// Number of the service's spec that it was made from.
    pub spec_version: u64,
    /// Number of its slot, from 1. The task that replaces it has the same slot.
    pub slot: u64,
    /// Number of the job's run to which the task belongs; `None` if its service is not a job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<NonZeroU64>,
    /// The node that the scheduler chose; never changed afterwards.
    #[serde(serialize_with = "text_or_empty")]
    pub node_id: Option<NodeId>,
    /// The only node on which it may run, as its service has a task on each node; `None` for any.
    #[serde(serialize_with = "text_or_empty")]
    pub pinned_to: Option<NodeId>,
    /// The task of its slot and spec that goes on serving until this one does, because it has to leave its node.
    #[serde(serialize_with = "text_or_empty")]
    pub replaces: Option<TaskId>,
    /// Whether it is to move to a node with fewer tasks.
    pub relocates: bool,
    /// Name of the task for which the scheduler has stopped it, as that has a higher priority and needed its room.
    #[serde(serialize_with = "text_or_empty")]
    pub preempted_by: Option<String>,
    /// The state that the orchestrator wants for it.
    pub desired_state: DesiredState,
    /// The status that its worker observed.
    pub status: TaskStatus,
    /// Number of times that the tasks before this one in its slot were started.
    pub inherited_restarts: u64,
    /// Number of those starts that made up for a task which had not ended by itself: its node was lost or drained, or a user
    /// removed it.
    pub moves: u64,
    /// The restarts of its slot before this task was made, from which delay and budget follow. By the leader's clock.
    pub restart_history: RestartHistory,
    /// The digest of its image, which may be that of an index; `None` if the service has none and the cluster keeps no
    /// image of that name, in which case the worker asks the registry what the reference means.
    #[serde(serialize_with = "text_or_empty")]
    pub image_digest: Option<String>,
    /// The images that it mounts, as far as it is known what their references stand for; of another one, the worker asks the
    /// registry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounted_images: Vec<PinnedImage>,
    /// The versions of the secrets and configs of its spec that it was made with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<PinnedValue>,
    /// The time before which it is not started, by the leader's clock; `None` if it may start at once.
    pub not_before: Option<Timestamp>,
    /// When its image was first there and its container could start, by the leader's clock.
    pub prepared_at: Option<Timestamp>,
    /// When it first ran and was healthy, by the leader's clock.
    pub served_at: Option<Timestamp>,
    /// Whether its processes are frozen.
    pub paused: bool,
    /// Why it has no node yet; `None` before the scheduler has looked for one, and after it has found one.
    #[serde(serialize_with = "text_or_empty")]
    pub pending_reason: Option<Box<PendingReason>>,
    /// Devices of its node that it holds until it has ended. They are chosen together with the node.
    pub device_ids: Vec<DeviceId>,
    /// Its networks with its addresses there, in the order of its interfaces; empty before the allocator has chosen
    /// them. The addresses are free again when it has ended.
    pub attachments: Vec<Attachment>,
}

impl Default for Task {
    fn default() -> Self {
        Self {
            id: TaskId::default(),
            meta: Meta::default(),
            service_id: ServiceId::default(),
            spec_version: 0,
            slot: 1,
            run: None,
            node_id: None,
            pinned_to: None,
            replaces: None,
            relocates: false,
            preempted_by: None,
            desired_state: DesiredState::Running,
            status: TaskStatus::default(),
            inherited_restarts: 0,
            moves: 0,
            restart_history: RestartHistory::default(),
            image_digest: None,
            mounted_images: Vec::new(),
            values: Vec::new(),
            not_before: None,
            prepared_at: None,
            served_at: None,
            paused: false,
            pending_reason: None,
            device_ids: Vec::new(),
            attachments: Vec::new(),
        }
    }
}

/// What a user who does not see the name of a task gets instead.
pub const ANOTHER_TASK: &str = "another task";

/// The text of [`Task::preemption`], before and behind the name.
const PREEMPTED_BY: &str = "preempted by ";
const HIGHER_PRIORITY: &str = ", whose priority is higher";

/// Returns the name of the task that took the place of another, from the text of [`Task::preemption`].
pub fn preempting(text: &str) -> Option<&str> {
    text.strip_prefix(PREEMPTED_BY)?.strip_suffix(HIGHER_PRIORITY)
}

impl Task {
    /// Returns whether the task may still run: it has not ended and is not being stopped.
    pub fn is_live(&self) -> bool {
        !self.status.state.is_terminal() && !self.desired_state.is_stopping()
    }

    /// Returns whether the task does its work, so that new connections may go to it: it runs, is not unhealthy, and is
    /// not to be stopped.
    pub fn is_serving(&self) -> bool {
        self.status.state == TaskState::Running && !self.status.is_unhealthy() && self.is_live()
    }

    /// Returns whether its program has ended well by itself, so that nothing is left to do for it. The program may have ended
    /// while the order to stop was on its way. A user who removes such a task wants the work done again.
    pub fn has_done_its_work(&self) -> bool {
        self.status.state == TaskState::Complete && self.desired_state != DesiredState::Remove
    }

    /// Returns whether the task serves, and its health is known, if it has a check.
    pub fn is_proven(&self) -> bool {
        self.is_serving() && self.status.health.as_ref().is_none_or(|health| health.state == HealthState::Healthy)
    }

    /// Records that the task is prepared, and that it serves, when its status says so for the first time.
    pub fn record_progress(&mut self, now: Timestamp) {
        if self.status.state >= TaskState::Ready {
            self.prepared_at.get_or_insert(now);
        }
        if self.is_proven() {
            self.served_at.get_or_insert(now);
        }
    }

    /// Returns whether the task may run and has no node yet.
    pub fn is_waiting(&self) -> bool {
        self.node_id.is_none() && self.is_live()
    }

    /// Returns the node on which the task waits until others have stopped, so that there is room for it.
    pub fn claim(&self) -> Option<&NodeId> {
        self.pending_reason.as_deref().and_then(PendingReason::claim).filter(|_| self.is_waiting())
    }

    /// Returns why the task was stopped, for people, if that was for one of higher priority.
    pub fn preemption(&self) -> Option<String> {
        self.preempted_by.as_ref().map(|task| format!("{PREEMPTED_BY}{task}{HIGHER_PRIORITY}"))
    }

    /// Returns the digests of the image that it runs and of those that it mounts, as far as they are known.
    pub fn image_digests(&self) -> impl Iterator<Item = &str> {
        self.image_digest.as_deref().into_iter().chain(self.mounted_images.iter().map(|it| it.digest.as_str()))
    }

    /// Returns whether the task is assigned to this node.
    pub fn is_on(&self, node: &NodeId) -> bool {
        self.node_id.as_ref() == Some(node)
    }

    /// Returns whether the task holds its node's resources.
    pub fn holds_resources(&self) -> bool {
        self.node_id.is_some() && !self.status.state.is_terminal()
    }

    /// Returns the restarts of the slot that count for delay and budget, by the clock by which the task was changed last.
    pub fn restarts_so_far(&self) -> RestartHistory {
        match &self.status.restarts {
            Some(known) => known.by_clock(self.status.at, self.meta.updated_at),
            // A worker of an older build reports none.
            None => {
                let own = u64::from(self.status.attempt.saturating_sub(1));
                let inherited = &self.restart_history;
                let (in_a_row, count) = (inherited.in_a_row.saturating_add(own), inherited.count.saturating_add(own));
                RestartHistory { in_a_row, count, ..inherited.clone() }
            }
        }
    }

    /// Returns how often the task's slot was started before its present start.
    pub fn starts_before(&self) -> u64 {
        self.inherited_restarts + u64::from(self.status.attempt.saturating_sub(1))
    }

    /// Returns how often the task's slot was started again after its first start, without moves to other nodes.
    pub fn restarts(&self) -> u64 {
        self.starts_before().saturating_sub(self.moves)
    }
}
