//! The node as a gateway: the ways out of its networks, its published ports, and the mesh over which a published port
//! of one node leads to tasks of others. Only differences are sent to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flota_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use flota_api::model::{Assignment, Endpoint, NetworkDriver, NodePort, Protocol as ApiProtocol};
use flota_network::{
    Gateway, GatewayChange, GatewaySettings, HostPort, Mac, Mesh, MeshChange, MeshSpec, Protocol, PublishedPort,
    Remote, Sender, Target, Uplink,
};

use super::{LinuxKernel, LinuxOptions, VXLAN_PORT, bridge};
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
    /// The parts of the kernel's state that may differ from the desired one.
    pub(super) outdated: Outdated,
    /// Ports on which the node's own programs listen. They lead nowhere else.
    left: BTreeSet<HostPort>,
    /// Whether the kernel can't lead published ports to tasks of other nodes.
    is_alone: bool,
}

/// The desired state of gateway and mesh.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    uplinks: BTreeMap<String, Uplink>,
    ports: BTreeMap<HostPort, PublishedPort>,
    machines: BTreeSet<IpAddr>,
    senders: BTreeSet<Sender>,
    mesh: Option<MeshSpec>,
    routers: BTreeSet<Mac>,
    /// Addresses in `ingress` that are on other nodes, with the bridge of the node.
    addresses: BTreeMap<IpAddr, Mac>,
    /// Which of the ports are of this node alone.
    host_ports: BTreeSet<HostPort>,
    /// Which of the ports each service has.
    of_services: BTreeMap<ServiceId, BTreeSet<HostPort>>,
    /// Which of the addresses each task has.
    of_tasks: BTreeMap<TaskId, BTreeSet<IpAddr>>,
}

/// What may have changed. Published ports and their targets change often, so they are brought up to date one by one, and
/// everything else as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outdated {
    pub(super) everything: bool,
    senders: BTreeMap<Sender, bool>,
    services: BTreeSet<ServiceId>,
    tasks: BTreeSet<TaskId>,
}

impl Outdated {
    /// Adds what a change of these keys may change.
    pub(super) fn add(&mut self, view: &View, touched: &Touched) {
        let in_ingress = |id: &NetworkId| view.network(id).is_none_or(KnownNetwork::is_ingress);
        self.everything |= !touched.networks.is_empty() || touched.nodes.iter().any(|(id, _)| in_ingress(id));
        let services = touched.services.iter().filter(|(id, _)| in_ingress(id));
        self.services.extend(services.map(|(_, service)| service.clone()));
        let tasks = touched.endpoints.iter().filter(|(id, _)| in_ingress(id));
        self.tasks.extend(tasks.map(|(_, task)| task.clone()));
    }

