//! The daemon: always the local socket; a worker, and sometimes a manager, while its node belongs to a cluster.

use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::node::local_node_server::LocalNodeServer;
use flota_identity::Peer;

use crate::config::Config;
use crate::local::LocalService;
use crate::node::Node;
use crate::rpc::{Authorize, LocalControl};
use crate::state_dir::StateDir;

/// Runs the daemon until it is told to stop.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let state = StateDir::open(&config.data_dir)?;
    let listener = listen(&config)?;
    let socket = config.socket();
    let node = Arc::new(Node::new(config, state));
    // Taken before anybody can ask for something: `swarm init` in between would find no cluster here.
    let mut place = node.place().await;
    let local = tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(|inner| Authorize::new(inner, Some(Peer::Local), None)))
        .add_service(LocalNodeServer::new(LocalService(Arc::clone(&node))).max_decoding_message_size(MESSAGE_BOUND))
        .add_service(LocalControl(node.managers()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let local = tokio::spawn(local);
    node.resume(&mut place).await?;
    drop(place);
    tracing::info!(version = flota_api::VERSION, "flotad runs");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = node.broken() => bail!("the Raft core has stopped; systemd starts flotad again"),
        ended = local => {
            ended.context("the local socket has ended")??;
        }
    }
    tracing::info!("flotad stops; its containers run on");
    if let Some(membership) = node.place().await.take() {
        membership.stop().await;
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}

fn listen(config: &Config) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let socket = config.socket();
    fs_err::create_dir_all(&config.run_dir)?;
    // The data folder's lock says that no other daemon uses the socket. It is put in place whole: whoever finds one
    // that nobody listens at yet tries again, whoever finds none gives up.
    let new = socket.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).with_context(|| format!("failed to listen at {}", socket.display()))?;
    fs_err::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    fs_err::rename(&new, &socket)?;
    Ok(listener)
}
