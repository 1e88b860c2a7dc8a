//! The thread that serves all clients, and the door to it.
//!
//! The thread stays in the network namespace of the thread that starts it: from there it asks the resolvers. The
//! sockets of clients stay in the namespaces in which they were made.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::JoinHandle;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet};

use super::client::{serve_connections, serve_datagrams};
use super::directory::Directory;
use super::resolvers::Resolvers;
use super::sockets::DnsSockets;
use super::view::{Shared, View};

/// A client: its networks and its resolvers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Keys of the networks whose names it sees. The first one that knows a name answers.
    pub networks: Vec<String>,
    /// Resolvers for all other names; without any, those of the machine.
    pub resolvers: Vec<SocketAddr>,
    /// Whether resolvers are asked. A client that can't reach the outside must not do so by questions either.
    pub forwards: bool,
}

enum Command {
    Serve(String, Client, DnsSockets),
    Stop(String),
}

/// A running server. It ends when it is dropped; the sockets that others hold stay open.
#[derive(Debug)]
pub struct DnsServer {
    /// `None` only while the server is dropped.
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Starts the server's thread in the namespace of the caller. It answers no queries until it is given networks.
    ///
    /// `resolv_conf` is the file that names the machine's resolvers. It is read again when it changes.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(directory: Directory, resolv_conf: PathBuf) -> io::Result<Self> {
        let (sender, commands) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            let shared = Rc::new(Shared::new(directory, Resolvers::new(resolv_conf)));
            LocalSet::new().block_on(&runtime, run(shared, commands));
        };
        let thread = std::thread::Builder::new().name("dns".to_owned()).spawn(run)?;
        Ok(Self { commands: Some(sender), thread: Some(thread) })
    }

    /// Serves a client on its sockets, in place of what was served under that key before.
    pub fn serve(&self, key: &str, client: Client, sockets: DnsSockets) {
        self.send(Command::Serve(key.to_owned(), client, sockets));
    }

    /// Stops serving a client and closes the sockets, if there is one.
    pub fn stop(&self, key: &str) {
        self.send(Command::Stop(key.to_owned()));
    }

    fn send(&self, command: Command) {
        let sent = self.commands.as_ref().map(|commands| commands.send(command));
        if !matches!(sent, Some(Ok(()))) {
            tracing::error!("the DNS server has ended by itself");
        }
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the DNS server has panicked");
        }
    }
}

/// Serves clients until the door is dropped.
async fn run(shared: Rc<Shared>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut clients: HashMap<String, AbortHandle> = HashMap::new();
    while let Some(command) = commands.recv().await {
        let (key, served) = match command {
            Command::Serve(key, client, sockets) => (key, Some((client, sockets))),
            Command::Stop(key) => (key, None),
        };
        if let Some(previous) = clients.remove(&key) {
            previous.abort();
        }
        if let Some((client, sockets)) = served {
            let view = View::new(shared.clone(), client.networks, client.forwards.then_some(client.resolvers));
            let name = key.clone();
            let serving = tokio::task::spawn_local(async move {
                let error = serve(view, sockets).await;
                tracing::error!(client = name, error = %error, "a client of the DNS server is not served any more");
            });
            clients.insert(key, serving.abort_handle());
        }
    }
}

/// Serves one client and returns why that is not possible any more.
async fn serve(view: View, sockets: DnsSockets) -> io::Error {
    let DnsSockets { udp, tcp } = sockets;
    let opened = (|| {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
    })();
    match opened {
        Ok((udp, tcp)) => tokio::select! {
            error = serve_datagrams(&view, &udp) => error,
            never = serve_connections(&view, &tcp) => match never {},
        },
        Err(error) => error,
    }
}
