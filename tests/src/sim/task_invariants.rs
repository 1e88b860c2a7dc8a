//! Invariants of tasks: who changes them, what they hold, and what runs on the machines.
//!
//! Each part of a task has one writer. The entries do not say who has written them, so the check asks whether the owner
//! of what has changed can have done it: a state that only a worker observes must be one that the worker of the task's
//! node has recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::defaults::RUNS_AT_ONCE;
use flota_api::id::{NodeId, TaskId};
use flota_api::model::{Availability, DeviceId, Node, NodeState, Task};
use flota_api::resources::Resources;
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::View;
use flota_worker::RunningSlot;

use super::cluster::{SimCluster, WorkerHost};
use super::user::{KEPT, OVERLAPPING, priority, starts_first};
use super::violation::{Kind, Violation};

/// How long two containers of one slot may run while one leader reaches both of their nodes, in milliseconds: a node that
/// was cut off finds the leader again, learns which tasks to stop, and stops them.
const DOUBLE_FOR: u64 = 12_000;

/// A slot of a service with several running containers.
struct Double {
    /// Since when the leader of this term reaches all nodes that run one.
    since: u64,
    term: Option<u64>,
}

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub(super) struct TaskInvariants {
    tasks: BTreeMap<String, Arc<Task>>,
    /// Devices of every task that ever had some.
    devices: BTreeMap<String, Vec<DeviceId>>,
    doubles: BTreeMap<(String, u64), Double>,
    /// Tasks whose node a user has drained since: it is not waited for any more if it is lost.
    given_up: BTreeSet<TaskId>,
}

impl TaskInvariants {
    /// Checks what a newer version of the store has.
    pub(super) fn check_tables(&mut self, cluster: &SimCluster, view: &View) -> Result<(), Violation> {
        let before = std::mem::take(&mut self.tasks);
        for task in view.tasks() {
            if let Some(old) = before.get(task.id.as_str()) {
                check_change(old, task)?;
            }
            check_writer(cluster, view, task)?;
            check_preemption(view, task)?;
            if !task.device_ids.is_empty() {
                self.devices.insert(task.id.to_string(), task.device_ids.clone());
            }
            let is_given_up = |node: &Node| node.spec.availability == Availability::Drain || node.has_left();
            if view.node_of(task).is_some_and(|node| is_given_up(node)) {
                self.given_up.insert(task.id.clone());
            }
            self.tasks.insert(task.id.to_string(), Arc::clone(task));
        }
        check_slots(view)?;
        check_places(view)?;
        check_devices(view)?;
        check_resources(view)
    }

    /// Checks what runs on the machines.
    pub(super) fn check_machines(&mut self, cluster: &SimCluster) -> Result<(), Violation> {
        for worker in &cluster.workers {
            let mut held = BTreeMap::new();
            let tasks: BTreeSet<String> = worker.machine.running().into_iter().map(|it| it.task).collect();
            for task in &tasks {
                for device in self.devices.get(task).into_iter().flatten() {
                    if let Some(other) = held.insert((&device.kind, &device.id), task) {
                        let text = format!("{other} and {task} run with the same device {device:?} on {}", worker.host);
                        return Err(Kind::DeviceTwice.because(text));
                    }
                }
            }
        }
        self.check_kept(cluster)?;
        self.check_doubles(cluster)
    }

    /// A slot whose tasks stay with their nodes never runs twice, however long its node is cut off, until a user drains it.
    fn check_kept(&self, cluster: &SimCluster) -> Result<(), Violation> {
        for ((service, slot), running) in slots(cluster).into_iter().filter(|((service, _), _)| service == KEPT) {
            let known = running.iter().filter_map(|it| self.tasks.get(&it.task));
            let kept: Vec<_> = known.filter(|task| !self.given_up.contains(&task.id)).collect();
            // A service that was removed and created again knows nothing of what was there before.
            if kept.windows(2).any(|pair| pair[0].service_id == pair[1].service_id) {
                let ids: Vec<&str> = kept.iter().map(|task| task.id.as_str()).collect();
                return Err(Kind::SlotRunsTwice.because(format!("slot {slot} of {service} runs as {ids:?}")));
            }
        }
        Ok(())
    }

