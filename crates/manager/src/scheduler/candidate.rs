//! A node as the scheduler sees it while it places the tasks of one service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flota_api::id::{NodeId, ServiceId, TaskId};
use flota_api::model::{DeviceId, GenericResource, Node, PlacementStrategy, Protocol, ServiceSpec, Task};
use flota_api::resources::Resources;
use flota_api::version::Timestamp;
use flota_raft_store::{Load, Tables};

use super::devices::FreeDevices;
use crate::usage::Usage;

/// How long a failure of a spec on a node counts against that node.
const FAILURES_COUNT: Duration = Duration::from_secs(300);

/// Nodes with shares in use that differ by less, in thousandths, are alike.
const USED_ALIKE: u64 = 50;
/// The share of its node that a task without reservations is assumed to use until it is measured, in thousandths.
const ASSUMED_SHARE: u64 = 25;
/// How long a task must have served until what its node reports includes what the task uses.
const MEASURED_AFTER: Duration = Duration::from_secs(60);

/// A port of a node.
type HostPort = (Option<u16>, Protocol);

/// The key that sorts nodes for a spec, best first.
pub(super) type Rank = (u64, u64, u64);

/// Returns the ports of its node that a task of the spec takes.
pub(super) fn host_ports(spec: &ServiceSpec) -> impl Iterator<Item = HostPort> {
    spec.host_ports().map(|port| (port.published, port.protocol))
}

/// A node with what its tasks hold, those that were placed in this plan included.
#[derive(Clone)]
pub(super) struct Candidate<'a> {
    pub(super) node: &'a Arc<Node>,
    load: Load,
    /// How much of it is in use, in thousandths, if that decides.
    used: u64,
    /// What tasks are assumed to use that were placed in this plan, or wait for room here.
    to_be_used: u64,
    /// Number of live tasks of the service, without those that are about to be replaced.
    of_service: u64,
    /// Slots of tasks that are about to be replaced, for which this plan has no node yet.
    unplaced: BTreeSet<u64>,
    /// Number of tasks of the spec that recently failed or were rejected here.
    pub(super) failures: u64,
    /// Whether it differs from what the tables have.
    differs: bool,
    /// Devices that tasks of this plan got.
    given: Vec<DeviceId>,
    /// Ports of the node that tasks of this plan got.
    given_ports: Vec<HostPort>,
    /// Devices for which tasks wait that have this node's room.
    claimed: Vec<GenericResource>,
    /// Tasks that this plan stops.
    leaving: Vec<TaskId>,
    /// Tasks whose resources count as free.
    without: Vec<TaskId>,
}

/// Returns how many tasks of the spec of `task` have recently failed on each node. A node that comes and goes counts as if
/// they had.
pub(super) fn count_failures(task: &Task, view: &Tables, now: Timestamp) -> BTreeMap<NodeId, u64> {
    // A task that was stopped for another one may end as it likes.
    let is_own = |it: &&Arc<Task>| it.spec_version == task.spec_version && it.preempted_by.is_none();
    let same = view.tasks_failed(&task.service_id).filter(is_own);
    let mut failures = BTreeMap::new();
    for node in same.filter(|it| it.meta.updated_at.until(now) < FAILURES_COUNT).filter_map(|it| it.node_id.as_ref()) {
        *failures.entry(node.clone()).or_default() += 1;
    }
    for (node, flaps) in view.flapping().map(|node| (node, node.flaps(now))).filter(|(_, flaps)| *flaps > 0) {
        *failures.entry(node.id.clone()).or_default() += flaps;
    }
    failures
}

/// Returns the nodes that differ from what the tables have: `used`, and those with tasks that these are to replace. Such a
/// task no longer counts there. `released` has the slots for which this was done before.
pub(super) fn without_replaced<'a>(
    tasks: &[&Arc<Task>],
    service: &ServiceId,
    view: &'a Tables,
    used: Vec<Candidate<'a>>,
    released: &mut BTreeSet<u64>,
) -> Vec<Candidate<'a>> {
    let slots = tasks.iter().map(|task| task.slot).filter(|slot| released.insert(*slot));
    let replaced = slots.flat_map(|slot| view.tasks_of_slot(service, slot)).filter(|task| task.is_live());
    let mut nodes: BTreeMap<&NodeId, Candidate> = used.into_iter().map(|it| (&it.node.id, it)).collect();
    for (task, node) in replaced.filter_map(|task| Some((task, view.node_of(task)?))) {
        let candidate = nodes.entry(&node.id).or_insert_with(|| Candidate::new(node, service, view));
        candidate.of_service = candidate.of_service.saturating_sub(1);
        candidate.unplaced.insert(task.slot);
        candidate.differs = true;
    }
    nodes.into_values().collect()
}

