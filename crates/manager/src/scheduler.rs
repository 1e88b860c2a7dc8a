//! Places pending tasks on nodes: filters determine the nodes where a task can run, ranks the best one. A task that
//! can't run anywhere gets the reason.
//!
//! The tables keep the nodes in order (`ranking.rs`), so a task costs a look at a few of them, however many there are.

mod candidate;
mod devices;
mod filters;
mod ranking;
mod rebalance;
mod spread;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{Filter, Node, PendingReason, Platform, Task, TaskStatus, Volume, VolumeAt};
use flota_api::object::Object;
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::{Event, Tables};

use self::candidate::Candidate;
use self::filters::Demand;
use self::ranking::Ranking;
pub(crate) use self::rebalance::Rebalance;
use self::volumes::{Home, VolumePlaces};
use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The loop; keyed by service.
#[derive(Debug, Default)]
pub(crate) struct Scheduler;

impl ControlLoop for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.services_waiting().map(Key::of).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            Event::Updated { old: Object::Node(old), new: Object::Node(new) } if offers_the_same(old, new) => {
                Vec::new()
            }
            // Another placement may suit tasks that wait.
            Event::Updated { old: Object::Service(old), new: Object::Service(new) } => {
                let kept_apart = old.spec.anti_affinity.iter().filter_map(|name| view.service_by_name(name));
                let changed = [&new.id].into_iter().chain(kept_apart.map(|other| &other.id));
                changed.filter(|id| view.tasks_waiting(id).next().is_some()).map(Key::of).collect()
            }
            Event::Created(Object::Node(_)) | Event::Updated { new: Object::Node(_), .. } => self.all(view),
            Event::Removed(Object::Node(_)) => self.all(view),
            Event::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                if old.node_id.is_none() && new.node_id.is_some() {
                    return attracted_by(new, view);
                }
                if old.holds_resources() && !new.holds_resources() {
                    return helped_by_end_of(old, view);
                }
                let facts = |task: &Task| (task.is_waiting(), task.desired_state, task.attachments.len());
                let begins = new.is_waiting() && facts(old) != facts(new);
                begins.then(|| Key::of(&new.service_id)).into_iter().collect()
            }
            Event::Created(Object::Task(task)) if task.node_id.is_some() => attracted_by(task, view),
            Event::Created(Object::Task(task)) if task.is_waiting() => vec![Key::of(&task.service_id)],
            Event::Removed(Object::Task(task)) if task.holds_resources() => helped_by_end_of(task, view),
            Event::Created(Object::Volume(volume))
            | Event::Updated { new: Object::Volume(volume), .. }
            | Event::Removed(Object::Volume(volume)) => waiting_with(volume, view),
            _ => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let service = ServiceId::from(key.id);
        // A task without its addresses waits for the allocator.
        let mut tasks: Vec<&Arc<Task>> = view.tasks_waiting(&service).filter(|task| view.is_attached(task)).collect();
        if tasks.is_empty() {
            return plan;
        }
        tasks.sort_by_key(|task| (task.spec_version, task.meta.order(), task.slot));
        let mut used = candidate::without_replaced(&tasks, &service, view);
        let mut volumes = VolumePlaces::new(view);
        for same in tasks.chunk_by(|left, right| left.spec_version == right.spec_version) {
            if let Some(demand) = Demand::of(&service, same[0].spec_version, view) {
                let failures = candidate::count_failures(same[0], view, cx.now);
                let mut nodes = Ranking::new(&service, demand, view, &failures, used);
                place(same, demand, (&mut nodes, &mut volumes), view, &mut plan, cx);
                used = nodes.into_used();
            }
        }
        volumes.record(&mut plan);
        plan
    }
}

/// Services with waiting tasks that run beside tasks of the one of this task.
fn attracted_by(task: &Task, view: &Tables) -> Vec<Key> {
    let Some(service) = view.service(&task.service_id) else { return Vec::new() };
    let attracted = view.affine_to(&service.spec.name).filter(|id| view.tasks_waiting(id).next().is_some());
    attracted.map(Key::of).collect()
}

/// Services with waiting tasks that use this volume.
fn waiting_with(volume: &Volume, view: &Tables) -> Vec<Key> {
    let uses = |service: &&ServiceId| {
        let specs = view.live_versions(service).filter_map(|version| view.spec_version(service, version));
        specs.into_iter().any(|spec| spec.volumes().any(|name| name == volume.spec.name))
    };
    view.services_waiting().filter(uses).map(Key::of).collect()
}

/// Whether no task can notice the difference.
fn offers_the_same(old: &Node, new: &Node) -> bool {
    let offer = |node: &Node| (node.state, node.spec.availability, node.role);
    offer(old) == offer(new) && old.spec.labels == new.spec.labels && old.description == new.description
}

