//! This node's membership in a cluster: init, join, resume after a start, leave. How a cluster begins anew is in
//! recovery.rs.

mod new_address;
mod reconnect;
mod recovery;
mod unlock;

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use flota_api::clock::Clock;
use flota_api::defaults::CERTIFICATE_LIFE;
use flota_api::id::NodeId;
use flota_api::model::{AddressPool, Role};
use flota_api::proto::ca::LeaveRaftRequest;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::node::{NodeInfo, StoreStatistics};
use flota_api::reason::Reason;
use flota_identity::{Identity, RootCa};
use flota_manager::Manager;
use flota_raft_store::raft::RaftNode;

use crate::address::{self, address_again, own_address};
use crate::cluster::{Begin, Membership, Parts, erase_store};
use crate::config::Config;
use crate::observed::{Observed, ObservedManager, ObservedWorker};
use crate::rpc::ManagerState;
use crate::state_dir::StateDir;
use crate::{cluster, join, rpc};
use new_address::follow_address;

/// How long the managers are given to take a leaving node out.
const LEAVE_WAIT: Duration = Duration::from_secs(15);
/// How long one manager is given to answer before the next one is tried.
const LEAVE_TRY_WAIT: Duration = Duration::from_secs(5);

/// What a locked manager answers.
const LOCKED: &str = "this manager is locked; open its keys with `ctl swarm unlock`";

/// Pause before another try to take a new role.
const ROLE_PAUSE: Duration = Duration::from_secs(1);

/// The node: its settings, its state on disk, and its membership.
#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    state: StateDir,
    /// Locked for the whole of init, join or leave. `None` while the node belongs to no cluster.
    membership: Mutex<Option<Membership>>,
    manager: watch::Sender<ManagerState>,
    fatal: CancellationToken,
    /// Cancelled when the daemon is to restart itself.
    restarts: CancellationToken,
}

impl Node {
    /// Makes a node whose manager counts as starting until [`Node::resume`] is called.
    pub(crate) fn new(config: Config, state: StateDir) -> Self {
        let (membership, manager) = (Mutex::default(), watch::channel(ManagerState::Starting).0);
        let (fatal, restarts) = (CancellationToken::new(), CancellationToken::new());
        Self { config, state, membership, manager, fatal, restarts }
    }

