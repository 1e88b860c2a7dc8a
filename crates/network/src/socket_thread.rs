//! A thread that opens sockets in network namespaces, for callers that open too many to start a thread for each.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::sync::oneshot;

use crate::error::{NetworkError, io};
use crate::namespace::Namespace;

struct Request {
    namespace: Namespace,
    reply: oneshot::Sender<Result<OwnedFd, NetworkError>>,
}

/// Opens sockets in network namespaces, one after the other. Clones are the same thread; it ends when the last one is
/// dropped.
#[derive(Clone, Debug)]
pub struct SocketThread(mpsc::Sender<Request>);

impl SocketThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel refuses another thread.
    pub fn start() -> io::Result<Self> {
        let home = File::open(Namespace::own().path())?;
        let (sender, requests) = mpsc::channel::<Request>();
        let run = move || requests.into_iter().for_each(|request| serve(request, &home));
        std::thread::Builder::new().name("flota-sockets".into()).spawn(run)?;
        Ok(Self(sender))
    }

    /// Opens a TCP socket of IPv4 in the namespace, where it stays. It does not block.
    ///
    /// # Errors
    /// There is no such namespace, this process may not enter it, or no descriptor is left.
    pub async fn open_tcp(&self, namespace: Namespace) -> Result<OwnedFd, NetworkError> {
        let (reply, opened) = oneshot::channel();
        // The thread ends only when this is dropped.
        let _ = self.0.send(Request { namespace, reply });
        opened.await.unwrap_or_else(|_| Err(io("open a socket")(io::Error::other("the thread has ended"))))
    }
}

fn serve(request: Request, home: &File) {
    let Request { namespace, reply } = request;
    // Nobody waits for this one any more.
    if reply.is_closed() {
        return;
    }
    let opened = open(&namespace);
    // In the namespace of a container that has ended, this thread would keep it and its interfaces alive.
    if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
        tracing::warn!(%error, "failed to leave a network namespace");
    }
    // An error means that the caller has given up; the socket is closed.
    let _ = reply.send(opened);
}

fn open(namespace: &Namespace) -> Result<OwnedFd, NetworkError> {
    let act = || io(format!("open a socket in the network namespace {}", namespace.path().display()));
    let file = namespace.open()?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(act())?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None).map_err(io::Error::from).map_err(act())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::os::linux::fs::MetadataExt;
    use std::path::Path;

    use tokio::net::TcpSocket;

    use super::*;
    use crate::netlink::Connection;

    const PORT: u16 = 80;

    fn inode(namespace: &Path) -> u64 {
        std::fs::metadata(namespace).expect("it exists").st_ino()
    }

    /// Returns the namespace of each thread that opens sockets. No other test of this crate has one.
    fn of_threads() -> Vec<u64> {
        let threads =
            std::fs::read_dir("/proc/self/task").expect("it is there").map(|it| it.expect("it is there").path());
        let opens_sockets = |it: &std::path::PathBuf| {
            std::fs::read_to_string(it.join("comm")).is_ok_and(|name| name.trim() == "flota-sockets")
        };
        threads.filter(opens_sockets).map(|it| inode(&it.join("ns/net"))).collect()
    }

    #[tokio::test]
    async fn a_socket_is_of_its_namespace_and_the_thread_does_not_stay_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespaces = ["one", "two"].map(|name| Namespace::make(&folder.path().join(name)).expect("it is made"));
        let listeners = namespaces.each_ref().map(|it| {
            Connection::open(it).and_then(|mut it| it.bring_up("lo")).expect("loopback is up");
            let listener = it.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).map_err(io("listen")));
            listener.expect("the port is free")
        });
        let thread = SocketThread::start().expect("a thread");
        for turn in [0, 1, 0] {
            let socket = thread.clone().open_tcp(namespaces[turn].clone()).await.expect("the namespace is there");
            assert_eq!(of_threads(), [inode(Namespace::own().path())]);
            let socket = TcpSocket::from_std_stream(socket.into());
            let stream = socket.connect((Ipv4Addr::LOCALHOST, PORT).into()).await.expect("a program listens");
            let (_, from) = listeners[turn].accept().expect("the connection is there");
            assert_eq!(from, stream.local_addr().expect("it is connected"));
        }
        let missing = thread.open_tcp(Namespace::at(&folder.path().join("three"))).await;
        assert!(missing.expect_err("there is none").to_string().contains("open the network namespace"));
        thread.open_tcp(namespaces[1].clone()).await.expect("the thread goes on");
        namespaces.iter().for_each(|it| Namespace::remove(it.path()).expect("it is removed"));
    }
}
