//! Connects to a port of a task for a user, and carries the connection over the stream.
//!
//! The connection is made inside the task's network namespace, to its loopback address first. So it needs no network
//! between nodes, and reaches a program that listens on nothing else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::net::if_::InterfaceFlags;
use tokio::net::{TcpSocket, TcpStream};
use tonic::Streaming;

use flota_api::id::TaskId;
use flota_api::model::TaskPort;
use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as F;
use flota_identity::forward::{self, CarryError};
use flota_network::{Namespace, NetworkError};
use flota_runtime::ContainerState;

use super::{Outbox, send};
use crate::executor::ContainerExecutor;

/// How long a program has to accept the connection. It is shorter than what the leader waits.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Largest number of addresses of a task that are tried.
const ADDRESSES: usize = 8;

/// Why a task's port was not reached.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("its container does not run")]
    NotRunning,
    #[error("nothing listens on port {0}")]
    Refused(u16),
    #[error("no program has accepted the connection to port {0} within {CONNECT_WAIT:?}")]
    TimedOut(u16),
    #[error("failed to connect to port {port}: {source}")]
    Connect { port: u16, source: io::Error },
    #[error("failed to use the task's network: {0}")]
    Namespace(#[source] io::Error),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Serves one connection until it has ended or the user has left.
pub(super) async fn forward(
    executor: &ContainerExecutor,
    task: &TaskId,
    port: TaskPort,
    inbox: &mut Streaming<Frame>,
    outbox: &Outbox,
) {
    let failed = match connect(&executor.paths.run_folder(task), port.0.get()).await {
        Ok(connection) => {
            if send(outbox, F::Connected(true)).await.is_err() {
                return;
            }
            match forward::carry(connection, outbox, inbox).await {
                Err(CarryError::Connection(error)) => format!("the connection in the task broke: {error}"),
                // Both sides have ended, or the user's is gone.
                _ => return,
            }
        }
        Err(error) => error.to_string(),
    };
    // An error of this send means that the user has left.
    let _ = send(outbox, F::Error(failed)).await;
}

/// Connects to a port of the task whose container is in `folder`.
async fn connect(folder: &Path, port: u16) -> Result<TcpStream, ForwardError> {
    let state = ContainerState::load(folder).ok().flatten().ok_or(ForwardError::NotRunning)?;
    let opened = tokio::task::spawn_blocking(move || {
        Namespace::of(state.pid).enter(|| {
            // The process id may have become another process's before the namespace was opened.
            Ok(if state.is_alive() { Some(sockets(port)) } else { None })
        })
    });
    let opened = match opened.await.map_err(io::Error::other).map_err(ForwardError::Namespace)? {
        Ok(opened) => opened,
        // A process that has ended has no namespace.
        Err(_) if !state.is_alive() => None,
        Err(error) => return Err(error.into()),
    };
    let sockets = opened.ok_or(ForwardError::NotRunning)?.map_err(ForwardError::Namespace)?;
    let connected = tokio::time::timeout(CONNECT_WAIT, connect_first(sockets)).await;
    connected.map_err(|_| ForwardError::TimedOut(port))?.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => ForwardError::Refused(port),
        _ => ForwardError::Connect { port, source },
    })
}

/// Opens a socket for each address of this thread's network namespace, in the order in which they are tried. A socket
/// stays in the namespace in which it was opened.
fn sockets(port: u16) -> io::Result<Vec<(TcpSocket, SocketAddr)>> {
    let up =
        |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let interfaces = nix::ifaddrs::getifaddrs()?.filter(|it| up(it.flags));
    let others = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    // An address of one link alone needs the link's number, and every interface has better ones.
    let others = others.filter(|it| !matches!(it, IpAddr::V6(address) if address.is_unicast_link_local()));
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let addresses = loopback.into_iter().chain(others).take(ADDRESSES);
    let open = |address: IpAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        // A kernel without IPv6 opens no such socket.
        Some((socket.ok()?, SocketAddr::new(address, port)))
    };
    Ok(addresses.filter_map(open).collect())
}

/// Connects to the first address that accepts. If none does, returns the error of the first one, which tells most: the
/// others may not even be routed.
async fn connect_first(sockets: Vec<(TcpSocket, SocketAddr)>) -> io::Result<TcpStream> {
    let mut failed = None;
    for (socket, address) in sockets {
        match socket.connect(address).await {
            Ok(connection) => {
                // Data is sent at once, because a user may type it.
                let _ = connection.set_nodelay(true);
                return Ok(connection);
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn candidates(port: u16, addresses: &[&str]) -> Vec<(TcpSocket, SocketAddr)> {
        let candidate = |address: &&str| {
            let address: IpAddr = address.parse().unwrap();
            (TcpSocket::new_v4().unwrap(), SocketAddr::new(address, port))
        };
        addresses.iter().map(candidate).collect()
    }

    fn write_state(folder: &Path, state: ContainerState) {
        std::fs::write(folder.join("state.json"), serde_json::to_vec(&state).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_followed_by_the_next() {
        let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connected = connect_first(candidates(port, &["127.0.0.2", "127.0.0.3"])).await.unwrap();
        assert_eq!(connected.peer_addr().unwrap().ip().to_string(), "127.0.0.3");
        let refused = connect_first(candidates(port, &["127.0.0.2", "127.0.0.4"])).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_connection_is_made_where_the_tasks_process_is() {
        let folder = tempfile::tempdir().unwrap();
        // A namespace of its own, in which the loopback interface is down: nothing can be reached there.
        let mut process = std::process::Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        let started = flota_runtime::state::start_time(pid).unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap() == own {
            tokio::task::yield_now().await;
        }
        let write = |start_time| write_state(folder.path(), ContainerState { pid, start_time, supervisor: 0 });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        write(started);
        let unreachable = connect(folder.path(), port).await.expect_err("the listener is elsewhere");
        write(started + 1);
        let other = connect(folder.path(), port).await.expect_err("this is another process's id");
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(matches!(unreachable, ForwardError::Connect { .. }), "{unreachable}");
        assert!(matches!(other, ForwardError::NotRunning), "{other}");
    }

    #[tokio::test]
    async fn a_port_of_this_process_is_reached_and_a_closed_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = connect(folder.path(), 1).await.expect_err("no container was started");
        assert!(matches!(missing, ForwardError::NotRunning), "{missing}");
        let pid = i32::try_from(std::process::id()).unwrap();
        write_state(
            folder.path(),
            ContainerState { pid, start_time: flota_runtime::state::start_time(pid).unwrap(), supervisor: 0 },
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut connection = connect(folder.path(), port).await.unwrap();
        let mut accepted = listener.accept().await.unwrap().0;
        connection.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
        drop(listener);
        let refused = connect(folder.path(), port).await.expect_err("nothing listens");
        assert_eq!(refused.to_string(), format!("nothing listens on port {port}"));
    }
}
