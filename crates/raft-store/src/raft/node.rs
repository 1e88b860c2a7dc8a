//! One manager's part in consensus: starting, proposing, the read barrier and leadership. Its background work is in
//! duties.rs; how a manager begins anew from its folder is in recovery.rs.

mod duties;
mod folder;
mod freshness;
mod group_commit;
mod options;
mod recovery;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{BasicNode, LinearizerOption, ReadPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::duties::Duties;
use self::folder::Folder;
use self::freshness::{Freshness, REQUEST_WAIT};
use self::group_commit::{GroupCommit, WriteEntry};
pub use self::options::{RaftOptions, Timing};
pub use self::recovery::{LogEnd, NewFolder, replay_folder, write_folder};
use super::Raft;
use super::digests::Digests;
use super::runtime::{self, Ticks};
use super::state_machine::Progress;
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

/// How long a proposal or a read waits for a quorum. It is below 5 s, so that a user gets an error within that time.
pub(super) const QUORUM_WAIT: Duration = Duration::from_secs(4);

/// Stack size of the core's own thread, in bytes.
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
    /// The term in which this holds.
    pub term: u64,
    /// Raft id of the leader; `None` if no leader is known.
    pub leader: Option<u64>,
    /// Whether the leader is this manager.
    pub is_self: bool,
}

/// A running manager's handle to consensus. It is cloned for each request.
#[derive(Clone)]
pub struct RaftNode {
    opened: Arc<Opened>,
    proposals: GroupCommit,
    /// Dropped last, because everything else runs on its runtime.
    core: Arc<Core>,
}

/// The parts that exist once the folder is open.
struct Opened {
    id: u64,
    raft: Raft,
    peers: Peers,
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

/// The runtime of the Raft core. It stops when the last handle is dropped.
struct Core {
    handle: tokio::runtime::Handle,
    /// Stops the core's own thread and everything that runs on it.
    end: CancellationToken,
    /// Stops the duties.
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
        // One thread runs all tasks. With a multi-thread scheduler, each wake costs one more system call.
        let ticks = Ticks::from_now(options.timing.tick());
        let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, ended) = (own.handle().clone(), end.clone());
        std::thread::Builder::new().name("raft".into()).stack_size(STACK).spawn(move || {
            runtime::seed_this_thread(random);
            ticks.apply_to_this_thread();
            own.block_on(ended.cancelled_owned());
            own.shutdown_background();
        })?;
        Ok(Self { handle, end, stop })
    }
}

impl RaftNode {
    /// Opens the folder and starts the core. With a new folder, the manager waits until it is initialised or added.
    ///
    /// # Errors
    /// The folder can't be opened, or is damaged.
    pub async fn start(options: RaftOptions) -> Result<Self, StartError> {
        let core = Core::start(&options).map_err(|error| StartError::Raft(error.to_string()))?;
        let core = Arc::new(core);
        // The library spawns its tasks on the runtime that starts it.
        let started = core.handle.spawn(Self::open(options));
        let (opened, duties) = started.await.map_err(|error| StartError::Raft(error.to_string()))??;
        core.handle.spawn(duties.run(core.stop.clone()));
        Ok(Self { opened: Arc::new(opened), proposals: GroupCommit::default(), core })
    }

