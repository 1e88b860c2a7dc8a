//! Invariants that hold at every moment of a simulation, and conditions that hold after the faults have ended.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::id::NodeId;
use flota_api::model::{NodeState, Service, Task, UpdateState};
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::Digest;
use flota_raft_store::View;
use flota_worker::RunningSlot;

use super::cluster::SimCluster;
use super::network_invariants::{self, NetworkInvariants};
use super::user::TAG;

/// How long two containers of one slot may run after the last fault, in milliseconds. Within this time, a node that was
/// cut off is found again, and its session says which tasks to stop.
const DOUBLE_FOR: u64 = 12_000;

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub struct Invariants {
    leaders: BTreeMap<u64, u64>,
    digests: BTreeMap<u64, Digest>,
    newest: u64,
    tasks: BTreeMap<String, ((u32, TaskState), Option<NodeId>)>,
    doubles: BTreeMap<(String, u64), u64>,
    changed: BTreeSet<u64>,
    networks: NetworkInvariants,
    tables_may_differ: bool,
}

impl Invariants {
    /// Allows the tables of managers to differ from now on, because a test has changed those of one.
    pub fn let_tables_differ(&mut self) {
        self.tables_may_differ = true;
    }

    /// Tags of services that the cluster may have changed: their update was paused, or they have got addresses or ports.
    pub fn changed(&self) -> &BTreeSet<u64> {
        &self.changed
    }

    /// Checks all invariants. `trouble`: time of the last fault.
    ///
    /// # Errors
    /// The invariant that is violated.
    pub fn check(&mut self, cluster: &SimCluster, trouble: u64) -> Result<(), String> {
        if let Some(conflict) = cluster.raft_network.conflict() {
            return Err(conflict);
        }
        for it in &cluster.managers {
            let Some(manager) = it.manager() else { continue };
            let leadership = manager.leadership();
            if leadership.is_self {
                let first = *self.leaders.entry(leadership.term).or_insert(manager.raft().id());
                if first != manager.raft().id() {
                    return Err(format!(
                        "term {} has two leaders: {first} and {}",
                        leadership.term,
                        manager.raft().id()
                    ));
                }
            }
            let (index, digest) = manager.raft().applied();
            if let Some(digest) = digest.filter(|_| !self.tables_may_differ) {
                let first = *self.digests.entry(index).or_insert(digest);
                if first != digest {
                    return Err(format!("the tables of {} differ from another manager's at entry {index}", it.host));
                }
            }
            let view = manager.store().view();
            if view.version > self.newest {
                self.newest = view.version;
                self.check_tables(&view)?;
            }
        }
        self.check_machines(cluster, trouble)?;
        self.networks.check_nodes(cluster, trouble)
    }

    fn check_tables(&mut self, view: &View) -> Result<(), String> {
        let (mut slots, mut devices) = (BTreeMap::new(), BTreeMap::new());
        let mut reserved: BTreeMap<Option<&NodeId>, u64> = BTreeMap::new();
        let before = std::mem::take(&mut self.tasks);
        let is_changed = |service: &Service| {
            service.update != UpdateState::Active || !service.virtual_ips.is_empty() || !service.ports.is_empty()
        };
        let changed = view.services().filter(|service| is_changed(service));
        self.changed.extend(changed.filter_map(|service| service.spec.labels.get(TAG)?.parse::<u64>().ok()));
        for task in view.tasks() {
            let rank = task.status.rank();
            if let Some((old, node)) = before.get(task.id.as_str()) {
                if rank < *old {
                    return Err(format!("task {} went back from {old:?} to {rank:?}", task.id));
                }
                if node.is_some() && *node != task.node_id {
                    return Err(format!("task {} moved from node {node:?} to {:?}", task.id, task.node_id));
                }
            }
            if is_wanted(task)
                && let Some(other) = slots.insert((&task.service_id, task.slot), &task.id)
            {
                return Err(format!("slot {} of a service has two wanted tasks: {other} and {}", task.slot, task.id));
            }
            if task.holds_resources() {
                let wanted = view.spec_of(task).map_or(0, |spec| spec.reservations.nano_cpus);
                *reserved.entry(task.node_id.as_ref()).or_default() += wanted;
                for device in &task.device_ids {
                    if let Some(other) = devices.insert((&task.node_id, &device.kind, &device.id), &task.id) {
                        return Err(format!("tasks {other} and {} hold the same device {device:?}", task.id));
                    }
                }
            }
            self.tasks.insert(task.id.to_string(), (rank, task.node_id.clone()));
        }
        self.networks.check_tables(view)?;
        for (id, reserved) in reserved.into_iter().filter_map(|(id, reserved)| Some((id?, reserved))) {
            let offered = view.node(id).map_or(0, |node| node.description.resources.nano_cpus);
            if reserved > offered {
                return Err(format!("tasks on node {id} have reserved {reserved} of its {offered} nano-CPUs"));
            }
        }
        Ok(())
    }

