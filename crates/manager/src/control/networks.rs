//! Networks: how users create and remove them, and how the specs of services name them and claim ports.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::Violation;
use flota_api::id::{NetworkId, StackId};
use flota_api::model::{
    Cluster, INGRESS, Network, NetworkDriver, NetworkSpec, NodePort, NodeState, PublishMode, PublishedPort,
    ServiceSpec, Task,
};
use flota_api::naming::task_name;
use flota_api::object::Kind;
use flota_api::validate::{is_of_network, meet, network_violations};
use flota_api::version::Version;
use flota_raft_store::store::numbers_of;
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use super::faults::Faults;
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};
use crate::allocator::subnet_of;
use crate::caller::Caller;
use crate::dispatcher::Programmed;

pub(crate) use check::CheckedNode;

/// A network with what uses it.
#[derive(Clone, Debug)]
pub(crate) struct NetworkSummary {
    /// The network as the store holds it.
    pub(crate) network: Arc<Network>,
    /// Names of the services in it.
    pub(crate) services: BTreeSet<String>,
    /// The tasks in it that have not ended.
    pub(crate) endpoints: Vec<EndpointSummary>,
    /// The nodes that have it.
    pub(crate) nodes: Vec<HolderSummary>,
    /// The version of the store that this shows.
    pub(crate) version: Version,
}

/// A task in a network.
#[derive(Clone, Debug)]
pub(crate) struct EndpointSummary {
    /// Its name, such as `web.1`.
    pub(crate) task: String,
    /// Hostname of its node, if it has one.
    pub(crate) node: Option<String>,
    /// Its addresses in the network.
    pub(crate) addresses: Vec<String>,
    /// Whether connections go to it.
    pub(crate) state: EndpointState,
}

/// Whether new connections go to a task of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointState {
    /// They do not yet.
    Starting,
    /// They do.
    Serving,
    /// They do no more, because it is to stop.
    Draining,
    /// They do not, because its node is down.
    Lost,
}

impl EndpointState {
    fn of(task: &Task, view: &Tables) -> Self {
        match view.node_of(task) {
            Some(node) if node.state == NodeState::Down => Self::Lost,
            _ if task.is_serving() => Self::Serving,
            _ if !task.is_live() => Self::Draining,
            _ => Self::Starting,
        }
    }

    /// Returns the word for users.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Lost => "lost",
        }
    }
}

/// A node that has a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HolderSummary {
    /// Its hostname.
    pub(crate) node: String,
    /// Its own addresses in the network.
    pub(crate) addresses: Vec<String>,
    /// Up to which version it has carried out what concerns it; `None` if it has no session with this manager.
    pub(crate) programmed: Option<Version>,
}

const FIELDS: &[Field<NetworkSummary>] = &[
    ("id", |row| Some(row.network.id.to_string())),
    ("name", |row| Some(row.network.spec.name.clone())),
    ("driver", |row| Some(row.network.spec.driver.to_string())),
    ("stackId", |row| row.network.stack_id.as_ref().map(ToString::to_string)),
];

fn summary(network: &Arc<Network>, view: &Tables, programmed: &Programmed) -> NetworkSummary {
    let endpoints = view.tasks_of_network(&network.id).map(|task| {
        let attachment = task.attachments.iter().find(|it| it.network == network.id);
        EndpointSummary {
            task: view.spec_of(task).map(|spec| task_name(&spec.name, task.slot)).unwrap_or_default(),
            node: view.node_of(task).map(|node| node.description.hostname.clone()),
            addresses: attachment.into_iter().flat_map(|it| &it.addresses).map(ToString::to_string).collect(),
            state: EndpointState::of(task, view),
        }
    });
    let nodes = view.nodes_of_network(&network.id).filter_map(|id| view.node(id.as_str())).map(|node| {
        let attachment = node.attachments.iter().find(|it| it.network == network.id);
        HolderSummary {
            node: node.description.hostname.clone(),
            addresses: attachment.into_iter().flat_map(|it| &it.addresses).map(ToString::to_string).collect(),
            programmed: programmed.version_of(&node.id),
        }
    });
    NetworkSummary {
        network: Arc::clone(network),
        services: users(network, view),
        endpoints: endpoints.collect(),
        nodes: nodes.collect(),
        version: view.version,
    }
}

