//! The kernel of this node and its DNS server, brought to the leader's view by the parts of `flota_network`. The thread of
//! the networks calls this; nothing else in the worker changes namespaces, links, rules or names.
//!
//! A network is a [`LocalNetwork`] in a namespace of its own, its services are pools of the [`Balancer`] and entries of
//! the [`Directory`], and its tasks on other nodes are remotes. `linux/tasks.rs` makes the networks of tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;

use tokio::time::Instant;

use flota_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use flota_api::model::{Assignment, NetworkDriver};
use flota_network::dns::{Directory, DirectoryError, DnsServer};
use flota_network::{
    Audit, Balancer, Driver, LocalNetwork, LocalNetworkSpec, Namespace, NetworkKey, Pool, Remote, Subnet, Underlay,
    VirtualAddress, Wanted,
};

use super::folder::NamespaceFolder;
use super::kernel::{AttachError, Attached, Kernel, KernelError, TaskSockets};
use super::names;
use super::view::{KnownNetwork, Touched, View};

mod gateway;
mod tasks;

use gateway::Gate;
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
}

/// The networks of this node's kernel.
pub(crate) struct LinuxKernel {
    options: LinuxOptions,
    networks: BTreeMap<NetworkId, MadeNetwork>,
    tasks: BTreeMap<TaskId, JoinedTask>,
    /// `None` on a machine that can't balance.
    balancer: Option<Balancer>,
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
        let balancer = options.group.as_ref().map(|group| Balancer::open(group, Instant::now().into_std()));
        let balancer = match balancer {
            Some(Ok(balancer)) => Some(balancer),
            Some(Err(error)) => {
                tracing::warn!(error = %super::Chain(&error), "virtual IPs do not work on this node");
                None
            }
            None => {
                tracing::warn!("virtual IPs do not work on this node: no cgroup2 is mounted");
                None
            }
        };
        let (networks, tasks) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { options, networks, tasks, balancer, directory, dns, gate: Gate::default() })
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
        made.local.change_remotes(removed, added)?;
        // A task that has ended on another node may not have closed its connections, which would hang for minutes.
        let mut clients = self.tasks.values_mut().filter(|task| !gone.is_empty() && task.is_in(&key(id)));
        clients.try_for_each(|task| task.abort_to(&gone))
    }

    /// Makes a service's pools and names what they are in the view.
    fn set_service(&mut self, view: &View, id: &NetworkId, service: &ServiceId) -> Result<(), KernelError> {
        let network = view.network(id);
        let known = network.and_then(|it| it.services.get(service));
        if let (Some(network), Some(known)) = (network, known) {
            self.set_names(network, names::of_service(known))?;
            // A change of the service's names changes those of its tasks.
            for endpoint in network.endpoints_of(service) {
                self.set_names(network, [names::of_endpoint(endpoint, Some(known))])?;
            }
        } else {
            names::service_keys(service).iter().for_each(|key| self.directory.remove(id.as_str(), key));
        }
        let Some(made) = self.networks.get_mut(id) else { return Ok(()) };
        let wanted = known.map(|it| it.virtual_ips.clone()).unwrap_or_default();
        let old = made.virtual_ips.insert(service.clone(), wanted.clone()).unwrap_or_default();
        if wanted.is_empty() {
            made.virtual_ips.remove(service);
        }
        let backends = network.map(|it| it.backends(service)).unwrap_or_default();
        let gone: Vec<IpAddr> = old.into_iter().filter(|it| !wanted.contains(it)).collect();
        self.set_pools(id, &wanted, &gone, &backends)
    }

    fn set_pools(
        &mut self,
        id: &NetworkId,
        wanted: &[IpAddr],
        gone: &[IpAddr],
        backends: &[IpAddr],
    ) -> Result<(), KernelError> {
        let (Some(balancer), now) = (&mut self.balancer, Instant::now().into_std()) else { return Ok(()) };
        for address in gone {
            balancer.remove(place(id, *address), now)?;
        }
        for address in wanted {
            balancer.set(place(id, *address), &pool(*address, backends), now)?;
        }
        Ok(())
    }

    /// Sets names. One that DNS can't carry is logged: the others work.
    fn set_names(
        &self,
        network: &KnownNetwork,
        entries: impl IntoIterator<Item = names::Keyed>,
    ) -> Result<(), KernelError> {
        if network.is_ingress() {
            return Ok(());
        }
        for (key, entry) in entries {
            match self.directory.set(network.config.id.as_str(), &key, entry) {
                Err(error @ DirectoryError::InvalidName(_)) => {
                    tracing::warn!(network.id = %network.config.id, %error, "a name is left out");
                }
                other => other?,
            }
        }
        Ok(())
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

/// Returns the balancer's number of a network, which is the same after a restart of the daemon.
fn key(id: &NetworkId) -> NetworkKey {
    let hash = ring::digest::digest(&ring::digest::SHA256, id.as_str().as_bytes());
    let number = hash.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
    NetworkKey(NonZeroU64::new(number).unwrap_or(NonZeroU64::MAX))
}

fn place(network: &NetworkId, address: IpAddr) -> VirtualAddress {
    VirtualAddress { network: key(network), address }
}

/// Returns the backends that a virtual IP can have.
fn pool(address: IpAddr, backends: &[IpAddr]) -> Pool {
    let backends = backends.iter().filter(|it| it.is_ipv4() == address.is_ipv4());
    Pool { backends: backends.copied().collect(), affinity: false }
}

/// Returns everything that the balancer should have for a view and the members of its networks.
fn wanted_pools(view: &View) -> BTreeMap<VirtualAddress, Pool> {
    let services = view.networks.values().flat_map(|network| network.services.values().map(move |it| (network, it)));
    let pools = services.flat_map(|(network, service)| {
        let backends = network.backends(&service.service);
        let id = &network.config.id;
        service.virtual_ips.iter().map(move |address| (place(id, *address), pool(*address, &backends)))
    });
    pools.collect()
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
        self.gate.is_outdated |= gateway::concerns(view, todo);
        for id in std::mem::take(&mut todo.networks) {
            let in_use = tasks.iter().flat_map(|it| &it.attachments).any(|it| it.network == id);
            if !steps.done(self.set_network(view, in_use, &id, todo)) {
                todo.networks.insert(id);
            }
        }
        steps.done(self.set_members(view, todo));
        if self.gate.is_outdated {
            steps.done(self.set_gateway(view, tasks));
        }
        steps.result()
    }

    fn audit(&mut self, view: &View) -> Result<(), KernelError> {
        let mut steps = Steps::default();
        for (id, made) in &mut self.networks {
            let Audit { mended, failed } = made.local.audit();
            if !mended.is_empty() {
                tracing::warn!(network.id = %id, ?mended, "the kernel's network had changed and was mended");
            }
            steps.done(failed.into_iter().next().map_or(Ok(()), |error| Err(error.into())));
        }
        let (mended, failed) = self.audit_gateway();
        if !mended.is_empty() {
            tracing::warn!(?mended, "the gateway's part of the kernel had changed and was mended");
        }
        steps.done(failed.map_or(Ok(()), Err));
        if let Some(balancer) = &mut self.balancer {
            let members = self.tasks.values().map(JoinedTask::membership).collect();
            let wanted = Wanted { pools: wanted_pools(view), members };
            let mended = balancer.repair().and_then(|_| balancer.reconcile(&wanted, Instant::now().into_std()));
            steps.done(mended.map_err(Into::into));
        }
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
        steps.done(flota_network::remove_gateway(&self.options.host).map_err(Into::into));
        for id in self.networks() {
            steps.done(self.remove(&id));
        }
        if let (Some(_), Some(group)) = (self.balancer.take(), &self.options.group) {
            steps.done(Balancer::detach(group).map_err(Into::into));
        }
        steps.done(self.options.folder.remove().map_err(Into::into));
        steps.result()
    }
}

#[cfg(test)]
mod tests;
