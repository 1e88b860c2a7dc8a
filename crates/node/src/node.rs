//! This node's place in a cluster: taken, taken up again after a start, and given up.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use flota_api::clock::Clock;
use flota_api::model::Role;
use flota_api::proto::ca::LeaveRaftRequest;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::node::{NodeInfo, StoreStatistics};
use flota_identity::Identity;
use flota_manager::Manager;
use flota_raft_store::raft::RaftNode;

use crate::cluster::{Begin, Membership, Parts, address_again};
use crate::config::Config;
use crate::rpc::ManagerState;
use crate::state_dir::StateDir;
use crate::{cluster, join, rpc};

const LEAVE_WAIT: Duration = Duration::from_secs(15);
/// A manager that does not answer to this is passed over.
const ASK_WAIT: Duration = Duration::from_secs(5);

/// The daemon's parts.
#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    state: StateDir,
    /// One change at a time: init, join, leave.
    membership: Mutex<Option<Membership>>,
    manager: watch::Sender<ManagerState>,
    fatal: CancellationToken,
}

impl Node {
    /// Before [`Node::resume`] has found out which cluster it belongs to.
    pub(crate) fn new(config: Config, state: StateDir) -> Self {
        let (membership, manager) = (Mutex::default(), watch::channel(ManagerState::Starting).0);
        Self { config, state, membership, manager, fatal: CancellationToken::new() }
    }

