//! The kernel of this node and its DNS server, brought to the leader's view by the parts of `flota_network`. The thread of
//! the networks calls this; nothing else in the worker changes namespaces, links, rules or names.
//!
//! A network is a [`LocalNetwork`] in a namespace of its own, and its tasks on other nodes are remotes. Its services are
//! pools of the [`Balancer`] and entries of the [`Directory`] (`linux/services.rs`). `linux/tasks.rs` makes the networks of
//! tasks, and `linux/bridge.rs` what a task without networks gets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use tokio::time::Instant;

use flota_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use flota_api::model::{Assignment, Balancer as BalancerKind, NetworkDriver, NodePort};
use flota_network::dns::{Directory, DnsServer};
use flota_network::{
    Audit, Balancer, Driver, Listeners, LocalNetwork, LocalNetworkSpec, Namespace, Remote, Subnet, Underlay, Wanted,
};

use super::NetworkFacts;
use super::folder::NamespaceFolder;
use super::kernel::{AttachError, Attached, Kernel, KernelError, TaskSockets};
use super::names;
use super::view::{KnownNetwork, Touched, View};

mod bridge;
mod gateway;
mod services;
mod tasks;

use bridge::NodeBridge;
use gateway::Gate;
use services::{key, open_balancer, wanted_pools};
use tasks::JoinedTask;

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
    /// Where overlay traffic comes from until the leader says otherwise.
    pub(crate) address: Option<IpAddr>,
    /// TCP ports of this node and the others that tasks can't reach.
    pub(crate) guarded_ports: BTreeSet<u16>,
    /// The folder of namespaces.
    pub(crate) folder: NamespaceFolder,
    /// The group of all tasks in the hierarchy of cgroup2, if the machine has one.
    pub(crate) group: Option<PathBuf>,
    /// The balancer that the node's owner wants.
    pub(crate) balancer: Option<BalancerKind>,
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
    balancer: Balancer,
    balancer_kind: BalancerKind,
    directory: Directory,
    dns: DnsServer,
    gate: Gate,
}

/// A network that this daemon has made or adopted.
#[derive(Debug)]
struct MadeNetwork {
    local: LocalNetwork,
    /// What other nodes have in it.
    remotes: BTreeMap<Member, Remote>,
    /// The virtual IPs of each service.
    virtual_ips: BTreeMap<ServiceId, Vec<IpAddr>>,
}

