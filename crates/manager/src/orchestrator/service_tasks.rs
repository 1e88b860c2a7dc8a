//! Gives a service the tasks that its mode asks for: creates tasks, replaces those that were lost or
//! that failed for good, scales down, carries an update from slot to slot, and moves tasks off drained nodes. The children
//! plan one slot (`slot_tasks`), an update (`updating`), and the runs of a service of the mode cron (`cron`).

mod cron;
mod slot_tasks;
mod updating;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flota_api::id::ServiceId;
use flota_api::model::{Node, NodeState, Service, ServiceMode, Task};
use flota_api::object::{Kind, Object};
use flota_api::state::DesiredState;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Event, Tables};

use slot_tasks::{plan_slot, put_new, stopping_is_lost};
use updating::{advance_update, caught_up, record_failures};

use super::places::{Places, places};
use super::slot::{Slot, slots};
use super::{after_end, credentials, moves, task_factory};
use crate::control_loop::{ControlLoop, Key};
use crate::dependencies;
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are services, and slots that have changed by themselves.
#[derive(Debug, Default)]
pub(crate) struct ServiceTasks {
    /// Version of the view in which all services that are to stop were looked at last, because another one is not known any
    /// more. An entry may take away many tasks at once.
    looked_at_leaving: AtomicU64,
}

impl ControlLoop for ServiceTasks {
    fn name(&self) -> &'static str {
        "service-tasks"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        let removed = view.services_with_tasks().filter(|id| view.service(*id).is_none());
        view.services().map(|service| Key::of(&service.id)).chain(removed.map(Key::of)).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        let mut keys = match event {
            // Without the slot the service may lack one: what the task has done is to be done again.
            Event::Updated { old: Object::Task(old), new: Object::Task(new) }
                if old.has_done_its_work() && !new.has_done_its_work() =>
            {
                vec![Key::of(&new.service_id)]
            }
            Event::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                let is_news = old.desired_state != new.desired_state
                    || old.relocates != new.relocates
                    || old.status.state.is_terminal() != new.status.state.is_terminal()
                    // In a start-first update, the old task of the slot stops then.
                    || old.served_at != new.served_at
                    || serves_again(old, new, view)
                    || is_updating(new, view)
                    || is_moving(new, view);
                if is_news { vec![key_of(new, view)] } else { Vec::new() }
            }
            Event::Updated { old: Object::Node(old), new: Object::Node(new) } => {
                let lasts = |node: &Node| (node.state == NodeState::Down, node.spec.availability, node.role);
                let is_same = lasts(old) == lasts(new) && has_same_properties(old, new);
                let mut keys = if is_same { Vec::new() } else { of_node(new, view) };
                if !is_same_place(old, new) {
                    keys.extend(global_services(view));
                }
                keys
            }
            // A node of a global service may get its next task now.
            Event::Removed(Object::Task(task)) if task.pinned_to.is_some() => vec![Key::of(&task.service_id)],
            // Without it the slot may no longer count, and then the service needs another one.
            Event::Removed(Object::Task(task)) if task.desired_state != DesiredState::Remove => {
                let slot = Slot::new(view.tasks_of_slot(&task.service_id, task.slot), task.spec_version);
                vec![if slot.counts() { key_of(task, view) } else { Key::of(&task.service_id) }]
            }
            Event::Created(object) | Event::Updated { new: object, .. } | Event::Removed(object) => match object {
                Object::Service(service) => vec![Key::of(&service.id)],
                Object::Task(task) => vec![key_of(task, view)],
                Object::Node(node) => of_node(node, view).into_iter().chain(global_services(view)).collect(),
                _ => Vec::new(),
            },
            Event::Committed(_) | Event::Reset => Vec::new(),
        };
        keys.extend(parted_from(event, view));
        let changed = keys.iter().map(|key| ServiceId::from(key.id));
        keys.extend(dependencies::concerned(event, changed, view).iter().map(Key::of));
        keys.extend(credentials::concerned(event, view));
        if dependencies::is_last_trace(event, view)
            && self.looked_at_leaving.swap(view.version, Ordering::Relaxed) != view.version
        {
            keys.extend(dependencies::all_leaving(view).map(Key::of));
        }
        keys
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let id = ServiceId::from(key.id);
        match (view.service(key.id), key.slot) {
            (Some(service), _) if service.spec.mode.cron().is_some() => cron::plan_runs(service, view, &mut plan, cx),
            (Some(service), _) if service.spec.stopped => plan_service(service, view, &mut plan, cx),
            (Some(service), None) => plan_service(service, view, &mut plan, cx),
            (Some(service), Some(number)) => {
                plan.expect(Kind::Service, key.id);
                let slot = Slot::of(service, view.tasks_of_slot(&id, number));
                if slot.counts() && dependencies::may_start(service, view, &mut plan) {
                    plan_slot(service, number, &slot, view, &mut plan, cx);
                }
            }
            (None, None) => stop(&id, view.tasks_of_service(&id), view, &mut plan, cx),
            (None, Some(number)) => stop(&id, view.tasks_of_slot(&id, number), view, &mut plan, cx),
        }
        plan
    }
}