    /// No slot runs more tasks than it may for longer than it takes to stop a container of which the leader knows.
    fn check_doubles(&mut self, cluster: &SimCluster) -> Result<(), Violation> {
        let now = cluster.world.now();
        let slots = slots(cluster);
        let is_double = |(slot, running): &(&(String, u64), &Vec<RunningSlot>)| running.len() > most_tasks(&slot.0);
        self.doubles.retain(|slot, _| slots.get_key_value(slot).is_some_and(|it| is_double(&it)));
        let leader = cluster.leader();
        let term = leader.and_then(|it| Some(cluster.managers[it].manager()?.leadership().term));
        for (slot, running) in slots.iter().filter(is_double) {
            let tasks: Vec<&String> = running.iter().map(|it| &it.task).collect();
            let runs_one = |worker: &&WorkerHost| worker.machine.running().iter().any(|it| tasks.contains(&&it.task));
            let mut hosts = cluster.workers.iter().filter(runs_one).map(|worker| worker.host);
            let is_known = leader.is_some_and(|leader| {
                let leader = cluster.managers[leader].host;
                hosts.all(|host| cluster.is_connected(leader, host))
            });
            let double = self.doubles.entry(slot.clone()).or_insert(Double { since: now, term });
            if !is_known || double.term != term {
                *double = Double { since: now, term };
            }
            if now - double.since > DOUBLE_FOR {
                let text = format!("slot {} of {} has run too often since {}: {tasks:?}", slot.1, slot.0, double.since);
                return Err(Kind::SlotRunsTwice.because(text));
            }
        }
        Ok(())
    }
}

/// Whether the task is the one that should run in its slot.
pub(super) fn is_wanted(task: &Task) -> bool {
    task.desired_state == DesiredState::Running && !task.status.state.is_terminal()
}

/// Returns the running containers by service and slot.
pub(super) fn slots(cluster: &SimCluster) -> BTreeMap<(String, u64), Vec<RunningSlot>> {
    let mut slots: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for running in cluster.workers.iter().flat_map(|worker| worker.machine.running()) {
        slots.entry((running.service.clone(), running.slot)).or_default().push(running);
    }
    slots
}

/// What never changes of a task, or in one direction alone.
fn check_change(old: &Task, new: &Task) -> Result<(), Violation> {
    let (old_rank, rank) = (old.status.rank(), new.status.rank());
    if rank < old_rank {
        return Err(Kind::TaskWentBack.because(format!("task {} went back from {old_rank:?} to {rank:?}", new.id)));
    }
    if old.node_id.is_some() && old.node_id != new.node_id {
        let text = format!("task {} moved from node {:?} to {:?}", new.id, old.node_id, new.node_id);
        return Err(Kind::TaskMoved.because(text));
    }
    let fails = |what: &str| Err(Kind::WrongWriter.because(format!("{what} of task {} has changed: {new:?}", new.id)));
    let origin = |task: &Task| (task.service_id.clone(), task.slot, task.run, task.spec_version);
    if origin(old) != origin(new) {
        return fails("the origin");
    }
    if new.desired_state < old.desired_state {
        return fails("the desired state, which only rises,");
    }
    if old.preempted_by.is_some() && old.preempted_by != new.preempted_by {
        return fails("the task that has preempted it");
    }
    if old.node_id.is_some() && old.device_ids != new.device_ids {
        return fails("the devices, which are chosen with the node,");
    }
    if !old.attachments.is_empty() && old.attachments != new.attachments {
        return fails("the addresses, which are chosen once,");
    }
    Ok(())
}

/// Whether the part that owns the state of the task can have written it.
fn check_writer(cluster: &SimCluster, view: &View, task: &Task) -> Result<(), Violation> {
    let state = task.status.state;
    let worker = cluster.workers.iter().find(|worker| Some(&worker.node_id) == task.node_id.as_ref());
    let is_right = match state {
        TaskState::New => false,
        TaskState::Pending => task.node_id.is_none(),
        TaskState::Orphaned => view.node_of(task).is_none_or(|node| node.state == NodeState::Down),
        // Workers do not record the states on the way to the first start.
        TaskState::Assigned | TaskState::Accepted | TaskState::Preparing => task.node_id.is_some(),
        _ => worker.is_some_and(|it| it.is_manual || it.highest(&task.id) >= Some(task.status.rank())),
    };
    if is_right {
        return Ok(());
    }
    let text = format!("no writer of state `{state}` has written that of task {}: {task:?}", task.id);
    Err(Kind::WrongWriter.because(text))
}

