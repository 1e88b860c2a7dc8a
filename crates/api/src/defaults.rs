//! Every default value and common bound, each with its reason.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

/// Longest prefixes of a subnet with IPv4 and with IPv6: eight addresses, of which two are virtual.
pub const LONGEST_PREFIX: [u8; 2] = [29, 125];
/// First delay before a restart: long enough that a crash loop costs little, too short to be noticed.
pub const RESTART_DELAY: Duration = Duration::from_millis(200);
/// Upper bound of the doubling delay, so that a service recovers within a minute once the cause is fixed.
pub const RESTART_DELAY_MOST: Duration = Duration::from_secs(60);
/// Number of restarts in a row that make a crash loop: more than a program needs that waits for another one.
pub const CRASH_LOOP_RESTARTS: u64 = 4;
/// Number of restarts in a row after which another node is tried: those take seven seconds, in which what is only slow to
/// come up on this node has come up.
pub const RESTARTS_ON_A_NODE: u64 = 6;
/// Largest number of restarts in a window that a restart policy can count, because a task carries their times.
pub const RESTARTS_TIMED: usize = 100;
/// Running time after which a task counts as healthy again and its restart delay is reset.
pub const RESTART_RESET: Duration = Duration::from_secs(30);
/// Number of consecutive starts that never became running after which the worker gives up, so that another node is
/// tried.
pub const STARTS_BEFORE_GIVING_UP: u32 = 3;
/// Number of user and group ids of a task that has its own: all that programs and images use, which count in 16 bits, as
/// useradd(8) gives to each user in /etc/subuid.
pub const TASK_IDS: u32 = 65_536;
/// Time between SIGTERM and SIGKILL, as in Docker.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// Largest password of a registry in bytes. Those of cloud providers are signed tokens of some kilobytes, or files of keys.
pub const REGISTRY_PASSWORD: usize = 16 << 10;
/// Interval of health checks, as in Docker.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
/// Time that a health check has, as in Docker.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of health checks in the start period, as in Docker.
pub const HEALTH_START_INTERVAL: Duration = Duration::from_secs(5);
/// Number of failures in a row that make a task unhealthy, as in Docker.
pub const HEALTH_RETRIES: NonZeroU32 = NonZeroU32::new(3).expect("it is not zero");
/// Number of results of health checks that a task keeps, as in Docker.
pub const HEALTH_RESULTS: usize = 5;
/// Number of slots that an update replaces at once, as in Docker.
pub const UPDATE_PARALLELISM: NonZeroU64 = NonZeroU64::MIN;
/// How long a new task is watched for failures once it serves, as in Docker.
pub const UPDATE_MONITOR: Duration = Duration::from_secs(5);
/// How long an update waits after a new task without a health check has begun to run: long enough for most programs that
/// end because they lack something, and short beside what it takes to replace a task.
pub const UPDATE_SETTLE: Duration = Duration::from_millis(100);
/// How long a new task may take until it serves, beside what its health check needs: longer than nearly every program
/// takes to start, and short enough that an update which can't succeed is soon found out.
pub const PROGRESS_MARGIN: Duration = Duration::from_secs(60);
/// How long more tasks must have been needed before autoscaling starts more.
pub const SCALE_UP_WINDOW: Duration = Duration::ZERO;
/// How long fewer tasks must have been enough before autoscaling stops some: short lulls are common, and a stopped task is
/// missed at the end of one.
pub const SCALE_DOWN_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Number of decisions of autoscaling that a service remembers.
pub const SCALE_DECISIONS_KEPT: usize = 20;
/// Interval at which a worker measures the tasks whose service is scaled by their load, and at which the leader decides.
pub const MEASURE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of earlier specs of a service that are kept, so that a user can go back to one of them.
pub const REVISIONS_KEPT: usize = 10;
/// Number of runs of a service of the mode cron that are kept when they are over, with their tasks, as many as Docker keeps
/// tasks of a slot. Of times that were skipped, as many more are kept.
pub const RUNS_KEPT: usize = 5;
/// Number of tasks of each slot that are kept unless the cluster's setting says otherwise: the present one, and the one before
/// it. Docker keeps five; each manager has all of them in memory, and in large clusters they would be most of it.
pub const TASK_HISTORY_LIMIT: NonZeroU64 = NonZeroU64::new(2).expect("it is not zero");
/// Most runs of one service that are under way at once, so that runs that do not end can't fill the cluster.
pub const RUNS_AT_ONCE: usize = 100;
/// Signal that asks a program to stop.
pub const STOP_SIGNAL: &str = "SIGTERM";
/// Time for which a worker keeps containers that a cluster of a new epoch does not name.
pub const NEW_EPOCH_GRACE: Duration = Duration::from_secs(300);
/// Period of a worker's heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Largest number of heartbeats per second for a leader; the period grows with the number of nodes to stay below it.
pub const HEARTBEATS_PER_SECOND: u64 = 2_000;
/// Number of missed periods after which a node is down.
pub const HEARTBEATS_MISSED: u32 = 3;
/// Time for which the loss of a node counts against it: one that comes and goes gets tasks last.
pub const NODE_LOSSES_COUNT: Duration = Duration::from_secs(600);
/// Number of losses of a node that are kept.
pub const NODE_LOSSES_KEPT: usize = 10;
/// Time for which the tasks of a node stay assigned to it after its daemon stopped in order.
pub const RESTARTING_GRACE: Duration = Duration::from_secs(60);
/// Time after which the tasks of a node that is down are orphaned.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Number of nodes that hold each image, so that one may fail.
pub const IMAGE_HOLDERS: usize = 2;
/// Number of nodes of one architecture that are up and known to hold an image, from which on further ones are not
/// recorded. Nodes fetch an image from those that are known to hold it.
pub const KNOWN_HOLDERS: usize = 16;
/// Validity of a grant to fetch an image; each assignment renews it.
pub const GRANT_LIFE: Duration = Duration::from_secs(3600);
/// Largest difference between two machines' wall clocks, in either direction, that must not affect decisions. It
/// covers a board without a battery-backed clock and a wrong time zone.
pub const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
/// How far ahead a leader's wall clock may be for a moment without lasting harm: what has expired by it is kept for this much
/// longer.
pub const CLOCK_AHEAD: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// Difference between the wall clocks of a node and the leader from which on it is shown: more than a message is
/// under way, and less than what makes logs hard to compare.
pub const CLOCK_OFFSET_SHOWN: Duration = Duration::from_secs(5);
/// Name of the built-in runtime class, which every node has. No other runtime class may have this name.
pub const EMBEDDED_RUNTIME: &str = "flota";
/// Longest time for which a task is not told to stop because a node has not confirmed that it sends the task no more
/// connections.
pub const WITHDRAWAL_WAIT: Duration = Duration::from_secs(1);
/// Validity of a node's certificate, unless the cluster's setting says otherwise.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Time after its certificate has expired in which a node can renew it with its key: machines in a cupboard come back within
/// a year, or never.
pub const RENEWAL_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Validity of the cluster's root certificate, which exceeds the life of a machine.
pub const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Largest message, in bytes, that any of our connections accepts.
pub const MESSAGE_BOUND: usize = 16 << 20;
/// Largest request of NodeCa, in bytes: a signing request and a few small fields. Anyone may send one.
pub const NODE_CA_BOUND: usize = 64 << 10;
/// Format version of the messages between worker and leader.
pub const SESSION_FORMAT: u32 = 1;
/// Port of all cluster traffic.
pub const PORT: u16 = 2377;
/// Largest number of replicas of one service, so that a plan over it stays within the bound of one transaction.
pub const REPLICAS_BOUND: u64 = 10_000;
/// How long a rebalance that a user has asked for goes on at most.
pub const REBALANCE_LIMIT: Duration = Duration::from_secs(3_600);
/// Epoch of a cluster that has never begun anew.
pub const FIRST_EPOCH: u64 = 1;
