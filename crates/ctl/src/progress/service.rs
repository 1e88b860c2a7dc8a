//! The wait for a service: what is shown of its tasks and its update, and when it ends.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use flota_api::model::{UpdatePhase, UpdateStatus};
use flota_api::proto::control::{HangingTask, ServiceProgress, WatchServiceRequest};
use flota_api::text::printable;
use tokio::time::Instant;

use super::{ProgressLine, WaitOptions, interruptible};
use crate::client::Client;
use crate::error::Hinted;

/// A service whose change is waited for.
#[derive(Clone, Debug)]
pub(crate) struct Awaited {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Whether the change has begun an update. If that is rolled back, the change has failed; any other rollback
    /// concerns an earlier change.
    pub(crate) begins_update: bool,
}

/// Waits until the service matches its spec or, if it was removed, until all its tasks are gone.
pub(crate) async fn service(client: &Client, target: &Awaited, wait: &WaitOptions) -> anyhow::Result<()> {
    if wait.detach {
        return Ok(());
    }
    interruptible(wait_for_service(client, target, wait), tokio::signal::ctrl_c()).await
}

/// Waits for all services within one timeout.
pub(crate) async fn services(client: &Client, all: &[Awaited], wait: &WaitOptions) -> anyhow::Result<()> {
    let until = Instant::now() + wait.timeout;
    for target in all {
        let timeout = until.saturating_duration_since(Instant::now());
        service(client, target, &WaitOptions { timeout, detach: wait.detach }).await?;
    }
    Ok(())
}

async fn wait_for_service(client: &Client, target: &Awaited, wait: &WaitOptions) -> anyhow::Result<()> {
    let until = Instant::now() + wait.timeout;
    let (mut line, mut last) = (ProgressLine::new(), Progress::default());
    let watch = client.watch(
        WatchServiceRequest { service: target.id.clone() },
        |mut control, request| async move { control.watch_service(request).await },
        |progress| {
            last = Progress::parse(progress)?;
            show(target, &last, &mut line)
        },
    );
    let ended = tokio::time::timeout_at(until, watch).await;
    line.end();
    ended.unwrap_or_else(|_| Err(hangs(target, &last, wait.timeout)))
}

/// What a manager reports of a service.
#[derive(Clone, Debug, Default)]
struct Progress {
    tasks: ServiceProgress,
    update: UpdateStatus,
}

impl Progress {
    /// Parses a report. One of an older manager says nothing of the update.
    fn parse(mut report: ServiceProgress) -> anyhow::Result<Self> {
        let update = report.update.take().map(UpdateStatus::try_from).transpose()?.unwrap_or_default();
        Ok(Self { tasks: report, update })
    }

    /// Returns why the update is paused, or the last failure that it has tolerated.
    fn reason(&self) -> &str {
        self.update.reason.as_deref().unwrap_or("no reason is known")
    }

    /// Returns the failure because of which the tasks are brought back to the spec before.
    fn cause(&self) -> &str {
        self.update.rollback_cause.as_deref().unwrap_or("no reason is known")
    }

    /// Whether all tasks are replaced, and only watched.
    fn is_replaced(&self) -> bool {
        self.tasks.outdated == 0 && self.tasks.running >= self.tasks.desired
    }

    /// Returns the line that shows how far the service is.
    fn line(&self) -> String {
        let ServiceProgress { running, desired, converged, .. } = &self.tasks;
        let replaced = format!("{} of {desired} tasks replaced", running.min(desired));
        match self.update.phase {
            _ if let Some(done) = self.tasks.done => format!("{done} of {desired} tasks done, {running} running"),
            // A service that is stopped or was removed has no desired number of tasks.
            _ if *desired == 0 && *running > 0 => left(*running),
            _ if *desired == 0 && !converged => "stopping".to_owned(),
            UpdatePhase::Updating | UpdatePhase::RollingBack if self.is_replaced() => {
                format!("{replaced}, and watched for failures")
            }
            UpdatePhase::Updating => format!("updating: {replaced}"),
            UpdatePhase::RollingBack => format!("rolling back: {replaced}"),
            _ => format!("{running}/{desired} running"),
        }
    }

    /// Returns what the service waits for because of others, as the end of a sentence.
    fn waits(&self) -> String {
        let waits = &self.tasks.waits;
        if waits.is_empty() { String::new() } else { format!(", {waits}") }
    }

