//! One manager's part in consensus: start, propose and wait, read barrier, leadership.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{BasicNode, Config, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;

use super::state_machine::StateMachine;
use super::storage::{LogStore, OpenError};
use super::transport::{Connections, Dial, Heard, TransportService};
use super::type_config::{EntryBytes, Raft, TypeConfig};
use crate::proposer::{ProposeError, Proposer};
use crate::store::Store;
use crate::transaction::{Entry, Outcome, Transaction};
use crate::{ACTIONS_BOUND, raft::ENTRY_BOUND};
use flota_api::seal::Sealer;
use flota_api::version::Timestamp;

/// A proposal or a read that got no quorum is given up after this, so that a user hears of it within 5 s.
pub(super) const QUORUM_WAIT: Duration = Duration::from_secs(4);
/// Entries between two snapshots, and kept behind one for followers that are a little late.
const ENTRIES_BETWEEN_SNAPSHOTS: u64 = 10_000;
const ENTRIES_KEPT: u64 = 1_000;

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

/// What a manager is started with.
pub struct RaftOptions {
    /// Its Raft id; never used by another manager.
    pub id: u64,
    /// Folder of log and snapshots.
    pub dir: PathBuf,
    /// Whether it has been a manager under this id before: then its log can't be empty.
    pub was_here: bool,
    /// Of everything in the folder.
    pub sealer: Sealer,
    /// To the other managers.
    pub dial: Arc<dyn Dial>,
    /// What committed entries change.
    pub store: Store,
    /// Heartbeats and elections.
    pub timing: Timing,
}

/// Why Raft could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The library refused its settings, or has stopped.
    #[error("failed to start Raft: {0}")]
    Raft(String),
}

/// Who leads, as this manager sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term that this is about.
    pub term: u64,
    /// Raft id of the leader; `None` while there is none.
    pub leader: Option<u64>,
    /// Whether that is this manager.
    pub is_self: bool,
}

/// A running manager's handle to consensus.
#[derive(Clone)]
pub struct RaftNode {
    pub(super) id: u64,
    pub(super) raft: Raft,
    leadership: watch::Receiver<Leadership>,
    heard: Heard,
    timing: Timing,
    runtime: Arc<Threads>,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftNode({})", self.id)
    }
}

