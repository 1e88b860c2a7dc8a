//! The networks that one worker has been told of, and the next messages about them: everything at first, then the
//! members that have changed. It is pure; `assignment_stream.rs` sends it.
//!
//! A session remembers only which networks its worker has, so it costs little memory however large they are, and a change
//! costs what it touches. Every node is in the network of published ports, but only a host of tasks that are attached to
//! networks is told of all of them; the others have to know only the nodes of its endpoints. A change of what a worker is
//! told of a network makes the network a new one to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use flota_api::model::{
    Endpoint, Network, NetworkConfig, NetworkDriver, NetworkNode, NetworkService, NetworkUpdate, Node, NodeState,
    Service, Task,
};
use flota_api::naming::task_name;
use flota_api::object::Object;
use flota_api::state::TaskState;
use flota_api::version::Version;
use flota_raft_store::{Event, Tables};

/// Services, endpoints and nodes in one message. A session keeps a buffer for its largest message, so messages are small.
const MEMBERS: usize = 32;

/// A part of a network that has changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NetworkChange {
    Network(NetworkId),
    Service(NetworkId, ServiceId),
    Endpoint(NetworkId, TaskId),
    Node(NetworkId, NodeId),
}

impl NetworkChange {
    /// The network that it is a part of.
    pub(super) fn network(&self) -> &NetworkId {
        match self {
            Self::Network(network)
            | Self::Service(network, _)
            | Self::Endpoint(network, _)
            | Self::Node(network, _) => network,
        }
    }

    /// Returns the nodes that are to be told of it.
    pub(super) fn concerned<'a>(&'a self, view: &'a Tables) -> Box<dyn Iterator<Item = &'a NodeId> + 'a> {
        match self {
            Self::Node(network, id) if view.tasks_of_node(id).all(|task| !is_attached(task, network)) => {
                Box::new(view.hosts().chain([id]))
            }
            _ => Box::new(view.nodes_of_network(self.network())),
        }
    }
}

/// The changes that a worker has yet to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Everything,
    Only(BTreeSet<NetworkChange>),
}

/// The stay of a node in a network: since when it has it, and since when it is told of all nodes there.
type Stay = (Version, Option<Version>);

/// The networks that a worker was told of.
#[derive(Debug, Default)]
pub(super) struct ToldNetworks {
    has_begun: bool,
    networks: BTreeMap<NetworkId, Stay>,
}

impl ToldNetworks {
    /// Returns the updates that bring the worker of this node to `view`, which is of this version or newer; none if there
    /// is nothing to tell.
    pub(super) fn tell(&mut self, node: &NodeId, news: News, version: Version, view: &Tables) -> Vec<NetworkUpdate> {
        let of_host = view.host_since(node);
        let stay = |id: &NetworkId| of_host.filter(|_| view.network(id.as_str()).is_some_and(|it| it.is_ingress()));
        let now: BTreeMap<NetworkId, Stay> =
            view.networks_of_node(node).map(|(id, since)| (id.clone(), (since, stay(id)))).collect();
        let mut update = NetworkUpdate { version, ..NetworkUpdate::default() };
        let mut is_needed = false;
        match news {
            News::Only(changes) if self.has_begun => {
                is_needed = !changes.is_empty();
                let is_over = |(id, stay): &(&NetworkId, &Stay)| now.get(*id) != Some(*stay);
                update.removed_networks = self.networks.iter().filter(is_over).map(|(id, _)| id.clone()).collect();
                let is_kept = |id: &NetworkId| now.contains_key(id) && now.get(id) == self.networks.get(id);
                let kept = changes.iter().filter(|change| is_kept(change.network()));
                kept.for_each(|change| add_change(change, node, view, &mut update));
            }
            News::Everything | News::Only(_) => {
                update.full = true;
                self.networks.clear();
            }
        }
        let new = now.iter().filter(|(id, stay)| self.networks.get(*id) != Some(*stay));
        new.filter_map(|(id, _)| view.network(id.as_str())).for_each(|it| add_network(it, node, view, &mut update));
        is_needed |= update.full || !update.removed_networks.is_empty() || now != self.networks;
        (self.has_begun, self.networks) = (true, now);
        if is_needed { cut(update) } else { Vec::new() }
    }
}

