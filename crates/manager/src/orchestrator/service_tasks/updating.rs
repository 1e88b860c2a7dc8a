//! Carries an update from slot to slot, and records what has failed in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::model::{FailureAction, Service, Task, UpdateStatus};
use flota_api::naming::task_name;
use flota_api::state::DesiredState;
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use super::super::slot::Slot;
use super::super::{task_factory, update};
use super::slot_tasks::put_new;
use crate::plan::{Plan, PlanContext};
use crate::wanted::{self, Eligibility};
use crate::{dependencies, revisions};

/// Records which new tasks have failed, and what follows from that; returns whether there are any. This comes before they
/// are replaced, because their failures can't be seen afterwards.
pub(super) fn record_failures(
    service: &Service,
    slots: &BTreeMap<u64, Slot>,
    view: &Tables,
    plan: &mut Plan,
    cx: &PlanContext,
) -> bool {
    let counted: BTreeMap<u64, &Slot> =
        slots.iter().filter(|(_, slot)| slot.counts()).map(|(number, slot)| (*number, slot)).collect();
    let failed_slots = &service.update.failed_slots;
    let gone = |number: &u64| !counted.contains_key(number);
    if failed_slots.iter().any(gone) {
        // A slot that gets the number anew is watched as any other.
        let failed_slots = failed_slots.iter().copied().filter(|number| !gone(number)).collect();
        plan.put(Service { update: UpdateStatus { failed_slots, ..service.update.clone() }, ..service.clone() });
        return true;
    }
    let failures = update::outlook(service, &counted, view, cx).failures;
    let Some((number, why)) = failures.first_key_value() else { return false };
    let reason = format!("{}: {why}", task_name(&service.spec.name, *number));
    let mut update = service.update.clone();
    update.failed_slots.extend(failures.keys());
    let policy = update::policy(service);
    let tasks = usize::try_from(wanted::tasks(service, view)).unwrap_or(usize::MAX);
    let is_lenient = faults::is_on(Fault::LenientUpdate);
    let changed = if is_lenient || policy.tolerates(update.failed_slots.len(), tasks) {
        Service { update: UpdateStatus { reason: Some(reason), ..update }, ..service.clone() }
    } else {
        let rolled_back = match policy.failure_action {
            FailureAction::Rollback if !update.is_rollback() => {
                revisions::rolled_back(service, reason.clone(), view, plan)
            }
            FailureAction::Rollback | FailureAction::Pause | FailureAction::Continue => None,
        };
        rolled_back.unwrap_or_else(|| Service { update: update.paused(reason), ..service.clone() })
    };
    plan.put(changed);
    true
}

/// Returns the status of an update that goes on now: it had ended while nodes were away that have tasks of an earlier spec,
/// or an older build has begun it and did not note whether it had ended.
pub(super) fn caught_up(service: &Service, kept: &BTreeMap<u64, &Slot>, view: &Tables) -> Option<UpdateStatus> {
    let update = &service.update;
    let has_ended = !service.spec.mode.is_job() && !update.is_active() && !update.is_paused();
    let eligible = Eligibility::of(service, view);
    let is_late = |(number, slot): (&u64, &&Slot)| {
        update::is_outdated(slot)
            && !update.failed_slots.contains(number)
            && !update::waits_for_node(&eligible, slot, view)
    };
    (has_ended && kept.iter().any(is_late)).then(|| update.resumed(update.failed_slots.clone()))
}

pub(super) fn advance_update(
    service: &Arc<Service>,
    kept: &BTreeMap<u64, &Slot>,
    view: &Tables,
    plan: &mut Plan,
    cx: &mut PlanContext,
) {
    let is_active = service.update.is_active() || faults::is_on(Fault::DeafPause) && service.update.is_paused();
    if !is_active || !plan.changes.is_empty() {
        return;
    }
    let outlook = update::outlook(service, kept, view, cx);
    if outlook.is_done {
        plan.put(Service { update: service.update.completed(), ..service.as_ref().clone() });
        return;
    }
    let may_begin = dependencies::may_update(service, view, plan);
    for step in outlook.steps {
        if plan.is_full(cx) {
            return;
        }
        if !may_begin && step.begins() {
            continue;
        }
        match step {
            update::Step::Prepare(number) => {
                let task = task_factory::make(service, number, None, None, view, cx);
                plan.put(Task { desired_state: DesiredState::Ready, ..task });
            }
            update::Step::Start(number) => {
                // A slot has two tasks at most: one that serves, and the new one. Until the task of an earlier update has
                // settled, the one before it stays.
                if let Some(slot) = kept.get(&number) {
                    let serving = slot.predecessor().or_else(|| slot.current().filter(|task| task.is_serving()));
                    let others = slot.live().filter(|task| serving.is_none_or(|serving| serving.id != task.id));
                    others.for_each(|task| plan.set_desired(task, DesiredState::Shutdown));
                }
                put_new(task_factory::make(service, number, None, None, view, cx), plan, cx);
            }
            update::Step::StartPrepared(number) => {
                if let Some(task) = kept.get(&number).and_then(|slot| slot.successor()) {
                    plan.put(Task { desired_state: DesiredState::Running, ..task.as_ref().clone() });
                }
            }
            update::Step::Replace(number) => {
                if let Some(task) = kept.get(&number).and_then(|slot| slot.current()) {
                    plan.set_desired(task, DesiredState::Shutdown);
                }
            }
        }
    }
    outlook.look_at.into_iter().for_each(|at| plan.retry_at(at));
}