    fn check_machines(&mut self, cluster: &SimCluster, trouble: u64) -> Result<(), String> {
        let now = cluster.world.now();
        let slots = slots(cluster);
        self.doubles.retain(|slot, _| slots.get(slot).is_some_and(|running| running.len() > 1));
        for (slot, running) in slots.into_iter().filter(|(_, running)| running.len() > 1) {
            let since = *self.doubles.entry(slot.clone()).or_insert(now);
            if now - since.max(trouble) > DOUBLE_FOR {
                let tasks: Vec<&String> = running.iter().map(|it| &it.task).collect();
                return Err(format!("slot {} of {} has run twice since {since}: {tasks:?}", slot.1, slot.0));
            }
        }
        Ok(())
    }
}

/// Whether the task is the one that should run in its slot.
fn is_wanted(task: &Task) -> bool {
    task.desired_state == DesiredState::Running && !task.status.state.is_terminal()
}

fn describe(task: &Task) -> String {
    let Task { slot, spec_version, desired_state, status, pending_reason, .. } = task;
    let reason = pending_reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("slot {slot} of spec {spec_version} is {}, should be {desired_state}{reason}", status.state)
}

/// Returns the running containers by service and slot.
fn slots(cluster: &SimCluster) -> BTreeMap<(String, u64), Vec<RunningSlot>> {
    let mut slots: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for running in cluster.workers.iter().flat_map(|worker| worker.machine.running()) {
        slots.entry((running.service.clone(), running.slot)).or_default().push(running);
    }
    slots
}

/// Returns a text that lists all running containers, and that changes only if one starts or stops.
pub fn picture(cluster: &SimCluster) -> String {
    let running = slots(cluster).into_values().flatten();
    let running: Vec<String> = running.map(|it| format!("{}.{} is {}", it.service, it.slot, it.task)).collect();
    running.join(", ")
}

/// Whether the state of the whole cluster is the one that users have requested.
///
/// # Errors
/// The condition that does not hold.
pub fn converged(cluster: &SimCluster) -> Result<(), String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let mut applied = Vec::new();
    for it in &cluster.managers {
        let manager = it.manager().ok_or_else(|| format!("{} does not run", it.host))?;
        applied.push(manager.raft().applied());
        manager.raft().age().ok_or_else(|| format!("{} does not know how old its tables are", it.host))?;
    }
    if applied.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(format!("managers have applied {applied:?}"));
    }
    for it in &cluster.workers {
        let state = view.node(&it.node_id).map(|node| node.state);
        if state != Some(NodeState::Ready) {
            return Err(format!("{} is {state:?}", it.host));
        }
    }
    let slots = slots(cluster);
    // A paused update waits for a user, and so does the failed task of its slot.
    for service in view.services().filter(|service| service.update == UpdateState::Active) {
        let (name, wanted) = (&service.spec.name, service.spec.mode.wanted_tasks());
        let here = slots.iter().filter(|((service, _), _)| service == name);
        let runs = here.map(|(_, running)| running.len()).collect::<Vec<_>>();
        if runs.len() as u64 != wanted || runs.iter().any(|count| *count != 1) {
            return Err(format!("{name} runs {runs:?} containers by slot, and {wanted} are wanted"));
        }
        let current = |task: &&std::sync::Arc<Task>| {
            is_wanted(task) && task.status.state == TaskState::Running && task.spec_version == service.spec_version
        };
        let known = view.tasks_of_service(&service.id).filter(current).count() as u64;
        if known != wanted {
            let tasks: Vec<String> = view.tasks_of_service(&service.id).map(|task| describe(task)).collect();
            return Err(format!("{known} of {wanted} tasks of {name} run as the store knows: {}", tasks.join("; ")));
        }
    }
    match slots.keys().find(|(name, _)| view.service_by_name(name).is_none()) {
        Some((name, _)) => Err(format!("{name} was removed, and runs")),
        None => network_invariants::converged(cluster, &view),
    }
}