/// Adds a network with its services and endpoints, for a node that knows nothing of it yet.
fn add_network(network: &Network, node: &NodeId, view: &Tables, update: &mut NetworkUpdate) {
    update.networks.push(config(network));
    if network.is_ingress() {
        update.services.extend(view.services_published().filter_map(|it| service(network, it)));
    } else {
        update.services.extend(view.services_of_network(&network.id).filter_map(|it| service(network, it)));
    }
    update.endpoints.extend(view.tasks_of_network(&network.id).filter_map(|task| endpoint(network, task, node, view)));
    if view.host_since(node).is_some() {
        update.nodes.extend(view.nodes_attached(&network.id).filter_map(|it| network_node(&network.id, it)));
    } else {
        let hosts = update.endpoints.iter().filter(|it| it.network == network.id).map(|it| it.node.clone());
        let known: BTreeSet<NodeId> = hosts.chain([node.clone()]).collect();
        let known = known.iter().filter_map(|it| view.node(it.as_str()));
        update.nodes.extend(known.filter_map(|it| network_node(&network.id, it)));
    }
}

/// Adds a part of a network as it is now.
fn add_change(change: &NetworkChange, node: &NodeId, view: &Tables, update: &mut NetworkUpdate) {
    match change {
        NetworkChange::Network(id) => update.networks.extend(view.network(id.as_str()).map(|it| config(it))),
        NetworkChange::Service(id, member) => {
            let found = view.network(id.as_str()).zip(view.service(member.as_str()));
            match found.and_then(|(network, it)| service(network, it)) {
                Some(service) => update.services.push(service),
                None => update.removed_services.push((id.clone(), member.clone())),
            }
        }
        NetworkChange::Endpoint(id, member) => {
            let found = view.network(id.as_str()).zip(view.task(member.as_str()));
            match found.and_then(|(network, task)| endpoint(network, task, node, view)) {
                Some(endpoint) => {
                    let host = view.node(endpoint.node.as_str()).filter(|_| view.host_since(node).is_none());
                    update.nodes.extend(host.and_then(|it| network_node(id, it)));
                    update.endpoints.push(endpoint);
                }
                None => update.removed_endpoints.push((id.clone(), member.clone())),
            }
        }
        NetworkChange::Node(id, member) => match view.node(member.as_str()).and_then(|node| network_node(id, node)) {
            Some(node) => update.nodes.push(node),
            None => update.removed_nodes.push((id.clone(), member.clone())),
        },
    }
}

fn config(network: &Network) -> NetworkConfig {
    let spec = &network.spec;
    NetworkConfig {
        id: network.id.clone(),
        name: spec.name.clone(),
        driver: spec.driver,
        vni: network.vni,
        mtu: spec.mtu,
        internal: spec.internal,
        parent: spec.parent.clone(),
        encrypted: spec.encrypted,
        subnets: network.subnets.clone(),
    }
}

/// Returns the service as it is in the network; `None` if it is not there.
fn service(network: &Network, service: &Service) -> Option<NetworkService> {
    let ports = if network.is_ingress() { service.ports.clone() } else { Vec::new() };
    let named = service.spec.networks.iter().find(|it| it.network == network.id);
    let virtual_ip = service.virtual_ips.iter().find(|it| it.network == network.id);
    if ports.is_empty() && named.is_none() && virtual_ip.is_none() {
        return None;
    }
    Some(NetworkService {
        network: network.id.clone(),
        service: service.id.clone(),
        name: service.spec.name.clone(),
        aliases: named.map(|it| it.aliases.clone()).unwrap_or_default(),
        virtual_ips: virtual_ip.map(|it| it.addresses.clone()).unwrap_or_default(),
        ports,
    })
}