/// Names of the services that use the network: by their newest specs, or with a task that has not ended.
fn users(network: &Network, view: &Tables) -> BTreeSet<String> {
    let published = view.services_published().filter(|_| network.is_ingress());
    let by_spec = view.services_of_network(&network.id).chain(published).map(|service| service.spec.name.clone());
    let by_task = view.tasks_of_network(&network.id).filter_map(|task| Some(view.spec_of(task)?.name.clone()));
    by_spec.chain(by_task).collect()
}

/// Adds a new network to the transaction, with the subnets that its spec asks for.
///
/// # Errors
/// The name is taken, a subnet meets that of another network or the route of a node, or no node could encrypt it.
pub(super) fn create(tx: &mut WriteTx, network: Network) -> Result<(), ControlError> {
    let view = Arc::clone(tx.view());
    let spec = Arc::clone(&network.spec);
    if view.network_by_name(&spec.name).is_some() {
        return Err(ControlError::AlreadyExists { kind: Kind::Network, name: spec.name.clone() });
    }
    if spec.encrypted && !view.nodes().any(|node| node.description.can_encrypt() && !node.has_left()) {
        let why = "no node of the cluster can encrypt it, because their kernels have no WireGuard";
        return Err(ControlError::invalid("encrypted", why));
    }
    let conflicts = spec.subnets.iter().enumerate().filter_map(|(index, subnet)| {
        let (first, last) = numbers_of(&subnet.prefix);
        let is_taken = view.taken_subnets().last_met(first, last).is_some();
        let holder = || view.networks().find(|it| it.subnets.iter().any(|other| meet(&other.prefix, &subnet.prefix)));
        let taken = is_taken.then(holder).flatten().map(|it| format!("that of network `{}`", it.spec.name));
        let why = taken.or_else(|| route(&spec, &subnet.prefix, &view))?;
        let field = format!("subnets[{index}].prefix");
        Some(Violation { field, why: format!("{} overlaps with {why}", subnet.prefix) })
    });
    let conflicts: Vec<Violation> = conflicts.collect();
    if !conflicts.is_empty() {
        return Err(ControlError::Invalid(conflicts));
    }
    if let Some(cluster) = view.cluster().filter(|_| !spec.subnets.is_empty()) {
        // Two networks that ask for the same subnet both change the cluster, so only one of them is created.
        tx.touch(Cluster::clone(cluster));
    }
    tx.create(Network { subnets: spec.subnets.iter().map(subnet_of).collect(), ..network });
    Ok(())
}

/// Returns a route of a node that meets the prefix. A `macvlan` network is a part of the nodes' own network.
fn route(spec: &NetworkSpec, prefix: &ipnet::IpNet, view: &Tables) -> Option<String> {
    if spec.driver == NetworkDriver::Macvlan || !view.routes().any(|route| meet(route, prefix)) {
        return None;
    }
    let meets = |node: &&Arc<flota_api::model::Node>| node.description.routes.iter().any(|route| meet(route, prefix));
    view.nodes().find(meets).map(|node| format!("a route of node `{}`", node.description.hostname))
}

