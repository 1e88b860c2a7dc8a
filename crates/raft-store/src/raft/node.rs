//! One manager's part in consensus: start, propose and wait, read barrier, leadership. What it does by itself beside
//! that is in duties.rs.

mod duties;
mod freshness;
mod options;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{BasicNode, ReadPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::duties::Duties;
use self::freshness::Freshness;
pub use self::options::{RaftOptions, Timing};
use super::Raft;
use super::digests::Digests;
use super::runtime;
use super::state_machine::{Progress, StateMachine};
use super::storage::{LogStatistics, LogStore, OpenError};
use super::threads::Threads;
use super::transport::{Peers, Receiving, TransportService};
use super::type_config::{EntryBytes, TypeConfig};
use crate::AnswerAges;
use crate::digest::Digest;
use crate::faults::{self, Fault};
use crate::proposer::{ProposeError, Proposer};
use crate::transaction::{Entry, Outcome, Transaction};
use crate::{ACTIONS_BOUND, raft::ENTRY_BOUND};
use flota_api::clock::Clock;

/// A proposal or a read that got no quorum is given up after this, so that a user hears of it within 5 s.
pub(super) const QUORUM_WAIT: Duration = Duration::from_secs(4);

/// Of the core's own thread.
const STACK: usize = 1 << 20;

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
    opened: Opened,
    /// The last thing to go: the runtime on which all the others work.
    core: Arc<Core>,
}

/// What works together once the folder is open.
#[derive(Clone)]
struct Opened {
    id: u64,
    raft: Raft,
    log: LogStore,
    transport: TransportService,
    leadership: watch::Receiver<Leadership>,
    freshness: Freshness,
    progress: watch::Receiver<Progress>,
    digests: Digests,
    timing: Timing,
    clock: Clock,
    answers: Arc<Mutex<AnswerAges>>,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftNode({})", self.opened.id)
    }
}

/// Where the Raft core runs; ends with the last handle.
struct Core {
    handle: tokio::runtime::Handle,
    /// Ends the core's own thread, with all that runs there.
    end: CancellationToken,
    /// Ends the duties.
    stop: CancellationToken,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Core {
    fn start(options: &RaftOptions) -> std::io::Result<Self> {
        let random = options.random.clone();
        let end = CancellationToken::new();
        let stop = end.child_token();
        if options.threads == Threads::Current {
            runtime::seed_this_thread(random);
            return Ok(Self { handle: tokio::runtime::Handle::current(), end, stop });
        }
        // One thread that runs its tasks itself: with a scheduler for many, each wake costs a system call more.
        let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, ended, tick) = (own.handle().clone(), end.clone(), options.timing.tick());
        std::thread::Builder::new().name("raft".into()).stack_size(STACK).spawn(move || {
            runtime::seed_this_thread(random);
            runtime::tick_this_thread(tick);
            own.block_on(ended.cancelled_owned());
            own.shutdown_background();
        })?;
        Ok(Self { handle, end, stop })
    }
}

impl RaftNode {
    /// Opens the folder and starts the core. A folder that was never used waits to be initialised or added.
    ///
    /// # Errors
    /// The folder can't be opened, or is damaged.
    pub async fn start(options: RaftOptions) -> Result<Self, StartError> {
        let core = Core::start(&options).map_err(|error| StartError::Raft(error.to_string()))?;
        let core = Arc::new(core);
        // The library spawns its tasks where it is started.
        let started = core.handle.spawn(Self::open(options));
        let (opened, duties) = started.await.map_err(|error| StartError::Raft(error.to_string()))??;
        core.handle.spawn(duties.run(core.stop.clone()));
        Ok(Self { opened, core })
    }

    async fn open(options: RaftOptions) -> Result<(Opened, Duties), StartError> {
        let RaftOptions { id, disk, was_here, sealer, transport, store, timing, clock, threads, .. } = options;
        let config = options::config(timing).validate().map_err(|error| StartError::Raft(error.to_string()))?;
        duties::check_mark(disk.as_ref())?;
        let log = LogStore::open(Arc::clone(&disk), sealer.clone(), was_here, threads)?;
        let digests = Digests::default();
        let machine = StateMachine::open(store.clone(), Arc::clone(&disk), sealer.clone(), threads, digests.clone())?;
        if log.purged() > machine.applied_index() {
            let last = log.purged().unwrap_or_default();
            let what = format!("entries up to {last} stand only in a snapshot, which is gone");
            return Err(OpenError::Damaged { place: disk.place(), what }.into());
        }
        let (progress, milestones) = (machine.progress(), machine.milestones());
        let peers = Peers::new(id, transport, threads);
        let raft = Raft::new(id, Arc::new(config), peers.clone(), log.clone(), machine).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;
        let leadership = duties::watch_leadership(&raft, peers.clone());
        let receiving = Arc::new(tokio::sync::Mutex::new(Receiving::new(Arc::clone(&disk), sealer)));
        let transport =
            TransportService { own_id: id, raft: raft.clone(), receiving, digests: digests.clone(), threads };
        let freshness = Freshness::new(id, raft.clone(), peers.clone(), leadership.clone(), progress.clone());
        let duties = Duties {
            id,
            raft: raft.clone(),
            peers,
            disk,
            leadership: leadership.clone(),
            progress: progress.clone(),
            milestones,
            digests: digests.clone(),
            log: log.clone(),
            freshness: freshness.clone(),
            clock: clock.clone(),
        };
        let answers = Arc::default();
        let opened =
            Opened { id, raft, log, transport, leadership, freshness, progress, digests, timing, clock, answers };
        Ok((opened, duties))
    }