/// Returns the task as a node sees it in the network; `None` if it has no node yet or has ended, or is out of reach
/// because the network ends at the node.
fn endpoint(network: &Network, task: &Task, seen_by: &NodeId, view: &Tables) -> Option<Endpoint> {
    let attachment = task.attachments.iter().find(|it| it.network == network.id)?;
    let is_near = |node: &&NodeId| network.spec.driver != NetworkDriver::Bridge || *node == seen_by;
    let node_id = task.node_id.as_ref().filter(|_| !task.status.state.is_terminal()).filter(is_near)?;
    let node = view.node(node_id.as_str());
    let is_lost = node.is_some_and(|node| node.state == NodeState::Down);
    let keys = node.filter(|_| network.spec.encrypted).map(|node| node.description.tunnel_keys.clone());
    Some(Endpoint {
        network: network.id.clone(),
        task: task.id.clone(),
        service: task.service_id.clone(),
        name: view.spec_of(task).map(|spec| task_name(&spec.name, task.slot)).unwrap_or_default(),
        addresses: attachment.addresses.clone(),
        node: node_id.clone(),
        vtep: node.and_then(|node| node.data_address()),
        serving: task.is_serving() && !is_lost && node.is_some(),
        lost: is_lost,
        tunnel_keys: keys.unwrap_or_default(),
    })
}

/// Whether the task has the network and has not ended.
fn is_attached(task: &Task, network: &NetworkId) -> bool {
    !task.status.state.is_terminal() && task.attachments.iter().any(|it| it.network == *network)
}

/// Whether connections may have been sent to the task since it runs, so that its endpoint is withdrawn before it stops.
pub(super) fn has_served(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.attachments.iter().any(|it| !it.addresses.is_empty())
}

fn network_node(network: &NetworkId, node: &Node) -> Option<NetworkNode> {
    let attachment = node.attachments.iter().find(|it| it.network == *network)?;
    Some(NetworkNode {
        network: network.clone(),
        node: node.id.clone(),
        addresses: attachment.addresses.clone(),
        vtep: node.data_address(),
    })
}

/// Whether packets in the network are encrypted between nodes.
pub(super) fn is_encrypted(network: &NetworkId, view: &Tables) -> bool {
    view.network(network.as_str()).is_some_and(|it| it.spec.encrypted)
}

/// Splits an update into messages within the size limit; only the last is marked as the last.
fn cut(mut whole: NetworkUpdate) -> Vec<NetworkUpdate> {
    let (version, full) = (whole.version, whole.full);
    let (mut services, mut endpoints) = (whole.services.into_iter(), whole.endpoints.into_iter());
    let mut nodes = whole.nodes.into_iter();
    (whole.services, whole.endpoints, whole.nodes) = Default::default();
    let mut parts = vec![whole];
    while let Some(part) = parts.last_mut() {
        part.services.extend(services.by_ref().take(MEMBERS));
        part.endpoints.extend(endpoints.by_ref().take(MEMBERS - part.services.len()));
        part.nodes.extend(nodes.by_ref().take(MEMBERS - part.services.len() - part.endpoints.len()));
        part.more = services.len() + endpoints.len() + nodes.len() > 0;
        if !part.more {
            break;
        }
        parts.push(NetworkUpdate { version, full, ..NetworkUpdate::default() });
    }
    parts
}

