//! The networks of this node: their description by the leader, and the thread that makes kernel and DNS match it.
//!
//! ```text
//!  session ── updates ──▶ view.rs ── what has changed ──▶ actor.rs ──▶ linux.rs ──▶ flota_network
//!     ▲                      │                               │ ▲
//!     └──── programmed ──────┼───────────────────────────────┘ └── a task's network is made, adopted or removed
//!                            └──▶ record.rs: what outlives the daemon
//! ```
//!
//! The leader sends everything once in a session, and then differences ([`NetworkUpdate`]). The session is told when a
//! version is programmed: connections then go where that version says. The thread does all blocking work, so neither a
//! session nor a task runner waits for the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use ipnet::IpNet;
use tokio::sync::{oneshot, watch};

use flota_api::id::{NetworkId, TaskId};
use flota_api::model::{Assignment, Balancer, NetworkUpdate, NodePort, TunnelKey};
use flota_api::version::Version;

mod actor;
mod check;
#[cfg(any(test, feature = "fake"))]
mod fake;
#[cfg(test)]
pub(crate) mod fake_kernel;
mod folder;
mod kernel;
mod keys;
mod linux;
mod names;
mod record;
mod view;

use actor::{Actor, Command, Told};
pub(crate) use check::CheckPlan;
#[cfg(any(test, feature = "fake"))]
pub use fake::FakeNetworks;
pub(crate) use folder::NamespaceFolder;
use kernel::Kernel;
pub use kernel::TaskNetwork;
pub(crate) use kernel::{AttachError, Attached, KernelError, TaskSockets};
pub(crate) use linux::{LinuxKernel, LinuxOptions};
pub(crate) use record::NetworkRecord;
pub(crate) use view::UpdateParts;

/// Brings the networks of a node to what the leader describes.
pub trait NodeNetworks: fmt::Debug + Send + Sync {
    /// Begins to carry out an update, after all earlier ones. Returns at once.
    fn update(&self, update: NetworkUpdate);

    /// Watches the version up to which all updates are carried out. It is sent anew for each update, also if the
    /// version is the same.
    fn programmed(&self) -> watch::Receiver<Version>;

    /// Keeps tasks from the managers, which have these addresses.
    fn set_managers(&self, managers: BTreeSet<IpAddr>);

    /// Takes into account that every node that shares an encrypted network with this one knows this key of its own.
    fn key_known(&self, public: [u8; 32]);

    /// Watches what the leader should know of the node's own network.
    fn facts(&self) -> watch::Receiver<NetworkFacts>;
}

/// What the leader should know of the node's own network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFacts {
    /// The kind of balancer that spreads connections to virtual IPs.
    pub balancer: Option<Balancer>,
    /// The subnet of tasks without networks, which no network of the cluster gets.
    pub subnet: Option<IpNet>,
    /// Ports on which the node's own programs listen, and which can't be published.
    pub ports: BTreeSet<NodePort>,
    /// The tasks with the network `host` that listen on some of these ports.
    pub tasks: BTreeMap<NodePort, TaskId>,
    /// The node's public keys for encrypted networks, oldest first; none if its kernel can't encrypt.
    pub tunnel_keys: Vec<TunnelKey>,
}

/// The thread of the networks. Clones share it; it ends with the last one.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    thread: Arc<Thread>,
    programmed: watch::Receiver<Version>,
    facts: watch::Receiver<NetworkFacts>,
}

#[derive(Debug)]
struct Thread {
    /// `None` only while this is dropped.
    commands: Option<mpsc::Sender<Command>>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.commands = None;
        if self.handle.take().is_some_and(|it| it.join().is_err()) {
            tracing::error!("the thread of the networks has panicked");
        }
    }
}