/// A task stops only for one of a higher priority. The priority of a service never changes here.
fn check_preemption(view: &View, task: &Task) -> Result<(), Violation> {
    let Some((by, spec)) = task.preempted_by.as_ref().zip(view.spec_of(task)) else { return Ok(()) };
    let other = by.rsplit_once('.').map_or(by.as_str(), |(service, _)| service);
    if task.desired_state.is_stopping() && priority(other) > priority(&spec.name) {
        return Ok(());
    }
    Err(Kind::WrongVictim.because(format!("a task of {} was stopped for {by}: {task:?}", spec.name)))
}

fn check_slots(view: &View) -> Result<(), Violation> {
    let mut slots: BTreeMap<_, Vec<&Task>> = BTreeMap::new();
    for task in view.tasks().filter(|task| is_wanted(task)) {
        slots.entry((&task.service_id, task.slot, task.run)).or_default().push(task);
    }
    for ((_, slot, _), tasks) in slots.into_iter().filter(|(_, tasks)| tasks.len() > 1) {
        let most = view.spec_of(tasks[0]).map_or(1, |spec| most_tasks(&spec.name));
        // Two of one spec are there only while one takes the place of the other.
        let versions: BTreeSet<u64> =
            tasks.iter().filter(|task| !is_replaced(task, &tasks)).map(|task| task.spec_version).collect();
        let replaced = tasks.iter().filter(|task| is_replaced(task, &tasks)).count();
        if tasks.len() > most || versions.len() + replaced < tasks.len() {
            let ids: Vec<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
            let text = format!("slot {slot} of a service has {} wanted tasks: {ids:?}", tasks.len());
            return Err(Kind::SlotWantedTwice.because(text));
        }
    }
    Ok(())
}

/// Whether another one of these tasks was started beside this one to take its place.
fn is_replaced(task: &Task, tasks: &[&Task]) -> bool {
    tasks.iter().any(|other| other.replaces.as_ref() == Some(&task.id) && other.spec_version == task.spec_version)
}

/// A task is on the node to which it is pinned, and no two slots of a service are pinned to the same node.
fn check_places(view: &View) -> Result<(), Violation> {
    let mut places = BTreeMap::new();
    for task in view.tasks().filter(|task| is_wanted(task)) {
        let Some(place) = &task.pinned_to else { continue };
        if task.node_id.as_ref().is_some_and(|node| node != place) {
            let text = format!("task {} is pinned to {place}, and is on {:?}", task.id, task.node_id);
            return Err(Kind::WrongNode.because(text));
        }
        let slot = places.insert((&task.service_id, place), task.slot).filter(|slot| *slot != task.slot);
        if let Some(slot) = slot {
            let text = format!("slots {slot} and {} of a service are pinned to the same node", task.slot);
            return Err(Kind::WrongNode.because(text));
        }
    }
    Ok(())
}

/// Returns how many tasks a slot of the service may have: two if its updates start the new task first, and one for each of
/// the runs that overlap.
fn most_tasks(service: &str) -> usize {
    if service == OVERLAPPING { RUNS_AT_ONCE } else { 1 + usize::from(starts_first(service)) }
}

fn check_devices(view: &View) -> Result<(), Violation> {
    let mut holders = BTreeMap::new();
    for task in view.tasks().filter(|task| task.holds_resources()) {
        for device in &task.device_ids {
            if let Some(other) = holders.insert((&task.node_id, &device.kind, &device.id), &task.id) {
                let text = format!("tasks {other} and {} hold the same device {device:?}", task.id);
                return Err(Kind::DeviceTwice.because(text));
            }
        }
    }
    Ok(())
}

/// The tasks of a node have reserved no more than it has.
fn check_resources(view: &View) -> Result<(), Violation> {
    let mut reserved: BTreeMap<&NodeId, Resources> = BTreeMap::new();
    for task in view.tasks().filter(|task| task.holds_resources()) {
        let Some((node, spec)) = task.node_id.as_ref().zip(view.spec_of(task)) else { continue };
        let sum = reserved.entry(node).or_default();
        sum.nano_cpus += spec.reservations.nano_cpus;
        sum.memory_bytes += spec.reservations.memory_bytes;
    }
    for (node, reserved) in reserved {
        let offered = view.node(node).map(|node| node.description.resources).unwrap_or_default();
        if reserved.nano_cpus > offered.nano_cpus || reserved.memory_bytes > offered.memory_bytes {
            let text = format!("the tasks on node {node} have reserved {reserved:?} of its {offered:?}");
            return Err(Kind::Overcommitted.because(text));
        }
    }
    Ok(())
}
