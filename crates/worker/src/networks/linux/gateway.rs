//! The node as a gateway: the ways out of its networks, its published ports, and the mesh over which a published port
//! of one node leads to tasks of others. What is wanted is computed as a whole, and only differences are sent to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flota_api::id::{NetworkId, NodeId};
use flota_api::model::{Assignment, NetworkDriver, Protocol as ApiProtocol, PublishMode};
use flota_network::{
    Gateway, GatewayChange, GatewaySettings, HostPort, Mac, Mesh, MeshChange, MeshSpec, Protocol, PublishedPort,
    Target, Uplink,
};

use super::tasks::way_out;
use super::{LinuxKernel, VXLAN_PORT};
use crate::networks::kernel::KernelError;
use crate::networks::view::{KnownNetwork, Touched, View};

/// Length of the part of a network's id that names its way out; interfaces have short names.
const UPLINK_NAME: usize = 9;

/// The gateway, once the view is known.
#[derive(Debug, Default)]
pub(super) struct Gate {
    gateway: Option<Gateway>,
    mesh: Option<Mesh>,
    wanted: Wanted,
    /// Whether the kernel may differ from what is wanted.
    pub(super) is_outdated: bool,
}

/// What the gateway and the mesh should do.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    uplinks: BTreeMap<String, Uplink>,
    ports: BTreeMap<HostPort, PublishedPort>,
    machines: BTreeSet<IpAddr>,
    mesh: Option<MeshSpec>,
    routers: BTreeSet<Mac>,
    /// Addresses in `ingress` that are on other nodes, with the bridge of the node.
    addresses: BTreeMap<IpAddr, Mac>,
}

/// Returns whether a change of these keys may change what the gateway does.
pub(super) fn concerns(view: &View, touched: &Touched) -> bool {
    let services = touched.services.iter().map(|(id, _)| id);
    let endpoints = touched.endpoints.iter().map(|(id, _)| id);
    let nodes = touched.nodes.iter().map(|(id, _)| id);
    let in_ingress = |id: &NetworkId| view.network(id).is_none_or(KnownNetwork::is_ingress);
    !touched.networks.is_empty() || services.chain(endpoints).chain(nodes).any(in_ingress)
}

impl LinuxKernel {
    /// Makes gateway and mesh what they should be with these tasks on this node.
    pub(super) fn set_gateway(&mut self, view: &View, tasks: &[&Assignment]) -> Result<(), KernelError> {
        let wanted = self.wanted_gateway(view, tasks);
        let Gate { gateway, mesh, wanted: old, .. } = &mut self.gate;
        // The mesh comes first: a port must not lead to an address that it does not reach.
        match (&wanted.mesh, mesh.as_mut()) {
            (None, _) => *mesh = None,
            (Some(spec), Some(mesh)) if old.mesh.as_ref() == Some(spec) => mesh.change(MeshChange {
                routers: (old.routers != wanted.routers).then(|| wanted.routers.clone()),
                addresses: difference(&old.addresses, &wanted.addresses),
            })?,
            (Some(spec), _) => {
                let change = MeshChange {
                    routers: Some(wanted.routers.clone()),
                    addresses: difference(&BTreeMap::new(), &wanted.addresses),
                };
                *mesh = Some(Mesh::ensure(spec.clone(), change)?);
            }
        }
        let before = gateway.as_ref().map_or_else(Wanted::default, |_| old.clone());
        let change = GatewayChange {
            uplinks: difference(&before.uplinks, &wanted.uplinks),
            ports: difference(&before.ports, &wanted.ports),
            machines: (gateway.is_none() || before.machines != wanted.machines).then(|| wanted.machines.clone()),
        };
        match gateway {
            Some(gateway) => gateway.change(change)?,
            None => {
                let guarded_ports = self.options.guarded_ports.clone();
                let settings = GatewaySettings { vxlan_port: VXLAN_PORT, guarded_ports };
                *gateway = Some(Gateway::ensure(&self.options.host, &settings, change)?);
            }
        }
        (self.gate.wanted, self.gate.is_outdated) = (wanted, false);
        Ok(())
    }

