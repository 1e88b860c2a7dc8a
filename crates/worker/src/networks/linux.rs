//! Makes the kernel of this node and its DNS server match the leader's view, with the parts of `flota_network`. The thread of
//! the networks calls this; nothing else in the worker changes links, rules or names, or removes a network namespace. (That of a
//! task with ids of its own is made before: `executor/container/user_namespace.rs`.)
//!
//! `linux/networks.rs` makes networks, and `linux/services.rs` their services: pools of the [`Balancer`] and entries of the
//! [`Directory`]. `linux/tasks.rs` connects tasks to their networks, and `linux/bridge.rs` those that have none.
//! `linux/gateway.rs` makes the node a gateway between its networks and the world, `linux/tunnels.rs` encrypts networks, and
//! `linux/check.rs` plans checks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::id::{NetworkId, NodeId, TaskId, is_id};
use flota_api::model::{Assignment, Balancer as BalancerKind, NodePort};
use flota_network::dns::{Directory, DnsServer};
use flota_network::{Audit, Balancer, HostPort, Listeners, Namespace, PublishedPort, SecretKey, Wanted};

use super::NetworkFacts;
use super::check::CheckPlan;
use super::folder::NamespaceFolder;
use super::kernel::{AttachError, Attached, Kernel, KernelError, TaskSockets};
use super::keys::KeyRing;
use super::names;
use super::view::{Touched, View};

mod bridge;
mod check;
mod gateway;
mod networks;
mod reach;
mod services;
mod tasks;
mod tunnels;

use bridge::NodeBridge;
use gateway::Gate;
use networks::MadeNetwork;
use reach::Member;
use services::{open_balancer, wanted_pools};
use tasks::{JoinedTask, addresses};
use tunnels::TunnelState;

/// The UDP port of VXLAN (RFC 7348), the same on every node.
const VXLAN_PORT: u16 = 4789;
/// The file that names the node's resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What a node's networks are made of.
#[derive(Clone, Debug)]
pub(crate) struct LinuxOptions {
    /// This node.
    pub(crate) node: NodeId,
    /// The node's own namespace.
    pub(crate) host: Namespace,
    /// The node's address in the underlay, until the leader names one.
    pub(crate) address: Option<IpAddr>,
    /// TCP ports of this node and the others that tasks can't reach.
    pub(crate) guarded_ports: BTreeSet<u16>,
    /// The folder of namespaces.
    pub(crate) folder: NamespaceFolder,
    /// The group of all tasks in the hierarchy of cgroup2, if the machine has one.
    pub(crate) group: Option<PathBuf>,
    /// The balancer that the node's owner wants.
    pub(crate) balancer: Option<BalancerKind>,
    /// The file of the keys for encrypted networks.
    pub(crate) keys: PathBuf,
    /// How long such a key is used, if the node's owner says so.
    pub(crate) key_life: Option<Duration>,
    /// The wall clock.
    pub(crate) clock: Clock,
}

/// The networks of this node's kernel.
pub(crate) struct LinuxKernel {
    options: LinuxOptions,
    networks: BTreeMap<NetworkId, MadeNetwork>,
    tasks: BTreeMap<TaskId, JoinedTask>,
    /// `None` until a task without networks has come.
    bridge: Option<NodeBridge>,
    /// The subnet that the bridge would get.
    planned_subnet: Option<Ipv4Net>,
    /// The sockets of the node's own programs.
    listeners: Listeners,
    /// The ports on which those listened at the last look, each with the control groups of its programs.
    ports: BTreeMap<NodePort, BTreeSet<u64>>,
    balancer: Balancer,
    balancer_kind: BalancerKind,
    directory: Directory,
    dns: DnsServer,
    gate: Gate,
    tunnels: TunnelState,
    /// The addresses of the managers, which tasks can't reach.
    managers: BTreeSet<IpAddr>,
    /// What has to be made in networks that a task got, and was not.
    unfinished: Touched,
    /// The addresses in each network that have gone while no daemon ran. Tasks that are adopted may have connections to them.
    gone: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    /// The published ports of an earlier daemon, until this one publishes its own.
    former_ports: BTreeMap<HostPort, PublishedPort>,
}

