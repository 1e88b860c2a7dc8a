//! Makes room for a task of a higher priority that fits on no node: chooses the node, and the tasks of lower priority that
//! stop there.
//!
//! The victims are told to stop in the transaction that records on which node the task waits (`PendingReason::AwaitsRoom`).
//! Until it is placed, the node counts it as if it were there (`Candidate::new`), so nobody of its own or a lower priority
//! gets what the victims leave. Tasks that are being stopped anyway are awaited in the same way, before any other goes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{Availability, Filter, Node, NodeState, ServiceSpec, Task};
use flota_api::naming::task_name;
use flota_api::state::DesiredState;
use flota_raft_store::Tables;

use super::candidate::{Candidate, Rank, host_ports};
use super::filters::{self, Demand};
use super::ranking::Ranking;
use crate::home;
use crate::plan::Plan;

/// What room on a node costs, lower is better: the highest priority of a task that must go, the number of those tasks, and
/// the usual order of nodes.
type Cost = (Option<i32>, usize, (Vec<u64>, Rank));

/// A node with what room there costs.
type Offer = Reverse<(Cost, NodeId)>;

/// Makes room for tasks of one spec.
pub(super) struct Preemption<'a> {
    service: &'a ServiceId,
    priority: i32,
    view: &'a Tables,
    /// The nodes that can have room, best first, once they have been looked at.
    offers: Option<BinaryHeap<Offer>>,
    /// The node that was taken last. It is not among the offers, because its own has changed.
    last: Option<&'a Arc<Node>>,
}

/// A node on which a task gets room.
pub(super) struct Room<'a> {
    pub(super) node: &'a Arc<Node>,
    /// The tasks that have to stop besides those that do so anyway.
    victims: Vec<&'a Arc<Task>>,
}

impl<'a> Preemption<'a> {
    /// Returns `None` if no service has a lower priority, so that no task of this one takes the place of another.
    pub(super) fn of(service: &ServiceId, view: &'a Tables) -> Option<Self> {
        let service = view.service(service)?;
        let (service, priority) = (&service.id, service.spec.priority);
        let lowest = view.priorities().next()?;
        (priority > lowest).then_some(Self { service, priority, view, offers: None, last: None })
    }

    /// Returns where the task gets room: where it waits for it already, or else where that costs least. `only` is the
    /// one node on which it can run, if there is only one.
    pub(super) fn find(&mut self, task: &Task, only: Option<&NodeId>, nodes: &Ranking<'a>) -> Option<Room<'a>> {
        // A move to a better node is given up if there is no room.
        let mut slot = self.view.tasks_of_slot(&task.service_id, task.slot);
        if slot.any(|it| it.relocates && it.is_live()) {
            return None;
        }
        let claim = task.claim().filter(|claim| only.is_none_or(|only| only == *claim));
        if let Some(node) = claim.and_then(|id| self.view.node(id))
            && self.still_gets_room(node, nodes)
        {
            return Some(Room { node, victims: Vec::new() });
        }
        match only {
            Some(id) => {
                let node = self.view.node(id)?;
                let victims = self.victims(&nodes.candidate(node), nodes.demand())?;
                Some(Room { node, victims })
            }
            None => self.cheapest(nodes),
        }
    }

    /// Whether the task that waits for room on this node gets it when the tasks that are being stopped there have ended. A
    /// node that is not connected for a moment may come back with what it has.
    fn still_gets_room(&self, node: &'a Arc<Node>, nodes: &Ranking<'a>) -> bool {
        let candidate = nodes.candidate(node);
        let may_return = node.state == NodeState::Unknown && node.spec.availability != Availability::Drain;
        may_return || nodes.fits(&self.once_left(&candidate))
    }

    /// Takes the node where room costs least.
    fn cheapest(&mut self, nodes: &Ranking<'a>) -> Option<Room<'a>> {
        let offer = |it: &Self, node| it.offer(node, nodes).map(|(offer, _)| offer);
        let mut offers = match self.offers.take() {
            Some(offers) => offers,
            None => self.view.takers().filter_map(|node| offer(self, node)).collect(),
        };
        // It may have room for a further task, too.
        offers.extend(self.last.take().and_then(|node| offer(self, node)));
        let mut found = None;
        while let Some(Reverse((cost, id))) = offers.pop() {
            let Some(node) = self.view.node(&id) else { continue };
            match self.offer(node, nodes) {
                Some((Reverse((now, _)), victims)) if now <= cost => {
                    found = Some(Room { node, victims });
                    break;
                }
                // Tasks of this plan have raised its cost.
                Some((offer, _)) => offers.push(offer),
                None => {}
            }
        }
        self.last = found.as_ref().map(|room| room.node);
        self.offers = Some(offers);
        found
    }

    /// Returns what room on this node costs now, and who has to go; `None` if it can't have any.
    fn offer(&self, node: &'a Arc<Node>, nodes: &Ranking<'a>) -> Option<(Offer, Vec<&'a Arc<Task>>)> {
        let candidate = nodes.candidate(node);
        let victims = self.victims(&candidate, nodes.demand())?;
        let highest = victims.iter().map(|task| self.view.priority_of(&task.service_id)).max();
        let cost = (highest, victims.len(), nodes.preference(&candidate));
        Some((Reverse((cost, node.id.clone())), victims))
    }

    /// Returns the tasks that must go so that a task of the spec has room on the node once they, and those that are being
    /// stopped, have ended; `None` if it has none even then. No task is among them without need, nor one of a higher
    /// priority than needed. Those that hold least of what is short are spared first.
    fn victims(&self, node: &Candidate<'a>, demand: Demand<'_>) -> Option<Vec<&'a Arc<Task>>> {
        let (view, spec) = (self.view, demand.spec);
        let fits = |node: &Candidate| filters::refuses(&demand, node, view).is_none();
        if filters::refuses(&demand, node, view).is_some_and(|filter| !lacks_room(filter)) {
            return None;
        }
        let free = self.once_left(node);
        if fits(&free) {
            return Some(Vec::new());
        }
        let mut levels: BTreeMap<i32, Vec<&Arc<Task>>> = BTreeMap::new();
        for task in view.tasks_of_node(&node.node.id) {
            if let Some(priority) = self.priority_of_victim(task, node, spec) {
                levels.entry(priority).or_default().push(task);
            }
        }
        let (mut room, mut going) = (free.clone(), Vec::new());
        for (priority, tasks) in levels {
            for task in tasks {
                room = room.without(task, view);
                going.push((priority, task));
            }
            if fits(&room) {
                let lack = Lack::of(spec, &free, view);
                going.sort_by_cached_key(|(priority, task)| {
                    // Of two that are alike, the older one stays.
                    (lack.eased_by(task, view), Reverse(*priority), task.meta.order(), task.id.clone())
                });
                let going = going.into_iter().map(|(_, task)| task);
                let must_go = |task: &&'a Arc<Task>| {
                    let with = room.clone().with(task, view);
                    let is_kept = fits(&with);
                    if is_kept {
                        room = with;
                    }
                    !is_kept
                };
                return Some(going.filter(must_go).collect());
            }
        }
        None
    }

