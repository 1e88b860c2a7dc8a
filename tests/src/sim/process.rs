//! The programs of simulated processes: the managers and workers of `flotad`, with the simulation's network, disk,
//! machine and clock.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use flota_api::clock::{Clock, Random};
use flota_api::id::NodeId;
use flota_api::model::{NodeDescription, NodeDevice, Role};
use flota_api::seal::Sealer;
use flota_identity::{CONNECTION_WINDOW, Dialer, Peer, STREAM_WINDOW};
use flota_manager::{Manager, ManagerOptions, TermClock};
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::raft::{LogBounds, ModelDisk, RaftNode, RaftOptions, StartError, Threads, Timing};
use flota_raft_store::{Proposer, Store, Transaction};
use flota_worker::{
    AgentOptions, FakeExecutor, FakeMachine, FakeNetworks, FakeServices, HealthBoard, MemoryRecords, MemoryState,
    NodeOffers, start_agent,
};

use super::host::Host;
use super::network::Network;
use super::raft_network::RaftNetwork;
use super::registry::FakeRegistry;

/// Interval of the keepalive pings, which is that of `flotad`.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Why a process ended by itself. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Ended(Arc<Mutex<Option<String>>>);

impl Ended {
    pub(super) fn why(&self) -> Option<String> {
        self.0.lock().expect("no holder panics").clone()
    }

    fn end(&self, why: String) {
        *self.0.lock().expect("no holder panics") = Some(why);
    }
}

/// Options for a manager's process.
pub(super) struct ManagerProcess {
    pub(super) host: Host,
    pub(super) node_id: NodeId,
    pub(super) raft_id: u64,
    pub(super) was_here: bool,
    pub(super) disk: ModelDisk,
    pub(super) bounds: LogBounds,
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) network: Network,
    pub(super) raft_network: RaftNetwork,
    pub(super) registry: FakeRegistry,
    /// The first entry, if this manager creates the cluster.
    pub(super) first: Option<Transaction>,
    pub(super) running: Arc<Mutex<Option<Manager>>>,
    pub(super) ended: Ended,
}

/// Returns the identity with which a node appears to the hosts that it connects to.
pub(super) fn peer(host: Host, node_id: &NodeId, role: Role) -> Peer {
    let address: SocketAddr = host.address().parse().expect("it is an address");
    Peer::Node { id: node_id.clone(), role, address, key: String::new() }
}

/// Runs a manager until it fails.
pub(super) async fn run_manager(process: ManagerProcess) {
    let ended = process.ended.clone();
    let fatal = CancellationToken::new();
    match start_manager(process, fatal.clone()).await {
        Ok(()) => {
            fatal.cancelled().await;
            ended.end("its Raft core has stopped".into());
        }
        Err(error) => ended.end(format!("it does not start: {}", chain(&error))),
    }
}

/// Formats an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn start_manager(process: ManagerProcess, fatal: CancellationToken) -> Result<(), StartError> {
    let store = Store::default();
    let clock = TermClock::new(process.clock);
    let raft = RaftNode::start(RaftOptions {
        id: process.raft_id,
        disk: Arc::new(process.disk),
        was_here: process.was_here,
        sealer: Sealer::new(&[7; 32]),
        transport: Arc::new(process.raft_network.transport(process.host)),
        store: store.clone(),
        timing: Timing::default(),
        bounds: process.bounds,
        clock: clock.as_clock(),
        random: process.random.clone(),
        threads: Threads::Current,
    })
    .await?;
    tokio::spawn(process.raft_network.serve(process.host, raft.transport()));
    if let Some(first) = process.first {
        raft.initialize(&process.host.address()).await?;
        raft.propose(first).await.map_err(|error| StartError::Raft(error.to_string()))?;
    }
    let peer = peer(process.host, &process.node_id, Role::Manager);
    let manager = Manager::start(
        ManagerOptions {
            store,
            raft,
            dialer: Dialer::through(process.network.connector(process.host, peer)),
            clock,
            random: process.random,
            registries: Arc::new(process.registry),
            threads: Threads::Current,
        },
        CancellationToken::new(),
        fatal,
    );
    serve(process.host, &process.network, &manager);
    *process.running.lock().expect("no holder panics") = Some(manager);
    Ok(())
}

/// Serves as `flotad` does, except for Raft's messages, which have a network of their own.
fn serve(host: Host, network: &Network, manager: &Manager) {
    let incoming = UnboundedReceiverStream::new(network.listen(host));
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(manager.ca())
        .add_service(manager.control())
        .add_service(manager.dispatcher())
        .add_service(manager.streams());
    tokio::spawn(async move {
        if let Err(error) = router.serve_with_incoming(incoming).await {
            tracing::error!(%error, "the listener has ended");
        }
    });
}

/// Options for a worker's process.
pub(super) struct WorkerProcess {
    pub(super) host: Host,
    pub(super) node_id: NodeId,
    /// The address at which others reach the node.
    pub(super) address: String,
    pub(super) description: NodeDescription,
    pub(super) devices: Vec<NodeDevice>,
    pub(super) machine: FakeMachine,
    pub(super) networks: FakeNetworks,
    pub(super) records: MemoryRecords,
    pub(super) state: MemoryState,
    pub(super) managers: Vec<String>,
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) network: Network,
}

/// Runs a worker until its process is killed.
pub(super) async fn run_worker(process: WorkerProcess) {
    let peer = peer(process.host, &process.node_id, Role::Worker);
    // Only other workers connect to a worker, to fetch images, and no worker in a simulation has any.
    drop(process.network.listen(process.host));
    let (_, cdi_devices) = tokio::sync::watch::channel(Vec::new());
    process.machine.set_checked(!faults::is_on(Fault::BlindWorker));
    let options = AgentOptions {
        node_id: process.node_id.to_string(),
        description: process.description,
        address: process.address,
        dialer: Dialer::through(process.network.connector(process.host, peer)),
        managers: process.managers,
        executor: Arc::new(FakeExecutor::new(process.machine.clone(), process.clock.clone())),
        health: HealthBoard::default(),
        services: Arc::new(FakeServices(process.machine)),
        networks: Arc::new(process.networks),
        records: Arc::new(process.records),
        state: Arc::new(process.state),
        cdi_devices,
        trusts: tokio::sync::watch::Sender::default(),
        offers: Arc::new(NodeOffers { devices: process.devices, ..NodeOffers::default() }),
        clock: process.clock,
        random: process.random,
    };
    let _agent = start_agent(options, CancellationToken::new());
    std::future::pending::<()>().await;
}