    async fn open(options: RaftOptions) -> Result<(Opened, Duties), StartError> {
        let config = options::config(options.timing).validate().map_err(|error| StartError::Raft(error.to_string()))?;
        let digests = Digests::default();
        let Folder { log, machine } = Folder::open(&options, digests.clone()).await?;
        let RaftOptions { id, disk, sealer, transport, timing, clock, threads, .. } = options;
        let (progress, milestones) = (machine.progress(), machine.milestones());
        let peers = Peers::new(id, transport, threads);
        let raft = Raft::new(id, Arc::new(config), peers.clone(), log.clone(), machine).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;
        let leadership = duties::watch_leadership(&raft, peers.clone());
        let receiving = Arc::new(tokio::sync::Mutex::new(Receiving::new(Arc::clone(&disk), sealer)));
        let transport =
            TransportService { own_id: id, raft: raft.clone(), receiving, digests: digests.clone(), threads };
        let (asked, applied) = (peers.clone(), progress.clone());
        let freshness = Freshness::new(id, raft.clone(), asked, leadership.clone(), applied, clock.clone());
        let duties = Duties {
            id,
            raft: raft.clone(),
            peers: peers.clone(),
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
        let opened = Opened {
            id,
            raft,
            peers,
            log,
            transport,
            leadership,
            freshness,
            progress,
            digests,
            timing,
            clock,
            answers,
        };
        Ok((opened, duties))
    }

    /// This manager's Raft id.
    pub fn id(&self) -> u64 {
        self.opened.id
    }

    /// Creates a new cluster with this manager as its only member.
    ///
    /// # Errors
    /// The manager belongs to a cluster already, or Raft has stopped.
    pub async fn initialize(&self, address: &str) -> Result<(), StartError> {
        let members = BTreeMap::from([(self.opened.id, BasicNode::new(address))]);
        self.opened.raft.initialize(members).await.map_err(|error| StartError::Raft(error.to_string()))?;
        // The membership entry must be applied before the set of managers may change again.
        let wait = self.opened.raft.wait(Some(QUORUM_WAIT));
        let applied = wait.applied_index_at_least(Some(1), "the first entry").await;
        applied.map(|_| ()).map_err(|error| StartError::Raft(error.to_string()))
    }

    /// Whether the folder belonged to a cluster when it was opened.
    pub async fn is_initialized(&self) -> bool {
        self.opened.raft.is_initialized().await.unwrap_or(false)
    }

    /// Returns a receiver of the current leadership and of each change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.opened.leadership.clone()
    }

    /// The runtime of the core. The server of [`RaftNode::transport`] must run there.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.core.handle.clone()
    }

    /// Returns the service that receives messages from the other managers.
    pub fn transport(&self) -> TransportService {
        self.opened.transport.clone()
    }

    /// Index of the last applied entry, and the digest of the tables after it; `None` if that digest is not kept any
    /// more.
    pub fn applied(&self) -> (u64, Option<Digest>) {
        let applied = self.opened.progress.borrow().applied;
        (applied, self.opened.digests.at(applied))
    }

    /// Number of entries in the log that are not applied here: they came last, or this manager does not know yet whether
    /// they are committed.
    pub fn unapplied(&self) -> u64 {
        let last = self.opened.raft.metrics().borrow_watched().last_log_index.unwrap_or(0);
        last.saturating_sub(self.opened.progress.borrow().applied)
    }

    /// Digest of the tables after the entry at `index`; `None` if it is not kept any more, or the entry is not applied.
    #[cfg(feature = "faults")]
    pub fn digest_at(&self, index: u64) -> Option<Digest> {
        self.opened.digests.at(index)
    }

    /// Counts of what the log has written since it was opened.
    pub fn statistics(&self) -> LogStatistics {
        self.opened.log.statistics()
    }

    /// Time since this manager last knew that it had every committed entry; `None` if it has not known so since it
    /// started. It is never too small, because it counts from before the request to the leader.
    pub fn age(&self) -> Option<Duration> {
        self.opened.freshness.age()
    }

    /// Asks the leader for its commit index and waits until that entry is applied here, for at most 200 ms. If the
    /// leader is reachable, [`RaftNode::age`] is small afterwards.
    pub async fn freshen(&self) {
        self.opened.freshness.freshen(REQUEST_WAIT).await;
    }

    /// Time since a quorum last acknowledged this manager as the leader; `None` if it does not lead.
    pub fn quorum_age(&self) -> Option<Duration> {
        let acknowledged = self.opened.raft.metrics().borrow_watched().last_quorum_acked;
        acknowledged.filter(|_| self.opened.leadership.borrow().is_self).map(|at| at.elapsed())
    }

    /// How long a leader that no quorum answers continues to lead: ten heartbeats. The disks of two followers may stall
    /// for a second, and their answers with them. It is also less than the time after which a new leader gives up the
    /// workers that are still connected to a deposed one.
    pub fn patience(&self) -> Duration {
        self.opened.timing.heartbeat * 10
    }

    /// ReadIndex (Raft dissertation §6.4): afterwards, a view shows everything that was acknowledged before the call.
    /// Concurrent callers share a round.
    ///
    /// # Errors
    /// This manager does not lead, or no quorum answered within four heartbeats.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        if faults::is_on(Fault::EarlyRead) && self.opened.leadership.borrow().is_self {
            return Ok(());
        }
        self.opened.renew_lease().await
    }

    /// Stops the core and waits up to 4 s for it. Afterwards, this manager neither proposes nor answers.
    pub async fn shutdown(&self) {
        self.core.stop.cancel();
        let raft = self.opened.raft.clone();
        // It runs on the core's own runtime, which ends with the last handle.
        let stopped = self.core.handle.spawn(async move { drop(raft.shutdown().await) });
        let _ = tokio::time::timeout(QUORUM_WAIT, stopped).await;
    }

    /// The other managers.
    pub(super) fn peers(&self) -> &Peers {
        &self.opened.peers
    }

    /// The library's handle.
    pub(super) fn raft(&self) -> &Raft {
        &self.opened.raft
    }
}

