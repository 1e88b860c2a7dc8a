//! What holds at every moment of the runs of a service of the mode cron.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::id::ServiceId;
use flota_api::model::{Concurrency, CronRun, RunState, Service};
use flota_api::version::Timestamp;
use flota_raft_store::View;

use super::user::CRON;
use super::violation::{Kind, Violation};

/// A schedule counts anew when the times that are done with are farther ahead, in milliseconds: the clock was wrong.
const TRUSTED: u64 = 24 * 60 * 60 * 1_000;

/// The runs that were seen.
#[derive(Default)]
pub(super) struct CronInvariants {
    services: BTreeMap<ServiceId, Seen>,
}

#[derive(Default)]
struct Seen {
    last_number: u64,
    times: BTreeSet<Timestamp>,
}

impl CronInvariants {
    /// Checks the runs of all services.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), Violation> {
        for service in view.services().filter(|service| !service.cron.is_unused()) {
            let seen = self.services.entry(service.id.clone()).or_default();
            check_runs(service, seen).map_err(|text| Kind::WrongRun.because(text))?;
            check_tasks(service, view).map_err(|text| Kind::WrongRun.because(text))?;
        }
        Ok(())
    }
}

/// Each time begins one run at most, whose number is higher than those before, and runs overlap only if they may.
fn check_runs(service: &Service, seen: &mut Seen) -> Result<(), String> {
    let (name, cron) = (&service.spec.name, &service.cron);
    // Users begin runs of the others, which are due at no time.
    let is_scheduled = |run: &&CronRun| name == CRON && run.number.get() > seen.last_number;
    for run in cron.runs.iter().filter(is_scheduled) {
        let newest = seen.times.last().copied().unwrap_or_default();
        let was_wrong = run.scheduled_at.until(newest).as_millis() > u128::from(TRUSTED);
        if !seen.times.insert(run.scheduled_at) && !was_wrong {
            return Err(format!("run {} of {name} is a second one for {}", run.number, run.scheduled_at));
        }
    }
    if cron.last_number < seen.last_number || cron.runs.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        return Err(format!("the numbers of the runs of {name} do not rise: {cron:?}"));
    }
    seen.last_number = cron.last_number;
    let overlaps = service.spec.mode.cron().is_some_and(|(_, concurrency)| concurrency == Concurrency::Allow);
    if !overlaps && cron.live().count() > 1 {
        return Err(format!("runs of {name} overlap: {cron:?}"));
    }
    Ok(())
}

/// A run works to its count and no further, and only while it is under way.
fn check_tasks(service: &Service, view: &View) -> Result<(), String> {
    let name = &service.spec.name;
    for run in &service.cron.runs {
        let tasks: Vec<_> = view.tasks_of_service(&service.id).filter(|task| task.run == Some(run.number)).collect();
        let slots: BTreeSet<u64> = tasks.iter().map(|task| task.slot).collect();
        // Of a slot whose node was lost, two tasks may have done the work.
        let done = tasks.iter().filter(|task| task.has_done_its_work());
        let done = done.map(|task| task.slot).collect::<BTreeSet<u64>>().len() as u64;
        if slots.len() as u64 > run.completions {
            return Err(format!("{} slots of {name} are too many for {run:?}", slots.len()));
        }
        if run.state == RunState::Complete && done < run.completions {
            return Err(format!("{done} slots of {name} that are done are too few for {run:?}"));
        }
    }
    let mut runs = view.tasks_of_service(&service.id).filter_map(|task| Some((&task.id, task.run?)));
    match runs.find(|(_, run)| run.get() > service.cron.last_number) {
        Some((id, run)) => Err(format!("task {id} of {name} belongs to run {run}, which is not recorded")),
        None => Ok(()),
    }
}