impl LinuxKernel {
    /// Opens the folder of namespaces and the balancer, and starts the DNS server, in the namespace of the caller.
    ///
    /// # Errors
    /// The folder can't be mounted, or the thread of the DNS server can't be started.
    pub(crate) fn start(options: LinuxOptions) -> io::Result<Self> {
        options.folder.make()?;
        let directory = Directory::default();
        let dns = DnsServer::start(directory.clone(), RESOLV_CONF.into())?;
        let (balancer, balancer_kind) = open_balancer(&options)?;
        let bridge = NodeBridge::find(&options.host, &options.folder).unwrap_or_else(|error| {
            tracing::warn!(error = %super::Chain(&error), "failed to take over the bridge of tasks without networks");
            None
        });
        let planned_subnet = bridge::subnet_beside(&options.host, std::iter::empty()).inspect_err(|error| {
            tracing::warn!(error = %super::Chain(error), "tasks without networks can't be started");
        });
        let ring = KeyRing::open(options.keys.clone(), options.key_life, SecretKey::public, options.clock.now())
            .unwrap_or_else(|error| {
                tracing::warn!(error = %super::Chain(&error), "this node can't carry encrypted networks");
                None
            });
        Ok(Self {
            listeners: Listeners::open(&options.host).map_err(io::Error::other)?,
            ports: BTreeMap::new(),
            options,
            networks: BTreeMap::new(),
            tasks: BTreeMap::new(),
            bridge,
            planned_subnet: planned_subnet.ok(),
            balancer,
            balancer_kind,
            directory,
            dns,
            gate: Gate::default(),
            tunnels: TunnelState::new(ring),
            managers: BTreeSet::new(),
            unfinished: Touched::default(),
            gone: BTreeMap::new(),
            former_ports: BTreeMap::new(),
        })
    }

    /// Returns the tasks of this node by the ids of their control groups. The id of a group is the inode of its folder.
    fn tasks_of_groups(&self) -> BTreeMap<u64, TaskId> {
        let folders = self.options.group.iter().filter_map(|it| std::fs::read_dir(it).ok()).flatten().flatten();
        let task = |entry: std::fs::DirEntry| {
            Some((entry.ino(), entry.file_name().into_string().ok().filter(|it| is_id(it))?))
        };
        folders.filter_map(task).map(|(id, task)| (id, task.into())).collect()
    }

    /// Makes the name of a task what it is in the view.
    fn set_endpoint(&mut self, view: &View, id: &NetworkId, task: &TaskId) -> Result<(), KernelError> {
        let network = view.network(id);
        match network.and_then(|network| Some((network, network.endpoints.get(task)?))) {
            Some((network, endpoint)) if self.networks.contains_key(id) => {
                let service = network.services.get(&endpoint.service);
                self.set_names(network, [names::of_endpoint(endpoint, service)])?;
            }
            _ => self.directory.remove(id.as_str(), &names::endpoint_key(task)),
        }
        self.set_remotes(view, id, vec![Member::Task(task.clone())])?;
        let lost = view.network(id).and_then(|it| it.endpoints.get(task)).filter(|it| it.lost);
        if let Some(made) = self.networks.get_mut(id) {
            match lost {
                Some(endpoint) if made.lost.insert(task.clone()) => self.abort_to(id, &endpoint.addresses),
                Some(_) => {}
                None => drop(made.lost.remove(task)),
            }
        }
        Ok(())
    }

