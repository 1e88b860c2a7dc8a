//! This node's part in a cluster: the listener, the worker, and, with a manager's certificate, the manager. Begun
//! and ended as a whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use flota_api::clock::{Clock, Random};
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::model::Role;
use flota_api::proto::raft::raft_transport_server::RaftTransportServer;
use flota_identity::{Dialer, Identity};
use flota_manager::{Manager, ManagerOptions, RaftDial, TermClock};
use flota_raft_store::Store;
use flota_raft_store::raft::{DirDisk, GrpcTransport, OpenError, RaftNode, RaftOptions, StartError, Threads};
use flota_worker::{Worker, WorkerOptions};

use crate::config::Config;
use crate::join;
use crate::rpc::Authorize;
use crate::state_dir::StateDir;

/// A new manager is a voter by then, or joining failed.
const VOTER_WAIT: Duration = Duration::from_secs(30);
/// A connection whose other end does not answer is given up after two of these.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Calls at once on one connection.
const STREAMS: u32 = 1_024;

/// A running part in a cluster.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) identity: Identity,
    pub(crate) dialer: Dialer,
    pub(crate) address: String,
    pub(crate) worker: Arc<Worker>,
    pub(crate) manager: Option<Manager>,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

/// How the manager comes to its store.
pub(crate) enum Begin {
    /// A new cluster: this transaction is its first entry.
    New(Box<flota_raft_store::Transaction>),
    /// What is on disk, or, for a new manager, what the others send.
    Follow(Vec<String>),
}

/// What every way into a cluster needs.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) state: &'a StateDir,
    pub(crate) identity: Identity,
    pub(crate) address: String,
    /// Cancelled when the daemon can't go on.
    pub(crate) fatal: CancellationToken,
}

impl Membership {
    /// Starts listener, manager and worker.
    pub(crate) async fn start(parts: Parts<'_>, store: Begin) -> anyhow::Result<Self> {
        let Parts { config, state, identity, address, fatal } = parts;
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        let dialer = Dialer::new(&identity).context("failed to use the node's certificate")?;
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
        let worker = Worker::start(
            WorkerOptions {
                identity: identity.clone(),
                dialer: dialer.clone(),
                data_dir: state.worker(),
                run_dir: config.run_dir.clone(),
                sealer: state.sealer.clone(),
                runtime: config.runtime.clone(),
                managers: known,
                address: address.clone(),
                offers: config.offers.clone(),
                clock: flota_api::clock::Clock::system(),
                random: flota_api::clock::Random::from_os(),
            },
            shutdown.clone(),
        )?;
        let server = serve(listener, &identity, manager.as_ref(), &worker, shutdown.clone())?;
        guard.disarm();
        Ok(Self { identity, dialer, address, worker: Arc::new(worker), manager, shutdown, server })
    }

    /// A manager that has just joined: until it votes.
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
                "the other managers did not take this one in within {VOTER_WAIT:?}: is {} reachable from them?",
                self.address
            )
        })
    }

    /// Ends it. The containers run on.
    pub(crate) async fn stop(self) {
        if let Some(manager) = &self.manager
            && manager.leadership().is_self
            && let Some(other) = manager.raft().members().iter().find(|it| it.votes && it.id != manager.raft().id())
        {
            // So that nobody has to wait for an election.
            manager.raft().hand_over(other.id).await;
            let mut leadership = manager.raft().leadership();
            let _ = tokio::time::timeout(Duration::from_millis(500), leadership.wait_for(|it| !it.is_self)).await;
        }
        self.worker.stop().await;
        self.shutdown.cancel();
        if let Some(manager) = self.manager {
            manager.raft().shutdown().await;
        }
        // Streams may be open without end: they are cut.
        self.server.abort();
        let _ = self.server.await;
    }
}

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
    let random = Random::from_os();
    // One for Raft and for those who plan: a wall clock that steps must not put times into the tables that planners see
    // as the future.
    let clock = TermClock::new(Clock::system());
    // Opened for each try: a damaged folder is put aside, and the next one is new.
    let start = async |id, was_here| {
        let disk = DirDisk::open(&state.raft());
        let disk = disk.map_err(|source| OpenError::Io { place: state.raft().display().to_string(), source })?;
        let options = RaftOptions {
            id,
            was_here,
            disk: Arc::new(disk),
            sealer: state.sealer.clone(),
            transport: Arc::new(GrpcTransport::new(Arc::new(RaftDial(dialer.clone())))),
            store: store.clone(),
            timing: config.timing(),
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
            let known: Option<u64> = state.read("raft-id").and_then(|text| text.parse().ok());
            let id = match known {
                Some(id) => id,
                None => join::raft_id(dialer, &identity.node_id, &managers, address, false).await?,
            };
            state.write("raft-id", &id.to_string())?;
            match start(id, known.is_some()).await {
                Err(StartError::Open(error @ OpenError::Damaged { .. })) => {
                    let id = replace_raft_id(state, dialer, identity, address, &managers, &error).await?;
                    start(id, false).await?
                }
                other => other?,
            }
        }
    };
    let options = ManagerOptions { store, raft, dialer: dialer.clone(), clock, random };
    Ok(Manager::start(options, shutdown.clone(), fatal))
}

/// Acknowledged entries may be lost here: this manager must not vote as the one that acknowledged them.
async fn replace_raft_id(
    state: &StateDir,
    dialer: &Dialer,
    identity: &Identity,
    address: &str,
    managers: &[String],
    error: &OpenError,
) -> anyhow::Result<u64> {
    tracing::error!(%error, "this manager asks for a new Raft id and begins with an empty log");
    let id = join::raft_id(dialer, &identity.node_id, managers, address, true).await;
    let id = id.with_context(|| format!("{error}, and no other manager gives this one a new Raft id (a cluster without a quorum is brought back with `ctl swarm restore`, which is not there yet)"))?;
    let aside = state.put_raft_aside()?;
    tracing::warn!(path = %aside.display(), "the damaged Raft log was put aside");
    state.write("raft-id", &id.to_string())?;
    Ok(id)
}

fn serve(
    listener: TcpListener,
    identity: &Identity,
    manager: Option<&Manager>,
    worker: &Worker,
    shutdown: CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let raft = manager.map(|manager| manager.raft().runtime());
    let incoming = flota_identity::incoming(listener, identity, raft.clone());
    let (incoming, raft_incoming) = incoming.context("failed to use the node's certificate")?;
    let known = manager.cloned();
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(STREAMS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .layer(tower::layer::layer_fn(move |inner| Authorize::new(inner, None, known.clone())));
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
        // On Raft's own threads: neither a user's request nor an image delays a heartbeat.
        let served = server
            .add_service(transport)
            .serve_with_incoming_shutdown(ReceiverStream::new(raft_incoming), shutdown.clone().cancelled_owned());
        raft.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the listener for Raft has ended");
            }
        });
    }
    let served = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), shutdown.cancelled_owned());
    Ok(tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "the listener for nodes has ended");
        }
    }))
}

/// The address to use after a restart: the one from before, while this machine still has it.
pub(crate) fn address_again(state: &StateDir, listen: SocketAddr) -> anyhow::Result<String> {
    let Some(before) = state.read("address") else { bail!("the node's address is not known any more") };
    let own = join::addresses().unwrap_or_default();
    let kept =
        before.parse::<SocketAddr>().is_ok_and(|it| it.ip().is_loopback() || own.contains(&it.ip()) || own.is_empty());
    // Identity is the certificate; an address may change, and every session says it anew.
    if kept { Ok(before) } else { join::own_address("", listen) }
}