/// What has addresses in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Member {
    Task(TaskId),
    Node(NodeId),
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
        let planned_subnet = Self::choose_subnet(&options.host, std::iter::empty()).inspect_err(|error| {
            tracing::warn!(error = %super::Chain(error), "tasks without networks can't be started");
        });
        Ok(Self {
            listeners: Listeners::open(&options.host).map_err(io::Error::other)?,
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
        })
    }

    /// Chooses the subnet of tasks without networks, which meets neither a route of this node nor one of these.
    fn choose_subnet(host: &Namespace, known: impl Iterator<Item = IpNet>) -> Result<Ipv4Net, KernelError> {
        let taken: Vec<_> = host.destinations()?.into_iter().chain(known).collect();
        bridge::choose_subnet(&taken).ok_or(KernelError::NoSubnet)
    }

    /// Returns the bridge of tasks without networks, and makes it if there is none.
    fn ensure_bridge(&mut self, view: &View) -> Result<&mut NodeBridge, KernelError> {
        let made = match self.bridge.take() {
            Some(bridge) => bridge,
            None => {
                let known = view.networks.values().flat_map(|it| it.config.subnets.iter().map(|it| it.prefix));
                let subnet = Self::choose_subnet(&self.options.host, known)?;
                NodeBridge::make(&self.options.host, &self.options.folder, subnet)?
            }
        };
        Ok(self.bridge.insert(made))
    }

    /// Returns where this node's overlay traffic comes from.
    fn local_address(&self, view: &View) -> Option<IpAddr> {
        let own = view.networks.values().find_map(|network| network.nodes.get(&self.options.node)?.vtep);
        own.or(self.options.address)
    }

    /// Returns what a network should be on this node; `None` for one that is nothing in the kernel.
    fn spec(&self, view: &View, network: &KnownNetwork) -> Result<Option<LocalNetworkSpec>, KernelError> {
        let config = &network.config;
        let driver = match config.driver {
            NetworkDriver::Host | NetworkDriver::None => return Ok(None),
            NetworkDriver::Bridge => Driver::Bridge,
            NetworkDriver::Macvlan => Driver::Macvlan {
                parent: config.parent.clone().ok_or_else(|| KernelError::Incomplete(config.name.clone()))?,
            },
            NetworkDriver::Overlay => {
                let (vni, local) = (config.vni, self.local_address(view));
                let (Some(vni), Some(local)) = (vni, local) else {
                    return Err(KernelError::Incomplete(config.name.clone()));
                };
                Driver::Overlay(Underlay { local, port: VXLAN_PORT, vni })
            }
        };
        let subnet = |it: &flota_api::model::Subnet| Subnet {
            prefix: it.prefix,
            gateway: it.gateway,
            virtual_range: Some(it.virtual_range),
        };
        Ok(Some(LocalNetworkSpec {
            driver,
            subnets: config.subnets.iter().map(subnet).collect(),
            own_addresses: network.nodes.get(&self.options.node).map(|it| it.addresses.clone()).unwrap_or_default(),
            mtu: config.mtu,
            forwarding: !config.internal,
        }))
    }

    /// Makes a network of the view. Returns whether it was not there before, so that everything in it has to be made too.
    fn ensure(&mut self, view: &View, network: &KnownNetwork) -> Result<bool, KernelError> {
        let id = &network.config.id;
        let Some(spec) = self.spec(view, network)? else { return Ok(false) };
        match self.networks.get_mut(id) {
            Some(made) if *made.local.spec() == spec => Ok(false),
            Some(made) => Ok(made.local.update(spec).map(|()| false)?),
            None => {
                let mut local = LocalNetwork::ensure(&self.options.host, &self.options.folder.network(id), spec)?;
                let remotes = remotes(&self.options.node, network);
                local.set_remotes(remotes.values().cloned().collect())?;
                let made = MadeNetwork { local, remotes, virtual_ips: BTreeMap::new() };
                self.networks.insert(id.clone(), made);
                if !network.is_ingress() {
                    self.directory.set_network(id.as_str(), &network.config.name)?;
                }
                Ok(true)
            }
        }
    }

    /// Removes a network that no task of this node has any more.
    fn remove(&mut self, id: &NetworkId) -> Result<(), KernelError> {
        self.directory.remove_network(id.as_str());
        match self.networks.remove(id) {
            Some(made) => {
                let places: Vec<IpAddr> = made.virtual_ips.into_values().flatten().collect();
                self.set_pools(id, &[], &places, &[])?;
                made.local.remove()?;
            }
            None => flota_network::remove_network(&self.options.folder.network(id))?,
        }
        Ok(())
    }

    /// Makes the remotes of these members what they are in the view.
    fn set_remotes(&mut self, view: &View, id: &NetworkId, members: Vec<Member>) -> Result<(), KernelError> {
        let (Some(network), Some(made)) = (view.network(id), self.networks.get_mut(id)) else { return Ok(()) };
        let (mut removed, mut added, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for member in members {
            let wanted = remote(&self.options.node, network, &member);
            if made.remotes.get(&member) == wanted.as_ref() {
                continue;
            }
            let old = made.remotes.remove(&member);
            match wanted {
                Some(remote) => {
                    made.remotes.insert(member, remote.clone());
                    added.push(remote);
                }
                None => gone.extend(old.iter().flat_map(|it| it.addresses.clone())),
            }
            removed.extend(old);
        }
        self.gate.outdated.add_senders(&removed, false);
        self.gate.outdated.add_senders(&added, true);
        made.local.change_remotes(removed, added)?;
        // A task that has ended on another node may not have closed its connections, which would hang for minutes.
        let mut clients = self.tasks.values_mut().filter(|task| !gone.is_empty() && task.is_in(&key(id)));
        clients.try_for_each(|task| task.abort_to(&mut self.balancer, &gone))
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
        self.set_remotes(view, id, vec![Member::Task(task.clone())])
    }

    /// Makes the services, tasks and nodes that `todo` names what they are in the view, and takes from it what is done.
    fn set_members(&mut self, view: &View, todo: &mut Touched) -> Result<(), KernelError> {
        let mut steps = Steps::default();
        todo.services.retain(|(id, service)| !steps.done(self.set_service(view, id, service)));
        todo.endpoints.retain(|(id, task)| !steps.done(self.set_endpoint(view, id, task)));
        todo.nodes.retain(|(id, node)| !steps.done(self.set_remotes(view, id, vec![Member::Node(node.clone())])));
        steps.result()
    }

    /// Makes a network what it is in the view, and adds to `todo` what has to be made in a new one.
    fn set_network(
        &mut self,
        view: &View,
        in_use: bool,
        id: &NetworkId,
        todo: &mut Touched,
    ) -> Result<(), KernelError> {
        match view.network(id) {
            Some(network) => {
                if self.ensure(view, network)? {
                    todo.extend(Touched { networks: BTreeSet::new(), ..Touched::all_of(id, network) });
                }
                Ok(())
            }
            None if in_use => Ok(()),
            None => self.remove(id),
        }
    }
}

