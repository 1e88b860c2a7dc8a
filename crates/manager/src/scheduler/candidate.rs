//! A node as the scheduler sees it while it places the tasks of one service.

use std::sync::Arc;
use std::time::Duration;

use flota_api::id::ServiceId;
use flota_api::model::{DeviceId, GenericResource, Node, Protocol, ServiceSpec, Task};
use flota_api::resources::Resources;
use flota_api::version::Timestamp;
use flota_raft_store::{Load, Tables};

use super::devices::FreeDevices;

/// How long a failure of a spec on a node counts against that node.
const FAILURES_COUNT: Duration = Duration::from_secs(300);

/// A port of a node.
type HostPort = (Option<u16>, Protocol);

/// Returns the ports of its node that a task of the spec takes.
fn host_ports(spec: &ServiceSpec) -> impl Iterator<Item = HostPort> {
    spec.host_ports().map(|port| (port.published, port.protocol))
}

/// A node with what its tasks hold, those that were placed in this plan included.
#[derive(Clone)]
pub(super) struct Candidate<'a> {
    pub(super) node: &'a Arc<Node>,
    load: Load,
    /// Number of live tasks of the service.
    of_service: u64,
    /// Number of tasks of the spec that recently failed or were rejected here.
    failures: u64,
    /// Devices that tasks of this plan got.
    given: Vec<DeviceId>,
    /// Ports of the node that tasks of this plan got.
    given_ports: Vec<HostPort>,
    /// A task that is taken to have ended.
    without: Option<&'a Task>,
}

/// Returns every node, by id. The tables list nodes, loads and live tasks in the same order, so this is one pass.
pub(super) fn candidates<'a>(service: &ServiceId, view: &'a Tables) -> Vec<Candidate<'a>> {
    let (mut loads, mut live) = (view.loads().peekable(), view.live_tasks(service).peekable());
    let mut nodes = Vec::new();
    for node in view.nodes() {
        while loads.next_if(|(id, _)| **id < node.id).is_some() {}
        while live.next_if(|(id, _)| **id < node.id).is_some() {}
        let load = loads.next_if(|(id, _)| **id == node.id).map(|(_, load)| *load);
        let of_service = live.next_if(|(id, _)| **id == node.id).map_or(0, |(_, count)| count);
        nodes.push(Candidate { of_service, ..Candidate::new(node, load.unwrap_or_default()) });
    }
    nodes
}

/// Sets how many tasks of the spec of `task` have recently failed on each node.
pub(super) fn count_failures(nodes: &mut [Candidate], task: &Task, view: &Tables, now: Timestamp) {
    nodes.iter_mut().for_each(|node| node.failures = 0);
    let same = view.tasks_failed(&task.service_id).filter(|it| it.spec_version == task.spec_version);
    for failed in same.filter(|it| it.meta.updated_at.until(now) < FAILURES_COUNT) {
        let Some(id) = &failed.node_id else { continue };
        if let Ok(index) = nodes.binary_search_by(|node| node.node.id.cmp(id)) {
            nodes[index].failures += 1;
        }
    }
}

impl<'a> Candidate<'a> {
    /// A node with this load, without regard to any service.
    pub(super) fn new(node: &'a Arc<Node>, load: Load) -> Self {
        Self { node, load, of_service: 0, failures: 0, given: Vec::new(), given_ports: Vec::new(), without: None }
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
        let mut free = FreeDevices::new(&self.node.description.devices);
        free.hold(&self.given);
        self.holders(view).for_each(|task| free.hold(&task.device_ids));
        free.choose(wanted)
    }

    /// The tasks that hold something of the node.
    fn holders<'v>(&self, view: &'v Tables) -> impl Iterator<Item = &'v Arc<Task>> {
        let without = self.without.map(|task| &task.id);
        view.tasks_of_node(&self.node.id).filter(move |it| it.holds_resources() && Some(&it.id) != without)
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
        self.load.live += 1;
        self.of_service += 1;
        devices
    }

    /// The node as it is once this task of it has ended.
    pub(super) fn without(&self, task: &'a Task, view: &Tables) -> Self {
        let held = view.spec_of(task).map(|spec| spec.reservations).unwrap_or_default();
        let load = Load { reserved: self.load.reserved.minus(&held), ..self.load };
        Self { load, without: Some(task), ..self.clone() }
    }

    /// Lower is better: fewest failures of the spec, then fewest tasks of the service, then fewest tasks.
    pub(super) fn rank(&self) -> (u64, u64, u64) {
        (self.failures, self.of_service, self.load.live)
    }
}