/// Returns the services that keep apart from that of this event, and so may have to leave a node, or may stay there.
fn parted_from(event: &Event, view: &Tables) -> Vec<Key> {
    let name = match event {
        Event::Updated { old: Object::Task(old), new: Object::Task(new) } if old.is_live() == new.is_live() => None,
        Event::Updated { new: Object::Task(task), .. } | Event::Removed(Object::Task(task)) => {
            view.service(&task.service_id).map(|it| it.spec.name.as_str())
        }
        Event::Updated { old: Object::Service(old), new: Object::Service(new) }
            if old.spec.anti_affinity == new.spec.anti_affinity =>
        {
            None
        }
        Event::Updated { new: Object::Service(service), .. } | Event::Removed(Object::Service(service)) => {
            Some(service.spec.name.as_str())
        }
        _ => None,
    };
    name.into_iter().flat_map(|name| view.averse_to(name)).map(Key::of).collect()
}

/// Returns the keys of the tasks on the node.
fn of_node(node: &Node, view: &Tables) -> Vec<Key> {
    view.tasks_of_node(&node.id).map(|task| key_of(task, view)).collect()
}

/// Returns the keys of the services that have a task on each of their nodes.
fn global_services(view: &Tables) -> impl Iterator<Item = Key> {
    view.services().filter(|it| it.spec.mode.is_global()).map(|it| Key::of(&it.id))
}

/// Whether no global service can notice the difference.
fn is_same_place(old: &Node, new: &Node) -> bool {
    let place = |node: &Node| (node.state == NodeState::Ready, node.spec.availability, node.role);
    place(old) == place(new) && has_same_properties(old, new)
}

/// Whether constraints can't notice the difference, except by the role.
fn has_same_properties(old: &Node, new: &Node) -> bool {
    let (one, other) = (&old.description, &new.description);
    (&old.spec.labels, &old.address, &one.labels) == (&new.spec.labels, &new.address, &other.labels)
        && (&one.hostname, &one.os, &one.architecture, &one.variant)
            == (&other.hostname, &other.os, &other.architecture, &other.variant)
}

/// Whether the task has begun or ceased to serve while its slot has another one, which may be the one that stays.
fn serves_again(old: &Task, new: &Task, view: &Tables) -> bool {
    old.is_proven() != new.is_proven()
        && view.tasks_of_slot(&new.service_id, new.slot).filter(|task| task.is_live()).nth(1).is_some()
}

/// Whether the tasks of the task's service are being replaced. Its slots then depend on each other.
fn is_updating(task: &Task, view: &Tables) -> bool {
    view.service(&task.service_id).is_some_and(|it| it.update.is_active())
}

/// Whether the task has an earlier spec. If its node was away when its service was updated, the update goes on with it.
fn is_outdated(task: &Task, view: &Tables) -> bool {
    let is_late = |service: &Arc<Service>| service.spec_version != task.spec_version && !service.update.is_paused();
    task.is_live() && view.service(&task.service_id).is_some_and(is_late)
}

/// Whether the task's slot has a task that leaves its node. The slots of its service are then planned together.
fn is_moving(task: &Task, view: &Tables) -> bool {
    view.tasks_of_slot(&task.service_id, task.slot).any(|task| moves::is_leaving(task, view))
}

/// Whether the slots of the task's service wait for each other because only so many may work at once, or because a run is
/// over only when all have ended.
fn is_bounded(task: &Task, view: &Tables) -> bool {
    let is_bounded = |mode: &ServiceMode| mode.max_concurrent().is_some() || mode.cron().is_some();
    view.service(&task.service_id).is_some_and(|it| is_bounded(&it.spec.mode))
}

/// Returns the key that must be planned again after a change of this task.
fn key_of(task: &Task, view: &Tables) -> Key {
    let is_for_all =
        is_updating(task, view) || is_outdated(task, view) || is_moving(task, view) || is_bounded(task, view);
    if is_for_all { Key::of(&task.service_id) } else { Key::slot_of(task) }
}

