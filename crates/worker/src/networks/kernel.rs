//! What the thread of the networks does to kernel and DNS. `linux.rs` does it; a fake stands in for it in tests.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

use flota_api::id::{NetworkId, TaskId};
use flota_api::model::{Assignment, NetworkDriver, NodePort};
use flota_network::dns::DirectoryError;
use flota_network::{BalancerError, NetworkError};

use super::NetworkFacts;
use super::check::CheckPlan;
use super::keys::KeyError;
use super::view::{Touched, View};

/// Longest wait of a task for the description of its networks, which comes in the same session as the task.
pub(super) const DESCRIPTION_WAIT: Duration = Duration::from_secs(10);

/// The sockets of a task's DNS server, which its supervisor keeps: datagrams first, then connections.
pub(crate) type TaskSockets = Vec<OwnedFd>;

/// The network of a task's container.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TaskNetwork {
    /// A namespace of its own with loopback alone, which the runtime makes.
    #[default]
    Loopback,
    /// The network of the node.
    Host,
    /// A namespace that was made for the task.
    Joined {
        /// File of the namespace.
        namespace: PathBuf,
        /// The addresses of its interfaces, in their order.
        addresses: Vec<IpAddr>,
        /// Content of the task's /etc/resolv.conf.
        resolver: String,
    },
}

/// A network that was made for a task's container.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    pub(crate) network: TaskNetwork,
    /// The sockets on which the task's DNS questions arrive.
    pub(crate) sockets: TaskSockets,
}

/// Why kernel or DNS can't be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Balancer(#[from] BalancerError),
    #[error(transparent)]
    Names(#[from] DirectoryError),
    #[error("failed to use the sockets of the task's DNS server")]
    Sockets(#[from] io::Error),
    #[error("the manager's description of the network {0} is not complete")]
    Incomplete(String),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error("this node can't encrypt networks: its kernel has no WireGuard")]
    NoEncryption,
    #[error("every subnet that the bridge of tasks without networks can have meets a route of this node")]
    NoSubnet,
    #[error("no address is free in {0}, the subnet of tasks without networks")]
    FullBridge(Ipv4Net),
}

/// Why a task has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("the manager has not described the network {0} within {DESCRIPTION_WAIT:?}")]
    Unknown(NetworkId),
    #[error("the manager has not described this node's networks within {DESCRIPTION_WAIT:?}")]
    Undescribed,
    #[error("networks of the driver {0} can't be joined by tasks with other networks")]
    Exclusive(NetworkDriver),
    #[error("failed to make the task's network")]
    Kernel(#[source] KernelError),
    #[error("the worker ends")]
    Ended,
}

impl<E: Into<KernelError>> From<E> for AttachError {
    fn from(error: E) -> Self {
        Self::Kernel(error.into())
    }
}

/// Acts on kernel and DNS. Every call may be repeated.
pub(crate) trait Kernel: Send + 'static {
    /// Returns the networks that this machine has.
    fn networks(&self) -> BTreeSet<NetworkId>;

    /// Returns the tasks that have a namespace on this machine.
    fn tasks(&self) -> BTreeSet<TaskId>;

    /// Returns whether this task has a namespace, also if [`Kernel::attach`] was not called for it.
    fn has_namespace(&self, task: &TaskId) -> bool;

    /// Makes what `todo` names as it is in the view, and takes from `todo` what is done. What is not in the view is
    /// removed; a network only if none of `tasks`, the tasks with a namespace, is in it.
    ///
    /// # Errors
    /// The first error; the rest was tried as well.
    fn program(&mut self, view: &View, tasks: &[&Assignment], todo: &mut Touched) -> Result<(), KernelError>;

    /// Compares what an earlier daemon knew last with the first view of this one. Connections of its tasks and ports to what has
    /// gone since then end.
    fn succeed(&mut self, recorded: &View, view: &View);

    /// Does what may come after a version is programmed.
    fn settle(&mut self);

    /// Makes the network of a task's container. The view has all of the task's networks.
    fn attach(&mut self, view: &View, task: &Assignment) -> Result<Attached, AttachError>;

    /// Takes over the network that an earlier daemon has made for a task, with its sockets. The view has all of the
    /// task's networks.
    fn adopt(&mut self, view: &View, task: &Assignment, sockets: &TaskSockets) -> Result<(), AttachError>;

    /// Returns what the leader should know of the node's own network. What can't be read is logged and left out.
    fn facts(&mut self) -> NetworkFacts;

    /// Makes another key for encrypted networks, if the one that there is has become old.
    fn renew_key(&mut self);

    /// Uses this key of the node's own, by its public part, instead of the one before, because every node knows it.
    fn settle_key(&mut self, public: [u8; 32]);

    /// Keeps tasks from these addresses of managers, from the next call of [`Kernel::program`] on.
    fn set_managers(&mut self, managers: BTreeSet<IpAddr>);

    /// Leaves these ports to programs of the node itself, from the next call of [`Kernel::program`] on.
    fn leave_ports(&mut self, ports: &BTreeSet<NodePort>);

    /// Compares what was made with what it should be, and mends it.
    ///
    /// # Errors
    /// The first error; the rest was tried as well.
    fn audit(&mut self, view: &View) -> Result<(), KernelError>;

    /// Plans the check of a network. The plan is empty if the view does not have it.
    fn plan_check(&mut self, view: &View, network: &NetworkId) -> CheckPlan;

    /// Returns whether the kernel still sends what the programs of a task have written before they ended. What can't be
    /// read is logged and counts as sent.
    fn is_sending(&mut self, task: &TaskId) -> bool;

    /// Removes the network of a task's container, of which this is known. Succeeds if there is none.
    fn detach(&mut self, task: &TaskId, known: Option<&Assignment>) -> Result<(), KernelError>;

    /// Removes everything that was made on this machine, because it leaves its cluster. No task is left.
    ///
    /// # Errors
    /// The first error; the rest was tried as well.
    fn remove_all(&mut self) -> Result<(), KernelError>;
}
