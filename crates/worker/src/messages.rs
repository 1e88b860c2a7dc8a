//! What a worker and its leader send each other in a session, in domain types. `session.rs` converts them from and to
//! the wire, and is the only file that does.

use std::time::Duration;

use flota_api::id::TaskId;
use flota_api::model::{Assignment, ImageSource, NodeDescription, TaskStatus};
use flota_api::version::Timestamp;

/// A message to the leader.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToLeader {
    Heartbeat,
    Statuses(StatusBatch),
    Leaving(Departure),
}

/// A message from the leader, or from a manager that does not lead.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FromLeader {
    /// The session is established.
    Registered(Registered),
    /// This manager does not lead; the address of the one that does, if it knows.
    NotLeader(Option<String>),
    Assignments(Part),
    /// The leader has stored the batch with this number.
    StatusAck(u64),
    OpenStream(OpenStream),
    /// Addresses of all managers.
    Managers(Vec<String>),
    Heartbeat,
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
    /// The newest assignments that are here.
    pub(crate) newest: SetVersion,
    /// Digests of the images that are here whole.
    pub(crate) images: Vec<String>,
}

/// How a leader answers a registration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Registered {
    /// How often the worker sends a heartbeat.
    pub(crate) heartbeat: Duration,
    /// Verifies grants of images.
    pub(crate) grant_key: Vec<u8>,
}

/// What stops: the daemon alone, or the machine with all tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    Daemon,
    Machine,
}

/// What the leader has not acknowledged yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StatusBatch {
    pub(crate) sequence: u64,
    pub(crate) reports: Vec<TaskReport>,
    pub(crate) images: Vec<ImageReport>,
}

/// The latest status of a task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskReport {
    pub(crate) task: TaskId,
    pub(crate) status: TaskStatus,
}

/// An image that is here whole, or no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageReport {
    pub(crate) digest: String,
    /// The name that a user gave it, if one did.
    pub(crate) reference: Option<String>,
    /// Bytes of all its blobs.
    pub(crate) size: u64,
    pub(crate) gone: bool,
}

/// Orders sets of assignments: an epoch is begun by a restore of the cluster, and counts before the version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SetVersion {
    pub(crate) epoch: u64,
    pub(crate) version: u64,
}

/// What the leader assigns to this node: everything, or what has changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AssignmentSet {
    pub(crate) version: SetVersion,
    /// Whether tasks that the set does not name are to be removed.
    pub(crate) is_full: bool,
    pub(crate) tasks: Vec<Assignment>,
    /// Tasks that this build does not understand.
    pub(crate) refused: Vec<Refused>,
    pub(crate) removed: Vec<TaskId>,
    /// Images that this node is to hold.
    pub(crate) images: Vec<ImageSource>,
    /// Digests of images that nobody in the cluster needs.
    pub(crate) dropped_images: Vec<String>,
}

/// A task whose assignment can't be understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) task: TaskId,
    /// The last status that the store knows.
    pub(crate) known: TaskStatus,
    /// What can't be understood.
    pub(crate) why: String,
}

/// One message of a set: a large set comes in several.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    pub(crate) set: AssignmentSet,
    /// Whether more parts follow.
    pub(crate) more: bool,
    /// When the leader sent it, by the leader's clock. The times in its tasks are by that clock too.
    pub(crate) sent_at: Timestamp,
}

/// The leader's request to open a stream for a user.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenStream {
    /// Names the stream towards the leader.
    pub(crate) id: String,
    pub(crate) request: StreamRequest,
}

/// What a stream carries.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StreamRequest {
    Exec(ExecRequest),
    Logs(LogsRequest),
    /// A newer leader asks for something that this build does not know.
    Unknown,
}

/// A program to run in a task's container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExecRequest {
    pub(crate) task: TaskId,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    /// Whether the user has standard input to send.
    pub(crate) stdin: bool,
    /// The size of the terminal that the program gets, if it gets one.
    pub(crate) terminal: Option<TerminalSize>,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub(crate) rows: u32,
    pub(crate) columns: u32,
}

/// Output of a task to send to the user.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LogsRequest {
    pub(crate) task: TaskId,
    /// Whether to wait for more output at the end.
    pub(crate) follow: bool,
    /// How many of the last lines to begin with; `None`: all.
    pub(crate) tail: Option<usize>,
}
