//! What a manager is started with.

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

/// How often a leader speaks, and how long its silence is borne.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Shortest and longest silence before an election.
    pub election: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // Each beat costs every manager about half a millisecond of CPU, also in a cluster where nothing happens.
            heartbeat: Duration::from_millis(200),
            election: (Duration::from_millis(220), Duration::from_millis(450)),
        }
    }
}

impl Timing {
    /// How often a core looks at its timers. Heartbeats and elections happen at ticks only.
    pub(super) fn tick(self) -> Duration {
        self.heartbeat / 2
    }
}

/// What a manager is started with.
pub struct RaftOptions {
    /// Its Raft id; never used by another manager.
    pub id: u64,
    /// The folder of log and snapshots.
    pub disk: Arc<dyn Disk>,
    /// Whether it has been a manager under this id before: then its log can't be empty.
    pub was_here: bool,
    /// Of everything in the folder.
    pub sealer: Sealer,
    /// To the other managers.
    pub transport: Arc<dyn Transport>,
    /// What committed entries change.
    pub store: Store,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// For the times in entries.
    pub clock: Clock,
    /// For the moments of elections.
    pub random: Random,
    /// Where the core and its disk work run.
    pub threads: Threads,
}

impl std::fmt::Debug for RaftOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftOptions({})", self.id)
    }
}

/// Standard Raft. A leader that was killed must be elected anew: it may lack entries that it had sent and others have
/// committed (`enable_leader_restore`). A follower never loses what it acknowledged (`allow_log_reversion`).
pub(super) fn config(timing: Timing) -> Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "flota".into(),
        // A heartbeat goes out at the first tick after this interval, which must not end just after a tick.
        heartbeat_interval: millis(timing.heartbeat * 7 / 8),
        election_timeout_min: millis(timing.election.0),
        election_timeout_max: millis(timing.election.1),
        max_payload_entries: 256,
        // By bytes: see the state machine.
        snapshot_policy: SnapshotPolicy::Never,
        // By bytes too: see the duties.
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(faults::is_on(Fault::LeaderRestore)),
        allow_log_reversion: Some(false),
        ..Config::default()
    }
}