    /// Returns why the wait is over without success, and what a user can do, if it is.
    fn failure(&self, target: &Awaited) -> Option<(String, String)> {
        let (name, reason) = (&target.name, self.reason());
        let ServiceProgress { desired, outdated, .. } = self.tasks;
        let (resume, back) =
            (format!("`ctl service update --resume {name}`"), format!("`ctl service rollback {name}`"));
        let history = format!("`ctl service history {name}`");
        match self.update.phase {
            _ if self.tasks.failed => Some((
                format!(
                    "{} of {desired} tasks have done their work, and the others have failed for good",
                    self.tasks.done.unwrap_or_default()
                ),
                format!("`ctl service ps {name}` shows why, `ctl service restart {name}` runs it anew"),
            )),
            UpdatePhase::Paused => Some((
                format!("the update is paused: {reason}"),
                format!("{resume} continues it, {back} goes back to the spec before"),
            )),
            UpdatePhase::RollbackPaused => Some((
                format!("the rollback is paused: {reason}"),
                format!("{resume} continues the rollback, {history} lists the specs to go back to"),
            )),
            UpdatePhase::RolledBack if target.begins_update && self.update.rollback_cause.is_some() => Some((
                format!("the update has failed and was rolled back: {}", self.cause()),
                format!("{history} shows the specs, `ctl service ps {name}` the tasks"),
            )),
            UpdatePhase::Completed if outdated > 0 && !self.update.failed_slots.is_empty() => Some((
                format!("the update has ended, and {outdated} of {desired} tasks have their old spec: {reason}"),
                format!("`ctl service update --force {name}` tries again, {back} goes back to the spec before"),
            )),
            _ => None,
        }
    }

    /// Returns what users should know of an update that goes on.
    fn note(&self) -> Option<String> {
        match (self.update.phase, &self.update.reason) {
            (UpdatePhase::Updating, Some(reason)) => {
                Some(format!("the update goes on although a new task has failed: {reason}"))
            }
            (UpdatePhase::RollingBack, _) if self.update.rollback_cause.is_some() => {
                Some(format!("the update has failed and is being rolled back: {}", self.cause()))
            }
            _ => None,
        }
    }
}

