//! Invariants of the networks of a simulation: what the allocator gives is given once, a node that confirms a change has
//! carried it out, and no node sends connections for long to a task that has ended.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::id::TaskId;
use flota_api::model::{Network, PublishMode};
use flota_api::state::TaskState;
use flota_api::version::Version;
use flota_raft_store::View;

use super::cluster::SimCluster;
use super::host::Host;

/// How long a node may send connections to a task that does not run, after the last fault, in milliseconds. Within this
/// time, the task's node is found to be down, and a node that was cut off is told so.
const STALE_FOR: u64 = 12_000;

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub(super) struct NetworkInvariants {
    live: BTreeSet<TaskId>,
    /// Tasks that were seen to stop or to be gone, and the version at which that was seen.
    withdrawn: BTreeMap<TaskId, Version>,
    /// Since when a node sends connections to a task that does not run.
    stale: BTreeMap<(Host, TaskId), u64>,
}

impl NetworkInvariants {
    /// Checks what a newer version of the store has.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), String> {
        let live = view.tasks().filter(|task| task.is_live()).map(|task| task.id.clone()).collect();
        let withdrawn = self.live.difference(&live).map(|task| (task.clone(), view.version));
        self.withdrawn.extend(withdrawn);
        self.live = live;
        check_addresses(view)?;
        check_ports(view)?;
        check_networks(view)
    }

    /// Checks what the nodes' kernels have. `trouble`: time of the last fault.
    pub(super) fn check_nodes(&mut self, cluster: &SimCluster, trouble: u64) -> Result<(), String> {
        let now = cluster.world.now();
        let (manual, real): (Vec<_>, Vec<_>) = cluster.workers.iter().partition(|it| it.is_manual);
        let machines = real.iter().flat_map(|worker| worker.machine.running());
        let mut running: BTreeSet<String> = machines.map(|it| it.task).collect();
        if let Some(view) = cluster.view() {
            let claimed = manual.iter().flat_map(|worker| view.tasks_of_node(&worker.node_id));
            running.extend(claimed.map(|task| task.id.to_string()));
        }
        let before = std::mem::take(&mut self.stale);
        for worker in real {
            let (host, confirmed) = (worker.host, worker.networks.version());
            for task in worker.networks.serving() {
                if let Some(version) = self.withdrawn.get(&task).filter(|version| **version <= confirmed) {
                    return Err(format!(
                        "{host} has confirmed version {confirmed}, and sends connections to task {task}, which was \
                         withdrawn by version {version}"
                    ));
                }
                if running.contains(task.as_str()) {
                    continue;
                }
                let place = (host, task);
                let since = before.get(&place).copied().unwrap_or(now);
                if now - since.max(trouble) > STALE_FOR {
                    return Err(format!("{host} sends connections to task {}, which has ended at {since}", place.1));
                }
                self.stale.insert(place, since);
            }
        }
        Ok(())
    }
}

/// Whether each node sends connections to the tasks of its networks that run, and to no others.
pub(super) fn converged(cluster: &SimCluster, view: &View) -> Result<(), String> {
    for worker in &cluster.workers {
        let networks: BTreeSet<_> = view.networks_of_node(&worker.node_id).map(|(id, _)| id).collect();
        let tasks = view.tasks().filter(|task| task.is_live() && task.status.state == TaskState::Running);
        let near = tasks.filter(|task| task.attachments.iter().any(|it| networks.contains(&it.network)));
        let wanted: BTreeSet<TaskId> = near.map(|task| task.id.clone()).collect();
        let found = worker.networks.serving();
        if wanted != found {
            return Err(format!("{} sends connections to {found:?}, and should to {wanted:?}", worker.host));
        }
    }
    Ok(())
}

/// No address is given twice, and each is of its network.
fn check_addresses(view: &View) -> Result<(), String> {
    let mut holders = BTreeMap::new();
    let of_tasks = view
        .tasks()
        .filter(|task| !task.status.state.is_terminal())
        .flat_map(|task| task.attachments.iter().map(|it| (&it.network, &it.addresses, format!("task {}", task.id))));
    let of_nodes = view
        .nodes()
        .flat_map(|node| node.attachments.iter().map(|it| (&it.network, &it.addresses, format!("node {}", node.id))));
    let of_services = view.services().flat_map(|service| {
        service.virtual_ips.iter().map(|it| (&it.network, &it.addresses, format!("service {}", service.id)))
    });
    for (network, addresses, holder) in of_tasks.chain(of_nodes).chain(of_services) {
        let network = view.network(network.as_str()).ok_or(format!("{holder} is in a network that is gone"))?;
        for address in addresses {
            if !network.subnets.iter().any(|subnet| subnet.prefix.contains(address)) {
                return Err(format!("{holder} has {address}, which is not of network {}", network.spec.name));
            }
            if let Some(other) = holders.insert((&network.id, *address), holder.clone()) {
                return Err(format!("{other} and {holder} have the same address {address}"));
            }
        }
    }
    Ok(())
}

/// No port is published by two services on every node.
fn check_ports(view: &View) -> Result<(), String> {
    let mut holders = BTreeMap::new();
    for service in view.services() {
        let everywhere = service.ports.iter().filter(|it| it.mode == PublishMode::Ingress);
        for port in everywhere.filter_map(|it| Some((it.protocol, it.published?))) {
            if let Some(other) = holders.insert(port, &service.id) {
                return Err(format!("services {other} and {} publish the same port {port:?}", service.id));
            }
        }
    }
    Ok(())
}

/// No subnet meets another network's, and no two networks have the same identifier.
fn check_networks(view: &View) -> Result<(), String> {
    let networks: Vec<&Network> = view.networks().map(|it| it.as_ref()).collect();
    for (number, one) in networks.iter().enumerate() {
        for other in &networks[number + 1..] {
            let meets = |it: &flota_api::model::Subnet| {
                other.subnets.iter().any(|at| at.prefix.contains(&it.prefix) || it.prefix.contains(&at.prefix))
            };
            if one.vni.is_some() && one.vni == other.vni || one.subnets.iter().any(meets) {
                return Err(format!("networks {} and {} have the same identifier or addresses", one.id, other.id));
            }
        }
    }
    Ok(())
}
