//! What holds at every moment of the jobs of users: a job runs to its count and no further, no task is made for what is done
//! already, whoever leads, and no more slots work at once than may.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId, TaskId};
use flota_api::model::{NodeState, Service, Task};
use flota_api::state::DesiredState;
use flota_raft_store::View;

use super::user::{CRON, JOBS, RUN};
use super::violation::{Kind, Violation};

/// A part of the work of a run of a job.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    job: ServiceId,
    run: Option<NonZeroU64>,
    place: WorkPlace,
}

/// What a part belongs to: a slot, or a node if each node has one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum WorkPlace {
    Slot(u64),
    Node(NodeId),
}

/// The tasks of jobs that were seen.
#[derive(Default)]
pub(super) struct JobInvariants {
    /// The task that has done a part.
    done: BTreeMap<Part, TaskId>,
    known: BTreeSet<TaskId>,
    /// Tasks that have been on a node which was down. Until such a task has ended, others may have taken its place meanwhile.
    lost: BTreeSet<TaskId>,
}

impl JobInvariants {
    /// Checks all jobs of users, and that no run of theirs does again what it has done.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), Violation> {
        let names = JOBS.iter().chain(&RUN).chain([&CRON]);
        for service in names.filter_map(|name| view.service_by_name(name)) {
            let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
            for task in &tasks {
                // One that is only prepared does no work.
                let may_work = task.desired_state == DesiredState::Running;
                let is_new = may_work && self.known.insert(task.id.clone());
                if let Some(done) = self.done.get(&part(task)).filter(|_| is_new) {
                    let text = format!("{done} has done what {} is to do again: {task:?}", task.id);
                    return Err(Kind::WorkedTwice.because(text));
                }
            }
            for task in tasks.iter().filter(|task| task.has_done_its_work()) {
                self.done.insert(part(task), task.id.clone());
            }
            if JOBS.contains(&service.spec.name.as_str()) {
                check_count(service, &tasks)?;
                let is_down = |task: &Task| view.node_of(task).is_none_or(|node| node.state == NodeState::Down);
                let lost = tasks.iter().filter(|task| task.node_id.is_some() && is_down(task));
                self.lost.extend(lost.map(|task| task.id.clone()));
                self.check_concurrency(service, &tasks)?;
            }
        }
        Ok(())
    }

    /// No more slots work at once than may. What is told to stop still works until it has ended, as far as that can be known.
    fn check_concurrency(&self, service: &Service, tasks: &[&Arc<Task>]) -> Result<(), Violation> {
        let Some(most) = service.spec.mode.max_concurrent() else { return Ok(()) };
        let has_ended = |task: &Task| {
            let could_not_say_so = task.desired_state.is_stopping() && self.lost.contains(&task.id);
            task.status.state.is_terminal() || could_not_say_so
        };
        let slots: BTreeSet<u64> = tasks.iter().filter(|task| !has_ended(task)).map(|task| task.slot).collect();
        if slots.len() as u64 > most.get() {
            let text = format!("{most} slots of {} may work at once, and {slots:?} do", service.spec.name);
            return Err(Kind::TooManyAtOnce.because(text));
        }
        Ok(())
    }
}

fn part(task: &Task) -> Part {
    let place = task.pinned_to.clone().map_or(WorkPlace::Slot(task.slot), WorkPlace::Node);
    Part { job: task.service_id.clone(), run: task.run, place }
}

/// The slots of a run are no more than there is to do.
fn check_count(service: &Service, tasks: &[&Arc<Task>]) -> Result<(), Violation> {
    let Some(count) = service.replicas() else { return Ok(()) };
    let of_run = tasks.iter().filter(|it| it.run == service.job_run && !it.desired_state.is_stopping());
    let slots: BTreeSet<u64> = of_run.map(|task| task.slot).collect();
    if slots.len() as u64 > count {
        let text = format!("{} is to do {count} tasks, and has some for the slots {slots:?}", service.spec.name);
        return Err(Kind::WorkedTwice.because(text));
    }
    Ok(())
}

/// Whether a job of users has done all that it is to do; `count` is the number of its tasks.
pub(super) fn converged(service: &Service, count: u64, view: &View) -> Result<(), String> {
    if !JOBS.contains(&service.spec.name.as_str()) {
        return Ok(());
    }
    let tasks = || view.tasks_of_service(&service.id).filter(|it| it.run == service.job_run);
    let done = tasks().filter(|task| task.has_done_its_work()).map(|task| part(task)).collect::<BTreeSet<_>>();
    let live = view.tasks_of_service(&service.id).filter(|task| task.is_live()).count();
    if (done.len() as u64) < count || live > 0 {
        return Err(format!("{} has done {} of {count} tasks, and {live} go on", service.spec.name, done.len()));
    }
    Ok(())
}
