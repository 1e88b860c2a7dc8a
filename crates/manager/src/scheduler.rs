//! Places pending tasks on nodes: filters determine the nodes where a task can run, ranks the best one. A task that
//! can't run anywhere gets the reason.
//!
//! The tables keep the nodes in order (`ranking.rs`), so a task costs a look at a few of them, however many there are.

mod candidate;
mod devices;
mod filters;
mod ranking;
mod spread;

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::id::ServiceId;
use flota_api::model::{Filter, Node, PendingReason, Task, TaskStatus};
use flota_api::object::Object;
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::{Event, Tables};

use self::candidate::Candidate;
use self::ranking::Ranking;
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
            Event::Updated { new: Object::Service(service), .. } => {
                let waits = view.tasks_waiting(&service.id).next().is_some();
                waits.then(|| Key::of(&service.id)).into_iter().collect()
            }
            Event::Created(Object::Node(_)) | Event::Updated { new: Object::Node(_), .. } => self.all(view),
            Event::Removed(Object::Node(_)) => self.all(view),
            Event::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                if old.holds_resources() && !new.holds_resources() {
                    return helped_by_end_of(old, view);
                }
                let facts = |task: &Task| (task.is_waiting(), task.desired_state, task.attachments.len());
                let begins = new.is_waiting() && facts(old) != facts(new);
                begins.then(|| Key::of(&new.service_id)).into_iter().collect()
            }
            Event::Created(Object::Task(task)) if task.is_waiting() => vec![Key::of(&task.service_id)],
            Event::Removed(Object::Task(task)) if task.holds_resources() => helped_by_end_of(task, view),
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
        for same in tasks.chunk_by(|left, right| left.spec_version == right.spec_version) {
            if let Some(spec) = view.spec_of(same[0]) {
                let failures = candidate::count_failures(same[0], view, cx.now);
                let mut nodes = Ranking::new(&service, spec, view, &failures, used);
                place(same, &mut nodes, view, &mut plan, cx);
                used = nodes.into_used();
            }
        }
        plan
    }
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
        let spec = versions.next().and_then(|version| view.spec_version(service, version));
        versions.next().is_some() || spec.is_some_and(|spec| filters::refuses(spec, &candidate, view).is_none())
    };
    view.services_waiting().filter(is_helped).map(Key::of).collect()
}

/// Places waiting tasks of one spec, as many as there is room for in the plan.
fn place(tasks: &[&Arc<Task>], nodes: &mut Ranking, view: &Tables, plan: &mut Plan, cx: &PlanContext) {
    // The counts of the filters, once no node is left.
    let mut refused: Option<BTreeMap<Filter, u64>> = None;
    for task in tasks {
        if plan.is_full(cx) {
            return;
        }
        let placed = match &task.pinned_to {
            Some(node) => match nodes.take_on(node, plan) {
                Ok(device_ids) => Ok((node.clone(), device_ids)),
                Err(filter) => Err(filter.map(|filter| (filter, 1)).into_iter().collect()),
            },
            None => nodes.take(plan).ok_or_else(|| refused.get_or_insert_with(|| nodes.count_refusals()).clone()),
        };
        match placed {
            Ok((node_id, device_ids)) => plan.put(Task {
                node_id: Some(node_id),
                status: TaskStatus { state: TaskState::Assigned, at: cx.now, ..task.status.clone() },
                pending_reason: None,
                device_ids,
                ..task.as_ref().clone()
            }),
            Err(refused) => wait(task, refused, nodes, view, plan),
        }
    }
}

/// Records why the task has no node, if that is news.
fn wait(task: &Arc<Task>, refused: BTreeMap<Filter, u64>, nodes: &Ranking, view: &Tables, plan: &mut Plan) {
    let reason = Some(match refused {
        refused if refused.is_empty() => PendingReason::NoNode,
        refused if fits_in_place(task, nodes, view) => PendingReason::NeedsRoom(refused),
        refused => PendingReason::NoNodeFits(refused),
    });
    if reason != task.pending_reason {
        plan.put(Task { pending_reason: reason, ..task.as_ref().clone() });
    }
}

/// Whether the node of the task that `task` replaces has room for it without that task. An update stops a running task
/// for its successor only if this holds.
fn fits_in_place(task: &Task, nodes: &Ranking, view: &Tables) -> bool {
    if task.desired_state != DesiredState::Ready {
        return false;
    }
    let mut replaced = view.tasks_of_slot(&task.service_id, task.slot).filter(|it| it.holds_resources());
    replaced.any(|replaced| nodes.fits_without(replaced))
}

#[cfg(test)]
mod tests;
