//! Keeps a replicated service at its number of tasks: creates tasks, replaces those that were lost or that failed for
//! good, scales down, and carries an update from slot to slot.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;

use flota_api::id::TaskId;
use flota_api::model::{NodeState, RestartCondition, Service, Task, UpdateState};
use flota_api::object::Kind;
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::Timestamp;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Event, Tables};

use super::slot::{Slot, keep_order, slots};
use super::{task_factory, update};
use crate::control_loop::{ControlLoop, keyed_by};
use crate::plan::{Plan, PlanContext};

/// Most slots that one plan fills; the others follow in the next pass.
const NEW_TASKS_AT_ONCE: usize = 500;
/// Most tasks that one plan removes, far below the bound of a transaction.
const CHANGES_AT_ONCE: usize = 2_000;

/// The control loop; its keys are ids of services.
#[derive(Debug, Default)]
pub(crate) struct Replicated;

impl ControlLoop for Replicated {
    fn name(&self) -> &'static str {
        "replicated"
    }

    fn all(&self, view: &Tables) -> Vec<String> {
        let services = view.services().map(|service| service.id.to_string());
        let orphans = view.tasks().map(|task| task.service_id.to_string());
        services.chain(orphans).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<String> {
        keyed_by!(event,
            Service service => vec![service.id.to_string()],
            Task task => vec![task.service_id.to_string()],
            Node node => view.tasks_of_node(&node.id).map(|task| task.service_id.to_string()).collect(),
        )
    }

    fn plan(&mut self, key: &str, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(service) = view.service(key) else {
            remove(view.tasks_of_service(&key.into()), &mut plan, cx);
            return plan;
        };
        plan.expect(Kind::Service, key);
        let slots = slots(service, view);
        if service.update == UpdateState::Active
            && let update::Step::Pause(reason) = update::next_step(service, &slots, cx.now)
        {
            // This comes before the task that failed is replaced, because its failure can't be seen afterwards.
            plan.put(Service { update: UpdateState::Paused { reason }, ..service.as_ref().clone() });
            return plan;
        }
        let kept = scale_down(service, &slots, &mut plan, cx);
        let mut created = 0;
        for (number, slot) in &kept {
            stop_doubles(slot, &mut plan);
            created += usize::from(fill(service, *number, slot, view, &mut plan, cx));
        }
        let missing =
            usize::try_from(service.spec.mode.wanted_tasks()).unwrap_or(usize::MAX).saturating_sub(kept.len());
        let room = NEW_TASKS_AT_ONCE.saturating_sub(created);
        for number in (1..).filter(|number| !slots.contains_key(number)).take(missing.min(room)) {
            let task = task_factory::make(service, number, None, Timestamp::default(), view, cx);
            put_new(task, &mut plan, cx);
        }
        if missing > room {
            plan.retry_at(cx.now);
        }
        advance_update(service, &kept, view, &mut plan, cx);
        plan
    }
}

/// Removes these tasks. If there are very many, the rest follows in the next pass.
fn remove<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>, plan: &mut Plan, cx: &PlanContext) {
    for task in tasks.filter(|task| task.desired_state < DesiredState::Remove) {
        if plan.changes.len() >= CHANGES_AT_ONCE {
            plan.retry_at(cx.now);
            return;
        }
        plan.set_desired(task, DesiredState::Remove);
    }
}

/// Removes surplus slots and returns those that stay.
fn scale_down<'a>(
    service: &Service,
    slots: &'a BTreeMap<u64, Slot>,
    plan: &mut Plan,
    cx: &PlanContext,
) -> BTreeMap<u64, &'a Slot> {
    let counted = || slots.iter().filter(|(_, slot)| slot.counts());
    let keep = usize::try_from(service.spec.mode.wanted_tasks()).unwrap_or(usize::MAX);
    if counted().count() <= keep {
        return counted().map(|(number, slot)| (*number, slot)).collect();
    }
    let mut ranked = keep_order(counted().map(|(number, slot)| (*number, slot)));
    remove(ranked.split_off(keep).into_iter().flat_map(|(_, slot)| &slot.tasks), plan, cx);
    ranked.into_iter().collect()
}

/// Stops every task of a slot that is neither its current task nor its successor.
fn stop_doubles(slot: &Slot, plan: &mut Plan) {
    if faults::is_on(Fault::DoublePlacement) {
        return;
    }
    let (current, successor) = (slot.current().map(|task| &task.id), slot.successor().map(|task| &task.id));
    for task in slot.live().filter(|task| Some(&task.id) != current && Some(&task.id) != successor) {
        plan.set_desired(task, DesiredState::Shutdown);
    }
}

