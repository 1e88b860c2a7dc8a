//! The messages of a session between a worker and its leader, as domain types. Only `session.rs` converts them from
//! and to the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use flota_api::id::{TaskId, ValueDataId, VolumeId};
use flota_api::model::{
    Assignment, ImageSource, NetworkUpdate, NodeDescription, NodeUsage, Role, StreamRequest, TaskStatus, TaskUsage,
    ValueBytes,
};
use flota_api::version::{Timestamp, Version};

/// A message to the leader.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToLeader {
    /// The worker's clock.
    Heartbeat(Timestamp),
    Statuses(StatusBatch),
    /// The node has changed since it registered.
    Description(Box<NodeDescription>),
    /// The node's networks are as the leader described them up to this version.
    Programmed(Version),
    /// What the measured tasks use, and the node.
    Usage(UsageReport),
    Leaving(Departure),
}

/// A report of what tasks and the node use.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct UsageReport {
    /// The usage of every task that is measured.
    pub(crate) tasks: Vec<TaskUsage>,
    /// How much of the node is in use; `None` if the machine does not say.
    pub(crate) node: Option<NodeUsage>,
}

/// A message from the leader, or from a manager that does not lead.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FromLeader {
    /// The session is established.
    Registered(Registered),
    /// This manager does not lead; the address of the leader, if the manager knows it.
    NotLeader(Option<String>),
    Assignments(Part),
    /// A part of a description of this node's networks.
    Networks(NetworkUpdate),
    /// Every node that shares an encrypted network with this one knows this public key of this node.
    KeyKnown([u8; 32]),
    /// The digest of the CAs that the node is to trust.
    Trusts(String),
    /// Public keys that verify grants of images from now on.
    GrantKeys(Vec<Vec<u8>>),
    /// The leader has stored the batch with this number.
    StatusAck(u64),
    OpenStream(OpenStream),
    /// Addresses of all managers, and the role of this node, if the leader says it.
    Managers(Vec<String>, Option<Role>),
    /// The answer to a heartbeat, with the leader's clock, if it states it.
    Heartbeat(Option<Timestamp>),
    /// The cluster has removed this node.
    Removed,
}

/// The first message of a session.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Registration {
    pub(crate) node_id: String,
    pub(crate) description: NodeDescription,
    /// `host:port` where other nodes reach this one.
    pub(crate) address: String,
    /// The newest assignments on this node.
    pub(crate) newest: SetVersion,
    /// Digests of the images that are complete on this node.
    pub(crate) images: Vec<String>,
}

/// The leader's answer to a registration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Registered {
    /// How often the worker sends a heartbeat.
    pub(crate) heartbeat: Duration,
    /// Public key that verifies grants of images.
    pub(crate) grant_key: Vec<u8>,
}

/// The scope of a stop: only the daemon, or the machine with all tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    Daemon,
    Machine,
}

/// Reports that the leader has not acknowledged yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StatusBatch {
    pub(crate) sequence: u64,
    pub(crate) reports: Vec<TaskReport>,
    pub(crate) images: Vec<ImageReport>,
    /// Removed volumes of which this node has no data any more.
    pub(crate) dropped_volumes: Vec<VolumeId>,
}

/// The latest status of a task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskReport {
    pub(crate) task: TaskId,
    pub(crate) status: TaskStatus,
}

/// Reports that an image is complete on this node, or was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageReport {
    pub(crate) digest: String,
    /// Total size of its blobs in bytes.
    pub(crate) size: u64,
    pub(crate) gone: bool,
}

/// Orders sets of assignments. A restore of the cluster begins a new epoch, and the epoch takes precedence over the
/// version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SetVersion {
    pub(crate) epoch: u64,
    pub(crate) version: u64,
}

/// The leader's assignments for this node: all of them, or only the changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AssignmentSet {
    pub(crate) version: SetVersion,
    /// Whether tasks that are absent from the set are to be removed.
    pub(crate) is_full: bool,
    pub(crate) tasks: Vec<Assignment>,
    /// Tasks that this build can't parse.
    pub(crate) refused: Vec<Refused>,
    pub(crate) removed: Vec<TaskId>,
    /// The bytes of secrets and configs of these tasks, as far as they are new here.
    pub(crate) values: BTreeMap<ValueDataId, ValueBytes>,
    /// Images that this node is to keep.
    pub(crate) images: Vec<ImageSource>,
    /// Digests of images that the cluster no longer needs.
    pub(crate) dropped_images: Vec<String>,
    /// Volumes whose data this node is to drop.
    pub(crate) dropped_volumes: Vec<VolumeId>,
}

/// A task whose assignment can't be parsed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) task: TaskId,
    /// The last status in the store.
    pub(crate) known: TaskStatus,
    /// The reason.
    pub(crate) why: String,
}

/// One message of a set; a large set arrives in several.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    pub(crate) set: AssignmentSet,
    /// Whether more parts follow.
    pub(crate) more: bool,
    /// When the leader sent it. This and the times in its tasks are by the leader's clock.
    pub(crate) sent_at: Timestamp,
}

/// The leader's request to open a stream for a user.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenStream {
    /// Identifies the stream to the leader.
    pub(crate) id: String,
    /// `None` for a request of a newer leader that this build does not know.
    pub(crate) request: Option<StreamRequest>,
}