    /// Makes the services, tasks and nodes that `todo` names what they are in the view, and takes from it what is done.
    fn set_members(&mut self, view: &View, todo: &mut Touched) -> Result<(), KernelError> {
        let mut steps = Steps::default();
        todo.services.retain(|(id, service)| !steps.done(self.set_service(view, id, service)));
        // Those that are gone come first, because others may have their addresses.
        for is_gone in [true, false] {
            let has_turn = |is_there: bool| is_there != is_gone;
            todo.endpoints.retain(|(id, task)| {
                let is_there = view.network(id).is_some_and(|it| it.endpoints.contains_key(task));
                !has_turn(is_there) || !steps.done(self.set_endpoint(view, id, task))
            });
            todo.nodes.retain(|(id, node)| {
                let is_there = view.network(id).is_some_and(|it| it.nodes.contains_key(node));
                !has_turn(is_there) || !steps.done(self.set_remotes(view, id, vec![Member::Node(node.clone())]))
            });
        }
        steps.result()
    }
}

/// The first error of several steps, all of which are tried.
#[derive(Debug, Default)]
struct Steps(Option<KernelError>);

impl Steps {
    /// Records how a step ended. Returns whether it succeeded.
    fn done(&mut self, result: Result<(), KernelError>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                self.0.get_or_insert(error);
                false
            }
        }
    }

    fn result(self) -> Result<(), KernelError> {
        self.0.map_or(Ok(()), Err)
    }
}

impl Kernel for LinuxKernel {
    fn networks(&self) -> BTreeSet<NetworkId> {
        self.networks.keys().cloned().chain(self.options.folder.networks()).collect()
    }

    fn tasks(&self) -> BTreeSet<TaskId> {
        self.options.folder.tasks()
    }

    fn has_namespace(&self, task: &TaskId) -> bool {
        self.options.folder.task(task).exists()
    }

    fn program(&mut self, view: &View, tasks: &[&Assignment], todo: &mut Touched) -> Result<(), KernelError> {
        let mut steps = Steps::default();
        todo.extend(std::mem::take(&mut self.unfinished));
        self.gate.outdated.add(view, todo);
        for id in std::mem::take(&mut todo.networks) {
            let in_use = tasks.iter().flat_map(|it| &it.attachments).any(|it| it.network == id);
            if !steps.done(self.set_network(view, in_use, &id, todo)) {
                todo.networks.insert(id);
            }
        }
        steps.done(self.set_members(view, todo));
        if !self.gate.outdated.is_empty() {
            steps.done(self.set_gateway(view, tasks));
        }
        steps.result()
    }

    fn succeed(&mut self, recorded: &View, view: &View) {
        let gone = |id: &NetworkId| &addresses(recorded, id) - &addresses(view, id);
        self.gone = recorded.networks.keys().map(|id| (id.clone(), gone(id))).collect();
        self.former_ports = self.ports_in(recorded);
    }

    fn settle(&mut self) {
        if let Err(error) = self.gate.end_outdated() {
            tracing::warn!(error = %super::Chain(&error), "connections to targets that are gone were not ended");
        }
    }

    fn facts(&mut self) -> NetworkFacts {
        match self.listeners.ports() {
            Ok(found) => {
                self.ports = found.into_iter().map(|(port, groups)| (gateway::node_port(port), groups)).collect();
            }
            // To take a port from its program, such as sshd, would be worse than to leave it to one that has gone.
            Err(error) => {
                let error = super::Chain(&error);
                tracing::warn!(%error, "failed to list this node's listening ports; those of the last time still count");
            }
        }
        let ports = &self.ports;
        let tasks = self.tasks_of_groups();
        let subnet = self.bridge.as_ref().map(NodeBridge::subnet).or(self.planned_subnet);
        NetworkFacts {
            balancer: Some(self.balancer_kind),
            subnet: subnet.map(Into::into),
            tasks: ports
                .iter()
                .filter_map(|(port, groups)| Some((*port, groups.iter().find_map(|it| tasks.get(it))?.clone())))
                .collect(),
            ports: ports.keys().copied().collect(),
            tunnel_keys: self.tunnels.ring.as_ref().map(KeyRing::public_keys).unwrap_or_default(),
        }
    }