    /// Locks the membership. Others that change it wait.
    pub(crate) async fn lock_membership(&self) -> MutexGuard<'_, Option<Membership>> {
        self.membership.lock().await
    }

    /// Watches the state of this node's manager.
    pub(crate) fn manager_state(&self) -> watch::Receiver<ManagerState> {
        self.manager.subscribe()
    }

    /// Returns what can be seen of the node now. While it starts, joins or leaves, it counts as in no cluster.
    pub(crate) async fn observe(&self) -> Observed {
        let (mut observed, parts) = match self.membership.try_lock().ok().as_deref() {
            Some(Some(it)) => {
                let (node_id, cluster_id) = (it.identity.node_id.to_string(), it.identity.cluster_id.to_string());
                let role = it.role().as_str().to_owned();
                let expires_at = it.certificate_expires_at();
                let parts = (it.manager().cloned(), it.newest_backup(), Arc::clone(&it.worker), expires_at);
                (Observed { node_id, cluster_id, role, ..Observed::default() }, Some(parts))
            }
            Some(None) | None => (Observed::default(), None),
        };
        observed.hostname = flota_worker::describe().hostname;
        observed.is_locked = matches!(*self.manager.borrow(), ManagerState::Locked);
        if let Some((manager, newest_backup, worker, expires_at)) = parts {
            if let Some(manager) = manager {
                observed.manager = Some(ObservedManager::of(&manager, newest_backup).await);
            }
            observed.worker = Some(ObservedWorker::of(&worker, expires_at).await);
        }
        observed
    }

    /// Waits until the daemon is to restart itself, because the machine has another address.
    pub(crate) async fn restarts(&self) {
        self.restarts.cancelled().await;
    }

    /// Waits until the daemon can't continue, because the Raft core has stopped.
    pub(crate) async fn failed(&self) {
        self.fatal.cancelled().await;
    }

    /// Starts manager and worker again after a start of the daemon, if the node belongs to a cluster.
    pub(crate) async fn resume(self: &Arc<Self>, current: &mut Option<Membership>) -> anyhow::Result<()> {
        if !self.state.is_member() {
            self.manager.send_replace(ManagerState::Absent);
            // A crash during init or join may have left files.
            return self.state.forget_cluster();
        }
        if self.state.keys().are_locked() {
            self.manager.send_replace(ManagerState::Locked);
            tracing::warn!("this manager is locked: run `ctl swarm unlock` here, with the cluster's unlock key");
            return Ok(());
        }
        self.manager.send_replace(ManagerState::Starting);
        let identity = self.state.keys().identity()?.context("the node's identity is gone")?;
        if identity.role == Role::Worker {
            self.manager.send_replace(ManagerState::Absent);
            // A crash during a demotion may have left files.
            self.state.forget_store()?;
            self.state.keys().protect(None, || true)?;
        }
        let address = address_again(&self.state, self.config.listen)?;
        self.state.write("address", &address)?;
        self.state.finish_switch()?;
        let managers = self.state.known_managers();
        let parts = Parts { config: &self.config, state: &self.state, identity, address, fatal: self.fatal.clone() };
        // A crash during a promotion, or a loss of the file, leaves no id. The others may have decided otherwise since, so the
        // worker starts first, and hears of it.
        let has_id = self.state.read("raft-id").is_some();
        let store = if has_id { Begin::Follow(managers) } else { Begin::Later(managers) };
        let membership = Membership::start(parts, store).await?;
        self.install(current, membership);
        Ok(())
    }

    /// Publishes a membership, and ends it when the cluster removes this node.
    fn install(self: &Arc<Self>, current: &mut Option<Membership>, membership: Membership) {
        self.publish(&membership);
        let certified = membership.begin_renewals(&self.state, self.manager_state());
        let (mut removed, told) = (membership.worker.removed(), membership.removed.clone());
        let id = membership.identity.node_id.clone();
        *current = Some(membership);
        let node = Arc::downgrade(self);
        tokio::spawn(follow_role(Weak::clone(&node), id.clone(), certified));
        tokio::spawn(follow_address(Weak::clone(&node)));
        tokio::spawn(async move {
            let is_removed = async { removed.wait_for(|removed| *removed).await.is_ok() };
            let is_removed = tokio::select! {
                is_removed = is_removed => is_removed,
                () = told.cancelled() => true,
            };
            if !is_removed {
                return;
            }
            if let Some(node) = node.upgrade() {
                let mut current = node.membership.lock().await;
                if current.as_ref().is_some_and(|it| it.identity.node_id == id)
                    && let Err(error) = node.forget(&mut current).await
                {
                    tracing::error!(%error, "failed to forget the cluster that removed this node");
                }
            }
        });
    }

    /// Starts or stops this node's manager if its certificate says so.
    async fn take_role(&self, membership: &mut Membership) -> anyhow::Result<()> {
        match (membership.certified_role(), membership.role()) {
            // The node is about to forget the cluster.
            (Role::Manager, Role::Worker) if membership.removed.is_cancelled() => {}
            (Role::Manager, Role::Worker) => {
                membership.begin_managing(&self.config, &self.state, &self.fatal).await?;
                self.publish(membership);
                tracing::info!("this node is a manager now");
            }
            (Role::Worker, Role::Manager) => {
                self.manager.send_replace(ManagerState::Absent);
                membership.end_managing(&self.config, &self.state, &self.fatal).await?;
                tracing::info!("this node is no longer a manager, and has erased its copy of the store");
            }
            // A manager that could not be started is no longer wanted, and one that has ended may not have been erased.
            (Role::Worker, Role::Worker) => {
                self.manager.send_replace(ManagerState::Absent);
                erase_store(&self.state)?;
            }
            (Role::Manager, Role::Manager) => {}
        }
        Ok(())
    }

    /// Lets the local socket use the manager, and begins to write backups.
    fn publish(&self, membership: &Membership) {
        self.manager.send_replace(match membership.manager() {
            Some(manager) => ManagerState::Running(Box::new(manager.clone())),
            None if membership.certified_role() == Role::Manager => ManagerState::Starting,
            None => ManagerState::Absent,
        });
        membership.begin_backups(&self.config);
        membership.begin_autolock(&self.state);
    }

    /// `ctl swarm init`. Networks get their subnets from the pools, or from the default ones. Certificates are valid for
    /// `certificate_life`, or else for the default, and signed by the given CA, or else by a new one.
    pub(crate) async fn init(
        self: &Arc<Self>,
        advertise: &str,
        address_pools: &[AddressPool],
        certificate_life: Option<Duration>,
        given_ca: Option<RootCa>,
    ) -> anyhow::Result<()> {
        let mut current = self.membership.lock().await;
        self.refuse_second(current.as_ref())?;
        let address = own_address(advertise, self.config.listen)?;
        let life = certificate_life.unwrap_or(CERTIFICATE_LIFE);
        let (cluster, ca, identity) = join::first_identity(life, given_ca)?;
        let certificate = identity.known_certificate()?;
        let hostname = flota_worker::describe().hostname;
        let id = &identity.node_id;
        let first = flota_manager::FirstNode {
            id,
            certificate: &certificate,
            hostname: &hostname,
            address: &address,
            address_pools,
            certificate_life,
        };
        let view = flota_raft_store::Store::default().view();
        let entry = flota_manager::first_entry(view, &cluster, &ca, first, Clock::system().now(), &mut rand::rng());
        self.begin(&mut current, identity, address, Begin::New(Box::new(entry))).await
    }

    /// `ctl swarm join`.
    pub(crate) async fn join(self: &Arc<Self>, token: &str, manager: &str, advertise: &str) -> anyhow::Result<()> {
        let mut current = self.membership.lock().await;
        self.refuse_second(current.as_ref())?;
        let address = own_address(advertise, self.config.listen)?;
        // Fails before the cluster learns of this node.
        drop(
            tokio::net::TcpListener::bind(self.config.listen)
                .await
                .with_context(|| format!("failed to listen at {}", self.config.listen))?,
        );
        let (identity, mut managers) = join::join(token, manager, &address).await?;
        if managers.is_empty() {
            managers.push(manager.to_owned());
        }
        self.begin(&mut current, identity, address, Begin::Follow(managers)).await
    }

    async fn begin(
        self: &Arc<Self>,
        current: &mut Option<Membership>,
        identity: flota_identity::Identity,
        address: String,
        store: Begin,
    ) -> anyhow::Result<()> {
        let (joins, managers) = match &store {
            Begin::New(_) => (None, Vec::new()),
            Begin::Follow(managers) | Begin::Later(managers) => (Some(identity.clone()), managers.clone()),
        };
        let parts = Parts { config: &self.config, state: &self.state, identity, address, fatal: self.fatal.clone() };
        let begun = async {
            address::record(&self.state, &parts.address)?;
            // A node that joins must know its identity after a crash. A new cluster exists once its first entry is written.
            if let Some(identity) = &joins {
                self.state.keys().save_identity(identity)?;
            }
            let membership = cluster::Membership::start(parts, store).await?;
            if let Err(error) = membership.wait_until_voter().await {
                // Its worker may have been given some already.
                membership.worker.remove_tasks().await;
                membership.stop().await;
                return Err(error);
            }
            if joins.is_none() {
                self.state.keys().save_identity(&membership.identity)?;
            }
            Ok(membership)
        };
        match begun.await {
            Ok(membership) => {
                self.install(current, membership);
                Ok(())
            }
            Err(error) => {
                // Undo everything, with the other managers too.
                if let Some(identity) = joins {
                    let credentials = flota_identity::Credentials::new(identity.clone(), Clock::system())?;
                    let dialer = flota_identity::Dialer::new(credentials);
                    let _ = leave_cluster(&dialer, &identity, &managers, true).await;
                }
                self.state.forget_cluster()?;
                Err(error)
            }
        }
    }

    /// `ctl swarm leave`.
    pub(crate) async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let mut current = self.membership.lock().await;
        let Some(membership) = current.as_ref() else {
            return match self.state.is_member() {
                // What its tasks have left is removed when the node joins again.
                true if force => {
                    self.manager.send_replace(ManagerState::Absent);
                    self.state.forget_cluster()
                }
                true => bail!("{LOCKED}, so that it can tell the others; use --force to leave anyway"),
                false => bail!("this node belongs to no cluster"),
            };
        };
        if membership.role() == Role::Manager && !force {
            bail!("this node is a manager, and the cluster would lose it; use --force to leave anyway");
        }
        let managers: Vec<String> = match membership.manager() {
            Some(manager) => manager.raft().members().into_iter().map(|member| member.address).collect(),
            None => self.state.known_managers(),
        };
        let alone = managers.len() == 1 && membership.manager().is_some();
        if !alone {
            match leave_cluster(&membership.dialer, &membership.identity, &managers, force).await {
                Left::Done => {}
                Left::Refused(why) => bail!("the cluster refused: {why}"),
                Left::Unanswered if force => {}
                Left::Unanswered => bail!("failed to reach a manager; use --force to leave anyway"),
            }
        }
        self.forget(&mut current).await
    }

    /// Stops the tasks, worker and manager, and removes the cluster's state from disk.
    async fn forget(&self, current: &mut Option<Membership>) -> anyhow::Result<()> {
        if let Some(membership) = current.take() {
            self.manager.send_replace(ManagerState::Absent);
            membership.worker.remove_tasks().await;
            membership.stop().await;
        }
        self.state.forget_cluster()
    }

    /// Fails if the node belongs to a cluster already.
    fn refuse_second(&self, membership: Option<&Membership>) -> anyhow::Result<()> {
        match membership {
            Some(it) => {
                bail!(
                    "this node belongs to the cluster {} already; run `ctl swarm leave` first",
                    it.identity.cluster_id
                )
            }
            None if self.state.is_member() => bail!("{LOCKED}; or leave its cluster with `ctl swarm leave --force`"),
            None => Ok(()),
        }
    }

    /// Returns why the node has no membership; `text` if it belongs to no cluster.
    fn absence(&self, text: &str) -> anyhow::Error {
        if self.state.is_member() { anyhow::anyhow!("{LOCKED}") } else { anyhow::anyhow!("{text}") }
    }

    /// Returns this node's manager, if it is running.
    pub(crate) fn manager(&self) -> Option<Manager> {
        self.manager.borrow().clone().running().ok()
    }

    /// Returns this node's worker, if it belongs to a cluster.
    pub(crate) async fn worker(&self) -> Option<Arc<flota_worker::Worker>> {
        self.membership.lock().await.as_ref().map(|membership| Arc::clone(&membership.worker))
    }

    /// Describes the node, for `ctl system info`.
    ///
    /// # Errors
    /// The node's manager is still starting.
    pub(crate) async fn info(&self) -> Result<NodeInfo, Status> {
        if matches!(*self.manager.borrow(), ManagerState::Starting) {
            return Err(rpc::starting());
        }
        let current = self.membership.lock().await;
        let membership = current.as_ref();
        Ok(NodeInfo {
            node_id: membership.map(|it| it.identity.node_id.to_string()).unwrap_or_default(),
            cluster_id: membership.map(|it| it.identity.cluster_id.to_string()).unwrap_or_default(),
            role: membership.map_or(0, |it| flota_api::proto::types::Role::from(it.role()).into()),
            address: membership.map(|it| it.address.clone()).unwrap_or_default(),
            hostname: flota_worker::describe().hostname,
            version: flota_api::VERSION.into(),
            store: membership.and_then(Membership::manager).map(|manager| statistics(manager.raft())),
            locked: matches!(*self.manager.borrow(), ManagerState::Locked),
        })
    }
}