    /// The place in a cluster, for one who changes it; others wait.
    pub(crate) async fn place(&self) -> MutexGuard<'_, Option<Membership>> {
        self.membership.lock().await
    }

    /// The state of this node's manager, now and from now on.
    pub(crate) fn managers(&self) -> watch::Receiver<ManagerState> {
        self.manager.subscribe()
    }

    /// Until the daemon can't go on.
    pub(crate) async fn broken(&self) {
        self.fatal.cancelled().await;
    }

    /// After a start: takes up the place in its cluster again, if it has one.
    pub(crate) async fn resume(self: &Arc<Self>, place: &mut Option<Membership>) -> anyhow::Result<()> {
        let Some(identity) = flota_identity::load(&self.state.identity())? else {
            self.manager.send_replace(ManagerState::Absent);
            // What a crash in the middle of init or join left behind.
            return self.state.forget_cluster();
        };
        if identity.role == Role::Worker {
            self.manager.send_replace(ManagerState::Absent);
        }
        let managers = std::fs::read_to_string(self.state.worker().join("managers")).unwrap_or_default();
        let managers = managers.lines().map(str::to_owned).collect();
        let address = address_again(&self.state, self.config.listen)?;
        self.state.write("address", &address)?;
        let parts = Parts { config: &self.config, state: &self.state, identity, address, fatal: self.fatal.clone() };
        let membership = Membership::start(parts, Begin::Follow(managers)).await?;
        self.take_up(place, membership);
        Ok(())
    }

    fn take_up(self: &Arc<Self>, place: &mut Option<Membership>, membership: Membership) {
        let manager = membership.manager.clone().map(Box::new);
        self.manager.send_replace(manager.map_or(ManagerState::Absent, ManagerState::Running));
        let mut removed = membership.worker.removed();
        let id = membership.identity.node_id.clone();
        *place = Some(membership);
        let node = Arc::downgrade(self);
        tokio::spawn(async move {
            if removed.wait_for(|removed| *removed).await.is_err() {
                return;
            }
            if let Some(node) = node.upgrade() {
                let mut place = node.membership.lock().await;
                if place.as_ref().is_some_and(|it| it.identity.node_id == id)
                    && let Err(error) = node.forget(&mut place).await
                {
                    tracing::error!(%error, "the cluster that removed this node could not be forgotten");
                }
            }
        });
    }

    /// `ctl swarm init`.
    pub(crate) async fn init(self: &Arc<Self>, advertise: &str) -> anyhow::Result<()> {
        let mut place = self.membership.lock().await;
        refuse_second(place.as_ref())?;
        let address = join::own_address(advertise, self.config.listen)?;
        let (cluster, ca, identity) = join::first_identity()?;
        let hostname = flota_worker::describe().hostname;
        let first = flota_manager::FirstNode { id: &identity.node_id, hostname: &hostname, address: &address };
        let view = flota_raft_store::Store::default().view();
        let entry = flota_manager::first_entry(view, &cluster, &ca, first, Clock::system().now(), &mut rand::rng());
        self.begin(&mut place, identity, address, Begin::New(Box::new(entry))).await
    }

    /// `ctl swarm join`.
    pub(crate) async fn join(self: &Arc<Self>, token: &str, manager: &str, advertise: &str) -> anyhow::Result<()> {
        let mut place = self.membership.lock().await;
        refuse_second(place.as_ref())?;
        let address = join::own_address(advertise, self.config.listen)?;
        // Said before the cluster hears of this node.
        drop(
            tokio::net::TcpListener::bind(self.config.listen)
                .await
                .with_context(|| format!("failed to listen at {}", self.config.listen))?,
        );
        let (identity, mut managers) = join::join(token, manager, &address).await?;
        if managers.is_empty() {
            managers.push(manager.to_owned());
        }
        self.begin(&mut place, identity, address, Begin::Follow(managers)).await
    }

    async fn begin(
        self: &Arc<Self>,
        place: &mut Option<Membership>,
        identity: flota_identity::Identity,
        address: String,
        store: Begin,
    ) -> anyhow::Result<()> {
        let (joins, managers) = match &store {
            Begin::New(_) => (None, Vec::new()),
            Begin::Follow(managers) => (Some(identity.clone()), managers.clone()),
        };
        let parts = Parts { config: &self.config, state: &self.state, identity, address, fatal: self.fatal.clone() };
        let begun = async {
            let address = parts.address.clone();
            self.state.write("address", &address)?;
            // A manager that is taken in must know it after a crash; a new cluster is one with its first entry.
            if let Some(identity) = &joins {
                flota_identity::save(&self.state.identity(), identity)?;
            }
            let membership = cluster::Membership::start(parts, store).await?;
            if let Err(error) = membership.wait_until_voter().await {
                membership.stop().await;
                return Err(error);
            }
            flota_identity::save(&self.state.identity(), &membership.identity)?;
            Ok(membership)
        };
        match begun.await {
            Ok(membership) => {
                self.take_up(place, membership);
                Ok(())
            }
            Err(error) => {
                // Nothing half made stays, also with the others.
                if let Some(identity) = joins {
                    let dialer = flota_identity::Dialer::new(&identity)?;
                    leave_cluster(&dialer, &identity, &managers, true).await;
                }
                self.state.forget_cluster()?;
                Err(error)
            }
        }
    }

    /// `ctl swarm leave`.
    pub(crate) async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let mut place = self.membership.lock().await;
        let Some(membership) = place.as_ref() else { bail!("this node belongs to no cluster") };
        if membership.identity.role == Role::Manager && !force {
            bail!("this node is a manager: the cluster has one fewer after it; --force leaves all the same");
        }
        let managers: Vec<String> = match &membership.manager {
            Some(manager) => manager.raft().members().into_iter().map(|member| member.address).collect(),
            None => std::fs::read_to_string(self.state.worker().join("managers"))
                .unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect(),
        };
        let alone = managers.len() == 1 && membership.manager.is_some();
        let told = alone || leave_cluster(&membership.dialer, &membership.identity, &managers, force).await;
        if !told && !force {
            bail!("no manager could be told; --force leaves all the same");
        }
        self.forget(&mut place).await
    }

    /// Stops the tasks and everything else of the cluster, and forgets it.
    async fn forget(&self, place: &mut Option<Membership>) -> anyhow::Result<()> {
        if let Some(membership) = place.take() {
            self.manager.send_replace(ManagerState::Absent);
            membership.worker.remove_tasks().await;
            membership.stop().await;
        }
        self.state.forget_cluster()
    }

    /// The manager that this node is, if it is one.
    pub(crate) fn manager(&self) -> Option<Manager> {
        self.manager.borrow().clone().running().ok()
    }

    /// The worker, to be asked for images and the like.
    pub(crate) async fn worker(&self) -> Option<Arc<flota_worker::Worker>> {
        self.membership.lock().await.as_ref().map(|membership| Arc::clone(&membership.worker))
    }

    /// What `ctl system info` shows.
    ///
    /// # Errors
    /// The node's manager is still starting.
    pub(crate) async fn info(&self) -> Result<NodeInfo, Status> {
        if matches!(*self.manager.borrow(), ManagerState::Starting) {
            return Err(rpc::starting());
        }
        let place = self.membership.lock().await;
        let membership = place.as_ref();
        Ok(NodeInfo {
            node_id: membership.map(|it| it.identity.node_id.to_string()).unwrap_or_default(),
            cluster_id: membership.map(|it| it.identity.cluster_id.to_string()).unwrap_or_default(),
            role: membership.map_or(0, |it| flota_api::proto::types::Role::from(it.identity.role).into()),
            address: membership.map(|it| it.address.clone()).unwrap_or_default(),
            hostname: flota_worker::describe().hostname,
            version: flota_api::VERSION.into(),
            store: membership.and_then(|it| it.manager.as_ref()).map(|manager| statistics(manager.raft())),
        })
    }
}

/// What the manager's store counts.
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

/// Tells the cluster that this node leaves it; whether that was taken. A leader that leaves hands over first, so it is
/// asked again.
async fn leave_cluster(dialer: &flota_identity::Dialer, identity: &Identity, managers: &[String], force: bool) -> bool {
    let request = LeaveRaftRequest { node_id: identity.node_id.to_string(), force };
    let until = tokio::time::Instant::now() + LEAVE_WAIT;
    let ask = async {
        // In a circle, while a leader is being chosen.
        for manager in managers.iter().cycle() {
            let mut client = NodeCaClient::new(dialer.manager(manager));
            match tokio::time::timeout(ASK_WAIT, client.leave_raft(request.clone())).await {
                Ok(Ok(_)) => return true,
                Ok(Err(status)) if status.code() != tonic::Code::Unavailable => return false,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        false
    };
    tokio::time::timeout_at(until, ask).await.unwrap_or(false)
}

fn refuse_second(membership: Option<&Membership>) -> anyhow::Result<()> {
    match membership {
        Some(it) => {
            bail!("this node belongs to the cluster {} already: `ctl swarm leave` first", it.identity.cluster_id)
        }
        None => Ok(()),
    }
}