impl Opened {
    async fn write(&self, entry: Entry, within: Duration) -> Result<Vec<Outcome>, ProposeError> {
        let actions = entry.transactions.iter().map(|it| it.actions.len()).max().unwrap_or(0);
        let bytes = entry.encode();
        if actions > ACTIONS_BOUND || bytes.len() > ENTRY_BOUND {
            return Err(ProposeError::TooLarge { actions, bytes: bytes.len() });
        }
        let written = self.write_with_lease(EntryBytes(bytes.into()));
        tokio::time::timeout(within, written).await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Writes an entry. The library takes none while the last answer of a quorum is older than the lease, as it is between
    /// two heartbeats on a slow link; then a new answer is waited for.
    async fn write_with_lease(&self, entry: EntryBytes) -> Result<Vec<Outcome>, ProposeError> {
        loop {
            match self.raft.client_write(entry.clone()).await {
                Ok(response) => return Ok(response.data.0),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => match to.reason {
                    // Nothing was written yet.
                    ForwardReason::LeaseExpired => self.renew_lease().await.map_err(|_| ProposeError::NotLeader)?,
                    _ => return Err(self.not_leader(&to)),
                },
                Err(_) => return Err(ProposeError::Unknown),
            }
        }
    }

    /// Asks a quorum whether this manager leads. The library waits just as long as a lease, which is too short for a slow
    /// link that loses a packet.
    async fn renew_lease(&self) -> Result<(), ProposeError> {
        let wait = self.timing.heartbeat * 4;
        let read = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(wait);
        let read = self.raft.ensure_linearizable(read);
        match tokio::time::timeout(QUORUM_WAIT, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => Err(self.not_leader(&to)),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// The library returns the same error, with this manager as the leader, if the leader has lost its quorum.
    fn not_leader(&self, to: &ForwardToLeader<TypeConfig>) -> ProposeError {
        if to.leader_id == Some(self.id) { ProposeError::Unknown } else { ProposeError::NotLeader }
    }
}

/// What writes groups. It does not keep the core's runtime, on which they are written.
#[derive(Clone)]
struct Log {
    opened: Arc<Opened>,
    runtime: tokio::runtime::Handle,
}

impl WriteEntry for Log {
    async fn write(&self, transactions: Vec<Transaction>, within: Duration) -> Result<Vec<Outcome>, ProposeError> {
        let now = tokio::time::Instant::now();
        let forget_answers = {
            let progress = *self.opened.progress.borrow();
            let mut answers = self.opened.answers.lock().expect("no holder panics");
            answers.observe(now, progress.applied);
            answers.expired_next(now, progress.oldest_answer)
        };
        let at = self.opened.clock.now();
        self.opened.write(Entry { at, transactions, forget_answers, ..Entry::default() }, within).await
    }

    fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone()
    }
}

impl Proposer for RaftNode {
    fn propose_entry(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Result<Vec<Outcome>, ProposeError>> {
        let log = Log { opened: Arc::clone(&self.opened), runtime: self.core.handle.clone() };
        Box::pin(async move { self.proposals.commit(&log, transactions).await })
    }
}