/// Follows the role in the node's certificate until the node belongs to this membership no more.
async fn follow_role(node: Weak<Node>, id: NodeId, mut certified: watch::Receiver<Role>) {
    loop {
        certified.mark_unchanged();
        let Some(strong) = node.upgrade() else { return };
        let mut current = strong.membership.lock().await;
        let Some(membership) = current.as_mut().filter(|it| it.identity.node_id == id) else { return };
        let taken = strong.take_role(membership).await;
        drop(current);
        drop(strong);
        let retry = async {
            match taken {
                Ok(()) => std::future::pending().await,
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "failed to take the role of the certificate; retrying"
                    );
                    tokio::time::sleep(ROLE_PAUSE).await;
                }
            }
        };
        tokio::select! {
            changed = certified.changed() => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

/// Counters of the manager's store.
fn statistics(store: &RaftNode) -> StoreStatistics {
    let (applied_index, digest) = store.applied();
    let log = store.statistics();
    StoreStatistics {
        applied_index,
        tables_digest: digest.map(|digest| digest.to_string()).unwrap_or_default(),
        log: Some(flota_api::proto::node::LogStatistics {
            syncs: log.syncs,
            entries_synced: log.entries,
            bytes_synced: log.bytes,
            sync_total_us: log.sync_micros,
            sync_max_us: log.longest_sync_micros,
        }),
    }
}

/// The outcome of a request to leave.
enum Left {
    /// The cluster has taken this node out.
    Done,
    /// The leader refused, for this reason.
    Refused(String),
    /// No manager could carry it out in time.
    Unanswered,
}

/// Asks the managers to take this node out of the cluster. A leader that is asked to take itself out hands over
/// leadership first, so the request is repeated.
async fn leave_cluster(dialer: &flota_identity::Dialer, identity: &Identity, managers: &[String], force: bool) -> Left {
    let request = LeaveRaftRequest { node_id: identity.node_id.to_string(), force };
    let until = tokio::time::Instant::now() + LEAVE_WAIT;
    let requests = async {
        // In a cycle, because an election may be going on.
        for manager in managers.iter().cycle() {
            let mut client = NodeCaClient::new(dialer.manager(manager));
            match tokio::time::timeout(LEAVE_TRY_WAIT, client.leave_raft(request.clone())).await {
                Ok(Ok(_)) => return Left::Done,
                Ok(Err(status)) if Reason::of(&status).is_some_and(Reason::is_judgement) => {
                    return Left::Refused(status.message().to_owned());
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        Left::Unanswered
    };
    tokio::time::timeout_at(until, requests).await.unwrap_or(Left::Unanswered)
}