/// Returns the spec with the ids of its networks in place of their names. `created` are networks that the same transaction
/// creates, by name.
///
/// # Errors
/// There is no such network, or tasks can't join it in this way.
pub(super) fn with_ids(
    spec: &ServiceSpec,
    view: &Tables,
    created: &BTreeMap<String, NetworkId>,
) -> Result<ServiceSpec, ControlError> {
    let mut spec = spec.clone();
    let mut faults = Faults::default();
    let found = |name: &NetworkId| match created.get(name.as_str()) {
        Some(id) => Ok((id.clone(), NetworkDriver::Overlay)),
        None => {
            let network = resolve::<Network>(view, name.as_str())?;
            let why = || ControlError::invalid("", format!("tasks join `{INGRESS}` by a published port"));
            let joined = (!network.is_ingress()).then_some(network).ok_or_else(why)?;
            Ok((joined.id.clone(), joined.spec.driver))
        }
    };
    let mut drivers = Vec::new();
    for (index, it) in spec.networks.iter_mut().enumerate() {
        let field = format!("networks[{index}]");
        let found = found(&it.network).map_err(|error: ControlError| error.within(&field));
        if let Some((id, driver)) = faults.note(field, found) {
            it.network = id;
            drivers.push(driver);
        }
    }
    faults.refuse()?;
    let is_alone = drivers.len() == 1 && !spec.is_in_ingress();
    if let Some(driver) = drivers.iter().find(|driver| !driver.has_addresses()).filter(|_| !is_alone) {
        let why = format!("a task in the network `{driver}` has no other network and no port of the mode ingress");
        return Err(ControlError::invalid("networks", why));
    }
    if drivers.contains(&NetworkDriver::Host) {
        if spec.user_namespace {
            let why = "a task in the network `host` has the node's ids, because the network belongs to these";
            return Err(ControlError::invalid("user_namespace", why));
        }
        let of_network = spec.sysctls.keys().filter(|name| is_of_network(name));
        let refuse = |name: &String| {
            let why = "a task in the network `host` has the node's, which stay as they are".to_owned();
            Violation { field: format!("sysctls.{name}"), why }
        };
        let refused: Vec<Violation> = of_network.map(refuse).collect();
        if !refused.is_empty() {
            return Err(ControlError::Invalid(refused));
        }
    }
    let ids: BTreeSet<&NetworkId> = spec.networks.iter().map(|it| &it.network).collect();
    if ids.len() < spec.networks.len() {
        return Err(ControlError::invalid("networks", "a network is there twice"));
    }
    Ok(spec)
}

/// Makes the transaction fail if a network of the spec, or a port that it publishes, is not as in the view any more.
/// `name` is that of the service.
///
/// # Errors
/// Another service has a port, or a program does. The caller reads only names that it sees.
pub(super) fn claim(tx: &mut WriteTx, name: &str, spec: &ServiceSpec, caller: &Caller) -> Result<(), ControlError> {
    let view = Arc::clone(tx.view());
    let has = |id: &NetworkId| {
        view.service_by_name(name).is_some_and(|it| it.spec.networks.iter().any(|it| it.network == *id))
    };
    for network in spec.networks.iter().filter_map(|it| view.network(it.network.as_str())) {
        // One that is new to the service changes, so a removal that was planned before fails.
        if has(&network.id) {
            tx.expect(Kind::Network, &network.id);
        } else {
            tx.touch(Network::clone(network));
        }
    }
    let mut found = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let other = || match taken(port, name, &view)? {
            other if caller.sees(&other) => Some(format!("is published by service `{other}`")),
            _ => Some("is published by a service of others".to_owned()),
        };
        let listener = || match listener(port, name, &view)? {
            listener if caller.sees_nodes() || !caller.is_limited() => Some(format!("is in use by {listener}")),
            _ => Some("is in use by a program of a node".to_owned()),
        };
        if let (Some(number), Some(why)) = (port.published, other().or_else(listener)) {
            let why = format!("{number}/{} {why}", port.protocol);
            found.push(Violation { field: format!("ports[{index}]"), why });
        }
    }
    if !found.is_empty() {
        return Err(ControlError::Invalid(found));
    }
    if let Some(ingress) = view.network_by_name(INGRESS).filter(|_| !spec.ports.is_empty()) {
        // Two services that ask for the same port both change the network, so only one of them gets it.
        tx.update(Network::clone(ingress));
    }
    Ok(())
}

/// Returns the program of a node that would lose the port to the service, as a phrase. A port that the service has
/// already stays its own: nodes do not lead it past a program that began to listen later. A port of the mode host is the
/// scheduler's concern, because it is taken only on the nodes that run a task.
fn listener(port: &PublishedPort, name: &str, view: &Tables) -> Option<String> {
    let published = port.published.filter(|_| port.mode == PublishMode::Ingress)?;
    if view.service_by_name(name).is_some_and(|it| it.spec.ports.contains(port)) {
        return None;
    }
    let wanted = NodePort { protocol: port.protocol, number: published };
    let node = view.nodes_listening(wanted).find(|node| node.state == NodeState::Ready)?;
    let hostname = &node.description.hostname;
    let task = node.description.task_on(wanted).and_then(|id| view.task(id.as_str()));
    Some(match task.and_then(|task| Some(task_name(&view.spec_of(task)?.name, task.slot))) {
        Some(task) => format!("task `{task}`, which has the network of node `{hostname}`"),
        None => format!("a program of node `{hostname}` itself"),
    })
}

