//! A running membership: the listener, the worker, and on managers the manager. They start and stop together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use flota_api::clock::{Clock, Random};
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::model::Role;
use flota_api::proto::raft::raft_transport_server::RaftTransportServer;
use flota_identity::{CONNECTION_WINDOW, Credentials, Dialer, Identity, STREAM_WINDOW, Sources};
use flota_manager::{Manager, ManagerOptions, RaftDial, TermClock};
use flota_raft_store::Store;
use flota_raft_store::raft::{
    DirDisk, GrpcTransport, LogBounds, OpenError, RaftNode, RaftOptions, StartError, Threads,
};
use flota_worker::{Worker, WorkerOptions};

use crate::config::Config;
use crate::join;
use crate::registries::NodeRegistries;
use crate::renewal::Renewals;
use crate::rpc::Authorize;
use crate::state_dir::StateDir;

/// Joining fails if a new manager is not a voter within this time.
const VOTER_WAIT: Duration = Duration::from_secs(30);
/// Interval and timeout of HTTP/2 keepalive: a peer that does not answer is dropped after twice this time.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Largest number of concurrent calls on one connection.
const STREAMS: u32 = 1_024;

/// A running membership in a cluster.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The identity with which it was started. Its certificate may have been renewed since.
    pub(crate) identity: Identity,
    credentials: Credentials,
    pub(crate) dialer: Dialer,
    pub(crate) address: String,
    pub(crate) worker: Arc<Worker>,
    pub(crate) manager: Option<Manager>,
    /// What the leader says that the node is to trust.
    trusts: watch::Receiver<Option<String>>,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

/// Where a manager's store comes from.
pub(crate) enum Begin {
    /// A new cluster, with this transaction as its first entry.
    New(Box<flota_raft_store::Transaction>),
    /// The disk, or, for a new manager, the other managers, whose addresses these are.
    Follow(Vec<String>),
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

impl Membership {
    /// Starts listener, manager and worker.
    pub(crate) async fn start(parts: Parts<'_>, store: Begin) -> anyhow::Result<Self> {
        let Parts { config, state, identity, address, fatal } = parts;
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        let credentials = Credentials::new(identity.clone(), Clock::system());
        let credentials = credentials.context("failed to use the node's certificate")?;
        let dialer = Dialer::new(credentials.clone());
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("failed to listen at {}", config.listen))?;
        let known = match &store {
            Begin::New(_) => vec![address.clone()],
            Begin::Follow(managers) => managers.clone(),
        };
        let manager = match identity.role {
            Role::Manager => {
                Some(start_manager(config, state, &identity, &dialer, &address, store, (&shutdown, fatal)).await?)
            }
            Role::Worker => None,
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
        let server = serve(listener, &credentials, manager.as_ref(), &worker, shutdown.clone());
        guard.disarm();
        Ok(Self { identity, credentials, dialer, address, worker: Arc::new(worker), manager, trusts, shutdown, server })
    }

    /// Begins to renew the node's certificate. Its identity must be on disk.
    pub(crate) fn begin_renewals(&self, state: &StateDir) {
        let renewals = Renewals {
            credentials: self.credentials.clone(),
            folder: state.identity(),
            managers: state.worker().join("managers"),
            manager: self.manager.clone(),
            told: self.trusts.clone(),
            random: Random::from_os(),
        };
        tokio::spawn(renewals.run(self.shutdown.clone()));
    }

