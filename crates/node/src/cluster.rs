//! A running membership: the listener, the worker, and on managers the manager. They start and stop together.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::{Clock, Random};
use flota_api::model::Role;
use flota_api::version::Timestamp;
use flota_identity::{Credentials, Dialer, Identity};
use flota_manager::{Manager, ManagerOptions, RaftDial, TermClock};
use flota_raft_store::Store;
use flota_raft_store::raft::{
    DirDisk, GrpcTransport, LogBounds, OpenError, RaftNode, RaftOptions, StartError, Threads,
};
use flota_worker::{Worker, WorkerOptions};

use crate::config::Config;
use crate::registries::NodeRegistries;
use crate::renewal::Renewals;
use crate::rpc::ManagerState;
use crate::scheduled_backups::{self, BackupAge};
use crate::state_dir::StateDir;
use crate::{autolock, join, port};

/// Joining fails if a new manager is not a voter within this time.
const VOTER_WAIT: Duration = Duration::from_secs(30);

/// A running membership in a cluster.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The identity with which it was started. Its certificate may have been renewed since.
    pub(crate) identity: Identity,
    credentials: Credentials,
    pub(crate) dialer: Dialer,
    pub(crate) address: String,
    pub(crate) worker: Arc<Worker>,
    /// Cancelled when another manager says that the cluster has removed this one.
    pub(crate) removed: CancellationToken,
    /// What is known of the backups that it writes.
    backups: BackupAge,
    /// What the leader says that the node is to trust.
    trusts: watch::Receiver<Option<String>>,
    serving: Serving,
    /// Ends everything.
    shutdown: CancellationToken,
}

/// What the node serves in its role. It is replaced when the role changes, while the worker goes on.
#[derive(Debug)]
struct Serving {
    manager: Option<Manager>,
    /// Ends the manager and the port.
    shutdown: CancellationToken,
    port: tokio::task::JoinHandle<()>,
}

impl Serving {
    /// Ends the manager and closes the port.
    async fn end(&mut self) {
        self.shutdown.cancel();
        if let Some(manager) = self.manager.take() {
            manager.raft().shutdown().await;
        }
        // Streams may stay open for ever, so the server does not end by itself.
        self.port.abort();
        let _ = (&mut self.port).await;
    }
}

/// Where a manager's store comes from.
pub(crate) enum Begin {
    /// A new cluster, with this transaction as its first entry.
    New(Box<flota_raft_store::Transaction>),
    /// The disk, or, for a new manager, the other managers, whose addresses these are.
    Follow(Vec<String>),
    /// As `Follow`, but the manager is started later ([`Membership::begin_managing`]): it has no Raft id yet, and the node may
    /// learn first that it is to be no manager.
    Later(Vec<String>),
}

/// The parts that init, join and resume need.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) state: &'a StateDir,
    pub(crate) identity: Identity,
    pub(crate) address: String,
    /// Cancelled when the Raft core stops by itself, so that the daemon must restart.
    pub(crate) fatal: CancellationToken,
}

/// Erases what only managers have. Does nothing if nothing is left.
///
/// # Errors
/// The files can't be removed.
pub(crate) fn erase_store(state: &StateDir) -> anyhow::Result<()> {
    // A worker does not know the unlock key.
    let erased = state.forget_store().and_then(|()| state.keys().protect(None, || true).map(drop));
    erased.context("failed to erase the store")
}

