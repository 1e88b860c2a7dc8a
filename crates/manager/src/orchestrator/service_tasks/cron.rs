//! The tasks of the runs of a service of the mode cron. A run is a job: it has as many slots as it asks for, each of which
//! works until it has done its work once, by the spec that the service had when the run began.
//!
//! Runs share the numbers of slots, but no two of them use a slot at once: one that begins while another is under way takes
//! other slots.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;

use flota_api::model::{CronRun, RunState, Service, Task, UpdateStatus};
use flota_api::object::Kind;
use flota_api::state::DesiredState;
use flota_raft_store::Tables;

use super::slot_tasks::{put_new, stopping_is_lost};
use super::{plan_kept, room};
use crate::orchestrator::after_end::is_given_up;
use crate::orchestrator::moves;
use crate::orchestrator::runs::{self, RunProgress};
use crate::orchestrator::slot::Slot;
use crate::orchestrator::task_factory;
use crate::pin::SpecImages;
use crate::plan::{Plan, PlanContext};

/// Plans the runs of a service, and their tasks.
pub(super) fn plan_runs(service: &Arc<Service>, view: &Tables, plan: &mut Plan, cx: &mut PlanContext) {
    plan.expect(Kind::Service, &service.id);
    let mut tasks: BTreeMap<Option<NonZeroU64>, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in view.tasks_of_service(&service.id) {
        tasks.entry(task.run).or_default().push(task);
    }
    let of_run = |number| tasks.get(&Some(number)).map(Vec::as_slice).unwrap_or_default();
    let progress = |run: &CronRun| progress(service, run, of_run(run.number), view);
    let status = runs::advance(service, progress, cx.wall);
    if let Some(at) = runs::look_at(&status, cx.wall, cx.now) {
        plan.retry_at(at);
    }
    // The run is recorded before its tasks are created: the driver may take only a part of the plan.
    if status != service.cron {
        plan.put(Service { cron: status.clone(), ..service.as_ref().clone() });
    }
    let holds_slot =
        |task: &&&Arc<Task>| !task.status.state.is_terminal() || status.run_of(task).is_some_and(CronRun::is_live);
    let mut taken: BTreeSet<u64> = tasks.values().flatten().filter(holds_slot).map(|task| task.slot).collect();
    for (number, tasks) in &tasks {
        if number
            .and_then(|number| status.run(number))
            .is_none_or(|run| !run.is_live() || run.state != RunState::Running)
        {
            tasks.iter().filter(|task| task.is_live()).for_each(|task| plan.set_desired(task, DesiredState::Shutdown));
        }
    }
    for run in status.live().filter(|run| run.state == RunState::Running) {
        if plan.is_full(cx) {
            return;
        }
        if let Some(of_its_spec) = with_spec_of(service, run, of_run(run.number), view) {
            plan_run(&of_its_spec, run, of_run(run.number), &mut taken, view, plan, cx);
        }
    }
}

/// Gives a run the tasks that it lacks. `service` has the spec of the run; `taken`: the slots that are in use.
fn plan_run(
    service: &Arc<Service>,
    run: &CronRun,
    tasks: &[&Arc<Task>],
    taken: &mut BTreeSet<u64>,
    view: &Tables,
    plan: &mut Plan,
    cx: &mut PlanContext,
) {
    let slots = slots(run, tasks);
    let kept: BTreeMap<u64, &Slot> = slots.iter().map(|(number, slot)| (*number, slot)).collect();
    let Some(room) = plan_kept(service, &kept, (room(service, slots.values()), true), view, plan, cx) else { return };
    let lacking = usize::try_from(run.completions).unwrap_or(usize::MAX).saturating_sub(slots.len());
    for _ in 0..lacking.min(room) {
        if plan.is_full(cx) {
            return;
        }
        let Some(number) = (1..).find(|number| !taken.contains(number)) else { return };
        taken.insert(number);
        let task = task_factory::make(service, number, None, None, view, cx);
        put_new(Task { run: Some(run.number), ..task }, plan, cx);
    }
    if plan.changes.is_empty() {
        moves::advance(service, &kept, view, plan, cx);
    }
}

/// The slots of a run, by number, each with the tasks of this run alone.
fn slots(run: &CronRun, tasks: &[&Arc<Task>]) -> BTreeMap<u64, Slot> {
    let slots = tasks.chunk_by(|left, right| left.slot == right.slot);
    slots
        .map(|tasks| (tasks[0].slot, Slot::new(tasks.iter().copied(), run.spec_version).of_run(Some(run.number))))
        .collect()
}

/// Returns the service as it was when the run began; `None` if the spec is not kept any more, which it is as long as the
/// run has a task.
fn with_spec_of(service: &Arc<Service>, run: &CronRun, tasks: &[&Arc<Task>], view: &Tables) -> Option<Arc<Service>> {
    if run.spec_version == service.spec_version && service.update == UpdateStatus::default() {
        return Some(Arc::clone(service));
    }
    let (spec, images) = if run.spec_version == service.spec_version {
        (Arc::clone(&service.spec), SpecImages::of_service(service))
    } else {
        let revision = service.revisions.iter().find(|it| it.version == run.spec_version);
        let kept = revision.map(SpecImages::of_revision).filter(|it| *it != SpecImages::default());
        let images = kept.or_else(|| tasks.first().map(|task| SpecImages::of_task(task)));
        (Arc::clone(view.spec_version(&service.id, run.spec_version)?), images.unwrap_or_default())
    };
    let update = UpdateStatus::default();
    let of_run = Service { spec, spec_version: run.spec_version, update, ..service.as_ref().clone() };
    Some(Arc::new(images.put_on(of_run)))
}

/// Returns how far the tasks of a run are.
fn progress(service: &Arc<Service>, run: &CronRun, tasks: &[&Arc<Task>], view: &Tables) -> RunProgress {
    let slots = slots(run, tasks);
    let of_its_spec = with_spec_of(service, run, tasks, view);
    let of_its_spec_or_now = of_its_spec.as_ref().unwrap_or(service);
    let is_busy = |slot: &Slot| slot.live().next().is_some() || !stopping_is_lost(slot, view);
    if slots.values().any(is_busy) {
        return RunProgress::Busy;
    }
    let done = slots.values().filter(|slot| slot.is_done()).count() as u64;
    let is_given_up = |slot: &Slot| slot.newest().is_some_and(|task| is_given_up(of_its_spec_or_now, task));
    let given_up = slots.values().filter(|slot| !slot.is_done() && is_given_up(slot)).count() as u64;
    match () {
        () if done >= run.completions => RunProgress::Complete,
        () if done + given_up >= run.completions || of_its_spec.is_none() => RunProgress::Failed,
        () => RunProgress::Idle,
    }
}

#[cfg(test)]
mod tests;