    /// Waits until this manager is a voter. Returns immediately on a worker.
    ///
    /// # Errors
    /// It is not a voter within 30 s.
    pub(crate) async fn wait_until_voter(&self) -> anyhow::Result<()> {
        let Some(manager) = &self.manager else { return Ok(()) };
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
    pub(crate) async fn stop(self) {
        if let Some(manager) = &self.manager
            && manager.leadership().is_self
            // Faster for everybody than an election.
            && manager.raft().hand_over(|_| true).await.is_some()
        {
            let mut leadership = manager.raft().leadership();
            let _ = tokio::time::timeout(Duration::from_millis(500), leadership.wait_for(|it| !it.is_self)).await;
        }
        self.worker.stop().await;
        self.shutdown.cancel();
        if let Some(manager) = self.manager {
            manager.raft().shutdown().await;
        }
        // Streams may be open for ever, so the server would not end by itself.
        self.server.abort();
        let _ = self.server.await;
    }
}

/// Starts the store, Raft and the manager.
async fn start_manager(
    config: &Config,
    state: &StateDir,
    identity: &Identity,
    dialer: &Dialer,
    address: &str,
    begin: Begin,
    (shutdown, fatal): (&CancellationToken, CancellationToken),
) -> anyhow::Result<Manager> {
    let store = Store::default();
    let (random, sealer) = (Random::from_os(), state.sealer()?);
    // One clock for Raft and the planners: if the wall clock steps, entries must not get times that planners see as the
    // future.
    let clock = TermClock::new(Clock::system());
    // Opened for each attempt, because a damaged folder is replaced in between.
    let start = async |id, was_here| {
        let disk = DirDisk::open(&state.raft());
        let disk = disk.map_err(|source| OpenError::Io { place: state.raft().display().to_string(), source })?;
        let options = RaftOptions {
            id,
            was_here,
            disk: Arc::new(disk),
            sealer: sealer.clone(),
            transport: Arc::new(GrpcTransport::new(Arc::new(RaftDial(dialer.clone())))),
            store: store.clone(),
            timing: config.timing(),
            bounds: LogBounds::default(),
            clock: clock.as_clock(),
            random: random.clone(),
            threads: Threads::Own,
        };
        RaftNode::start(options).await
    };
    let raft = match begin {
        Begin::New(first) => {
            let raft = start(1, false).await?;
            raft.initialize(address).await?;
            flota_raft_store::Proposer::propose(&raft, *first)
                .await
                .context("failed to write the cluster's first entry")?;
            state.write("raft-id", "1")?;
            raft
        }
        Begin::Follow(managers) => {
            let new_id = async || new_raft_id(state, dialer, identity, address, &managers).await;
            match state.read("raft-id").and_then(|text| text.parse().ok()) {
                // It is new, or has lost its id, and then its log may lack what it had acknowledged.
                None => start(new_id().await?, false).await?,
                Some(id) => match start(id, true).await {
                    Err(StartError::Open(error @ OpenError::Damaged { .. })) => {
                        tracing::error!(%error, "the Raft log is damaged; requesting a new Raft id to begin with an empty log");
                        let id = new_id().await;
                        let advice = "this manager needs a new Raft id, and a majority of managers with intact logs to give it: \
                            start the others; without such a majority, this version of Flota cannot restore the cluster";
                        start(id.with_context(|| format!("{error}; {advice}"))?, false).await?
                    }
                    other => other?,
                },
            }
        }
    };
    let registries = Arc::new(NodeRegistries(config.registries.clone()));
    let dialer = dialer.clone();
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

/// Serves the node's port.
fn serve(
    listener: TcpListener,
    credentials: &Credentials,
    manager: Option<&Manager>,
    worker: &Worker,
    shutdown: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let raft = manager.map(|manager| manager.raft().runtime());
    let sources = Sources::default();
    let (incoming, raft_incoming) =
        flota_identity::incoming(listener, credentials.clone(), raft.clone(), sources.clone());
    let known = manager.cloned();
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(STREAMS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(tower::layer::layer_fn(move |inner| Authorize::port(inner, known.clone(), sources.clone())));
    let mut router = server.clone().add_service(worker.image_server());
    if let Some(manager) = manager {
        router = router
            .add_service(manager.ca())
            .add_service(manager.control())
            .add_service(manager.dispatcher())
            .add_service(manager.streams());
    }
    if let (Some(manager), Some(raft)) = (manager, raft) {
        let transport = RaftTransportServer::new(manager.raft().transport())
            .max_decoding_message_size(MESSAGE_BOUND)
            .max_encoding_message_size(MESSAGE_BOUND);
        // On Raft's own threads, so that neither requests nor image transfers delay a heartbeat.
        let served = server
            .add_service(transport)
            .serve_with_incoming_shutdown(ReceiverStream::new(raft_incoming), shutdown.clone().cancelled_owned());
        raft.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "failed to serve Raft connections");
            }
        });
    }
    let served = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), shutdown.cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "failed to serve connections of nodes");
        }
    })
}

/// The node's address after a restart: the previous one if this machine still has it, else as for a new node.
pub(crate) fn address_again(state: &StateDir, listen: SocketAddr) -> anyhow::Result<String> {
    let Some(before) = state.read("address") else {
        bail!("failed to read the node's address: the file `address` in the data folder is missing")
    };
    let own = join::addresses().unwrap_or_default();
    let kept =
        before.parse::<SocketAddr>().is_ok_and(|it| it.ip().is_loopback() || own.contains(&it.ip()) || own.is_empty());
    // Nodes are identified by certificate, so the address may change. Each session announces it.
    if kept { Ok(before) } else { join::own_address("", listen) }
}
