//! The logic of a worker from its start to its end: agent, task pool and runners over any executor. The daemon starts
//! it with containers (`worker.rs`), a simulator with fakes; both take the same path.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::{Clock, Random};
use flota_api::clock_offset::ClockOffset;
use flota_api::model::{CdiName, NodeDescription, Role};
use flota_identity::Dialer;

use crate::agent::Agent;
use crate::assignments::{Newest, Parts};
use crate::contact::ContactSender;
use crate::executor::Executor;
use crate::health::HealthBoard;
use crate::managers::KnownManagers;
use crate::messages::{Departure, UsageReport};
use crate::networks::{NodeNetworks, UpdateParts};
use crate::offers::NodeOffers;
use crate::records::TaskRecords;
use crate::reporter::Reporter;
use crate::services::NodeServices;
use crate::spawned::Spawned;
use crate::starts::StartCounters;
use crate::task_pool::TaskPool;
use crate::task_runner::Shared;
use crate::usage::measure;
use crate::worker_state::WorkerState;

/// Time that a leader has to accept the last message of an agent.
const LEAVE_WAIT: Duration = Duration::from_secs(3);

/// The parameters of an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Id of the node.
    pub node_id: String,
    /// Description of the machine. Its boot id distinguishes tasks of this boot from those of an earlier one.
    pub description: NodeDescription,
    /// `host:port` where other nodes reach this one.
    pub address: String,
    /// Connects to managers.
    pub dialer: Dialer,
    /// Managers to begin with, if `state` holds none.
    pub managers: Vec<String>,
    /// Runs tasks.
    pub executor: Arc<dyn Executor>,
    /// Gets the health of the containers with a check.
    pub health: HealthBoard,
    /// Serves the leader's requests that do not concern the running of tasks.
    pub services: Arc<dyn NodeServices>,
    /// Makes the networks of its tasks.
    pub networks: Arc<dyn NodeNetworks>,
    /// Keeps records of tasks across restarts of the daemon.
    pub records: Arc<dyn TaskRecords>,
    /// Keeps the managers and the newest assignments across boots.
    pub state: Arc<dyn WorkerState>,
    /// The runtimes, devices and rights that the node offers to tasks.
    pub offers: Arc<NodeOffers>,
    /// The CDI devices that the node has, sorted. They may change.
    pub cdi_devices: watch::Receiver<Vec<CdiName>>,
    /// Gets the digest of the CAs that the node is to trust, each time that a leader tells it.
    pub trusts: watch::Sender<Option<String>>,
    /// The wall clock.
    pub clock: Clock,
    /// Draws the pauses between connections.
    pub random: Random,
}

/// The running logic of a worker. It ends when the handle is dropped, as if it were killed.
#[derive(Debug)]
pub struct AgentHandle {
    pub(crate) pool: TaskPool,
    managers: KnownManagers,
    spawned: Spawned,
    records: Arc<dyn TaskRecords>,
    departure: watch::Sender<Option<Departure>>,
    removed: watch::Receiver<bool>,
    role: watch::Receiver<Option<Role>>,
    /// Cancelled when the agent has ended.
    ended: CancellationToken,
}

/// Takes over the tasks of an earlier daemon and begins to look for a leader. Must be called within a tokio runtime,
/// on which everything runs, within the current span. `shutdown` ends the sessions; the tasks continue to run until a
/// method of the handle stops them.
pub fn start_agent(options: AgentOptions, shutdown: CancellationToken) -> AgentHandle {
    start_reporting_to(options, Reporter::default(), shutdown)
}

/// Starts the logic of a worker as [`start_agent`] does, with a reporter that other parts report to as well.
pub(crate) fn start_reporting_to(
    options: AgentOptions,
    reporter: Reporter,
    shutdown: CancellationToken,
) -> AgentHandle {
    let spawned = Spawned::new();
    let contact = ContactSender::load(Arc::clone(&options.state), options.clock.clone());
    let executor = Arc::clone(&options.executor);
    let pool = TaskPool::start(Shared {
        executor: options.executor,
        health: options.health,
        records: Arc::clone(&options.records),
        reporter: reporter.clone(),
        clock: options.clock.clone(),
        boot_id: options.description.boot_id.as_str().into(),
        spawned: spawned.clone(),
        contact: contact.subscribe(),
        live: Arc::default(),
        ended: Arc::default(),
        starts: StartCounters::default(),
    });
    let (measured, usage) = watch::channel(UsageReport::default());
    spawned.spawn(measure(executor, pool.clone(), measured));
    let (departure, departure_receiver) = watch::channel(None);
    let (removed_sender, removed) = watch::channel(false);
    let (role_sender, role) = watch::channel(None);
    let managers = KnownManagers::load(Arc::clone(&options.state), options.managers);
    let agent = Agent {
        node_id: options.node_id,
        address: options.address,
        description: options.description,
        offers: options.offers,
        cdi_devices: options.cdi_devices,
        dialer: options.dialer,
        managers: managers.clone(),
        pool: pool.clone(),
        reporter,
        services: options.services,
        networks: options.networks,
        spawned: spawned.clone(),
        clock: options.clock,
        random: options.random,
        contact,
        departure: departure_receiver,
        removed: removed_sender,
        role: role_sender,
        trusts: options.trusts,
        clock_offset: ClockOffset::default(),
        dropping: Arc::default(),
        usage,
        newest: Newest::load(options.state),
        parts: Parts::default(),
        network_parts: UpdateParts::default(),
    };
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    spawned.spawn(async move {
        let _guard = guard;
        agent.run(shutdown).await;
    });
    AgentHandle { pool, managers, spawned, records: options.records, departure, removed, role, ended }
}

impl AgentHandle {
    /// Becomes true when the cluster has removed this node.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.removed.clone()
    }

    /// The role that the cluster gives this node, as the leader said last; `None` before the first session.
    pub fn role(&self) -> watch::Receiver<Option<Role>> {
        self.role.clone()
    }

    /// Makes the agent know only this manager from now on.
    pub fn follow_only(&self, manager: &str) {
        self.managers.set(vec![manager.to_owned()], manager);
    }

    /// Makes the agent look for a leader at these addresses first, because those that it knows may be of no use any more.
    pub fn also_try(&self, managers: &[String]) {
        self.managers.add(managers);
    }

    /// Stops every task within its grace period, because the machine goes down, and tells the leader.
    pub async fn stop_tasks(&self) {
        self.pool.stop_all().await;
        self.departure.send_replace(Some(Departure::Machine));
    }

    /// Stops and removes every task, because the node leaves its cluster.
    pub async fn remove_tasks(&self) {
        self.pool.remove_all().await;
    }

    /// Tells the leader that the daemon stops and will return, and leaves the containers running. Afterwards no part
    /// of the worker's logic runs any more.
    pub async fn stop(&self) {
        self.departure.send_if_modified(|departure| {
            let is_new = departure.is_none();
            departure.get_or_insert(Departure::Daemon);
            is_new
        });
        // The wait for the leader is bounded.
        let _ = tokio::time::timeout(LEAVE_WAIT, self.ended.cancelled()).await;
        self.spawned.end().await;
        self.records.close();
    }

    /// Ends everything at once without telling the leader, as SIGKILL ends the daemon. The containers continue to run.
    pub fn kill(&self) {
        self.spawned.kill();
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.kill();
        self.records.close();
    }
}