fn plan_service(service: &Arc<Service>, view: &Tables, plan: &mut Plan, cx: &mut PlanContext) {
    plan.expect(Kind::Service, &service.id);
    let slots = slots(service, view);
    if service.update.is_active() && record_failures(service, &slots, view, plan, cx) {
        return;
    }
    let Places { kept, surplus, missing } = places(service, &slots, view);
    if let Some(update) = caught_up(service, &kept, view) {
        plan.put(Service { update, ..service.as_ref().clone() });
        return;
    }
    let surplus = surplus.into_iter().flat_map(|slot| &slot.tasks);
    match (service.spec.stopped, &service.spec.mode) {
        (true, _) => stop(&service.id, surplus, view, plan, cx),
        // One that ends its work while the order is on its way has done it: its node is not to do it again later.
        (false, ServiceMode::GlobalJob {}) => set_desired(surplus, DesiredState::Shutdown, plan, cx),
        (false, _) => remove(surplus, plan, cx),
    }
    let may_start = dependencies::may_start(service, view, plan);
    // A slot that the service has no more counts until its task has ended, if that can be known.
    let counted =
        slots.iter().filter(|(number, slot)| kept.contains_key(number) || !is_lost(slot, view)).map(|(_, slot)| slot);
    let room = room(service, counted);
    let Some(room) = plan_kept(service, &kept, (room, may_start), view, plan, cx) else { return };
    for (number, pinned_to) in missing.into_iter().take(if may_start { room } else { 0 }) {
        if plan.is_full(cx) {
            return;
        }
        let task = task_factory::make_first(service, number, view, cx);
        put_new(Task { pinned_to, ..task }, plan, cx);
    }
    advance_update(service, &kept, view, plan, cx);
    if plan.changes.is_empty() {
        moves::advance(service, &kept, view, plan, cx);
    } else if kept.values().any(|slot| slot.live().any(|task| moves::is_leaving(task, view))) {
        // Moves come once nothing else is to change, and what changes now may wake nothing but its own slots.
        plan.retry_at(cx.now);
    }
}

/// Whether only tasks that are to stop are left in the slot, on nodes that can't report their ends.
fn is_lost(slot: &Slot, view: &Tables) -> bool {
    slot.live().next().is_none() && stopping_is_lost(slot, view)
}

/// Returns how many more slots may begin to work beside these.
fn room<'a>(service: &Service, slots: impl Iterator<Item = &'a Slot>) -> usize {
    let at_once =
        service.spec.mode.max_concurrent().map_or(usize::MAX, |most| usize::try_from(most.get()).unwrap_or(usize::MAX));
    let is_counted = |slot: &&Slot| slot.is_busy() && !faults::is_on(Fault::CrowdedJob);
    at_once.saturating_sub(slots.filter(is_counted).count())
}

/// Plans the slots that the service has, of which so many may begin to work. Returns how many others may; `None` if the plan
/// is full before.
fn plan_kept(
    service: &Service,
    kept: &BTreeMap<u64, &Slot>,
    (mut room, may_start): (usize, bool),
    view: &Tables,
    plan: &mut Plan,
    cx: &mut PlanContext,
) -> Option<usize> {
    for (number, slot) in kept {
        if plan.is_full(cx) {
            return None;
        }
        if service.spec.mode.is_job() {
            // A new run takes the place of the one before.
            let is_earlier = |task: &Arc<Task>| {
                task.spec_version != service.spec_version || after_end::is_of_earlier_run(service, task)
            };
            let earlier = slot.live().filter(|task| is_earlier(task));
            earlier.for_each(|task| plan.set_desired(task, DesiredState::Shutdown));
        }
        if !may_start {
            continue;
        }
        if slot.is_busy() {
            plan_slot(service, *number, slot, view, plan, cx);
        } else if room > 0 {
            let before = plan.changes.len();
            plan_slot(service, *number, slot, view, plan, cx);
            room -= usize::from(plan.changes.len() > before);
        }
    }
    Some(room)
}

/// Removes these tasks of a service that was removed or stopped, once those that depend on it have stopped.
fn stop<'a>(
    id: &ServiceId,
    tasks: impl Iterator<Item = &'a Arc<Task>>,
    view: &Tables,
    plan: &mut Plan,
    cx: &PlanContext,
) {
    let is_held = !dependencies::stop_waits(id, view).is_empty();
    remove(tasks.filter(|task| dependencies::may_stop(task, is_held)), plan, cx);
}

/// Removes these tasks.
fn remove<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>, plan: &mut Plan, cx: &PlanContext) {
    set_desired(tasks, DesiredState::Remove, plan, cx);
}

fn set_desired<'a>(
    tasks: impl Iterator<Item = &'a Arc<Task>>,
    desired_state: DesiredState,
    plan: &mut Plan,
    cx: &PlanContext,
) {
    for task in tasks {
        if plan.is_full(cx) {
            return;
        }
        plan.set_desired(task, desired_state);
    }
}

#[cfg(test)]
mod tests;