/// Returns the parts of networks that differ after this event.
pub(super) fn changed_by(event: &Event, view: &Tables) -> Vec<NetworkChange> {
    let (old, new) = match event {
        Event::Created(new) => (None, Some(new)),
        Event::Updated { old, new } => (Some(old), Some(new)),
        Event::Removed(old) => (Some(old), None),
        Event::Committed(_) | Event::Reset => return Vec::new(),
    };
    match new.or(old) {
        Some(Object::Task(_)) => of_task(inside(old, as_task), inside(new, as_task)),
        Some(Object::Service(_)) => of_service(inside(old, as_service), inside(new, as_service), view),
        Some(Object::Node(_)) => of_node(inside(old, as_node), inside(new, as_node), view),
        Some(Object::Network(_)) => {
            let (old, new) = (inside(old, as_network), inside(new, as_network));
            let is_same = old.map(|it| config(it)) == new.map(|it| config(it));
            new.filter(|_| !is_same).map(|it| NetworkChange::Network(it.id.clone())).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

macro_rules! inner {
    ($($name:ident $kind:ident),*) => { $(
        fn $name(object: &Object) -> Option<&Arc<$kind>> {
            if let Object::$kind(object) = object { Some(object) } else { None }
        }
    )* };
}
inner!(as_task Task, as_service Service, as_node Node, as_network Network);

fn inside<T>(object: Option<&Object>, of_kind: fn(&Object) -> Option<&Arc<T>>) -> Option<&Arc<T>> {
    object.and_then(of_kind)
}

fn of_task(old: Option<&Arc<Task>>, new: Option<&Arc<Task>>) -> Vec<NetworkChange> {
    let facts = |task: &Arc<Task>| {
        let node = task.node_id.clone().filter(|_| !task.status.state.is_terminal());
        (node, task.attachments.clone(), task.is_serving())
    };
    let (was, is) = (old.map(facts), new.map(facts));
    let is_there = |facts: &Option<_>| matches!(facts, Some((Some(_), _, _)));
    if was == is || !(is_there(&was) || is_there(&is)) {
        return Vec::new();
    }
    let tasks = old.into_iter().chain(new);
    let networks: BTreeSet<NetworkChange> = tasks
        .flat_map(|task| task.attachments.iter().map(|it| NetworkChange::Endpoint(it.network.clone(), task.id.clone())))
        .collect();
    networks.into_iter().collect()
}

fn of_service(old: Option<&Arc<Service>>, new: Option<&Arc<Service>>, view: &Tables) -> Vec<NetworkChange> {
    let facts =
        |it: &Arc<Service>| (it.spec.name.clone(), it.spec.networks.clone(), it.virtual_ips.clone(), it.ports.clone());
    if old.map(facts) == new.map(facts) {
        return Vec::new();
    }
    let ingress = view.network_by_name(flota_api::model::INGRESS);
    let both = || old.into_iter().chain(new);
    let named = both().flat_map(|it| it.spec.networks.iter().map(move |network| (&network.network, it)));
    let virtual_ips = both().flat_map(|it| it.virtual_ips.iter().map(move |network| (&network.network, it)));
    let published = both().filter(|it| !it.ports.is_empty()).filter_map(|it| Some((&ingress?.id, it)));
    let all = named.chain(virtual_ips).chain(published);
    let all: BTreeSet<NetworkChange> =
        all.map(|(network, it)| NetworkChange::Service(network.clone(), it.id.clone())).collect();
    all.into_iter().collect()
}

fn of_node(old: Option<&Arc<Node>>, new: Option<&Arc<Node>>, view: &Tables) -> Vec<NetworkChange> {
    let mut changes = BTreeSet::new();
    let itself = |node: &Arc<Node>| (node.attachments.clone(), node.data_address());
    if old.map(itself) != new.map(itself) {
        let both = old.into_iter().chain(new);
        let own = both.flat_map(|it| {
            it.attachments.iter().map(|network| NetworkChange::Node(network.network.clone(), it.id.clone()))
        });
        changes.extend(own);
    }
    let of_tasks = |node: &Arc<Node>| (node.data_address(), node.state == NodeState::Down);
    let moves = old.map(of_tasks) != new.map(of_tasks);
    let changes_keys = old.map(|it| &it.description.tunnel_keys).ne(&new.map(|it| &it.description.tunnel_keys));
    if let Some(node) = new.or(old).filter(|_| moves || changes_keys) {
        let is_concerned = |network: &NetworkId| moves || is_encrypted(network, view);
        let tasks = view.tasks_of_node(&node.id).filter(|task| !task.status.state.is_terminal());
        changes.extend(tasks.flat_map(|task| {
            let attachments = task.attachments.iter().filter(|it| is_concerned(&it.network));
            attachments.map(|it| NetworkChange::Endpoint(it.network.clone(), task.id.clone()))
        }));
    }
    changes.into_iter().collect()
}

#[cfg(test)]
mod tests;
