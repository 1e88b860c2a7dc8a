//! Every default value, each with its reason.

use std::time::Duration;

/// First delay before a restart: long enough that a crash loop costs nothing, too short to be noticed.
pub const RESTART_DELAY: Duration = Duration::from_millis(200);
/// The doubling of the delay ends here, so that a service recovers within a minute of its cause being mended.
pub const RESTART_DELAY_MOST: Duration = Duration::from_secs(60);
/// After running this long a task counts as healthy again and its delay starts anew.
pub const RESTART_RESET: Duration = Duration::from_secs(30);
/// Starts in a row that never became running after which the worker gives up, so that another node is tried.
pub const STARTS_BEFORE_GIVING_UP: u32 = 3;
/// Between SIGTERM and SIGKILL, as Docker has it.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// Signal that asks a program to end.
pub const STOP_SIGNAL: &str = "SIGTERM";
/// How long a worker keeps containers that a cluster of a new epoch does not name.
pub const NEW_EPOCH_GRACE: Duration = Duration::from_secs(300);
/// A worker says that it lives this often; three of these missed, and its node is down.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Heartbeats that a leader takes in a second; the period grows so that there are no more.
pub const HEARTBEATS_PER_SECOND: u64 = 2_000;
/// Missed periods after which a node is down.
pub const HEARTBEATS_MISSED: u32 = 3;
/// How long the tasks of a daemon that stopped in order stay where they are.
pub const RESTARTING_GRACE: Duration = Duration::from_secs(60);
/// A node that has been down this long takes its tasks with it: they are orphaned.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Ended tasks that are kept of each slot, to be looked at.
pub const TASK_HISTORY: usize = 4;
/// Nodes that hold each image: one may die.
pub const IMAGE_HOLDERS: usize = 2;
/// How long a grant to fetch an image is good; it is renewed with every assignment.
pub const GRANT_LIFE: Duration = Duration::from_secs(3600);
/// How far two machines' wall clocks may differ, in either direction, before what one dated is judged wrongly by the
/// other: a board without a clock of its own, or a wrong time zone, is within a day.
pub const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
/// The runtime class that every node has: the one that is built in. No other may be called so.
pub const EMBEDDED_RUNTIME: &str = "flota";
/// A node's certificate.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// The cluster's root: longer than a machine lives.
pub const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Largest message that any of our connections takes.
pub const MESSAGE_BOUND: usize = 16 << 20;
/// Of the messages between worker and leader.
pub const SESSION_FORMAT: u32 = 1;
/// The address that all cluster traffic uses.
pub const PORT: u16 = 2377;
/// Most replicas of one service: a plan over it stays within one transaction's bound.
pub const REPLICAS_BOUND: u64 = 10_000;
