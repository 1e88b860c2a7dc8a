//! The leader's description of this node's networks: a copy that full updates replace and later ones change. Pure:
//! it says what has changed, and `actor.rs` changes the kernel accordingly.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flota_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use flota_api::model::{Endpoint, INGRESS, NetworkConfig, NetworkNode, NetworkService, NetworkUpdate};
use flota_api::version::Version;

/// A network with everything in it that this node has to know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KnownNetwork {
    pub(crate) config: NetworkConfig,
    pub(crate) services: BTreeMap<ServiceId, NetworkService>,
    pub(crate) endpoints: BTreeMap<TaskId, Endpoint>,
    pub(crate) nodes: BTreeMap<NodeId, NetworkNode>,
    /// The tasks of each service, so that a change of one does not cost a search through all endpoints.
    tasks: BTreeMap<ServiceId, BTreeSet<TaskId>>,
}

impl KnownNetwork {
    pub(super) fn new(config: NetworkConfig) -> Self {
        let (services, endpoints) = (BTreeMap::new(), BTreeMap::new());
        Self { config, services, endpoints, nodes: BTreeMap::new(), tasks: BTreeMap::new() }
    }

    /// Returns whether it is the network of published ports.
    pub(crate) fn is_ingress(&self) -> bool {
        self.config.name == INGRESS
    }

    /// Returns the endpoints of a service, in order.
    pub(crate) fn endpoints_of(&self, service: &ServiceId) -> impl Iterator<Item = &Endpoint> {
        self.tasks.get(service).into_iter().flatten().filter_map(|task| self.endpoints.get(task))
    }

    /// Returns the addresses to which connections to a service are sent, in order.
    pub(crate) fn backends(&self, service: &ServiceId) -> Vec<IpAddr> {
        self.endpoints_of(service).filter(|it| it.serving).flat_map(|it| it.addresses.clone()).collect()
    }

    pub(super) fn insert_endpoint(&mut self, endpoint: Endpoint) {
        self.remove_endpoint(&endpoint.task);
        self.tasks.entry(endpoint.service.clone()).or_default().insert(endpoint.task.clone());
        self.endpoints.insert(endpoint.task.clone(), endpoint);
    }

    fn remove_endpoint(&mut self, task: &TaskId) {
        let Some(endpoint) = self.endpoints.remove(task) else { return };
        if let Some(tasks) = self.tasks.get_mut(&endpoint.service) {
            tasks.remove(task);
            if tasks.is_empty() {
                self.tasks.remove(&endpoint.service);
            }
        }
    }
}

/// The networks of this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    pub(crate) networks: BTreeMap<NetworkId, KnownNetwork>,
    /// The version of the last update.
    pub(crate) version: Version,
}

/// The keys of what an update has added, changed or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) networks: BTreeSet<NetworkId>,
    /// Services whose own properties or whose endpoints have changed.
    pub(crate) services: BTreeSet<(NetworkId, ServiceId)>,
    pub(crate) endpoints: BTreeSet<(NetworkId, TaskId)>,
    pub(crate) nodes: BTreeSet<(NetworkId, NodeId)>,
}

impl Touched {
    /// Returns the keys of everything in a network.
    pub(super) fn all_of(id: &NetworkId, network: &KnownNetwork) -> Self {
        let services = network.services.keys().chain(network.tasks.keys());
        Self {
            networks: BTreeSet::from([id.clone()]),
            services: services.map(|it| (id.clone(), it.clone())).collect(),
            endpoints: network.endpoints.keys().map(|it| (id.clone(), it.clone())).collect(),
            nodes: network.nodes.keys().map(|it| (id.clone(), it.clone())).collect(),
        }
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.networks.extend(other.networks);
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.nodes.extend(other.nodes);
    }
}

impl View {
    /// Returns a network.
    pub(crate) fn network(&self, id: &NetworkId) -> Option<&KnownNetwork> {
        self.networks.get(id)
    }

    /// Returns the keys of everything.
    pub(crate) fn all(&self) -> Touched {
        let mut touched = Touched::default();
        self.networks.iter().for_each(|(id, network)| touched.extend(Touched::all_of(id, network)));
        touched
    }

    /// Returns a full update that makes this view from any other.
    pub(crate) fn to_update(&self) -> NetworkUpdate {
        let mut update = NetworkUpdate { version: self.version, full: true, ..NetworkUpdate::default() };
        for network in self.networks.values() {
            update.networks.push(network.config.clone());
            update.services.extend(network.services.values().cloned());
            update.endpoints.extend(network.endpoints.values().cloned());
            update.nodes.extend(network.nodes.values().cloned());
        }
        update
    }

    /// Carries out an update, and returns what it has changed.
    pub(crate) fn apply(&mut self, update: NetworkUpdate) -> Touched {
        if !update.full {
            return self.change(update);
        }
        let mut new = Self::default();
        new.change(update);
        let touched = self.difference(&new);
        *self = new;
        touched
    }