impl Networks {
    /// Starts the thread, which takes over what an earlier daemon has left.
    ///
    /// # Errors
    /// The kernel refuses another thread.
    pub(crate) fn start<K: Kernel>(mut kernel: K, record: NetworkRecord) -> io::Result<Self> {
        let (confirm, programmed) = watch::channel(Version::default());
        // The first registration with a leader has them.
        let (inform, facts) = watch::channel(kernel.facts());
        let (commands, receiver) = mpsc::channel();
        let span = tracing::Span::current();
        let run = move || {
            span.in_scope(|| Actor::new(kernel, record, Told { programmed: confirm, facts: inform }).run(&receiver))
        };
        let handle = std::thread::Builder::new().name("flota-networks".into()).spawn(run)?;
        Ok(Self { thread: Arc::new(Thread { commands: Some(commands), handle: Some(handle) }), programmed, facts })
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.thread.commands {
            // If the thread has panicked, every caller that waits for an answer gets an error.
            let _ = commands.send(command);
        }
    }

    /// Says that all tasks of an earlier daemon are accepted. Nothing is made or removed before.
    pub(crate) fn begin(&self) {
        self.send(Command::Begin);
    }

    /// Registers a task that belongs to this node.
    pub(crate) fn accept(&self, task: &Assignment) {
        self.send(Command::Accept(Box::new(task.clone())));
    }

    /// Makes the network of a task's container.
    pub(crate) async fn attach(&self, task: &TaskId) -> Result<Attached, AttachError> {
        let (answer, attached) = oneshot::channel();
        self.send(Command::Attach(task.clone(), answer));
        attached.await.unwrap_or(Err(AttachError::Ended))
    }

    /// Takes over the network that an earlier daemon has made for a task.
    pub(crate) fn adopt(&self, task: &TaskId, sockets: TaskSockets) {
        self.send(Command::Adopt(task.clone(), sockets));
    }

    /// Plans the check of a network; `None` if the thread has ended.
    pub(crate) async fn plan_check(&self, network: &NetworkId) -> Option<CheckPlan> {
        let (answer, plan) = oneshot::channel();
        self.send(Command::Check(network.clone(), answer));
        plan.await.ok()
    }

    /// Waits until the peers of an ended container have confirmed what its programs have sent, for less than a second.
    pub(crate) async fn flush(&self, task: &TaskId) {
        let (answer, flushed) = oneshot::channel();
        self.send(Command::Flush(task.clone(), answer));
        // If the thread has ended, there is nothing to wait for.
        let _ = flushed.await;
    }

    /// Removes the network of a task's container, if it has one.
    pub(crate) async fn detach(&self, task: &TaskId) -> Result<(), KernelError> {
        let (answer, detached) = oneshot::channel();
        self.send(Command::Detach(task.clone(), answer));
        // If the thread has ended, the next daemon removes what is left.
        detached.await.unwrap_or(Ok(()))
    }

    /// Removes everything that was made, because the node leaves its cluster. No task is left, and nothing is made
    /// afterwards.
    pub(crate) async fn leave(&self) {
        let (answer, left) = oneshot::channel();
        self.send(Command::Leave(answer));
        if let Ok(Err(error)) = left.await {
            tracing::error!(error = %Chain(&error), "something of the networks is left on this machine");
        }
    }

    /// Forgets a task that no longer belongs to this node.
    pub(crate) fn forget(&self, task: &TaskId) {
        self.send(Command::Forget(task.clone()));
    }
}

impl NodeNetworks for Networks {
    fn update(&self, update: NetworkUpdate) {
        self.send(Command::Update(update));
    }

    fn programmed(&self) -> watch::Receiver<Version> {
        self.programmed.clone()
    }

    fn set_managers(&self, managers: BTreeSet<IpAddr>) {
        self.send(Command::Managers(managers));
    }

    fn key_known(&self, public: [u8; 32]) {
        self.send(Command::KeyKnown(public));
    }

    fn facts(&self) -> watch::Receiver<NetworkFacts> {
        self.facts.clone()
    }
}

/// Displays an error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |it| it.source()).try_for_each(|cause| write!(f, ": {cause}"))
    }
}