/// The runtime of the Raft core: API load can't delay a heartbeat there.
struct Threads(Option<tokio::runtime::Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl RaftNode {
    /// Opens the folder and starts the core. A folder that was never used waits to be initialised or added.
    ///
    /// # Errors
    /// The folder can't be opened, or is damaged.
    pub async fn start(options: RaftOptions) -> Result<Self, StartError> {
        fn library(error: &dyn std::fmt::Display) -> StartError {
            StartError::Raft(error.to_string())
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("raft")
            .thread_stack_size(1 << 20)
            .enable_all()
            .build()
            .map_err(|error| library(&error))?;
        let config = Arc::new(config(options.timing).validate().map_err(|error| library(&error))?);
        let (id, timing) = (options.id, options.timing);
        let connections = Connections::new(id, options.dial);
        // A runtime must not be dropped where others wait: `Threads` lets it end by itself, also after an error.
        let handle = runtime.handle().clone();
        let threads = Threads(Some(runtime));
        let started = handle.spawn(async move {
            let log = LogStore::open(&options.dir, options.sealer.clone(), options.was_here)?;
            let machine = StateMachine::open(options.store, options.dir.clone(), options.sealer)?;
            let purged = log.purged().map_err(|error| library(&error))?;
            if purged > machine.applied_index() {
                let what = format!("entries up to {purged} stand only in a snapshot, which is gone");
                return Err(OpenError::Damaged { path: options.dir, what }.into());
            }
            let raft = Raft::new(id, config, connections.clone(), log, machine).await;
            let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;
            let leadership = watch_leadership(&raft, connections);
            Ok::<_, StartError>((raft, leadership))
        });
        let (raft, leadership) = started.await.map_err(|error| library(&error))??;
        Ok(Self { id, raft, leadership, heard: Heard::default(), timing, runtime: Arc::new(threads) })
    }

    /// This manager's Raft id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Makes this manager the first of a new cluster.
    ///
    /// # Errors
    /// It belongs to one already, or Raft has stopped.
    pub async fn initialize(&self, address: &str) -> Result<(), StartError> {
        let members = BTreeMap::from([(self.id, BasicNode::new(address))]);
        self.raft.initialize(members).await.map_err(|error| StartError::Raft(error.to_string()))?;
        // The membership entry must be applied before the set may change again.
        let wait = self.raft.wait(Some(QUORUM_WAIT));
        let applied = wait.applied_index_at_least(Some(1), "the first entry").await;
        applied.map(|_| ()).map_err(|error| StartError::Raft(error.to_string()))
    }

    /// Whether the folder belonged to a cluster when it was opened.
    pub async fn is_initialized(&self) -> bool {
        self.raft.is_initialized().await.unwrap_or(false)
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// The core's own threads: what serves [`RaftNode::transport`] belongs there.
    ///
    /// # Panics
    /// Never: the runtime lives as long as its node.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.0.as_ref().expect("it is taken by the last drop alone").handle().clone()
    }

    /// What serves the other managers' messages.
    pub fn transport(&self) -> TransportService {
        TransportService { own_id: self.id, raft: self.raft.clone(), heard: self.heard.clone() }
    }

    /// How old what this manager knows may be: since a quorum last acknowledged it as the leader, or since it last
    /// heard from one.
    pub fn age(&self) -> Duration {
        let acknowledged = self.raft.metrics().borrow_watched().last_quorum_acked;
        match acknowledged {
            Some(at) if self.leadership.borrow().is_self => at.elapsed(),
            _ => self.heard.age(),
        }
    }

    /// How long a leader that hears of no quorum still counts as one: long enough for the others to choose another.
    pub fn patience(&self) -> Duration {
        self.timing.election.1 * 2
    }

    /// ReadIndex (Raft dissertation §6.4): after it, a view shows everything that was acknowledged before the call.
    /// Callers that wait at once share a round.
    ///
    /// # Errors
    /// This manager does not lead, or no quorum answered in time.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        let read = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(QUORUM_WAIT, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => Err(self.not_leader(&to)),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// A leader whose quorum has gone silent is refused too, by the library, in the same words.
    fn not_leader(&self, to: &ForwardToLeader<TypeConfig>) -> ProposeError {
        if to.leader_id == Some(self.id) { ProposeError::Unknown } else { ProposeError::NotLeader }
    }

    /// Hands leadership to another voter; returns at once.
    pub async fn hand_over(&self, to: u64) {
        // A core that has stopped leads no more, which is what was wanted.
        let _ = self.raft.trigger().transfer_leader(to).await;
    }

    /// Stops the core. Nothing is proposed or answered after it.
    pub async fn shutdown(&self) {
        let raft = self.raft.clone();
        // On the core's own runtime; it ends with the last handle.
        if let Some(runtime) = &self.runtime.0 {
            let stopped = runtime.spawn(async move { drop(raft.shutdown().await) });
            let _ = tokio::time::timeout(QUORUM_WAIT, stopped).await;
        }
    }
}

impl Proposer for RaftNode {
    fn propose_entry(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Result<Vec<Outcome>, ProposeError>> {
        Box::pin(async move {
            let actions = transactions.iter().map(|it| it.actions.len()).max().unwrap_or(0);
            let bytes =
                Entry { at: Timestamp::from_system(SystemTime::now()), transactions, ..Entry::default() }.encode();
            if actions > ACTIONS_BOUND || bytes.len() > ENTRY_BOUND {
                return Err(ProposeError::TooLarge { actions, bytes: bytes.len() });
            }
            match tokio::time::timeout(QUORUM_WAIT, self.raft.client_write(EntryBytes(bytes))).await {
                Ok(Ok(response)) => Ok(response.data.0),
                Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => Err(self.not_leader(&to)),
                Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
            }
        })
    }
}

fn config(timing: Timing) -> Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "flota".into(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election.0),
        election_timeout_max: millis(timing.election.1),
        install_snapshot_timeout: 30_000,
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_BETWEEN_SNAPSHOTS),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        enable_pre_vote: Some(true),
        // A follower that lost its log is refused by its own checks; a leader that panics over it would be worse.
        allow_log_reversion: Some(true),
        ..Config::default()
    }
}

/// Follows the core's own view of who leads; also keeps the peers' addresses as the membership says.
fn watch_leadership(raft: &Raft, connections: Connections) -> watch::Receiver<Leadership> {
    let mut metrics = raft.server_metrics();
    let read = move |metrics: &openraft::metrics::RaftServerMetrics<TypeConfig>| {
        for (id, node) in metrics.membership_config.membership().nodes() {
            connections.set_address(*id, &node.addr);
        }
        let is_self = metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
        let leader = metrics.current_leader.filter(|id| is_self || *id != metrics.id);
        Leadership { term: metrics.vote.leader_id.term, leader, is_self }
    };
    let (sender, receiver) = watch::channel(read(&metrics.borrow_watched()));
    tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let now = read(&metrics.borrow_watched());
            sender.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
        }
        sender.send_replace(Leadership::default());
    });
    receiver
}