/// Gives the slot a task that may run if it should have one. Returns whether it created one.
fn fill(service: &Service, number: u64, slot: &Slot, view: &Tables, plan: &mut Plan, cx: &mut PlanContext) -> bool {
    let lost = |task: &Arc<Task>| {
        let node = view.node_of(task);
        let gone = node.is_none_or(|node| node.loses_tasks());
        let waits = service.spec.keep_on_node_loss && node.is_some_and(|it| it.spec.availability != drained());
        task.node_id.is_some() && gone && !waits
    };
    if let Some(successor) = slot.successor() {
        if lost(successor) || successor.spec_version != service.spec_version {
            plan.set_desired(successor, DesiredState::Shutdown);
        } else if slot.current().is_none() && stopping_is_lost(slot, view) {
            // The old task has ended, so its place is free.
            plan.set_desired(successor, DesiredState::Running);
        }
        if slot.current().is_none_or(|task| !lost(task)) {
            return false;
        }
    }
    let not_before = match slot.current() {
        Some(task) if !lost(task) => return false,
        Some(task) => {
            // The task was lost and did not fail: its successor starts at once elsewhere, but only if the node can't
            // report its end.
            plan.set_desired(task, DesiredState::Shutdown);
            if !unreachable(task, view) || slot.successor().is_some() {
                return false;
            }
            Timestamp::default()
        }
        None => match slot.newest().map(|last| (last, after_end(service, last))) {
            // The slot gets a new task only once the old one has ended.
            _ if !stopping_is_lost(slot, view) => return false,
            Some((_, AfterEnd::Stay)) => return false,
            // The delay counts from when the leader learned of the end, because the clock of the node may be wrong.
            Some((last, AfterEnd::ReplaceLater)) => {
                last.meta.updated_at + task_factory::backoff(&service.spec.restart, last.failures() + 1)
            }
            Some((_, AfterEnd::Replace)) | None => Timestamp::default(),
        },
    };
    let task = task_factory::make(service, number, slot.newest(), not_before, view, cx);
    put_new(task, plan, cx);
    true
}

/// Creates this task; with the fault `DoublePlacement` on, sometimes also a second one in its slot.
fn put_new(task: Task, plan: &mut Plan, cx: &mut PlanContext) {
    if faults::is_on(Fault::DoublePlacement) && cx.rng.random_ratio(1, 5) {
        plan.put(Task { id: TaskId::random(&mut cx.rng), ..task.clone() });
    }
    plan.put(task);
}

fn drained() -> flota_api::model::Availability {
    flota_api::model::Availability::Drain
}

/// Whether every task that is stopping is on a node that can't report its end. Such tasks are not waited for.
fn stopping_is_lost(slot: &Slot, view: &Tables) -> bool {
    slot.stopping().all(|task| unreachable(task, view))
}

/// Whether no node can report the end of the task.
fn unreachable(task: &Task, view: &Tables) -> bool {
    view.node_of(task).is_none_or(|node| node.state == NodeState::Down)
}

/// What happens to a slot whose newest task has ended.
#[derive(Clone, Copy)]
enum AfterEnd {
    /// It stays as it is.
    Stay,
    /// It gets another task at once.
    Replace,
    /// It gets another task, which starts after the delay of its service's policy.
    ReplaceLater,
}

fn after_end(service: &Service, last: &Task) -> AfterEnd {
    if last.spec_version != service.spec_version {
        return AfterEnd::Replace;
    }
    let policy = &service.spec.restart;
    let within_budget = policy.max_attempts.is_none_or(|most| last.failures() < most.get());
    match last.status.state {
        // The task was stopped, but its slot remains: it was moved, or removed by a user.
        _ if last.desired_state.is_stopping() => AfterEnd::Replace,
        TaskState::Failed if policy.condition == RestartCondition::None => AfterEnd::Stay,
        TaskState::Complete if policy.condition != RestartCondition::Any => AfterEnd::Stay,
        TaskState::Failed | TaskState::Rejected | TaskState::Complete if within_budget => AfterEnd::ReplaceLater,
        TaskState::Failed | TaskState::Rejected | TaskState::Complete => AfterEnd::Stay,
        _ => AfterEnd::Replace,
    }
}

fn advance_update(
    service: &Arc<Service>,
    kept: &BTreeMap<u64, &Slot>,
    view: &Tables,
    plan: &mut Plan,
    cx: &mut PlanContext,
) {
    if service.update != UpdateState::Active || !plan.changes.is_empty() {
        return;
    }
    let slots: BTreeMap<u64, Slot> = kept.iter().map(|(number, slot)| (*number, (*slot).clone())).collect();
    match update::next_step(service, &slots, cx.now) {
        update::Step::Look(at) => plan.retry_at(at),
        update::Step::Done | update::Step::Wait | update::Step::Pause(_) => {}
        update::Step::Prepare(number) => {
            let task = task_factory::make(service, number, None, Timestamp::default(), view, cx);
            plan.put(Task { desired_state: DesiredState::Ready, ..task });
        }
        update::Step::Replace(number) => {
            if let Some(task) = kept.get(&number).and_then(|slot| slot.current()) {
                plan.set_desired(task, DesiredState::Shutdown);
            }
        }
    }
}

#[cfg(test)]
mod tests;
