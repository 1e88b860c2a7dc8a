//! Runs the daemon: serves the local socket, takes up the node's membership, and stops in order on a signal.

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

/// Runs the daemon until SIGTERM or SIGINT.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let state = StateDir::open(&config.data_dir)?;
    let listener = listen(&config)?;
    let socket = config.socket();
    let node = Arc::new(Node::new(config, state));
    // Locked before the socket is served: a `swarm init` before `resume` would find no cluster here.
    let mut membership = node.lock_membership().await;
    let local = tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(|inner| Authorize::new(inner, Some(Peer::Local), None)))
        .add_service(LocalNodeServer::new(LocalService(Arc::clone(&node))).max_decoding_message_size(MESSAGE_BOUND))
        .add_service(LocalControl(node.manager_state()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let local = tokio::spawn(local);
    node.resume(&mut membership).await?;
    drop(membership);
    tracing::info!(version = flota_api::VERSION, "flotad started");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = node.failed() => bail!("the Raft core has stopped; systemd starts flotad again"),
        ended = local => {
            ended.context("failed to serve the local socket")??;
        }
    }
    tracing::info!("flotad stops; its containers continue to run");
    if let Some(membership) = node.lock_membership().await.take() {
        membership.stop().await;
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// Binds the local socket, which only root may use.
fn listen(config: &Config) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let socket = config.socket();
    fs_err::create_dir_all(&config.run_dir)?;
    // The lock of the data folder guarantees that no other daemon uses the socket. The rename puts it in place together
    // with its listener: `ctl` retries a socket that refuses, but gives up if there is none.
    let new = socket.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).with_context(|| format!("failed to listen at {}", socket.display()))?;
    fs_err::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    fs_err::rename(&new, &socket)?;
    Ok(listener)
}