/// Returns what a member has in the network on another node than `own`.
fn remote(own: &NodeId, network: &KnownNetwork, member: &Member) -> Option<Remote> {
    let (node, addresses, vtep) = match member {
        Member::Task(task) => network.endpoints.get(task).map(|it| (&it.node, &it.addresses, it.vtep))?,
        Member::Node(node) => network.nodes.get(node).map(|it| (&it.node, &it.addresses, it.vtep))?,
    };
    (node != own && !addresses.is_empty()).then_some(Remote { addresses: addresses.clone(), vtep: vtep? })
}

/// Returns what other nodes than `own` have in a network.
fn remotes(own: &NodeId, network: &KnownNetwork) -> BTreeMap<Member, Remote> {
    let tasks = network.endpoints.keys().cloned().map(Member::Task);
    let members = tasks.chain(network.nodes.keys().cloned().map(Member::Node));
    members.filter_map(|member| remote(own, network, &member).map(|remote| (member, remote))).collect()
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

    fn program(&mut self, view: &View, tasks: &[&Assignment], todo: &mut Touched) -> Result<(), KernelError> {
        let mut steps = Steps::default();
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

    fn settle(&mut self) {
        if let Err(error) = self.gate.end_outdated() {
            tracing::warn!(error = %super::Chain(&error), "connections to targets that are gone were not ended");
        }
    }

    fn facts(&mut self) -> NetworkFacts {
        let ports = self.listeners.ports().unwrap_or_else(|error| {
            tracing::warn!(error = %super::Chain(&error), "the ports of this node's own programs are not known");
            BTreeSet::new()
        });
        let subnet = self.bridge.as_ref().map(NodeBridge::subnet).or(self.planned_subnet);
        NetworkFacts {
            balancer: Some(self.balancer_kind),
            subnet: subnet.map(Into::into),
            ports: ports.into_iter().map(gateway::node_port).collect(),
        }
    }

    fn leave_ports(&mut self, ports: &BTreeSet<NodePort>) {
        self.gate.leave_ports(ports);
    }

    fn audit(&mut self, view: &View) -> Result<(), KernelError> {
        let mut steps = Steps::default();
        let networks = self.networks.iter_mut().map(|(id, made)| (id.as_str(), made.local.audit()));
        let bridge = self.bridge.iter_mut().map(|it| (bridge::UPLINK, it.audit()));
        for (id, Audit { mended, failed }) in networks.chain(bridge) {
            if !mended.is_empty() {
                tracing::warn!(network.id = id, ?mended, "the kernel's network had changed and was mended");
            }
            steps.done(failed.into_iter().next().map_or(Ok(()), |error| Err(error.into())));
        }
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