    /// This manager's Raft id.
    pub fn id(&self) -> u64 {
        self.opened.id
    }

    /// Makes this manager the first of a new cluster.
    ///
    /// # Errors
    /// It belongs to one already, or Raft has stopped.
    pub async fn initialize(&self, address: &str) -> Result<(), StartError> {
        let members = BTreeMap::from([(self.opened.id, BasicNode::new(address))]);
        self.opened.raft.initialize(members).await.map_err(|error| StartError::Raft(error.to_string()))?;
        // The membership entry must be applied before the set may change again.
        let wait = self.opened.raft.wait(Some(QUORUM_WAIT));
        let applied = wait.applied_index_at_least(Some(1), "the first entry").await;
        applied.map(|_| ()).map_err(|error| StartError::Raft(error.to_string()))
    }

    /// Whether the folder belonged to a cluster when it was opened.
    pub async fn is_initialized(&self) -> bool {
        self.opened.raft.is_initialized().await.unwrap_or(false)
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.opened.leadership.clone()
    }

    /// Where the core runs: what serves [`RaftNode::transport`] belongs there.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.core.handle.clone()
    }

    /// What serves the other managers' messages.
    pub fn transport(&self) -> TransportService {
        self.opened.transport.clone()
    }

    /// Index of the last entry in the store, and what the tables digest to after it.
    pub fn applied(&self) -> (u64, Option<Digest>) {
        let applied = self.opened.progress.borrow().applied;
        (applied, self.opened.digests.at(applied))
    }

    /// What the log has written since it was opened.
    pub fn statistics(&self) -> LogStatistics {
        self.opened.log.statistics()
    }

    /// How long ago this manager last knew that it had everything that was committed; `None`: never since it started.
    /// Never too small: it counts from before the question that was answered.
    pub fn age(&self) -> Option<Duration> {
        self.opened.freshness.age()
    }

    /// Asks the leader for its commit index and waits until it is applied here, for a moment at most: with a leader in
    /// reach, [`RaftNode::age`] is small afterwards.
    pub async fn freshen(&self) {
        self.opened.freshness.freshen().await;
    }

    /// How long ago a quorum last acknowledged this manager as the leader; `None` where it does not lead.
    pub fn quorum_age(&self) -> Option<Duration> {
        let acknowledged = self.opened.raft.metrics().borrow_watched().last_quorum_acked;
        acknowledged.filter(|_| self.opened.leadership.borrow().is_self).map(|at| at.elapsed())
    }

    /// How long a leader that hears of no quorum still counts as one: long enough for the others to choose another.
    pub fn patience(&self) -> Duration {
        self.opened.timing.election.1 * 2
    }

    /// ReadIndex (Raft dissertation §6.4): after it, a view shows everything that was acknowledged before the call.
    /// Callers that wait at once share a round.
    ///
    /// # Errors
    /// This manager does not lead, or no quorum answered in time.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        if faults::is_on(Fault::EarlyRead) && self.opened.leadership.borrow().is_self {
            return Ok(());
        }
        let read = self.opened.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(QUORUM_WAIT, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => Err(self.not_leader(&to)),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// A leader whose quorum has gone silent is refused too, by the library, in the same words.
    fn not_leader(&self, to: &ForwardToLeader<TypeConfig>) -> ProposeError {
        if to.leader_id == Some(self.opened.id) { ProposeError::Unknown } else { ProposeError::NotLeader }
    }

    /// Hands leadership to another voter; returns at once.
    pub async fn hand_over(&self, to: u64) {
        // A core that has stopped leads no more, which is what was wanted.
        let _ = self.opened.raft.trigger().transfer_leader(to).await;
    }

    /// Stops the core. Nothing is proposed or answered after it.
    pub async fn shutdown(&self) {
        self.core.stop.cancel();
        let raft = self.opened.raft.clone();
        // On the core's own runtime; it ends with the last handle.
        let stopped = self.core.handle.spawn(async move { drop(raft.shutdown().await) });
        let _ = tokio::time::timeout(QUORUM_WAIT, stopped).await;
    }

    /// The library's handle.
    pub(super) fn raft(&self) -> &Raft {
        &self.opened.raft
    }

    async fn write(&self, entry: Entry) -> Result<Vec<Outcome>, ProposeError> {
        let actions = entry.transactions.iter().map(|it| it.actions.len()).max().unwrap_or(0);
        let bytes = entry.encode();
        if actions > ACTIONS_BOUND || bytes.len() > ENTRY_BOUND {
            return Err(ProposeError::TooLarge { actions, bytes: bytes.len() });
        }
        match tokio::time::timeout(QUORUM_WAIT, self.opened.raft.client_write(EntryBytes(bytes.into()))).await {
            Ok(Ok(response)) => Ok(response.data.0),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => Err(self.not_leader(&to)),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }
}

impl Proposer for RaftNode {
    fn propose_entry(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Result<Vec<Outcome>, ProposeError>> {
        let now = tokio::time::Instant::now();
        let forget_answers = {
            let mut answers = self.opened.answers.lock().expect("no holder panics");
            answers.observe(now, self.opened.progress.borrow().applied);
            answers.expired(now)
        };
        Box::pin(self.write(Entry { at: self.opened.clock.now(), transactions, forget_answers, ..Entry::default() }))
    }
}
