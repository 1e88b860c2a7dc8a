//! Places pending tasks on nodes: filters determine the nodes where a task can run, ranks the best one. A task that
//! can't run anywhere gets the reason, or the room of less important ones (`preemption.rs`).
//!
//! The tables keep the nodes in order (`ranking.rs`), so a task costs a look at a few of them, however many there are.

mod candidate;
mod devices;
mod filters;
mod preemption;
mod ranking;
mod rebalance;
mod spread;
mod volumes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{Filter, Node, PendingReason, Platform, Task, TaskStatus, Volume, VolumeAt};
use flota_api::object::Object;
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::{Event, Tables};

use self::candidate::Candidate;
use self::filters::Demand;
use self::preemption::Preemption;
use self::ranking::Ranking;
pub(crate) use self::rebalance::Rebalance;
use self::volumes::{Home, VolumePlaces};
use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// Most tasks of a service that are looked at together. A plan seldom has room for more, so the others need no look then.
const TOGETHER: usize = 1_000;

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

    /// Services of a higher priority come first; of the same one, those that are older.
    fn order(&self, dirty: &BTreeSet<Key>, view: &Tables) -> Option<Vec<Key>> {
        // Without a second priority, there is nothing to sort.
        view.priorities().nth(1)?;
        let mut keys: Vec<Key> = dirty.iter().copied().collect();
        let service = |key: &Key| view.service(key.id).map(|it| (Reverse(it.spec.priority), it.meta.order()));
        keys.sort_by_cached_key(service);
        Some(keys)
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        let released = released_by(event, view);
        let mut keys = match event {
            Event::Updated { old: Object::Node(old), new: Object::Node(new) } if offers_the_same(old, new) => {
                Vec::new()
            }
            // Its tasks may now take the room of others, or lose theirs to others.
            Event::Updated { old: Object::Service(old), new: Object::Service(new) }
                if (old.spec.priority, old.spec.keep_on_node_loss)
                    != (new.spec.priority, new.spec.keep_on_node_loss) =>
            {
                self.all(view)
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
                let facts = |task: &Task| (task.is_waiting(), task.desired_state, task.attachments.len());
                if old.node_id.is_none() && new.node_id.is_some() {
                    attracted_by(new, view).into_iter().chain(overtaken_by(new, view)).collect()
                } else if old.holds_resources() && !new.holds_resources() {
                    helped_by_end_of(old, view)
                } else if new.claim().is_some() && old.claim() != new.claim() {
                    overtaken_by(new, view)
                } else if new.is_waiting() && facts(old) != facts(new) {
                    vec![Key::of(&new.service_id)]
                } else {
                    Vec::new()
                }
            }
            Event::Created(Object::Task(task)) if task.node_id.is_some() => attracted_by(task, view),
            Event::Created(Object::Task(task)) if task.is_waiting() => vec![Key::of(&task.service_id)],
            Event::Removed(Object::Task(task)) if task.holds_resources() => helped_by_end_of(task, view),
            Event::Created(Object::Volume(volume))
            | Event::Updated { new: Object::Volume(volume), .. }
            | Event::Removed(Object::Volume(volume)) => waiting_with(volume, view),
            _ => Vec::new(),
        };
        keys.extend(released);
        keys
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let (mut plan, mut volumes) = (Plan::default(), VolumePlaces::new(view));
        place_in_turn(&ServiceId::from(key.id), &mut volumes, view, &mut plan, cx);
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

/// Other services whose tasks wait for room on the node that this task has, or is to have. It may have taken theirs.
fn overtaken_by(task: &Task, view: &Tables) -> Vec<Key> {
    let claims = task.node_id.as_ref().or(task.claim()).into_iter().flat_map(|node| view.claims_on(node));
    claims.filter(|other| other.service_id != task.service_id).map(|other| Key::of(&other.service_id)).collect()
}

/// Services with waiting tasks that use this volume.
fn waiting_with(volume: &Volume, view: &Tables) -> Vec<Key> {
    let uses = |service: &&ServiceId| {
        let specs = view.live_versions(service).filter_map(|version| view.spec_version(service, version));
        specs.into_iter().any(|spec| spec.volumes().any(|name| name == volume.spec.name))
    };
    view.services_waiting().filter(uses).map(Key::of).collect()
}

/// Whether the node still takes the same tasks: nothing changed that a filter reads.
fn offers_the_same(old: &Node, new: &Node) -> bool {
    let offer = |node: &Node| (node.state, node.spec.availability, node.role);
    offer(old) == offer(new) && old.spec.labels == new.spec.labels && old.description == new.description
}

/// Services whose waiting tasks may run now that this task has left its node: those that the node does not refuse, and
/// those that are being updated, because a successor may fit in the place of its predecessor.
fn helped_by_end_of(task: &Task, view: &Tables) -> Vec<Key> {
    view.node_of(task).map(|node| helped_on(node, view)).unwrap_or_default()
}

/// Services whose waiting tasks may run now because a task no longer waits for room on a node, and has not got it.
fn released_by(event: &Event, view: &Tables) -> Vec<Key> {
    let (old, new) = match event {
        Event::Updated { old: Object::Task(old), new: Object::Task(new) } => (old, Some(new)),
        Event::Removed(Object::Task(old)) => (old, None),
        _ => return Vec::new(),
    };
    let is_kept = |node: &&NodeId| new.is_some_and(|new| new.claim() == Some(*node) || new.is_on(node));
    let released = old.claim().filter(|node| !is_kept(node)).and_then(|node| view.node(node));
    released.map(|node| helped_on(node, view)).unwrap_or_default()
}

/// Services whose waiting tasks the node does not refuse, or could have room for once less important ones have stopped, and
/// those that are being updated.
fn helped_on(node: &Arc<Node>, view: &Tables) -> Vec<Key> {
    let is_helped = |service: &&ServiceId| {
        let candidate = Candidate::new(node, service, view);
        let mut versions = view.live_versions(service);
        let task = versions.next().and_then(|version| Demand::of(service, version, view));
        let may_run = |task: Demand| match filters::refuses(&task, &candidate, view) {
            None => true,
            Some(filter) => preemption::lacks_room(filter) && Preemption::of(service, view).is_some(),
        };
        versions.next().is_some() || task.is_some_and(may_run)
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

/// Places the waiting tasks of a service in their turn, as many as there is room for in the plan.
fn place_in_turn(service: &ServiceId, volumes: &mut VolumePlaces, view: &Tables, plan: &mut Plan, cx: &PlanContext) {
    // A task without its addresses waits for the allocator.
    let mut waiting = view.tasks_waiting(service).filter(|task| view.is_attached(task));
    let (mut used, mut released) = (Vec::new(), BTreeSet::new());
    while !plan.is_full(cx) {
        let tasks: Vec<&Arc<Task>> = waiting.by_ref().take(TOGETHER).collect();
        if tasks.is_empty() {
            return;
        }
        used = candidate::without_replaced(&tasks, service, view, used, &mut released);
        let kind = |task: &Task| (task.claim().is_none(), task.spec_version);
        for same in tasks.chunk_by(|left, right| kind(left) == kind(right)) {
            let Some(demand) = Demand::of(service, same[0].spec_version, view) else { continue };
            let failures = candidate::count_failures(same[0], view, cx.now);
            let mut nodes = Ranking::new(service, demand, view, &failures, used, cx);
            let goes_on = place(same, demand, (&mut nodes, volumes), view, plan, cx);
            used = nodes.into_used();
            // The others would take the room for which these wait.
            if !goes_on {
                return;
            }
        }
    }
}

/// Places waiting tasks of one spec, as many as there is room for in the plan. Returns whether that is all of them.
fn place<'a>(
    tasks: &[&Arc<Task>],
    demand: Demand<'_>,
    (nodes, volumes): (&mut Ranking<'a>, &mut VolumePlaces),
    view: &'a Tables,
    plan: &mut Plan,
    cx: &PlanContext,
) -> bool {
    let spec = demand.spec;
    let mut preemption = tasks.first().and_then(|task| Preemption::of(&task.service_id, view));
    // The counts of the filters, once no node is left.
    let mut refused: Option<BTreeMap<Filter, u64>> = None;
    for task in tasks {
        if plan.is_full(cx) {
            return false;
        }
        let home = if task.pinned_to.is_some() { Home::Anywhere } else { volumes.home(spec, task) };
        let only = task.pinned_to.clone().or_else(|| match &home {
            Home::On(node, _) => Some(node.clone()),
            Home::Anywhere | Home::Nowhere(_) => None,
        });
        if only.as_ref().is_some_and(|node| volumes.is_being_left(spec, task, node)) {
            // The end of that task wakes this one.
            continue;
        }
        nodes.release_slot(task.slot, true);
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
            Err(why) => {
                let where_to = (only.as_ref(), demand.scarcest_platforms());
                let goes_on = wait(task, why, where_to, (nodes, &mut preemption), plan, cx);
                nodes.release_slot(task.slot, false);
                if !goes_on {
                    return false;
                }
            }
        }
    }
    true
}

/// Records why the task has no node, if that is news, and makes room for it if that is possible. Returns whether the driver
/// has room for these changes.
fn wait<'a>(
    task: &Task,
    why: Unplaced,
    (only, image): (Option<&NodeId>, &[Platform]),
    (nodes, preemption): (&mut Ranking<'a>, &mut Option<Preemption<'a>>),
    plan: &mut Plan,
    cx: &PlanContext,
) -> bool {
    let Unplaced { refused, volumes, home } = why;
    let has_home = volumes.is_empty() || home.is_some();
    // The successor of an update gets the room of its predecessor, and needs no other.
    let needs_room = !refused.is_empty() && has_home && fits_in_place(task, home.as_ref(), nodes);
    let may_get_room = !needs_room && refused.keys().any(|filter| preemption::lacks_room(*filter));
    let room = preemption.as_mut().filter(|_| may_get_room).and_then(|it| it.find(task, only, nodes));
    if room.as_ref().is_some_and(|room| !plan.has_room_for(1 + room.cost(), cx)) {
        // The task and its victims are told together.
        plan.retry_at(cx.now);
        return false;
    }
    let reason = match &room {
        Some(room) => {
            let (node_id, node) = (room.node.id.clone(), room.node.description.hostname.clone());
            PendingReason::AwaitsRoom { node_id, node, refused }
        }
        None if refused.is_empty() => PendingReason::NoNode,
        None if !volumes.is_empty() => PendingReason::VolumesElsewhere { volumes, refused, needs_room },
        None if refused.contains_key(&Filter::Platform) => {
            PendingReason::OtherPlatforms { image: image.to_vec(), refused, needs_room }
        }
        None if needs_room => PendingReason::NeedsRoom(refused),
        None => PendingReason::NoNodeFits(refused),
    };
    if task.pending_reason.as_deref() != Some(&reason) {
        plan.put(Task { pending_reason: Some(Box::new(reason)), ..task.clone() });
    }
    room.into_iter().for_each(|room| room.make(task, nodes, plan));
    true
}

/// Whether the node of the task that `task` replaces has room for it without that task. An update stops a running task
/// for its successor only if this holds. `home` is the only node on which it can run, if there is only one.
fn fits_in_place(task: &Task, home: Option<&NodeId>, nodes: &Ranking) -> bool {
    if task.desired_state != DesiredState::Ready {
        return false;
    }
    let is_there = |replaced: &Arc<Task>| home.is_none_or(|home| replaced.is_on(home));
    let mut replaced = nodes.tasks_of_slot(task.slot).filter(|it| it.holds_resources());
    replaced.any(|replaced| is_there(replaced) && nodes.fits_without(replaced))
}

#[cfg(test)]
mod tests;
