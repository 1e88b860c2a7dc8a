//! The runs of a service of the mode cron: which are over, which begin, and which times of the schedule pass without one.
//!
//! A number of tasks that a run asks for is created by `service_tasks/cron.rs` in the transaction that records the run, or
//! later: a run that is recorded and has no tasks yet gets them. So no leader starts a run twice, and none misses one.
//! Times are those of the wall clock. If it is set back, nothing begins until it shows a later time than that of the last
//! run, unless that is more than a day ahead; if it jumps ahead, or no manager has led, the newest of the times that were
//! missed gets its run, late, unless it is later than the service's deadline.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use flota_api::defaults::{RUNS_AT_ONCE, RUNS_KEPT};
use flota_api::model::{Concurrency, CronRun, CronStatus, Handled, RunState, Service};
use flota_api::schedule::{Due, Schedule};
use flota_api::version::Timestamp;
use flota_raft_store::faults::{self, Fault};

/// Longest time between two looks at a schedule, so that a step of the wall clock is noticed.
const LOOK_AFTER: Duration = Duration::from_secs(60);
/// The newest time of a schedule that was handled may be at most this far ahead of the wall clock: that was set back since,
/// or the clock of an earlier leader was fast. A time farther ahead was wrong, and the schedule counts anew.
const TRUSTED: Duration = Duration::from_secs(24 * 60 * 60);

/// How far the tasks of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunProgress {
    /// Some run, or are about to.
    Busy,
    /// None runs, and more are to begin.
    Idle,
    /// All have done their work.
    Complete,
    /// None runs or will run, and some have failed for good.
    Failed,
}

/// What follows at a time of the schedule.
enum Next {
    Begin,
    Skip,
    /// It is looked at again when the tasks of the earlier runs have ended.
    Wait,
}

/// Returns the runs as they are to be recorded now. `now` is the time of the wall clock.
pub(super) fn advance(service: &Service, progress: impl Fn(&CronRun) -> RunProgress, now: Timestamp) -> CronStatus {
    let mut status = service.cron.clone();
    let Some((schedule, concurrency)) = service.spec.mode.cron() else { return status };
    for run in status.runs.iter_mut().filter(|run| run.is_live()) {
        end(run, progress(run), now);
    }
    if service.spec.stopped {
        stop(&mut status, RunState::Stopped);
        (status.handled, status.requested) = (None, false);
    } else {
        take_due(service, &mut status, schedule, concurrency, now);
    }
    forget(&mut status.runs);
    status
}

/// Why a run can't begin now because a user wants one; `None` if it can.
pub(crate) fn refusal(service: &Service) -> Option<String> {
    let name = &service.spec.name;
    let Some((_, concurrency)) = service.spec.mode.cron() else {
        return Some(format!("`{name}` is {}: only a service of the mode cron has runs", service.spec.mode.as_str()));
    };
    let live = service.cron.live().count();
    match concurrency {
        _ if service.spec.stopped => Some(format!("`{name}` is stopped: `ctl service start {name}` starts it")),
        Concurrency::Forbid if live > 0 => Some(format!("a run of `{name}` is under way, and its rule is `forbid`")),
        // With `replace`, the newest run is the one that is wanted.
        Concurrency::Forbid | Concurrency::Allow if service.cron.requested => {
            Some(format!("the last run of `{name}` that a user has asked for has not begun yet; try again"))
        }
        Concurrency::Allow if live >= RUNS_AT_ONCE => Some(format!("{live} runs of `{name}` are under way, the most")),
        _ => None,
    }
}

/// Returns when to look at the schedule again, by a clock that shows `now` when the wall clock shows `wall`.
pub(super) fn look_at(status: &CronStatus, wall: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let Handled { schedule, until } = status.handled.as_ref()?;
    let next = schedule.next_after((*until).max(wall))?;
    Some(now + wall.until(next).min(LOOK_AFTER))
}

/// Records that a run is over, if it is.
fn end(run: &mut CronRun, progress: RunProgress, now: Timestamp) {
    let state = match (progress, run.state) {
        (RunProgress::Busy, _) | (RunProgress::Idle, RunState::Running) => return,
        (RunProgress::Complete, _) => RunState::Complete,
        (RunProgress::Failed, RunState::Running) => RunState::Failed,
        (RunProgress::Failed | RunProgress::Idle, stopped) => stopped,
    };
    (run.state, run.ended_at) = (state, Some(now));
}

/// Stops the runs that are under way.
fn stop(status: &mut CronStatus, why: RunState) {
    let live = status.runs.iter_mut().filter(|run| run.is_live() && run.state == RunState::Running);
    live.for_each(|run| run.state = why);
}

/// Begins a run, or skips it, if one is due, or if a user wants one.
fn take_due(
    service: &Service,
    status: &mut CronStatus,
    schedule: &Arc<Schedule>,
    concurrency: Concurrency,
    now: Timestamp,
) {
    let is_known = |it: &Handled| it.schedule == *schedule && now.until(it.until) <= TRUSTED;
    let known = status.handled.take().filter(is_known);
    // A schedule counts from when a user has set or started it. Nobody has changed the service since, or later changes make
    // the time later, so that nothing is made up for that was due before.
    let begun = || Handled { schedule: Arc::clone(schedule), until: service.meta.updated_at.min(now) };
    let mut handled = known.unwrap_or_else(begun);
    let is_late = |due: &Due| service.spec.mode.start_deadline().is_some_and(|most| due.at.until(now) > most);
    let (late, due) = match schedule.due(handled.until, now) {
        Some(due) if is_late(&due) => (Some(due), None),
        due => (None, due),
    };
    if let Some(late) = late {
        (handled.until, status.missed) = (late.at, status.missed + late.missed + 1);
    }
    if let Some(scheduled_at) = due.map(|due| due.at).or_else(|| status.requested.then_some(now)) {
        let live = status.live().count();
        let next = match concurrency {
            _ if live == 0 => Next::Begin,
            Concurrency::Allow if live < RUNS_AT_ONCE => Next::Begin,
            Concurrency::Allow | Concurrency::Forbid => Next::Skip,
            Concurrency::Replace => Next::Wait,
        };
        match next {
            Next::Wait => stop(status, RunState::Replaced),
            Next::Begin | Next::Skip => {
                let is_skipped = matches!(next, Next::Skip);
                let number = NonZeroU64::MIN.saturating_add(status.last_number);
                status.last_number = number.get();
                status.requested = false;
                if let Some(due) = due.filter(|_| !faults::is_on(Fault::RunAgain)) {
                    (handled.until, status.missed) = (due.at, status.missed + due.missed);
                }
                status.runs.push(CronRun {
                    number,
                    scheduled_at,
                    began_at: now,
                    ended_at: is_skipped.then_some(now),
                    state: if is_skipped { RunState::Skipped } else { RunState::Running },
                    spec_version: service.spec_version,
                    completions: service.spec.mode.replicas().unwrap_or_default(),
                });
            }
        }
    }
    status.handled = Some(handled);
}

/// Forgets the oldest of those that are over, and of those that were skipped, if there are too many.
fn forget(runs: &mut Vec<CronRun>) {
    for state_is_skipped in [false, true] {
        let is_such = |run: &CronRun| !run.is_live() && (run.state == RunState::Skipped) == state_is_skipped;
        let mut over = runs.iter().filter(|run| is_such(run)).count().saturating_sub(RUNS_KEPT);
        runs.retain(|run| {
            let goes = over > 0 && is_such(run);
            over -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests;