/// Returns the service that has the port, if that keeps this one from having it. Services may share a port of the mode
/// host, on different nodes.
fn taken(port: &PublishedPort, name: &str, view: &Tables) -> Option<String> {
    let published = port.published?;
    let others = view
        .services_with_port(NodePort { protocol: port.protocol, number: published })
        .filter(|it| it.spec.name != name);
    let is_everywhere = |it: &PublishedPort| {
        it.mode == PublishMode::Ingress && it.protocol == port.protocol && it.published == Some(published)
    };
    let mut excludes =
        others.filter(|other| is_everywhere(port) || other.ports.iter().chain(&other.spec.ports).any(is_everywhere));
    excludes.next().map(|other| other.spec.name.clone())
}

/// Checks that no other service uses the networks of a stack, which is removed with its services. They go when the last task
/// that uses them has ended (`allocator/networks.rs`).
///
/// # Errors
/// Another service uses one of them.
pub(super) fn leave_of_stack(view: &Tables, stack: &StackId) -> Result<(), ControlError> {
    for network in view.networks().filter(|it| it.stack_id.as_ref() == Some(stack)) {
        let others = view.services_of_network(&network.id).filter(|it| it.stack_id.as_ref() != Some(stack));
        let users: BTreeSet<String> = others.map(|it| it.spec.name.clone()).collect();
        if !users.is_empty() {
            let (network, users) = (network.spec.name.clone(), users.into_iter().collect());
            return Err(ControlError::NetworkInUse { network, users });
        }
    }
    Ok(())
}

impl<M: Member> Control<M> {
    /// Returns the network that `reference` identifies.
    pub(crate) async fn get_network(&self, reference: &str) -> Result<NetworkSummary, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, reference).map(|network| summary(network, &view, &self.programmed))
    }

    /// Returns the networks that pass every filter, without their endpoints.
    pub(crate) async fn list_networks(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<NetworkSummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        let row = |network: &Arc<Network>| NetworkSummary {
            network: Arc::clone(network),
            services: BTreeSet::new(),
            endpoints: Vec::new(),
            nodes: Vec::new(),
            version: view.version,
        };
        Ok(Listing { rows: filter::keep(view.networks().map(row), filters, FIELDS)?, age })
    }

    /// Creates a network.
    pub(crate) async fn create_network(
        &self,
        request_id: Option<&str>,
        spec: NetworkSpec,
    ) -> Result<Arc<Network>, ControlError> {
        let found = network_violations(&spec);
        if !found.is_empty() {
            return Err(ControlError::Invalid(found));
        }
        self.check_network_spec(&spec)?;
        let name = spec.name.clone();
        let network = Network { id: self.random.draw(NetworkId::random), spec: Arc::new(spec), ..Network::default() };
        let created = self.write_once(request_id, |view| {
            let mut tx = WriteTx::new(view, request_id);
            create(&mut tx, network.clone())?;
            Ok((tx.finish(), ()))
        });
        created.await?;
        // Read by name, so that a retry returns the network that the first try created.
        let removed = || ControlError::RemovedMeanwhile { kind: Kind::Network, reference: name.clone() };
        self.read(|view| view.network_by_name(&name).cloned().ok_or_else(removed)).await
    }

    /// Removes a network that nothing uses.
    pub(crate) async fn remove_network(&self, request_id: Option<&str>, reference: &str) -> Result<(), ControlError> {
        let reference = &self.own::<Network>(reference).await?;
        let removed = self.write_once(request_id, |view| {
            let network = Arc::clone(resolve::<Network>(&view, reference)?);
            let name = network.spec.name.clone();
            if network.is_ingress() || !network.spec.driver.has_addresses() {
                return Err(ControlError::WrongState(format!("network `{name}` belongs to every cluster")));
            }
            let users = users(&network, &view);
            if !users.is_empty() {
                return Err(ControlError::NetworkInUse { network: name, users: users.into_iter().collect() });
            }
            let mut tx = WriteTx::new(view, request_id);
            tx.remove(Kind::Network, network.id.as_str());
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}

#[cfg(test)]
mod tests;
