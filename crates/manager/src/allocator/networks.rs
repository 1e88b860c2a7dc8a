//! The pools of the cluster, the built-in networks, the identifiers and subnets of all networks, and the end of those that
//! a stack has left behind.

use std::sync::Arc;

use flota_api::id::{Id, NetworkId};
use flota_api::model::{Cluster, INGRESS, Network, NetworkDriver, NetworkSpec};
use flota_api::object::{Kind, Object};
use flota_raft_store::{Event, Tables};

use super::pools::{Pools, add_default_pools};
use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The VXLAN network identifiers of networks. Swarm begins at the same one.
const VNIS: (u128, u128) = (4_096, (1 << 24) - 1);
/// The networks of every cluster.
const BUILT_IN: [(&str, NetworkDriver); 3] =
    [(INGRESS, NetworkDriver::Overlay), ("host", NetworkDriver::Host), ("none", NetworkDriver::None)];

/// The loop; its keys are the cluster and networks.
#[derive(Debug, Default)]
pub(crate) struct Networks;

impl ControlLoop for Networks {
    fn name(&self) -> &'static str {
        "networks"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        let cluster = view.cluster().map(|cluster| Key::of(&cluster.id));
        cluster.into_iter().chain(view.networks().map(|network| Key::of(&network.id))).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            Event::Created(Object::Cluster(cluster)) => vec![Key::of(&cluster.id)],
            Event::Created(Object::Network(network)) => vec![Key::of(&network.id)],
            Event::Updated { new: Object::Network(network), .. } => stale(&network.id, view).into_iter().collect(),
            // Another network may have the subnet now.
            Event::Removed(Object::Network(_)) => self.all(view),
            Event::Removed(Object::Stack(_)) | Event::Updated { new: Object::Stack(_), .. } => {
                view.networks().filter_map(|network| stale(&network.id, view)).collect()
            }
            Event::Updated { old: Object::Task(old), new: Object::Task(new) }
                if !old.status.state.is_terminal() && new.status.state.is_terminal() =>
            {
                new.attachments.iter().filter_map(|it| stale(&it.network, view)).collect()
            }
            Event::Removed(Object::Task(task)) => {
                task.attachments.iter().filter_map(|it| stale(&it.network, view)).collect()
            }
            Event::Removed(Object::Service(service)) | Event::Updated { old: Object::Service(service), .. } => {
                let of_spec = service.spec.networks.iter().map(|it| &it.network);
                let networks = of_spec.chain(service.virtual_ips.iter().map(|it| &it.network));
                networks.filter_map(|id| stale(id, view)).collect()
            }
            Event::Removed(Object::Node(_)) => self.all(view),
            Event::Updated { old: Object::Node(old), new: Object::Node(new) }
                if old.description.routes != new.description.routes =>
            {
                self.all(view)
            }
            _ => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        match (view.cluster(), view.network(key.id)) {
            (Some(cluster), _) if Id::from(&cluster.id) == key.id => begin(cluster, view, &mut plan, cx),
            (_, Some(network)) if stale(&network.id, view).is_some() => plan.remove(Kind::Network, &network.id),
            (_, Some(network)) => complete(network, view, &mut plan),
            _ => {}
        }
        plan
    }
}

/// Returns the key of the network if it is to be removed: its stack is gone or does not have it any more, and nothing uses
/// it.
fn stale(id: &NetworkId, view: &Tables) -> Option<Key> {
    let network = view.network(id.as_str())?;
    let stack = view.stack(network.stack_id.as_ref()?.as_str());
    let is_named = stack.is_some_and(|it| it.spec.networks.iter().any(|it| it.name == network.spec.name));
    let is_used = view.services_of_network(id).next().is_some() || view.tasks_of_network(id).next().is_some();
    (!is_named && !is_used).then(|| Key::of(id))
}

/// Gives the cluster its pools and its built-in networks.
fn begin(cluster: &Arc<Cluster>, view: &Tables, plan: &mut Plan, cx: &mut PlanContext) {
    let mut address_pools = cluster.address_pools.clone();
    add_default_pools(&mut address_pools, &mut cx.rng);
    if address_pools != cluster.address_pools {
        plan.put(Cluster { address_pools, ..cluster.as_ref().clone() });
    }
    for (name, driver) in BUILT_IN {
        if view.network_by_name(name).is_none() {
            // Published ports answer by IPv6 too.
            let ipv6 = name == INGRESS;
            let spec = NetworkSpec { name: name.to_owned(), driver, ipv6, ..NetworkSpec::default() };
            plan.put(Network { id: NetworkId::random(&mut cx.rng), spec: Arc::new(spec), ..Network::default() });
        }
    }
}

/// Gives the network what it lacks: an identifier, and a first subnet of each address family.
fn complete(network: &Arc<Network>, view: &Tables, plan: &mut Plan) {
    let mut new = network.as_ref().clone();
    if new.spec.driver == NetworkDriver::Overlay && new.vni.is_none() {
        let free = view.taken_vnis().first_free(VNIS.0, VNIS.1);
        new.vni = free.and_then(|vni| u32::try_from(vni).ok());
    }
    let mut pools = Pools::new(view);
    let wants_ipv4 = new.spec.subnets.is_empty();
    for (is_ipv6, is_wanted) in [(false, wants_ipv4), (true, new.spec.ipv6)] {
        let has_one = new.subnets.iter().any(|subnet| subnet.prefix.addr().is_ipv6() == is_ipv6);
        if new.spec.driver.has_addresses() && is_wanted && !has_one {
            new.subnets.extend(pools.take(is_ipv6));
        }
    }
    if let (Some(cluster), Some(address_pools)) = (view.cluster(), pools.changed()) {
        plan.put(Cluster { address_pools, ..cluster.as_ref().clone() });
        // A subnet that a user asks for meanwhile must not be the same.
        plan.expect(Kind::Cluster, &cluster.id);
    }
    if new != **network {
        plan.put(new);
    }
}