impl<'a> Candidate<'a> {
    /// A node with the tasks that it has in the tables, and with those of other services of the same priority or a
    /// higher one that wait for room there as if they had it.
    pub(super) fn new(node: &'a Arc<Node>, service: &ServiceId, view: &Tables) -> Self {
        let mut it = Self {
            node,
            load: view.load(&node.id),
            used: 0,
            to_be_used: 0,
            of_service: view.live_tasks(service, &node.id),
            unplaced: BTreeSet::new(),
            failures: 0,
            differs: false,
            given: Vec::new(),
            given_ports: Vec::new(),
            claimed: Vec::new(),
            leaving: Vec::new(),
            without: Vec::new(),
        };
        for task in view.claims_on(&node.id).filter(|task| task.service_id != *service) {
            let counts = view.priority_of(&task.service_id) >= view.priority_of(service);
            if let Some(spec) = view.spec_of(task).filter(|_| counts) {
                it.claim(spec);
            }
        }
        it
    }

    /// Looks up what is in use, as the node has reported it. If it has not, what its tasks have reserved counts. What a task
    /// uses that is not measured yet is assumed.
    pub(super) fn look_up_usage(&mut self, usage: &Usage, view: &Tables, now: Timestamp) {
        let Some(measured) = usage.of_node(&self.node.id) else {
            self.used = self.share_of(&view.load(&self.node.id).reserved);
            return;
        };
        let is_measured = |task: &Task| task.served_at.is_some_and(|since| since.until(now) >= MEASURED_AFTER);
        let unmeasured = self.holders(view).filter(|task| !is_measured(task)).filter_map(|task| view.spec_of(task));
        self.used = u64::from(measured.highest()) + unmeasured.map(|spec| self.assumed_share(spec)).sum::<u64>();
    }

    /// The share of the node that a task of the spec is assumed to use until it is measured, in thousandths.
    fn assumed_share(&self, spec: &ServiceSpec) -> u64 {
        match self.share_of(&spec.reservations) {
            0 => ASSUMED_SHARE,
            reserved => reserved,
        }
    }

    /// The larger one of the shares of CPU and memory, in thousandths.
    fn share_of(&self, part: &Resources) -> u64 {
        let all = self.node.description.resources;
        share(part.nano_cpus, all.nano_cpus).max(share(part.memory_bytes, all.memory_bytes))
    }

    /// Takes the room of a task that waits for it out of what is free.
    fn claim(&mut self, spec: &ServiceSpec) {
        self.to_be_used += self.assumed_share(spec);
        self.load.reserved = self.load.reserved.plus(&spec.reservations);
        self.given_ports.extend(host_ports(spec));
        self.claimed.extend(spec.generic_resources.iter().cloned());
    }

    /// Keeps the room for a task of the service, which gets it once tasks that are being stopped have ended: those that were
    /// told before, and these.
    pub(super) fn hold(&mut self, spec: &ServiceSpec, leaving: &[&Arc<Task>]) {
        self.claim(spec);
        self.leaving.extend(leaving.iter().map(|task| task.id.clone()));
        self.load.live += 1;
        self.of_service += 1;
        self.differs = true;
    }

    /// Number of live tasks of the service here, without those that are about to be replaced.
    pub(super) fn of_service(&self) -> u64 {
        self.of_service
    }

    /// Number of slots of the service that have their newest task here, as far as this plan knows.
    pub(super) fn slots_of_service(&self) -> u64 {
        self.of_service + self.unplaced.len() as u64
    }

    /// No longer counts the slot of a task here that is about to be replaced: its successor gets a node now.
    pub(super) fn release_slot(&mut self, slot: u64) {
        self.unplaced.remove(&slot);
    }

    /// Counts the slot of a task here again: its successor has got no node.
    pub(super) fn keep_slot(&mut self, slot: u64) {
        self.unplaced.insert(slot);
    }

    /// Whether it differs from what the tables have: tasks were placed here in this plan, or are about to be replaced.
    pub(super) fn differs(&self) -> bool {
        self.differs
    }

    /// Resources that no task holds.
    pub(super) fn free(&self) -> Resources {
        self.node.description.resources.minus(&self.load.reserved)
    }