impl Membership {
    /// Starts listener, manager and worker.
    pub(crate) async fn start(parts: Parts<'_>, store: Begin) -> anyhow::Result<Self> {
        let Parts { config, state, identity, address, fatal } = parts;
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        let serving_ends = shutdown.child_token();
        let credentials = Credentials::new(identity.clone(), Clock::system());
        let credentials = credentials.context("failed to use the node's certificate")?;
        let dialer = Dialer::new(credentials.clone());
        let listener = port::bind(config.listen).await?;
        let known = match &store {
            Begin::New(_) => vec![address.clone()],
            Begin::Follow(managers) | Begin::Later(managers) => managers.clone(),
        };
        let removed = CancellationToken::new();
        let ran_before = matches!(store, Begin::Follow(_)) && state.read("raft-id").is_some();
        let manager = match (identity.role, store) {
            (Role::Manager, Begin::Later(_)) | (Role::Worker, _) => None,
            // It must not form the cluster as it was with others that were removed, so its worker says farewell alone.
            (Role::Manager, _) if ran_before && join::was_removed(&dialer, &known, &address).await => {
                tracing::warn!("the cluster has removed this manager");
                removed.cancel();
                None
            }
            (Role::Manager, store) => {
                let raft = RaftParts { config, state, dialer: &dialer, removed: &removed, store: Store::default() };
                Some(start_manager(raft, &identity, &address, store, (&serving_ends, fatal)).await?)
            }
        };
        let (told, trusts) = watch::channel(None);
        let worker = Worker::start(
            WorkerOptions {
                identity: identity.clone(),
                dialer: dialer.clone(),
                data_dir: state.worker(),
                run_dir: config.run_dir.clone(),
                sealer: state.sealer()?,
                runtime: config.runtime.clone(),
                managers: known,
                address: address.clone(),
                offers: config.offers.clone(),
                registries: config.registries.clone(),
                trusts: told,
                clock: flota_api::clock::Clock::system(),
                random: flota_api::clock::Random::from_os(),
            },
            shutdown.clone(),
        )?;
        if manager.is_some() {
            // It may be at another address than the managers know, and may lead.
            worker.also_try(std::slice::from_ref(&address));
        }
        let port = port::serve(listener, &credentials, manager.as_ref(), &worker, serving_ends.clone());
        guard.disarm();
        let serving = Serving { manager, shutdown: serving_ends, port };
        Ok(Self {
            identity,
            credentials,
            dialer,
            address,
            worker: Arc::new(worker),
            removed,
            backups: BackupAge::default(),
            trusts,
            serving,
            shutdown,
        })
    }

    /// Returns this node's manager, if it has one.
    pub(crate) fn manager(&self) -> Option<&Manager> {
        self.serving.manager.as_ref()
    }

    /// Returns the role in which this node works.
    pub(crate) fn role(&self) -> Role {
        if self.serving.manager.is_some() { Role::Manager } else { Role::Worker }
    }

    /// Returns when the node's certificate expires.
    pub(crate) fn certificate_expires_at(&self) -> Timestamp {
        self.credentials.identity().validity.expires_at
    }

    /// Returns the role that the node's certificate gives it.
    pub(crate) fn certified_role(&self) -> Role {
        self.credentials.identity().role
    }

    /// Starts this node's manager, which the others then bring up to date, while its containers run on.
    ///
    /// # Errors
    /// No manager gives it a Raft id, or its store can't be opened. Nothing has changed then. If the port can't be opened
    /// again, `fatal` is cancelled.
    pub(crate) async fn begin_managing(
        &mut self,
        config: &Config,
        state: &StateDir,
        fatal: &CancellationToken,
    ) -> anyhow::Result<()> {
        let shutdown = self.shutdown.child_token();
        let guard = shutdown.clone().drop_guard();
        let (identity, store) = (self.credentials.identity(), Begin::Follow(state.known_managers()));
        let tokens = (&shutdown, fatal.clone());
        let raft = RaftParts { config, state, dialer: &self.dialer, removed: &self.removed, store: Store::default() };
        let manager = start_manager(raft, &identity, &self.address, store, tokens).await?;
        self.serving.end().await;
        guard.disarm();
        self.serve(config, Some(manager), shutdown, fatal).await
    }

    /// Stops this node's manager and erases what only managers have, while its containers run on.
    ///
    /// # Errors
    /// The files can't be removed. If the port can't be opened again, `fatal` is cancelled.
    pub(crate) async fn end_managing(
        &mut self,
        config: &Config,
        state: &StateDir,
        fatal: &CancellationToken,
    ) -> anyhow::Result<()> {
        self.serving.end().await;
        let erased = erase_store(state);
        self.serve(config, None, self.shutdown.child_token(), fatal).await?;
        erased
    }

    /// Stops the manager and closes the port. The worker and its containers go on.
    pub(crate) async fn stop_manager(&mut self) {
        self.serving.end().await;
    }

    /// Starts the manager and opens the port again after [`Membership::stop_manager`], with what is on disk.
    ///
    /// # Errors
    /// The port is taken, or the manager can't start.
    pub(crate) async fn start_manager(
        &mut self,
        config: &Config,
        state: &StateDir,
        fatal: &CancellationToken,
    ) -> anyhow::Result<()> {
        let shutdown = self.shutdown.child_token();
        let raft = RaftParts { config, state, dialer: &self.dialer, removed: &self.removed, store: Store::default() };
        let (identity, begin) = (self.credentials.identity(), Begin::Follow(vec![self.address.clone()]));
        let manager = start_manager(raft, &identity, &self.address, begin, (&shutdown, fatal.clone())).await?;
        self.serve(config, Some(manager), shutdown, fatal).await
    }

