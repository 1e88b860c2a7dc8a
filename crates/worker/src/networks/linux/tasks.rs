//! The networks of tasks: a namespace with an interface in each network, the sockets of its DNS server, and membership
//! in the balancer. What a daemon has made here, the next one adopts.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use flota_api::id::{NetworkId, TaskId};
use flota_api::model::{Assignment, Attachment as TaskAttachment, NetworkDriver};
use flota_network::dns::{Client, DnsSockets, ResolvConf, resolv_conf};
use flota_network::{Attachment, Balancer, Namespace, NamespaceCookie, NetworkKey, Sockets as Connections};

use super::services::key;
use super::{LinuxKernel, RESOLV_CONF};
use crate::networks::kernel::{AttachError, Attached, KernelError, TaskNetwork, TaskSockets};
use crate::networks::view::{KnownNetwork, View};

/// The port of DNS servers.
const DNS_PORT: u16 = 53;

/// The network of a task that this daemon has made or adopted.
#[derive(Debug)]
pub(super) struct JoinedTask {
    connections: Connections,
    /// The networks whose virtual IPs it uses.
    keys: Vec<NetworkKey>,
}

impl JoinedTask {
    /// Returns what the balancer has to know of the task.
    pub(super) fn membership(&self) -> (NamespaceCookie, Vec<NetworkKey>) {
        (self.connections.cookie(), self.keys.clone())
    }

    /// Returns whether the task is in the network.
    pub(super) fn is_in(&self, network: &NetworkKey) -> bool {
        self.keys.contains(network)
    }

    /// Ends the task's connections to these addresses, which no task has any more.
    pub(super) fn abort_to(&mut self, balancer: &mut Balancer, addresses: &[IpAddr]) -> Result<(), KernelError> {
        Ok(balancer.abort_to(&mut self.connections, addresses).map(drop)?)
    }
}

impl LinuxKernel {
    pub(super) fn attach_task(&mut self, view: &View, task: &Assignment) -> Result<Attached, AttachError> {
        if let Some(network) = without_interfaces(view, task)? {
            return Ok(Attached { network, sockets: Vec::new() });
        }
        let namespace = Namespace::make(&self.options.folder.task(&task.task_id))?;
        self.connect(view, task, &namespace)?;
        let sockets = DnsSockets::open(&namespace)?;
        let kept = sockets.try_clone()?;
        self.serve(view, task, sockets);
        let (addresses, resolver) = (self.addresses(view, task), resolver(task));
        let network = TaskNetwork::Joined { namespace: namespace.path().to_owned(), addresses, resolver };
        Ok(Attached { network, sockets: vec![kept.udp.into(), kept.tcp.into()] })
    }

    pub(super) fn adopt_task(
        &mut self,
        view: &View,
        task: &Assignment,
        sockets: &TaskSockets,
    ) -> Result<(), AttachError> {
        if let [udp, tcp] = sockets.as_slice() {
            // Questions wait in the sockets, so this comes first.
            let (udp, tcp) = (UdpSocket::from(udp.try_clone()?), TcpListener::from(tcp.try_clone()?));
            self.serve(view, task, DnsSockets { udp, tcp });
        }
        self.connect(view, task, &Namespace::at(&self.options.folder.task(&task.task_id)))?;
        for id in task.attachments.iter().map(|it| &it.network) {
            let gone = self.gone.get(id).map(|gone| gone - &addresses(view, id)).unwrap_or_default();
            self.abort_to(id, &Vec::from_iter(gone));
        }
        Ok(())
    }

    /// Connects the namespace of a task to its networks and to the balancer.
    fn connect(&mut self, view: &View, task: &Assignment, namespace: &Namespace) -> Result<(), AttachError> {
        let made = (self.networks.len(), self.bridge.is_some());
        let joined = self.join_networks(view, task, namespace);
        // What is made stays there, whether the rest has succeeded or not.
        let has_ports = task.spec.host_ports().next().is_some();
        self.gate.outdated.everything |= has_ports || made != (self.networks.len(), self.bridge.is_some());
        joined
    }

    fn join_networks(&mut self, view: &View, task: &Assignment, namespace: &Namespace) -> Result<(), AttachError> {
        if task.attachments.is_empty() {
            self.ensure_bridge(view)?.attach(&task.task_id, namespace)?;
        }
        let gateway = way_out(view, task).map(|it| it.network.clone());
        for (index, attachment) in task.attachments.iter().enumerate() {
            let mut new = std::mem::take(&mut self.unfinished);
            let set = self.set_network(view, true, &attachment.network, &mut new);
            let set = set.and_then(|()| self.set_members(view, &mut new));
            self.unfinished = new;
            set?;
            if let Some(made) = self.networks.get_mut(&attachment.network) {
                let default_route = gateway.as_ref() == Some(&attachment.network);
                let addresses = attachment.addresses.clone();
                made.local.attach(interface(namespace, index, addresses, default_route))?;
            }
        }
        let connections = Connections::of(namespace)?;
        let keys: Vec<NetworkKey> = task.attachments.iter().map(|it| key(&it.network)).collect();
        self.balancer.join(connections.cookie(), namespace, &keys)?;
        self.tasks.insert(task.task_id.clone(), JoinedTask { connections, keys });
        Ok(())
    }