    /// The node as it is once the tasks that are being stopped there have ended, without the room that another service's
    /// update makes for a successor which is as important.
    fn once_left(&self, node: &Candidate<'a>) -> Candidate<'a> {
        let view = self.view;
        let is_promised = |task: &Task| {
            task.service_id != *self.service
                && view.priority_of(&task.service_id) >= self.priority
                && view.tasks_of_slot(&task.service_id, task.slot).any(|it| it.is_waiting())
        };
        let is_free = |task: &&Arc<Task>| node.is_leaving(task) && !is_promised(task);
        let leaving: Vec<&Arc<Task>> = node.holders(view).filter(is_free).collect();
        leaving.into_iter().fold(node.clone(), |node, task| node.without(task, view))
    }

    /// Returns the priority of a task that may be stopped for one of the spec; `None` if it may not.
    fn priority_of_victim(&self, task: &Task, node: &Candidate, spec: &ServiceSpec) -> Option<i32> {
        if !task.is_live() || node.is_leaving(task) {
            return None;
        }
        let service = self.view.service(&task.service_id)?;
        let may_go = service.spec.priority < self.priority
            // The new task has to run beside it.
            && !spec.affinity.contains(&service.spec.name)
            // The new task needs it to run.
            && !spec.depends_on.iter().any(|it| it.service == service.spec.name)
            && !home::is_bound(service, task, &node.node.id, self.view);
        may_go.then_some(service.spec.priority)
    }
}

impl Room<'_> {
    /// Number of tasks that have to stop.
    pub(super) fn cost(&self) -> usize {
        self.victims.len()
    }

    /// Stops the victims for this task, and keeps their room for it.
    pub(super) fn make(&self, task: &Task, nodes: &mut Ranking, plan: &mut Plan) {
        nodes.hold(&self.node.id, &self.victims, plan);
        for victim in &self.victims {
            plan.put(Task {
                desired_state: DesiredState::Shutdown,
                preempted_by: Some(task_name(&nodes.demand().spec.name, task.slot)),
                ..victim.as_ref().clone()
            });
        }
    }
}

/// Whether tasks that end may help against this filter.
pub(super) fn lacks_room(filter: Filter) -> bool {
    matches!(filter, Filter::Cpu | Filter::Memory | Filter::Port | Filter::GenericResource)
}

/// What is short on a node for a task of a spec.
struct Lack<'a> {
    spec: &'a ServiceSpec,
    nano_cpus: u64,
    memory_bytes: u64,
    /// Number of devices of each kind.
    devices: BTreeMap<&'a str, u64>,
}

impl<'a> Lack<'a> {
    fn of(spec: &'a ServiceSpec, node: &Candidate, view: &Tables) -> Self {
        let (wanted, free) = (spec.reservations, node.free());
        let mut devices = BTreeMap::new();
        if !spec.generic_resources.is_empty() {
            let free = node.free_devices(view);
            for wanted in &spec.generic_resources {
                devices.insert(wanted.kind.as_str(), wanted.count.saturating_sub(free.count(&wanted.kind)));
            }
        }
        Self {
            spec,
            nano_cpus: wanted.nano_cpus.saturating_sub(free.nano_cpus),
            memory_bytes: wanted.memory_bytes.saturating_sub(free.memory_bytes),
            devices,
        }
    }

    /// How far the shortage shrinks if this task ends: the shares of each shortage that it holds, in thousandths, added.
    fn eased_by(&self, task: &Task, view: &Tables) -> u128 {
        let Some(held) = view.spec_of(task) else { return 0 };
        let part = |held: u64, short: u64| {
            (u128::from(held.min(short)) * 1_000).checked_div(u128::from(short)).unwrap_or_default()
        };
        let of_kind = |kind: &str| task.device_ids.iter().filter(|device| device.kind == kind).count() as u64;
        let devices: u128 = self.devices.iter().map(|(kind, short)| part(of_kind(kind), *short)).sum();
        let ports = host_ports(self.spec).filter(|port| host_ports(held).any(|it| it == *port)).count() as u128;
        part(held.reservations.nano_cpus, self.nano_cpus)
            + part(held.reservations.memory_bytes, self.memory_bytes)
            + devices
            + ports * 1_000
    }
}
