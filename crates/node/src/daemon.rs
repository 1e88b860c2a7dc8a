//! Runs the daemon: serves the local socket, takes up the node's membership, and stops in order on a signal.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Gid;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::node::local_node_server::LocalNodeServer;

use crate::config::Config;
use crate::local::LocalService;
use crate::metrics;
use crate::node::Node;
use crate::rpc::{Authorize, LocalControl};
use crate::state_dir::StateDir;

/// What follows the end of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was told to stop.
    Stopped,
    /// It starts again, in this process.
    Restarts,
}

/// Runs the daemon until SIGTERM or SIGINT, or until it is to restart itself.
pub(crate) async fn run(config: Config) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let state = StateDir::open(&config.data_dir)?;
    let listener = listen(&config)?;
    let socket = config.socket();
    let metrics = config.metrics_listen;
    let node = Arc::new(Node::new(config, state));
    if let Some(address) = metrics {
        metrics::listen(address, Arc::clone(&node)).await?;
    }
    // Locked before the socket is served: a `swarm init` before `resume` would find no cluster here.
    let mut membership = node.lock_membership().await;
    let local = tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(Authorize::local))
        .add_service(LocalNodeServer::new(LocalService(Arc::clone(&node))).max_decoding_message_size(MESSAGE_BOUND))
        .add_service(LocalControl(node.manager_state()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let local = tokio::spawn(local);
    node.resume(&mut membership).await?;
    drop(membership);
    tracing::info!(version = flota_api::VERSION, "flotad started");
    let mut end = End::Stopped;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = node.restarts() => end = End::Restarts,
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
    Ok(end)
}

/// The group whose members may use the local socket, if the machine has it.
const SOCKET_GROUP: &str = "flota";

/// Binds the local socket, which root may use, and the members of a group.
fn listen(config: &Config) -> anyhow::Result<UnixListener> {
    let socket = config.socket();
    fs_err::create_dir_all(&config.run_dir)?;
    // The lock of the data folder guarantees that no other daemon uses the socket. The rename puts it in place together
    // with its listener: `ctl` retries a socket that refuses, but gives up if there is none.
    let new = socket.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = bind(&new).with_context(|| format!("failed to listen at {}", socket.display()))?;
    let groups = fs_err::read_to_string("/etc/group").unwrap_or_default();
    if let Some(group) = group_id(&groups, SOCKET_GROUP) {
        open_to(&new, group).with_context(|| format!("failed to open {} to its group", socket.display()))?;
    }
    fs_err::rename(&new, &socket)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Returns the number of a group in the text of /etc/group (group(5)).
fn group_id(groups: &str, name: &str) -> Option<Gid> {
    let entry = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|it| it[0] == name)?;
    entry.get(2)?.parse().ok().map(Gid::from_raw)
}

/// Lets the members of a group use a socket.
fn open_to(socket: &Path, group: Gid) -> std::io::Result<()> {
    nix::unistd::chown(socket, None, Some(group))?;
    fs_err::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
}

/// Listens at `path`, whose mode is 0600 from the first moment: Linux makes the file with the mode of the socket's
/// descriptor.
fn bind(path: &Path) -> nix::Result<net::UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_local_socket_is_never_open_to_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        let listener = bind(&path).expect("it is new");
        assert_eq!(fs_err::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        let _client = net::UnixStream::connect(&path).expect("somebody listens");
        listener.accept().expect("the client is there");
        open_to(&path, Gid::from_raw(4_321)).expect("tests run as root");
        let found = fs_err::metadata(&path).expect("it is there");
        assert_eq!((found.permissions().mode() & 0o777, found.uid(), found.gid()), (0o660, 0, 4_321));
        assert!(bind(&path).is_err(), "the name is taken");
    }

    #[test]
    fn the_group_of_the_socket_is_found_by_its_whole_name() {
        for (groups, expected) in [
            ("root:x:0:\nflota:x:990:ada,bob\n", Some(990)),
            ("flota-x:x:7:\nxflota:x:8:\n", None),
            ("flota\nflota:x", None),
            ("flota:x:none:\n", None),
            ("", None),
        ] {
            assert_eq!(group_id(groups, "flota").map(Gid::as_raw), expected, "{groups:?}");
        }
    }
}