    fn wanted_gateway(&self, view: &View, tasks: &[&Assignment]) -> Wanted {
        let mut wanted = Wanted::default();
        for (id, made) in &self.networks {
            let Some(network) = view.network(id) else { continue };
            let has_bridge = matches!(network.config.driver, NetworkDriver::Overlay | NetworkDriver::Bridge);
            if has_bridge && !network.config.internal {
                let subnets = network.config.subnets.iter().map(|it| it.prefix).collect();
                let uplink = Uplink { network: made.local.namespace().clone(), subnets };
                wanted.uplinks.insert(id.as_str().chars().take(UPLINK_NAME).collect(), uplink);
            }
            if network.is_ingress() {
                self.want_ingress(network, &mut wanted);
                let own_addresses = made.local.spec().own_addresses.clone();
                let spec = MeshSpec { network: made.local.namespace().clone(), own_addresses };
                wanted.mesh = Some(spec).filter(|it| !it.own_addresses.is_empty());
            }
        }
        tasks.iter().for_each(|task| wanted.ports.extend(host_ports(view, task)));
        wanted
    }

    fn want_ingress(&self, network: &KnownNetwork, wanted: &mut Wanted) {
        let own = &self.options.node;
        wanted.machines = network.nodes.values().filter_map(|it| it.vtep).collect();
        let router = |node: &NodeId| network.nodes.get(node).and_then(|it| Mac::of(&it.addresses));
        wanted.routers = network.nodes.keys().filter(|it| *it != own).filter_map(router).collect();
        for endpoint in network.endpoints.values().filter(|it| it.node != *own) {
            let router = router(&endpoint.node);
            wanted.addresses.extend(endpoint.addresses.iter().filter_map(|address| Some((*address, router?))));
        }
        for service in network.services.values() {
            let ports = service.ports.iter().filter_map(|it| Some((it, host_port(it.published?, it.protocol))));
            for (port, key) in ports {
                let endpoints = network.endpoints_of(&service.service);
                let targets = endpoints.flat_map(|it| {
                    let (local, accepts) = (it.node == *own, it.serving);
                    let target = move |address: &IpAddr| SocketAddr::new(*address, port.target);
                    it.addresses.iter().map(move |address| Target { address: target(address), local, accepts })
                });
                wanted.ports.insert(key, PublishedPort { targets: targets.collect(), masquerade: false });
            }
        }
    }

    /// Compares gateway and mesh with the kernel. Returns what was mended, and the first error.
    pub(super) fn audit_gateway(&mut self) -> (Vec<String>, Option<KernelError>) {
        let audits = [self.gate.mesh.as_mut().map(Mesh::audit), self.gate.gateway.as_mut().map(Gateway::audit)];
        let (mut mended, mut failed) = (Vec::new(), None);
        for audit in audits.into_iter().flatten() {
            mended.extend(audit.mended);
            failed = failed.or(audit.failed.into_iter().next().map(Into::into));
        }
        (mended, failed)
    }
}

/// Returns the ports of this node alone that lead to a task, on the way by which the task answers.
fn host_ports(view: &View, task: &Assignment) -> BTreeMap<HostPort, PublishedPort> {
    let addresses: Vec<IpAddr> = way_out(view, task).map(|it| it.addresses.clone()).unwrap_or_default();
    let ports = task.spec.ports.iter().filter(|it| it.mode == PublishMode::Host && !addresses.is_empty());
    let port = |it: &flota_api::model::PublishedPort| {
        let target = |address: &IpAddr| SocketAddr::new(*address, it.target);
        let target = |address: &IpAddr| Target { address: target(address), local: true, accepts: true };
        let published = PublishedPort { targets: addresses.iter().map(target).collect(), masquerade: false };
        Some((host_port(it.published?, it.protocol), published))
    };
    ports.filter_map(port).collect()
}

fn host_port(number: u16, protocol: ApiProtocol) -> HostPort {
    let protocol = match protocol {
        ApiProtocol::Tcp => Protocol::Tcp,
        ApiProtocol::Udp => Protocol::Udp,
    };
    HostPort { protocol, number }
}

/// Returns what changes from one map to another; `None` for what is gone.
fn difference<K: Ord + Clone, V: Clone + PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), None));
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(*value));
    gone.chain(changed.map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}
