//! The programs that simulated processes run: what `flotad` does with a manager and with a worker, over the
//! simulation's network, disk, machine and clock.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use flota_api::clock::{Clock, Random};
use flota_api::id::NodeId;
use flota_api::model::{NodeDescription, NodeDevice, Role};
use flota_api::seal::Sealer;
use flota_identity::{Dialer, Peer};
use flota_manager::{Manager, ManagerOptions, TermClock};
use flota_raft_store::raft::{ModelDisk, RaftNode, RaftOptions, StartError, Threads, Timing};
use flota_raft_store::{Proposer, Store, Transaction};
use flota_worker::{
    AgentOptions, FakeExecutor, FakeMachine, FakeServices, MemoryRecords, MemoryState, NodeOffers, start_agent,
};

use super::host::Host;
use super::network::Network;
use super::raft_network::RaftNetwork;

/// As `flotad` sets it.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Why a process ended by itself; clones share it.
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

/// What a manager's process is started with.
pub(super) struct ManagerProcess {
    pub(super) host: Host,
    pub(super) node_id: NodeId,
    pub(super) raft_id: u64,
    pub(super) was_here: bool,
    pub(super) disk: ModelDisk,
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) network: Network,
    pub(super) raft_network: RaftNetwork,
    /// This manager begins the cluster, with this entry.
    pub(super) first: Option<Transaction>,
    pub(super) running: Arc<Mutex<Option<Manager>>>,
    pub(super) ended: Ended,
}

/// How others see a node that connects to them.
pub(super) fn peer(host: Host, node_id: &NodeId, role: Role) -> Peer {
    let address: SocketAddr = host.address().parse().expect("it is an address");
    Peer::Node { id: node_id.clone(), role, address }
}

/// Runs a manager until it can't go on.
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

/// An error with its causes.
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
        },
        CancellationToken::new(),
        fatal,
    );
    serve(process.host, &process.network, &manager);
    *process.running.lock().expect("no holder panics") = Some(manager);
    Ok(())
}

/// As in `flotad`, without Raft's messages, which have a network of their own.
fn serve(host: Host, network: &Network, manager: &Manager) {
    let incoming = UnboundedReceiverStream::new(network.listen(host));
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
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

/// What a worker's process is started with.
pub(super) struct WorkerProcess {
    pub(super) host: Host,
    pub(super) node_id: NodeId,
    pub(super) description: NodeDescription,
    pub(super) devices: Vec<NodeDevice>,
    pub(super) machine: FakeMachine,
    pub(super) records: MemoryRecords,
    pub(super) state: MemoryState,
    pub(super) managers: Vec<String>,
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) network: Network,
}

/// Runs a worker for as long as its process lives.
pub(super) async fn run_worker(process: WorkerProcess) {
    let peer = peer(process.host, &process.node_id, Role::Worker);
    // What connects to a worker would be other workers, for images: nobody here has any.
    drop(process.network.listen(process.host));
    let options = AgentOptions {
        node_id: process.node_id.to_string(),
        description: process.description,
        address: process.host.address(),
        dialer: Dialer::through(process.network.connector(process.host, peer)),
        managers: process.managers,
        executor: Arc::new(FakeExecutor::new(process.machine, process.clock.clone())),
        services: Arc::new(FakeServices),
        records: Arc::new(process.records),
        state: Arc::new(process.state),
        offers: Arc::new(NodeOffers { devices: process.devices, ..NodeOffers::default() }),
        clock: process.clock,
        random: process.random,
    };
    let _agent = start_agent(options, CancellationToken::new());
    std::future::pending::<()>().await;
}