    /// Answers the task's DNS questions from now on.
    fn serve(&self, view: &View, task: &Assignment, sockets: DnsSockets) {
        let has_names = |it: &&NetworkId| view.network(it).is_none_or(|network| !network.is_ingress());
        let networks = task.attachments.iter().map(|it| &it.network).filter(has_names).map(ToString::to_string);
        let resolvers = task.spec.dns.servers.iter().map(|it| SocketAddr::new(*it, DNS_PORT));
        // The daemon would ask from the node's own network.
        let forwards = task.attachments.is_empty() || way_out(view, task).is_some();
        let client = Client { networks: networks.collect(), resolvers: resolvers.collect(), forwards };
        self.dns.serve(task.task_id.as_str(), client, sockets);
    }

    pub(super) fn is_task_sending(&mut self, task: &TaskId) -> Result<bool, KernelError> {
        let path = self.options.folder.task(task);
        match self.tasks.get_mut(task) {
            Some(joined) => Ok(joined.connections.are_sending()?),
            // This daemon has not adopted it.
            None if path.exists() => Ok(Connections::of(&Namespace::at(&path))?.are_sending()?),
            None => Ok(false),
        }
    }

    pub(super) fn detach_task(&mut self, task: &TaskId, known: Option<&Assignment>) -> Result<(), KernelError> {
        let path = self.options.folder.task(task);
        if !path.exists() {
            return Ok(());
        }
        self.dns.stop(task.as_str());
        self.gate.outdated.everything |= known.is_none_or(|it| it.spec.host_ports().next().is_some());
        let namespace = Namespace::at(&path);
        let joined = self.tasks.remove(task);
        // A daemon that has not adopted the task finds its cookie in the namespace.
        let cookie =
            joined.map(|it| it.connections.cookie()).or_else(|| Some(Connections::of(&namespace).ok()?.cookie()));
        if let Some(cookie) = cookie {
            self.balancer.leave(cookie)?;
        }
        if let Some(bridge) = &mut self.bridge {
            bridge.detach(task, &namespace)?;
        }
        for (index, attachment) in known.iter().flat_map(|it| it.attachments.iter().enumerate()) {
            if let Some(made) = self.networks.get_mut(&attachment.network) {
                made.local.detach(&interface(&namespace, index, attachment.addresses.clone(), false))?;
            }
        }
        Ok(Namespace::remove(&path)?)
    }

    /// Returns the addresses for which the task's host name stands. Other tasks do not reach it by those in `ingress`,
    /// unless it has no others.
    fn addresses(&self, view: &View, task: &Assignment) -> Vec<IpAddr> {
        let all = || task.attachments.iter();
        let is_ingress = |id: &NetworkId| view.network(id).is_some_and(|network| network.is_ingress());
        let mut own: Vec<IpAddr> =
            all().filter(|it| !is_ingress(&it.network)).flat_map(|it| it.addresses.clone()).collect();
        own.extend(self.bridge.iter().flat_map(|it| it.addresses(&task.task_id)));
        if own.is_empty() { all().flat_map(|it| it.addresses.clone()).collect() } else { own }
    }

    /// Returns the addresses of a task on the interface through which it sends packets to the outside.
    pub(super) fn outward_addresses(&self, view: &View, task: &Assignment) -> Vec<IpAddr> {
        let on_bridge = self.bridge.iter().flat_map(|it| it.addresses(&task.task_id));
        let in_network = way_out(view, task).map(|it| it.addresses.clone()).unwrap_or_default();
        in_network.into_iter().chain(on_bridge).collect()
    }
}

/// Describes the interface of a task in its network of this number.
pub(super) fn interface(
    namespace: &Namespace,
    index: usize,
    addresses: Vec<IpAddr>,
    default_route: bool,
) -> Attachment {
    Attachment { namespace: namespace.clone(), interface: interface_name(index), addresses, default_route }
}

/// Returns the name of a task's interface in its network of this number.
pub(super) fn interface_name(index: usize) -> String {
    format!("eth{index}")
}

/// Returns the network of a task whose networks have no interfaces.
fn without_interfaces(view: &View, task: &Assignment) -> Result<Option<TaskNetwork>, AttachError> {
    let drivers = task.attachments.iter().filter_map(|it| Some(view.network(&it.network)?.config.driver));
    let Some(driver) = drivers.into_iter().find(|it| !it.has_addresses()) else { return Ok(None) };
    if task.attachments.len() > 1 {
        return Err(AttachError::Exclusive(driver));
    }
    Ok(Some(if driver == NetworkDriver::Host { TaskNetwork::Host } else { TaskNetwork::Loopback }))
}

/// Returns the addresses of the tasks in a network whose nodes are not down.
pub(super) fn addresses(view: &View, id: &NetworkId) -> BTreeSet<IpAddr> {
    let endpoints = view.network(id).into_iter().flat_map(|it| it.endpoints.values());
    endpoints.filter(|it| !it.lost).flat_map(|it| it.addresses.iter().copied()).collect()
}

/// Returns the attachment through which a task's default route leads. Connections to published ports come from anywhere and
/// must be answered by the way on which they came, so that is `ingress` for a task that has it.
fn way_out<'a>(view: &View, task: &'a Assignment) -> Option<&'a TaskAttachment> {
    let with = |matches: fn(&KnownNetwork) -> bool| {
        task.attachments.iter().find(|it| view.network(&it.network).is_some_and(matches))
    };
    with(KnownNetwork::is_ingress).or_else(|| with(|network| !network.config.internal))
}

fn resolver(task: &Assignment) -> String {
    let machine = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let dns = &task.spec.dns;
    resolv_conf(&dns.search, &dns.options, &ResolvConf::parse(&machine))
}