    fn change(&mut self, update: NetworkUpdate) -> Touched {
        let mut touched = Touched::default();
        for id in update.removed_networks {
            if let Some(network) = self.networks.remove(&id) {
                touched.extend(Touched::all_of(&id, &network));
            }
        }
        for config in update.networks {
            let id = config.id.clone();
            touched.networks.insert(id.clone());
            match self.networks.get_mut(&id) {
                Some(network) => network.config = config,
                None => drop(self.networks.insert(id, KnownNetwork::new(config))),
            }
        }
        for (id, service) in update.removed_services {
            if let Some(network) = self.networks.get_mut(&id) {
                network.services.remove(&service);
                touched.services.insert((id, service));
            }
        }
        for service in update.services {
            let (id, key) = (service.network.clone(), service.service.clone());
            if let Some(network) = self.networks.get_mut(&id) {
                network.services.insert(key.clone(), service);
                touched.services.insert((id, key));
            }
        }
        self.change_endpoints(update.removed_endpoints, update.endpoints, &mut touched);
        for (id, node) in update.removed_nodes {
            if let Some(network) = self.networks.get_mut(&id) {
                network.nodes.remove(&node);
                touched.nodes.insert((id, node));
            }
        }
        for node in update.nodes {
            let (id, key) = (node.network.clone(), node.node.clone());
            if let Some(network) = self.networks.get_mut(&id) {
                network.nodes.insert(key.clone(), node);
                touched.nodes.insert((id, key));
            }
        }
        self.version = update.version;
        touched
    }

    fn change_endpoints(&mut self, removed: Vec<(NetworkId, TaskId)>, changed: Vec<Endpoint>, touched: &mut Touched) {
        let removed = removed.into_iter().map(|(network, task)| (network, task, None));
        let changed = changed.into_iter().map(|it| (it.network.clone(), it.task.clone(), Some(it)));
        for (id, task, endpoint) in removed.chain(changed) {
            let Some(network) = self.networks.get_mut(&id) else { continue };
            let before = network.endpoints.get(&task).map(|it| it.service.clone());
            let services = before.into_iter().chain(endpoint.as_ref().map(|it| it.service.clone()));
            touched.services.extend(services.map(|service| (id.clone(), service)));
            match endpoint {
                Some(endpoint) => network.insert_endpoint(endpoint),
                None => network.remove_endpoint(&task),
            }
            touched.endpoints.insert((id, task));
        }
    }

    /// Returns what differs between two views.
    fn difference(&self, new: &Self) -> Touched {
        let mut touched = Touched::default();
        for id in self.networks.keys().chain(new.networks.keys()) {
            match (self.networks.get(id), new.networks.get(id)) {
                (Some(old), Some(new)) => touched.extend(of_both(id, old, new)),
                (Some(one), None) | (None, Some(one)) => touched.extend(Touched::all_of(id, one)),
                (None, None) => {}
            }
        }
        touched
    }
}

/// Returns what differs between two states of one network.
fn of_both(id: &NetworkId, old: &KnownNetwork, new: &KnownNetwork) -> Touched {
    fn changed<K: Ord + Clone, V: PartialEq>(
        id: &NetworkId,
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
    ) -> BTreeSet<(NetworkId, K)> {
        let keys = old.keys().chain(new.keys());
        keys.filter(|key| old.get(*key) != new.get(*key)).map(|key| (id.clone(), key.clone())).collect()
    }
    let mut touched = Touched {
        networks: if old.config == new.config { BTreeSet::new() } else { BTreeSet::from([id.clone()]) },
        services: changed(id, &old.services, &new.services),
        endpoints: changed(id, &old.endpoints, &new.endpoints),
        nodes: changed(id, &old.nodes, &new.nodes),
    };
    let endpoints = touched.endpoints.iter();
    let services = endpoints.flat_map(|(_, task)| [old.endpoints.get(task), new.endpoints.get(task)]);
    touched.services.extend(services.flatten().map(|it| (id.clone(), it.service.clone())));
    touched
}

/// The parts of an update that is not complete yet.
#[derive(Debug, Default)]
pub(crate) struct UpdateParts(Option<NetworkUpdate>);

impl UpdateParts {
    /// Adds a part. Returns the update when its last part has arrived.
    pub(crate) fn join(&mut self, mut part: NetworkUpdate) -> Option<NetworkUpdate> {
        let more = part.more;
        let whole = match self.0.take() {
            None => part,
            Some(mut before) => {
                before.version = part.version;
                before.networks.append(&mut part.networks);
                before.removed_networks.append(&mut part.removed_networks);
                before.services.append(&mut part.services);
                before.removed_services.append(&mut part.removed_services);
                before.endpoints.append(&mut part.endpoints);
                before.removed_endpoints.append(&mut part.removed_endpoints);
                before.nodes.append(&mut part.nodes);
                before.removed_nodes.append(&mut part.removed_nodes);
                before
            }
        };
        if more {
            self.0 = Some(whole);
            return None;
        }
        Some(NetworkUpdate { more: false, ..whole })
    }
}

#[cfg(test)]
pub(super) mod tests;