    fn renew_key(&mut self) {
        self.renew_tunnel_key();
    }

    fn settle_key(&mut self, public: [u8; 32]) {
        self.settle_tunnel_key(public);
    }

    fn set_managers(&mut self, managers: BTreeSet<IpAddr>) {
        self.gate.outdated.everything |= self.managers != managers;
        self.managers = managers;
    }

    fn leave_ports(&mut self, ports: &BTreeSet<NodePort>) {
        self.gate.leave_ports(ports);
    }

    fn audit(&mut self, view: &View) -> Result<(), KernelError> {
        let mut steps = Steps::default();
        let networks = self.networks.iter_mut().map(|(id, made)| (id.as_str(), made.local.audit()));
        let bridge = self.bridge.iter_mut().map(|it| (bridge::UPLINK, it.audit()));
        let tunnels = self.tunnels.audit().map(|it| ("tunnels", it));
        for (id, Audit { mended, failed }) in networks.chain(bridge).chain(tunnels) {
            if !mended.is_empty() {
                tracing::warn!(network.id = id, ?mended, "the kernel's network had changed and was mended");
            }
            steps.done(failed.into_iter().next().map_or(Ok(()), |error| Err(error.into())));
        }
        steps.done(self.sweep_tunnels(view));
        let (mended, failed) = self.audit_gateway();
        if !mended.is_empty() {
            tracing::warn!(?mended, "the gateway's part of the kernel had changed and was mended");
        }
        steps.done(failed.map_or(Ok(()), Err));
        let members = self.tasks.values().map(JoinedTask::membership).collect();
        let (wanted, now) = (Wanted { pools: wanted_pools(view), members }, Instant::now().into_std());
        match self.balancer.repair() {
            Ok(0) => {}
            Ok(mended) => tracing::warn!(mended, "the balancer's part of the kernel had changed and was mended"),
            Err(error) => drop(steps.done(Err(error.into()))),
        }
        steps.done(self.balancer.reconcile(&wanted, now).map_err(Into::into));
        steps.result()
    }

    fn attach(&mut self, view: &View, task: &Assignment) -> Result<Attached, AttachError> {
        self.attach_task(view, task)
    }

    fn adopt(&mut self, view: &View, task: &Assignment, sockets: &TaskSockets) -> Result<(), AttachError> {
        self.adopt_task(view, task, sockets)
    }

    fn plan_check(&mut self, view: &View, network: &NetworkId) -> CheckPlan {
        self.planned_check(view, network)
    }

    fn is_sending(&mut self, task: &TaskId) -> bool {
        self.is_task_sending(task).unwrap_or_else(|error| {
            tracing::warn!(task.id = %task, error = %super::Chain(&error), "the connections of an ended task are not known");
            false
        })
    }

    fn detach(&mut self, task: &TaskId, known: Option<&Assignment>) -> Result<(), KernelError> {
        self.detach_task(task, known)
    }

    fn remove_all(&mut self) -> Result<(), KernelError> {
        let mut steps = Steps::default();
        self.gate = Gate::default();
        steps.done(
            flota_network::remove_gateway(&self.options.host, &self.options.folder.former_parameters())
                .map_err(Into::into),
        );
        for id in self.networks() {
            steps.done(self.remove(&id));
        }
        steps.done(self.remove_tunnels());
        self.bridge = None;
        steps.done(flota_network::remove_network(&self.options.folder.bridge()).map_err(Into::into));
        if let (BalancerKind::Bpf, Some(group)) = (self.balancer_kind, &self.options.group) {
            steps.done(Balancer::detach(group).map_err(Into::into));
        }
        steps.done(self.options.folder.remove().map_err(Into::into));
        steps.result()
    }
}

#[cfg(test)]
mod tests;