/// Shows a report, and returns whether the wait is over.
fn show(target: &Awaited, progress: &Progress, line: &mut ProgressLine) -> anyhow::Result<ControlFlow<()>> {
    let name = &target.name;
    if progress.tasks.removed {
        line.show(format!("{name}: removed"));
        return Ok(ControlFlow::Break(()));
    }
    if let Some((why, hint)) = progress.failure(target) {
        return Err(Hinted { error: anyhow::anyhow!("service {name}: {why}"), hint }.into());
    }
    if let Some(note) = progress.note() {
        line.note(&note, &format!("{name}: {note}"));
    }
    // A known obstacle is reported at once. The wait continues, because the obstacle may be removed.
    for (reason, text) in grouped(progress.tasks.hanging.iter().filter(|task| task.stuck)) {
        line.note(&reason, &text);
    }
    line.show(format!("{name}: {}{}", progress.line(), progress.waits()));
    Ok(if progress.tasks.converged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}

fn left(tasks: u64) -> String {
    if tasks == 1 { "1 task is left".into() } else { format!("{tasks} tasks are left") }
}

fn hangs(target: &Awaited, last: &Progress, timeout: Duration) -> anyhow::Error {
    let (name, waited) = (&target.name, timeout.as_secs_f64());
    let ServiceProgress { running, desired, outdated, .. } = &last.tasks;
    let rolls_back = last.update.phase == UpdatePhase::RollingBack;
    let update = if rolls_back { "rollback" } else { "update" };
    let what = match (desired, outdated) {
        _ if let Some(done) = last.tasks.done => format!("{done} of {desired} tasks have done their work"),
        (0, _) if *running == 0 => "tasks have not stopped yet".to_owned(),
        (0, _) => left(*running),
        (_, 0) if last.update.is_active() && last.is_replaced() => {
            format!("the {update} is not done: all {desired} tasks run, and are watched for failures")
        }
        (_, 0) => format!("{running} of {desired} tasks run"),
        (_, left) => {
            format!("the {update} is not done: {running} of {desired} tasks run, {left} are still to be replaced")
        }
    };
    let cause = last.update.rollback_cause.as_ref().filter(|_| rolls_back);
    let cause = cause.map(|cause| format!("\n  the update has failed: {}", printable(cause)));
    let reasons: String = grouped(last.tasks.hanging.iter()).map(|(_, it)| format!("\n  {}", printable(&it))).collect();
    let waits = Some(&last.tasks.waits).filter(|it| !it.is_empty());
    let waits = waits.map_or_else(String::new, |waits| format!("\n  it {}", printable(waits)));
    anyhow::anyhow!("service {name}: {what} after {waited:.0} s{}{waits}{reasons}", cause.unwrap_or_default())
}

/// Returns a text for all tasks that are in one state for one reason, with the reason, such as
/// `web.1 and 2 more are pending: no node fits`.
fn grouped<'a>(hanging: impl Iterator<Item = &'a HangingTask>) -> impl Iterator<Item = (String, String)> {
    let mut groups: BTreeMap<(&str, &str), (&str, usize)> = BTreeMap::new();
    for task in hanging {
        groups.entry((&task.state, &task.reason)).or_insert((&task.name, 0)).1 += 1;
    }
    let text = |((state, reason), (first, count)): ((&str, &str), (&str, usize))| {
        let tasks = match count {
            1 => format!("{first} is {state}"),
            _ => format!("{first} and {} more are {state}", count - 1),
        };
        let text = if reason.is_empty() { tasks } else { format!("{tasks}: {reason}") };
        (reason.to_owned(), text)
    };
    groups.into_iter().map(text).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn hanging(name: &str, reason: &str, stuck: bool) -> HangingTask {
        HangingTask { name: name.into(), state: "pending".into(), reason: reason.into(), stuck }
    }

    fn target(begins_update: bool) -> Awaited {
        Awaited { id: "s1".into(), name: "web".into(), begins_update }
    }

    fn line() -> ProgressLine {
        ProgressLine { terminal: false, last: String::new(), noted: BTreeSet::new() }
    }

    /// A report of three tasks, in an update of this phase.
    fn report(phase: UpdatePhase, reason: Option<&str>, running: u64, outdated: u64) -> Progress {
        let reason: Option<String> = reason.map(Into::into);
        let update = UpdateStatus { phase, rollback_cause: reason.clone(), reason, ..UpdateStatus::default() };
        Progress { tasks: ServiceProgress { running, desired: 3, outdated, ..Default::default() }, update }
    }

    #[test]
    fn what_a_service_waits_for_is_said_at_once_and_at_the_end() {
        let mut waiting = report(UpdatePhase::Completed, None, 0, 0);
        waiting.tasks.waits = "waits for `db`: 1 of 2 healthy".into();
        let mut line = line();
        assert!(show(&target(false), &waiting, &mut line).expect("it goes on").is_continue());
        assert_eq!(line.last, "web: 0/3 running, waits for `db`: 1 of 2 healthy");
        let text = hangs(&target(false), &waiting, Duration::from_secs(9)).to_string();
        assert_eq!(text, "service web: 0 of 3 tasks run after 9 s\n  it waits for `db`: 1 of 2 healthy");
    }

    #[test]
    fn what_is_in_the_way_is_said_once_and_the_wait_goes_on() {
        let mut line = line();
        let tasks = [hanging("web.1", "no node fits", true), hanging("web.2", "pulling", false)];
        let tasks = ServiceProgress { desired: 2, hanging: tasks.into(), ..ServiceProgress::default() };
        for _ in 0..2 {
            let progress = Progress { tasks: tasks.clone(), ..Progress::default() };
            assert!(show(&target(true), &progress, &mut line).expect("no error").is_continue());
            assert_eq!(line.noted, BTreeSet::from(["no node fits".to_owned()]));
        }
    }

    #[test]
    fn the_line_says_how_many_tasks_are_replaced() {
        use UpdatePhase::{Completed, RolledBack, RollingBack, Updating};
        for (phase, running, outdated, expected) in [
            (Completed, 1, 0, "1/3 running"),
            (Updating, 1, 2, "updating: 1 of 3 tasks replaced"),
            (Updating, 2, 0, "updating: 2 of 3 tasks replaced"),
            (Updating, 3, 0, "3 of 3 tasks replaced, and watched for failures"),
            (RollingBack, 2, 1, "rolling back: 2 of 3 tasks replaced"),
            (RolledBack, 3, 0, "3/3 running"),
        ] {
            assert_eq!(report(phase, None, running, outdated).line(), expected);
        }
        let mut stopped = report(Completed, None, 2, 0);
        stopped.tasks.desired = 0;
        assert_eq!(stopped.line(), "2 tasks are left");
        stopped.tasks.running = 1;
        assert_eq!(stopped.line(), "1 task is left");
        stopped.tasks.running = 0;
        assert_eq!(stopped.line(), "stopping");
        stopped.tasks.converged = true;
        assert_eq!(stopped.line(), "0/0 running");
    }

    #[test]
    fn an_update_that_did_not_come_to_be_ends_the_wait_with_its_reason_and_a_hint() {
        use UpdatePhase::{Completed, Paused, RollbackPaused, RolledBack, RollingBack, Updating};
        let ended = |progress: &Progress, begins_update| match show(&target(begins_update), progress, &mut line()) {
            Ok(flow) => format!("{flow:?}"),
            Err(error) => {
                let hint = error.downcast_ref::<Hinted>().map(|it| it.hint.clone()).unwrap_or_default();
                assert_eq!(crate::error::code(&error), 1);
                format!("{error}|{hint}")
            }
        };
        let of = |phase, outdated| report(phase, Some("web.1: no"), 3, outdated);
        for (phase, error, hint) in [
            (Paused, "the update is paused: web.1: no", "service update --resume web"),
            (Paused, "the update is paused: web.1: no", "service rollback web"),
            (RollbackPaused, "the rollback is paused: web.1: no", "--resume web"),
            (RolledBack, "the update has failed and was rolled back: web.1: no", "service history web"),
        ] {
            let ended = ended(&of(phase, 0), true);
            assert!(ended.starts_with(&format!("service web: {error}|")) && ended.contains(hint), "{ended}");
        }
        for phase in [Updating, RollingBack, Completed] {
            assert_eq!(ended(&of(phase, 1), true), "Continue(())", "{phase}");
        }
        // A task of the old spec is left, and nothing will replace it.
        let mut left = of(Completed, 1);
        left.update.failed_slots = [1].into();
        assert!(
            ended(&left, true).starts_with("service web: the update has ended, and 1 of 3 tasks have their old spec")
        );
        // The service was rolled back before this change, which has taken effect.
        let mut scaled = of(RolledBack, 0);
        scaled.tasks.converged = true;
        assert_eq!(ended(&scaled, false), "Break(())");
    }

    #[test]
    fn failures_that_do_not_end_an_update_are_noted_once() {
        let mut line = line();
        for (phase, expected) in [
            (UpdatePhase::Updating, "the update goes on although a new task has failed: web.1: no"),
            (UpdatePhase::RollingBack, "the update has failed and is being rolled back: web.1: no"),
        ] {
            for _ in 0..2 {
                let shown = show(&target(true), &report(phase, Some("web.1: no"), 1, 2), &mut line);
                assert!(shown.expect("it goes on").is_continue());
            }
            assert!(line.noted.contains(expected), "{:?}", line.noted);
        }
        assert_eq!(line.noted.len(), 2);
        // An update that has ended long ago keeps its reason.
        let shown = show(&target(false), &report(UpdatePhase::Completed, Some("web.1: no"), 3, 0), &mut line);
        assert!(shown.is_ok() && line.noted.len() == 2);
    }

    #[test]
    fn a_wait_that_takes_too_long_says_what_it_waited_for() {
        let timeout = Duration::from_secs(300);
        let text = |progress: &Progress| hangs(&target(true), progress, timeout).to_string();
        let tasks = ["web.1", "web.2"].map(|name| hanging(name, "no node fits\x1b[2J", true));
        let mut progress = report(UpdatePhase::Completed, None, 1, 0);
        progress.tasks.hanging = tasks.into();
        let reasons = "\n  web.1 and 1 more are pending: no node fits\\u001b[2J";
        assert_eq!(text(&progress), format!("service web: 1 of 3 tasks run after 300 s{reasons}"));
        progress.tasks.outdated = 2;
        progress.tasks.hanging = vec![HangingTask { state: "ready".into(), ..hanging("web.1", "it is next", false) }];
        let update = "the update is not done: 1 of 3 tasks run, 2 are still to be replaced";
        assert_eq!(text(&progress), format!("service web: {update} after 300 s\n  web.1 is ready: it is next"));
        let watched = "the update is not done: all 3 tasks run, and are watched for failures";
        assert_eq!(text(&report(UpdatePhase::Updating, None, 3, 0)), format!("service web: {watched} after 300 s"));
        let back = "the rollback is not done: 1 of 3 tasks run, 2 are still to be replaced";
        assert_eq!(
            text(&report(UpdatePhase::RollingBack, Some("web.1: no"), 1, 2)),
            format!("service web: {back} after 300 s\n  the update has failed: web.1: no")
        );
        let removed = Progress { tasks: ServiceProgress { running: 2, ..Default::default() }, ..Progress::default() };
        assert_eq!(text(&removed), "service web: 2 tasks are left after 300 s");
        assert_eq!(text(&Progress::default()), "service web: tasks have not stopped yet after 300 s");
    }
}