    /// Adds what other nodes have in a network now, or no longer.
    pub(super) fn add_senders(&mut self, remotes: &[Remote], is_known: bool) {
        self.senders.extend(remotes.iter().filter_map(sender).map(|it| (it, is_known)));
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Gate {
    /// Leaves these ports to the node's own programs.
    pub(super) fn leave_ports(&mut self, ports: &BTreeSet<NodePort>) {
        self.left = ports.iter().map(|it| host_port(it.number, it.protocol)).collect();
        self.outdated.everything = true;
        let lost: Vec<_> = self.left.iter().filter(|it| self.wanted.ports.contains_key(it)).copied().collect();
        for port in lost {
            tracing::warn!(port = %node_port(port), "a program of this node listens on a published port and now gets it");
        }
    }

    /// Ends the connections to targets that are gone. The kernel looks through all tracked connections for them, so this
    /// is done for many changes at once, and nothing waits for it.
    pub(super) fn end_outdated(&mut self) -> Result<(), KernelError> {
        self.gateway.as_mut().map_or(Ok(()), |it| Ok(it.end_outdated()?))
    }

    /// Brings everything to the wanted state.
    fn set(&mut self, options: &LinuxOptions, wanted: Wanted) -> Result<(), KernelError> {
        let Self { gateway, mesh, wanted: old, .. } = self;
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
                match Mesh::ensure(spec.clone(), change) {
                    Ok(made) => *mesh = Some(made),
                    // Everything else works. The caller calls again, with targets on this node alone.
                    Err(error) if error.is_unsupported() => {
                        tracing::warn!(%error, "published ports of this node lead to its own tasks only");
                        self.is_alone = true;
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let nothing = Wanted::default();
        let before = if gateway.is_some() { &*old } else { &nothing };
        let change = GatewayChange {
            uplinks: difference(&before.uplinks, &wanted.uplinks),
            ports: difference(&before.ports, &wanted.ports),
            senders: {
                let gone = before.senders.difference(&wanted.senders).map(|it| (*it, false));
                gone.chain(wanted.senders.difference(&before.senders).map(|it| (*it, true))).collect()
            },
            machines: (gateway.is_none() || before.machines != wanted.machines).then(|| wanted.machines.clone()),
        };
        match gateway {
            Some(gateway) => gateway.change(change)?,
            None => {
                let settings = GatewaySettings {
                    vxlan_port: VXLAN_PORT,
                    guarded_ports: options.guarded_ports.clone(),
                    former_parameters: options.folder.former_parameters(),
                };
                *gateway = Some(Gateway::ensure(&options.host, &settings, change)?);
            }
        }
        self.wanted = wanted;
        Ok(())
    }

    /// Brings the senders, the ports of services and the addresses of tasks to the wanted state.
    fn change(
        &mut self,
        senders: BTreeMap<Sender, bool>,
        services: BTreeMap<ServiceId, BTreeMap<HostPort, PublishedPort>>,
        tasks: BTreeMap<TaskId, BTreeMap<IpAddr, Mac>>,
    ) -> Result<(), KernelError> {
        let Self { gateway: Some(gateway), mesh, wanted, .. } = self else { return Ok(()) };
        if let Some(mesh) = mesh {
            let addresses = differences(&wanted.addresses, &wanted.of_tasks, &tasks);
            mesh.change(MeshChange { routers: None, addresses })?;
        }
        let ports = differences(&wanted.ports, &wanted.of_services, &services);
        gateway.change(GatewayChange { ports, senders: senders.clone(), ..GatewayChange::default() })?;
        for (sender, is_known) in senders {
            if is_known {
                wanted.senders.insert(sender)
            } else {
                wanted.senders.remove(&sender)
            };
        }
        adopt(&mut wanted.addresses, &mut wanted.of_tasks, tasks);
        adopt(&mut wanted.ports, &mut wanted.of_services, services);
        Ok(())
    }
}

impl LinuxKernel {
    /// Makes gateway and mesh what they should be with these tasks on this node.
    pub(super) fn set_gateway(&mut self, view: &View, tasks: &[&Assignment]) -> Result<(), KernelError> {
        let outdated = std::mem::take(&mut self.gate.outdated);
        let ingress = view.networks.values().find(|it| it.is_ingress()).filter(|it| self.is_made(it));
        let done = match ingress {
            Some(ingress) if !outdated.everything && self.gate.gateway.is_some() => {
                let services = outdated
                    .services
                    .into_iter()
                    .map(|id| (id.clone(), self.ports_of(ingress, &id, &self.gate.wanted.host_ports)));
                let services = services.collect();
                let tasks = outdated.tasks.into_iter().map(|id| (id.clone(), self.addresses_of(ingress, &id)));
                let tasks = tasks.collect();
                self.gate.change(outdated.senders, services, tasks)
            }
            _ => {
                let (was_alone, is_new) = (self.gate.is_alone, self.gate.gateway.is_none());
                let wanted = self.wanted_gateway(view, tasks);
                let mut set = self.gate.set(&self.options, wanted);
                if self.gate.is_alone != was_alone {
                    let wanted = self.wanted_gateway(view, tasks);
                    set = self.gate.set(&self.options, wanted);
                }
                if is_new && let Some(gateway) = &mut self.gate.gateway {
                    gateway.succeed(&std::mem::take(&mut self.former_ports));
                }
                set
            }
        };
        self.gate.outdated.everything = done.is_err();
        done
    }

    fn is_made(&self, network: &KnownNetwork) -> bool {
        self.networks.contains_key(&network.config.id)
    }

    fn wanted_gateway(&self, view: &View, tasks: &[&Assignment]) -> Wanted {
        let mut wanted = Wanted::default();
        tasks.iter().for_each(|task| wanted.ports.extend(self.host_ports(view, task)));
        wanted.host_ports = wanted.ports.keys().copied().collect();
        // Frames of encrypted networks come through the tunnels, which have senders of their own.
        let clear = self.networks.values().filter(|it| !it.is_encrypted);
        wanted.senders = clear.flat_map(|it| it.remotes.values()).filter_map(sender).collect();
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
                wanted.mesh = Some(spec).filter(|it| !it.own_addresses.is_empty() && !self.gate.is_alone);
            }
        }
        wanted.machines.extend(&self.managers);
        wanted.uplinks.extend(self.bridge.iter().map(|it| (bridge::UPLINK.into(), it.uplink())));
        wanted
    }

    fn want_ingress(&self, network: &KnownNetwork, wanted: &mut Wanted) {
        wanted.machines = network.nodes.values().filter_map(|it| it.vtep).collect();
        let others = network.nodes.keys().filter(|it| **it != self.options.node);
        wanted.routers = others.filter_map(|it| router(network, it)).collect();
        let tasks = network.endpoints.keys().map(|id| (id.clone(), self.addresses_of(network, id)));
        adopt(&mut wanted.addresses, &mut wanted.of_tasks, tasks.collect());
        let services = network.services.keys().map(|id| (id.clone(), self.ports_of(network, id, &wanted.host_ports)));
        let services = services.collect();
        adopt(&mut wanted.ports, &mut wanted.of_services, services);
    }

    /// Returns the published ports of every node in a view.
    pub(super) fn ports_in(&self, view: &View) -> BTreeMap<HostPort, PublishedPort> {
        let mut wanted = Wanted::default();
        view.networks.values().filter(|it| it.is_ingress()).for_each(|it| self.want_ingress(it, &mut wanted));
        wanted.ports
    }

    /// Returns the addresses of a task of another node, with the bridge of that node.
    fn addresses_of(&self, network: &KnownNetwork, task: &TaskId) -> BTreeMap<IpAddr, Mac> {
        let elsewhere = network.endpoints.get(task).filter(|it| it.node != self.options.node);
        let found = elsewhere.and_then(|it| Some((it, router(network, &it.node)?)));
        found.into_iter().flat_map(|(it, router)| it.addresses.iter().map(move |address| (*address, router))).collect()
    }

    /// Returns the ports on which every node answers for a service, with their targets.
    fn ports_of(
        &self,
        network: &KnownNetwork,
        service: &ServiceId,
        host_ports: &BTreeSet<HostPort>,
    ) -> BTreeMap<HostPort, PublishedPort> {
        let own = &self.options.node;
        let ports = network.services.get(service).into_iter().flat_map(|it| &it.ports);
        let ports = ports.filter_map(|it| Some((it, host_port(it.published?, it.protocol))));
        let free = ports.filter(|(_, key)| !self.gate.left.contains(key) && !host_ports.contains(key));
        let published = free.map(|(port, key)| {
            let reached = |it: &&Endpoint| it.node == *own || !self.gate.is_alone;
            let targets = network.endpoints_of(service).filter(|it| !it.lost).filter(reached).flat_map(|it| {
                let (local, accepts) = (it.node == *own, it.serving);
                let target = move |address: &IpAddr| SocketAddr::new(*address, port.target);
                it.addresses.iter().map(move |address| Target { address: target(address), local, accepts })
            });
            (key, PublishedPort { targets: targets.collect(), masquerade: false })
        });
        published.collect()
    }

    /// Returns the ports of this node alone that lead to a task, on the way by which the task answers.
    fn host_ports(&self, view: &View, task: &Assignment) -> BTreeMap<HostPort, PublishedPort> {
        let addresses = self.outward_addresses(view, task);
        let ports = task.spec.host_ports().filter(|_| !addresses.is_empty());
        let port = |it: flota_api::model::PublishedPort| {
            let key = host_port(it.published?, it.protocol);
            let target = |address: &IpAddr| SocketAddr::new(*address, it.target);
            let target = |address: &IpAddr| Target { address: target(address), local: true, accepts: true };
            let published = PublishedPort { targets: addresses.iter().map(target).collect(), masquerade: false };
            (!self.gate.left.contains(&key)).then_some((key, published))
        };
        ports.filter_map(port).collect()
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

/// Returns where frames of a task or of a bridge on another node come from.
fn sender(remote: &Remote) -> Option<Sender> {
    Mac::of(&remote.addresses).map(|mac| Sender { machine: remote.vtep, mac })
}

/// Returns the MAC address of a node's bridge.
fn router(network: &KnownNetwork, node: &NodeId) -> Option<Mac> {
    network.nodes.get(node).and_then(|it| Mac::of(&it.addresses))
}

fn host_port(number: u16, protocol: ApiProtocol) -> HostPort {
    let protocol = match protocol {
        ApiProtocol::Tcp => Protocol::Tcp,
        ApiProtocol::Udp => Protocol::Udp,
    };
    HostPort { protocol, number }
}

/// Returns the port as the leader knows it.
pub(super) fn node_port(port: HostPort) -> NodePort {
    let protocol = match port.protocol {
        Protocol::Tcp => ApiProtocol::Tcp,
        Protocol::Udp => ApiProtocol::Udp,
    };
    NodePort { protocol, number: port.number }
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

/// Returns what changes in `all` when each owner in `new` has these entries instead of those that `owned` names; `None` for
/// what is gone.
fn differences<O: Ord, K: Ord + Clone, V: Clone + PartialEq>(
    all: &BTreeMap<K, V>,
    owned: &BTreeMap<O, BTreeSet<K>>,
    new: &BTreeMap<O, BTreeMap<K, V>>,
) -> BTreeMap<K, Option<V>> {
    let before = new.keys().filter_map(|owner| owned.get(owner)).flatten();
    // What goes from one owner to another is there, so new entries come last.
    let mut changes: BTreeMap<K, Option<V>> = before.map(|key| (key.clone(), None)).collect();
    changes.extend(new.values().flatten().map(|(key, value)| (key.clone(), Some(value.clone()))));
    changes.retain(|key, value| all.get(key) != value.as_ref());
    changes
}

/// Gives each owner in `new` these entries instead of those that it had.
fn adopt<O: Ord, K: Ord + Clone, V>(
    all: &mut BTreeMap<K, V>,
    owned: &mut BTreeMap<O, BTreeSet<K>>,
    new: BTreeMap<O, BTreeMap<K, V>>,
) {
    new.keys().filter_map(|owner| owned.remove(owner)).flatten().for_each(|key| drop(all.remove(&key)));
    for (owner, entries) in new.into_iter().filter(|(_, entries)| !entries.is_empty()) {
        owned.insert(owner, entries.keys().cloned().collect());
        all.extend(entries);
    }
}

#[cfg(test)]
impl LinuxKernel {
    /// Asserts that what was changed step by step is what would be computed as a whole.
    pub(super) fn assert_gateway_is_whole(&self, view: &View) {
        assert_eq!(self.gate.outdated, Outdated::default());
        assert_eq!(self.gate.wanted, self.wanted_gateway(view, &[]));
    }

    /// Returns the ports that lead to tasks.
    pub(super) fn led_ports(&self) -> Vec<u16> {
        self.gate.wanted.ports.keys().map(|it| it.number).collect()
    }
}