    /// Waits until this manager leads and has started its work.
    ///
    /// # Errors
    /// It does not lead within 30 s.
    pub(crate) async fn wait_until_leader(&self) -> anyhow::Result<()> {
        let Some(manager) = self.manager() else { return Ok(()) };
        let leads = async {
            while !manager.leads() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let result = tokio::time::timeout(VOTER_WAIT, leads).await;
        result.map_err(|_| anyhow!("this manager does not lead within {VOTER_WAIT:?}"))
    }

    /// Opens the port again for the node's new role.
    async fn serve(
        &mut self,
        config: &Config,
        manager: Option<Manager>,
        shutdown: CancellationToken,
        fatal: &CancellationToken,
    ) -> anyhow::Result<()> {
        let listener = match port::bind_again(config.listen).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the node can't be reached any more: its daemon stops");
                fatal.cancel();
                return Err(error);
            }
        };
        let port = port::serve(listener, &self.credentials, manager.as_ref(), &self.worker, shutdown.clone());
        self.serving = Serving { manager, shutdown, port };
        Ok(())
    }

    /// Begins to renew the node's certificate. Its identity must be on disk.
    /// Returns the role in the certificate, and each change of it.
    pub(crate) fn begin_renewals(
        &self,
        state: &StateDir,
        manager: watch::Receiver<ManagerState>,
    ) -> watch::Receiver<Role> {
        let (certified, role) = watch::channel(self.certified_role());
        let renewals = Renewals {
            credentials: self.credentials.clone(),
            keys: state.keys().clone(),
            managers: state.managers_file(),
            manager,
            wanted: self.worker.role(),
            certified,
            told: self.trusts.clone(),
            random: Random::from_os(),
        };
        tokio::spawn(renewals.run(self.shutdown.clone()));
        role
    }

    /// Begins to write backups, if the node is a manager and its settings say so.
    pub(crate) fn begin_backups(&self, config: &Config) {
        if let (Some(schedule), Some(manager)) = (&config.backup, self.manager()) {
            let (schedule, node) = (schedule.clone(), self.identity.node_id.to_string());
            let (backups, ends) = (self.backups.clone(), self.serving.shutdown.clone());
            backups.begin();
            tokio::spawn(scheduled_backups::run(schedule, manager.clone(), node, backups, ends));
        }
    }

    /// Returns when the newest backup was written that this manager knows of, or 1970 if it knows of none; `None` if it writes
    /// none.
    pub(crate) fn newest_backup(&self) -> Option<Timestamp> {
        self.manager().and_then(|_| self.backups.newest())
    }

    /// Begins to seal the keys of this manager as the cluster wants it.
    pub(crate) fn begin_autolock(&self, state: &StateDir) {
        if let Some(manager) = self.manager() {
            let ends = self.serving.shutdown.clone();
            tokio::spawn(autolock::follow(manager.clone(), state.keys().clone(), ends));
        }
    }

    /// Waits until this manager is a voter. Returns immediately on a worker.
    ///
    /// # Errors
    /// It is not a voter within 30 s.
    pub(crate) async fn wait_until_voter(&self) -> anyhow::Result<()> {
        let Some(manager) = self.manager() else { return Ok(()) };
        let mut leadership = manager.raft().leadership();
        let own = manager.raft().id();
        let votes = async {
            while !manager.raft().members().iter().any(|member| member.id == own && member.votes) {
                tokio::select! {
                    _ = leadership.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
        };
        let result = tokio::time::timeout(VOTER_WAIT, votes).await;
        result.map_err(|_| {
            anyhow!(
                "the other managers did not accept this one within {VOTER_WAIT:?}; is {} reachable from them?",
                self.address
            )
        })
    }

    /// Stops everything but the containers. A leader hands over leadership first.
    pub(crate) async fn stop(mut self) {
        if let Some(manager) = self.manager()
            && manager.leadership().is_self
            // With a handover the next leader serves sooner than after an election.
            && manager.raft().hand_over(|_| true).await.is_some()
        {
            let mut leadership = manager.raft().leadership();
            let _ = tokio::time::timeout(Duration::from_millis(500), leadership.wait_for(|it| !it.is_self)).await;
        }
        self.worker.stop().await;
        self.shutdown.cancel();
        self.serving.end().await;
    }
}

/// What Raft needs on this node, whatever its Raft id is.
pub(crate) struct RaftParts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) state: &'a StateDir,
    pub(crate) dialer: &'a Dialer,
    /// Cancelled when another manager says that the cluster has removed this one.
    pub(crate) removed: &'a CancellationToken,
    pub(crate) store: Store,
}