    /// The devices for a task that asks for these; `None` if too few are free.
    pub(super) fn choose_devices(&self, wanted: &[GenericResource], view: &Tables) -> Option<Vec<DeviceId>> {
        if wanted.is_empty() {
            return Some(Vec::new());
        }
        self.free_devices(view).choose(wanted)
    }

    /// The devices that no task holds.
    pub(super) fn free_devices(&self, view: &Tables) -> FreeDevices {
        let mut free = FreeDevices::new(&self.node.description.devices);
        free.hold(&self.given);
        self.holders(view).for_each(|task| free.hold(&task.device_ids));
        free.claim(&self.claimed);
        free
    }

    /// The tasks that hold something of the node.
    pub(super) fn holders<'v>(&self, view: &'v Tables) -> impl Iterator<Item = &'v Arc<Task>> {
        view.tasks_of_node(&self.node.id).filter(|it| it.holds_resources() && !self.without.contains(&it.id))
    }

    /// Whether the task is being stopped, or is to be by this plan.
    pub(super) fn is_leaving(&self, task: &Task) -> bool {
        task.desired_state.is_stopping() || self.leaving.contains(&task.id)
    }

    /// Whether another task, or a program of the node itself, has a port of the node that a task of the spec takes.
    pub(super) fn has_port_taken(&self, spec: &ServiceSpec, view: &Tables) -> bool {
        let wanted: Vec<HostPort> = host_ports(spec).collect();
        if wanted.is_empty() {
            return false;
        }
        let of_task =
            |task: &Arc<Task>| view.spec_of(task).is_some_and(|it| host_ports(it).any(|it| wanted.contains(&it)));
        let description = &self.node.description;
        let listens = |(port, protocol): &HostPort| port.is_some_and(|it| description.listens_on(*protocol, it));
        self.given_ports.iter().any(|port| wanted.contains(port))
            || wanted.iter().any(listens)
            || self.holders(view).any(of_task)
    }

    /// Adds a task of the service and returns its devices. The node must not refuse it.
    pub(super) fn take(&mut self, spec: &ServiceSpec, view: &Tables) -> Vec<DeviceId> {
        let devices = self.choose_devices(&spec.generic_resources, view).unwrap_or_default();
        self.given.extend_from_slice(&devices);
        self.given_ports.extend(host_ports(spec));
        self.load.reserved = self.load.reserved.plus(&spec.reservations);
        self.to_be_used += self.assumed_share(spec);
        self.load.live += 1;
        self.of_service += 1;
        self.differs = true;
        devices
    }

    /// Returns the node without what this task of it holds.
    pub(super) fn without(mut self, task: &Task, view: &Tables) -> Self {
        let held = view.spec_of(task).map(|spec| spec.reservations).unwrap_or_default();
        self.load.reserved = self.load.reserved.minus(&held);
        self.without.push(task.id.clone());
        self
    }

    /// Undoes [`Candidate::without`] for this task.
    pub(super) fn with(mut self, task: &Task, view: &Tables) -> Self {
        let held = view.spec_of(task).map(|spec| spec.reservations).unwrap_or_default();
        self.load.reserved = self.load.reserved.plus(&held);
        self.without.retain(|id| *id != task.id);
        self
    }

    /// Lower is better: fewest failures of the spec, then, to spread, fewest tasks of the service and fewest tasks; to pack,
    /// the least that is free, and most tasks; by usage, the least that is in use, and fewest tasks of the service.
    pub(super) fn rank(&self, strategy: PlacementStrategy) -> Rank {
        match strategy {
            PlacementStrategy::Spread => (self.failures, self.of_service, self.load.live),
            PlacementStrategy::Binpack => (self.failures, self.free_share(), u64::MAX - self.load.live),
            PlacementStrategy::LeastUsed => {
                (self.failures, (self.used + self.to_be_used) / USED_ALIKE, self.of_service)
            }
        }
    }

    /// The shares of CPU and memory that no task has reserved, in thousandths, added.
    fn free_share(&self) -> u64 {
        let (all, free) = (self.node.description.resources, self.free());
        share(free.nano_cpus, all.nano_cpus) + share(free.memory_bytes, all.memory_bytes)
    }
}

/// The share of a part, in thousandths; 0 of nothing.
fn share(part: u64, all: u64) -> u64 {
    let share = (u128::from(part) * 1_000).checked_div(u128::from(all)).unwrap_or_default();
    u64::try_from(share).unwrap_or(u64::MAX)
}