/// Services whose waiting tasks may run now that this task has left its node: those that the node does not refuse, and
/// those that are being updated, because a successor may fit in the place of its predecessor.
fn helped_by_end_of(task: &Task, view: &Tables) -> Vec<Key> {
    let Some(node) = view.node_of(task) else { return Vec::new() };
    let is_helped = |service: &&ServiceId| {
        let candidate = Candidate::new(node, service, view);
        let mut versions = view.live_versions(service);
        let task = versions.next().and_then(|version| Demand::of(service, version, view));
        versions.next().is_some() || task.is_some_and(|task| filters::refuses(&task, &candidate, view).is_none())
    };
    view.services_waiting().filter(is_helped).map(Key::of).collect()
}

/// Why a task gets no node.
#[derive(Default)]
struct Unplaced {
    /// The counts of the filters; empty if there is no node.
    refused: BTreeMap<Filter, u64>,
    /// Where the data of its volumes is, if that decides where it can run.
    volumes: Vec<VolumeAt>,
    /// The node that has all of it.
    home: Option<NodeId>,
}

/// Places waiting tasks of one spec, as many as there is room for in the plan.
fn place(
    tasks: &[&Arc<Task>],
    demand: Demand<'_>,
    (nodes, volumes): (&mut Ranking, &mut VolumePlaces),
    view: &Tables,
    plan: &mut Plan,
    cx: &PlanContext,
) {
    let spec = demand.spec;
    // The counts of the filters, once no node is left.
    let mut refused: Option<BTreeMap<Filter, u64>> = None;
    for task in tasks {
        if plan.is_full(cx) {
            return;
        }
        let home = if task.pinned_to.is_some() { Home::Anywhere } else { volumes.home(spec, task) };
        let only = task.pinned_to.as_ref().or(match &home {
            Home::On(node, _) => Some(node),
            Home::Anywhere | Home::Nowhere(_) => None,
        });
        if only.is_some_and(|node| volumes.is_being_left(spec, task, node)) {
            // The end of that task wakes this one.
            continue;
        }
        let placed = match (&task.pinned_to, home) {
            (Some(node), _) => match nodes.take_on(node, plan) {
                Ok(device_ids) => Ok((node.clone(), device_ids)),
                Err(filter) => {
                    let refused = filter.map(|filter| (filter, 1)).into_iter().collect();
                    Err(Unplaced { refused, ..Unplaced::default() })
                }
            },
            (None, Home::Anywhere) => nodes.take(plan).ok_or_else(|| {
                let refused = refused.get_or_insert_with(|| nodes.count_refusals()).clone();
                Unplaced { refused, ..Unplaced::default() }
            }),
            (None, Home::On(node, at)) => match nodes.take_on(&node, plan) {
                Ok(device_ids) => Ok((node, device_ids)),
                Err(filter) => {
                    Err(Unplaced { refused: volumes.refusals(filter), volumes: at, home: filter.map(|_| node) })
                }
            },
            (None, Home::Nowhere(at)) => {
                Err(Unplaced { refused: volumes.refusals(None), volumes: at, ..Unplaced::default() })
            }
        };
        match placed {
            Ok((node_id, device_ids)) => {
                volumes.place(spec, task, &node_id, plan);
                plan.put(Task {
                    node_id: Some(node_id),
                    status: TaskStatus { state: TaskState::Assigned, at: cx.now, ..task.status.clone() },
                    pending_reason: None,
                    device_ids,
                    ..task.as_ref().clone()
                });
            }
            Err(why) => wait(task, why, demand.platforms, nodes, view, plan),
        }
    }
}

/// Records why the task has no node, if that is news.
fn wait(task: &Arc<Task>, why: Unplaced, image: &[Platform], nodes: &Ranking, view: &Tables, plan: &mut Plan) {
    let Unplaced { refused, volumes, home } = why;
    let reason = Some(if refused.is_empty() {
        PendingReason::NoNode
    } else if !volumes.is_empty() {
        let needs_room = home.is_some() && fits_in_place(task, home.as_ref(), nodes, view);
        PendingReason::VolumesElsewhere { volumes, refused, needs_room }
    } else if refused.contains_key(&Filter::Platform) {
        let needs_room = fits_in_place(task, None, nodes, view);
        PendingReason::OtherPlatforms { image: image.to_vec(), refused, needs_room }
    } else if fits_in_place(task, None, nodes, view) {
        PendingReason::NeedsRoom(refused)
    } else {
        PendingReason::NoNodeFits(refused)
    });
    if reason != task.pending_reason {
        plan.put(Task { pending_reason: reason, ..task.as_ref().clone() });
    }
}

/// Whether the node of the task that `task` replaces has room for it without that task. An update stops a running task
/// for its successor only if this holds. `home` is the only node on which it can run, if there is only one.
fn fits_in_place(task: &Task, home: Option<&NodeId>, nodes: &Ranking, view: &Tables) -> bool {
    if task.desired_state != DesiredState::Ready {
        return false;
    }
    let is_there = |replaced: &Arc<Task>| home.is_none_or(|home| replaced.is_on(home));
    let mut replaced = view.tasks_of_slot(&task.service_id, task.slot).filter(|it| it.holds_resources());
    replaced.any(|replaced| is_there(replaced) && nodes.fits_without(replaced))
}

#[cfg(test)]
mod tests;
