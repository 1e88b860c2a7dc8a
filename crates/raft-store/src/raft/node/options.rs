//! Options with which a manager's Raft starts.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use crate::faults::{self, Fault};
use crate::raft::disk::Disk;
use crate::raft::threads::Threads;
use crate::raft::transport::Transport;
use crate::store::Store;
use flota_api::clock::{Clock, Random};
use flota_api::seal::Sealer;

/// How often a leader sends heartbeats, and how long followers wait before an election.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Interval between two heartbeats.
    pub heartbeat: Duration,
    /// Shortest and longest time that a candidate waits after the lease of the last leader it heard, which is the longest.
    pub election: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // Each heartbeat costs every manager about half a millisecond of CPU time, even in an idle cluster. Half of it
            // is a whole number of the timers' slots: see `Ticks`.
            heartbeat: Duration::from_millis(256),
            // The longest is also the lease during which a manager that heard the leader grants no vote, so a
            // candidate waits for both: 560 to 660 ms, more than two heartbeats.
            election: (Duration::from_millis(230), Duration::from_millis(330)),
        }
    }
}

impl Timing {
    /// Interval at which a core checks its timers. Heartbeats and elections happen only at these ticks.
    pub(super) fn tick(self) -> Duration {
        self.heartbeat / 2
    }
}

/// Options with which a manager's Raft starts.
pub struct RaftOptions {
    /// Raft id of this manager; no other manager ever uses it.
    pub id: u64,
    /// The folder that holds the log and the snapshots.
    pub disk: Arc<dyn Disk>,
    /// Whether this manager has run under this id before. If so, an empty log is damage.
    pub was_here: bool,
    /// Encrypts everything in the folder.
    pub sealer: Sealer,
    /// Delivers messages to the other managers.
    pub transport: Arc<dyn Transport>,
    /// The store to which committed entries are applied.
    pub store: Store,
    /// Intervals of heartbeats and elections.
    pub timing: Timing,
    /// Clock for the times in entries.
    pub clock: Clock,
    /// Random source for election timeouts.
    pub random: Random,
    /// Threads on which the core and its disk work run.
    pub threads: Threads,
}

impl std::fmt::Debug for RaftOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftOptions({})", self.id)
    }
}

/// Standard Raft. A leader that was killed must be elected again, because it may lack entries that it had sent and
/// others have committed (`enable_leader_restore`). A follower never loses entries that it acknowledged
/// (`allow_log_reversion`).
pub(super) fn config(timing: Timing) -> Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "flota".into(),
        // A heartbeat is sent at the first tick after this interval, so the interval must not end just after a tick.
        heartbeat_interval: millis(timing.heartbeat * 7 / 8),
        election_timeout_min: millis(timing.election.0),
        election_timeout_max: millis(timing.election.1),
        max_payload_entries: 256,
        // Snapshots are triggered by size in bytes: see the state machine.
        snapshot_policy: SnapshotPolicy::Never,
        // The log is purged by size in bytes too: see the duties.
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(faults::is_on(Fault::LeaderRestore)),
        allow_log_reversion: Some(false),
        ..Config::default()
    }
}