impl RaftParts<'_> {
    /// Returns the options with which Raft starts under this id. They open the folder anew each time, because a damaged one
    /// is replaced in between.
    pub(crate) fn options(&self, id: u64, was_here: bool, clock: &TermClock) -> anyhow::Result<RaftOptions> {
        // Before there is a folder, so that a new one gets a key of its own.
        let sealer = self.state.store_sealer()?;
        let disk = DirDisk::open(&self.state.raft());
        let place = || format!("failed to open the Raft log in `{}`", self.state.raft().display());
        let dial = Arc::new(RaftDial(self.dialer.clone()));
        Ok(RaftOptions {
            id,
            was_here,
            disk: Arc::new(disk.with_context(place)?),
            sealer,
            transport: Arc::new(GrpcTransport::new(dial, self.removed.clone())),
            store: self.store.clone(),
            timing: self.config.timing(),
            bounds: LogBounds::default(),
            clock: clock.as_clock(),
            random: Random::from_os(),
            threads: Threads::Own,
        })
    }
}

/// Starts Raft and the manager.
async fn start_manager(
    parts: RaftParts<'_>,
    identity: &Identity,
    address: &str,
    begin: Begin,
    (shutdown, fatal): (&CancellationToken, CancellationToken),
) -> anyhow::Result<Manager> {
    let RaftParts { config, state, dialer, .. } = parts;
    // One clock for Raft and the planners: if the wall clock steps, entries must not get times that planners see as the
    // future.
    let clock = TermClock::new(Clock::system());
    let start = async |id, was_here| -> anyhow::Result<Result<RaftNode, StartError>> {
        Ok(RaftNode::start(parts.options(id, was_here, &clock)?).await)
    };
    let raft = match begin {
        Begin::New(first) => {
            let raft = start(1, false).await??;
            raft.initialize(address).await?;
            flota_raft_store::Proposer::propose(&raft, *first)
                .await
                .context("failed to write the cluster's first entry")?;
            state.write("raft-id", "1")?;
            raft
        }
        Begin::Follow(managers) | Begin::Later(managers) => {
            let new_id = async || new_raft_id(state, dialer, identity, address, &managers).await;
            match state.read("raft-id").and_then(|text| text.parse().ok()) {
                // It is new, or has lost its id, and then its log may lack what it had acknowledged.
                None => start(new_id().await?, false).await??,
                Some(id) => match start(id, true).await? {
                    Err(StartError::Open(error @ OpenError::Damaged { .. })) => {
                        tracing::error!(%error, "the Raft log is damaged; requesting a new Raft id to begin with an empty log");
                        let id = new_id().await;
                        let advice = "this manager needs a new Raft id, and a majority of managers with intact logs to give it: \
                            start the others; without such a majority, begin anew from another manager with \
                            `ctl swarm init --force-new-cluster`, or from a backup with `ctl swarm restore`";
                        start(id.with_context(|| format!("{error}; {advice}"))?, false).await??
                    }
                    other => other?,
                },
            }
        }
    };
    let registries = Arc::new(NodeRegistries(config.registries.clone()));
    let (dialer, random, store) = (dialer.clone(), Random::from_os(), parts.store.clone());
    let options = ManagerOptions { store, raft, dialer, clock, random, registries, threads: Threads::Own };
    Ok(Manager::start(options, shutdown.clone(), fatal))
}

/// Gets a new Raft id from the other managers, and puts aside the log of an earlier one. Acknowledged entries may be
/// missing there, so the manager must not vote under the id that acknowledged them.
async fn new_raft_id(
    state: &StateDir,
    dialer: &Dialer,
    identity: &Identity,
    address: &str,
    managers: &[String],
) -> anyhow::Result<u64> {
    let id = join::raft_id(dialer, &identity.node_id, managers, address).await?;
    if let Some(aside) = state.put_raft_aside()? {
        tracing::warn!(path = %aside.display(), "moved the Raft log of an earlier id aside");
    }
    state.write("raft-id", &id.to_string())?;
    Ok(id)
}
