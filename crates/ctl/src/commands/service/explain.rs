//! `ctl service explain` says why a service is not as its spec asks, in words.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flota_api::clock::Clock;
use flota_api::model::{HealthResult, Service, UpdatePhase};
use flota_api::proto::control::{GetRequest, ListTasksRequest, ServiceRow};
use flota_api::proto::streams::LogsRequest;
use flota_api::proto::streams::frame::Frame as F;
use flota_api::state::TaskState;
use flota_api::text::printable;

use super::{answered, runs};
use crate::client::Client;
use crate::commands::task::{self, Row};
use crate::printer;

/// Number of lines of output that are shown of a task.
const LINES: u64 = 5;
/// Longest wait for the output of a task. Its node may not answer.
const WAIT: Duration = Duration::from_secs(5);

/// The explanation for one task, or for several with the same problem.
#[derive(Debug, Default, PartialEq, Eq)]
struct Finding {
    title: String,
    details: Vec<String>,
    /// The task whose last output shows more.
    output_of: Option<String>,
}

pub(super) async fn run(name: String, client: &Client) -> anyhow::Result<()> {
    let request = GetRequest { name };
    let row = client.read(request, |mut control, request| async move { control.get_service(request).await }).await?;
    let ServiceRow { service, running, desired, done, waits } = row;
    let service = answered(service)?;
    let services = vec![service.id.to_string()];
    let tasks = task::list(client, ListTasksRequest { services, ..ListTasksRequest::default() }).await?;
    let runs = runs::summary(&service, running, desired, done, Clock::system().now());
    for line in if runs.is_empty() { summary(&service, running, desired, done) } else { runs } {
        printer::line(&line);
    }
    if !waits.is_empty() {
        printer::line(&format!("it {waits}"));
    }
    for finding in findings(&tasks) {
        printer::line("");
        printer::line(&finding.title);
        for detail in &finding.details {
            printer::line(&format!("  {detail}"));
        }
        if let Some(task) = finding.output_of {
            print_output(client, task).await;
        }
    }
    Ok(())
}

/// Prints the last lines that a task has written, as far as its node says them in time.
async fn print_output(client: &Client, task: String) {
    let request = || F::Logs(LogsRequest { task: task.clone(), tail: LINES, tail_set: true, ..LogsRequest::default() });
    let mut lines = Vec::new();
    let each = |frame| match frame {
        F::Log(line) => lines.push(String::from_utf8_lossy(&line.line).into_owned()),
        F::Error(error) => lines.push(format!("(it can't be read: {error})")),
        _ => {}
    };
    let error = match tokio::time::timeout(WAIT, client.receive(request, each)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("its node has not answered within {} s", WAIT.as_secs())),
    };
    lines.extend(error.map(|error| format!("(it can't be read: {error})")));
    if lines.is_empty() {
        return;
    }
    printer::line("  last output:");
    for line in lines {
        printer::line(&format!("    {}", printable(&line)));
    }
}

/// Returns how the service stands.
fn summary(service: &Service, running: u64, desired: u64, done: Option<u64>) -> Vec<String> {
    let name = &service.spec.name;
    let mut lines = vec![match done {
        _ if service.spec.stopped => format!("{name} is stopped: `ctl service start {name}` starts it"),
        Some(done) => format!("{name}: {done} of {desired} tasks have done their work, {running} run"),
        None => format!("{name}: {running} of {desired} tasks run"),
    }];
    if service.spec.mode.is_global() && !service.spec.stopped && desired == 0 {
        lines.push(
            "it waits for a node that takes its tasks: no node that is ready and active meets its spec".to_owned(),
        );
    }
    if let Some(policy) = &service.spec.scale {
        let last = service.scale.decisions.last().map_or_else(String::new, |it| {
            format!("; the last change was from {} to {} at {}: {}", it.from, it.to, it.at, it.reason)
        });
        lines.push(format!("their number follows the load, from {} to {}{last}", policy.min, policy.max));
    }
    let update = &service.update;
    let because = |reason: &Option<String>| reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let (resume, back) = (format!("`ctl service update --resume {name}`"), format!("`ctl service rollback {name}`"));
    match update.phase {
        UpdatePhase::Completed => {}
        UpdatePhase::Updating => {
            lines.push(format!(
                "its tasks are being brought to spec {}{}",
                service.spec_version,
                because(&update.reason)
            ));
        }
        UpdatePhase::Paused => {
            lines.push(format!("the update to spec {} is paused{}", service.spec_version, because(&update.reason)));
            lines.push(format!("  {resume} continues it, {back} goes back to the spec before"));
        }
        UpdatePhase::RollingBack | UpdatePhase::RollbackPaused | UpdatePhase::RolledBack => {
            lines.push(match &update.rollback_cause {
                Some(cause) => {
                    format!("the last update has failed, and it is back at spec {}: {cause}", service.spec_version)
                }
                None => format!("a user has brought it back to spec {}", service.spec_version),
            });
            if update.is_paused() {
                lines.push(format!("  the rollback is paused{}; {resume} continues it", because(&update.reason)));
            }
        }
    }
    lines
}

/// Returns what is wrong with the tasks, which are sorted by slot, and the newest first in a slot.
fn findings(tasks: &[Row]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    // Tasks that wait for the same reason are named together.
    let mut waiting: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for slot in tasks.chunk_by(|left, right| left.task.slot == right.task.slot) {
        let live = slot.iter().find(|row| row.task.is_live());
        let Some(row) = live.or(slot.first()).filter(|row| is_in_trouble(row)) else { continue };
        if row.task.node_id.is_none() {
            let last = slot.iter().find(|row| !row.task.is_live());
            let preemption = last.and_then(|row| row.task.preemption()).map(|it| format!("{it}; "));
            let reason = format!("{}{}", preemption.unwrap_or_default(), row.error());
            waiting.entry(reason).or_insert((row.name(), 0)).1 += 1;
        } else {
            findings.push(of_task(row, slot));
        }
    }
    findings.extend(waiting.into_iter().map(|(reason, (first, count))| {
        let tasks = if count == 1 { format!("{first} waits") } else { format!("{first} and {} more wait", count - 1) };
        let reason = if reason.is_empty() { "the scheduler has not looked for a node yet" } else { &reason };
        Finding { title: format!("{tasks} for a node: {reason}"), ..Finding::default() }
    }));
    findings
}

/// Whether the task does not do what it should. One that has ended well, or is stopping as it should, does.
fn is_in_trouble(row: &Row) -> bool {
    let task = &row.task;
    let is_done = task.has_done_its_work() || task.desired_state.is_stopping();
    !is_done && (!task.is_proven() || task.status.attempt > 1 || !row.error().is_empty())
}

/// Returns what is wrong with the task `row` of a slot that has had these tasks, the newest first.
fn of_task(row: &Row, slot: &[Row]) -> Finding {
    let (task, status) = (&row.task, &row.task.status);
    let error = if row.error().is_empty() { &status.message } else { row.error() };
    let why = if error.is_empty() { String::new() } else { format!(": {error}") };
    let mut details = Vec::new();
    if let Some(code) = status.exit_code {
        details.push(ended_with(code));
    }
    if row.restarts() > 0 {
        details.push(format!("it was started {} times", row.restarts() + 1));
    }
    if let Some(at) = status.not_before.or(task.not_before).filter(|_| status.state != TaskState::Running) {
        details.push(format!("its next start is at {at}"));
    }
    details.extend(tries(row, slot));
    details.extend(before(row, slot));
    let failed = status.health.iter().flat_map(|health| &health.log).rev().find(|result| result.exit_code != Some(0));
    details.extend(failed.map(check));
    let has_run = status.state >= TaskState::Running || status.attempt > 1 || row.restarts() > 0;
    Finding {
        title: format!("{} on {} is {}{why}", row.name(), row.node(), row.state()),
        details,
        output_of: has_run.then(|| task.id.to_string()),
    }
}

/// Says where the image of the slot was tried before, and what was answered there, each once.
fn tries(row: &Row, slot: &[Row]) -> Vec<String> {
    let is_of_spec = |it: &&Row| it.task.spec_version == row.task.spec_version && it.task.id != row.task.id;
    let lacking = slot.iter().filter(is_of_spec).filter(|it| it.task.status.lacks_image);
    let mut tries: Vec<String> =
        lacking.map(|it| format!("the image was tried on {}: {}", it.node(), it.task.status.error)).collect();
    let mut known = BTreeSet::new();
    tries.retain(|line| known.insert(line.clone()));
    tries
}

/// Says why the task before this one of the same spec has ended, while this one has nothing to say yet.
fn before(row: &Row, slot: &[Row]) -> Option<String> {
    let is_silent = row.error().is_empty() && row.task.status.message.is_empty() && !row.task.is_proven();
    let is_of_spec = |it: &&Row| it.task.spec_version == row.task.spec_version && it.task.id != row.task.id;
    let ended = |it: &&Row| !it.task.is_live() && !it.task.status.lacks_image && !it.error().is_empty();
    let last = slot.iter().filter(|_| is_silent).filter(is_of_spec).find(ended)?;
    Some(format!("the task before it, on {}, is {}: {}", last.node(), last.state(), last.error()))
}

/// Says how a container has ended. A code over 128 stands for the signal that killed it, as shells have it.
fn ended_with(code: i32) -> String {
    match code {
        137 => "its last container was killed (SIGKILL, exit code 137)".to_owned(),
        129..=192 => format!("its last container was ended by signal {} (exit code {code})", code - 128),
        _ => format!("its last container has ended with exit code {code}"),
    }
}

fn check(result: &HealthResult) -> String {
    let end = result.exit_code.map_or_else(|| "did not end in time".into(), |code| format!("has ended with {code}"));
    format!("the health check of {} {end}: {}", result.at, printable(result.output.trim()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::Arc;

    use flota_api::model::{
        Health, HealthState, ScaleDecision, ScalePolicy, ServiceSpec, Task, TaskStatus, UpdateStatus,
    };
    use flota_api::state::DesiredState;
    use flota_api::version::Timestamp;

    use super::*;

    fn row(slot: u64, state: TaskState, change: impl FnOnce(&mut Task)) -> Row {
        let status = TaskStatus { state, ..TaskStatus::default() };
        let mut task =
            Task { id: format!("t{slot}").into(), slot, status, node_id: Some("n".into()), ..Task::default() };
        change(&mut task);
        Row::of(task)
    }

    #[test]
    fn what_works_has_ended_or_stops_as_it_should_needs_no_words() {
        let stops = row(3, TaskState::Running, |task| task.desired_state = DesiredState::Shutdown);
        let rows = [row(1, TaskState::Running, |_| {}), row(2, TaskState::Complete, |_| {}), stops];
        assert_eq!(findings(&rows), []);
    }

    #[test]
    fn tasks_that_wait_for_the_same_reason_are_named_together() {
        let waits = |slot, error: &str| {
            let row = row(slot, TaskState::Pending, |task| task.node_id = None);
            row.with_error(error)
        };
        let rows = [waits(1, "no node fits: 1 of 1 drained"), waits(2, "no node fits: 1 of 1 drained"), waits(3, "")];
        let titles: Vec<String> = findings(&rows).into_iter().map(|it| it.title).collect();
        let unseen = "web.3 waits for a node: the scheduler has not looked for a node yet";
        assert_eq!(titles, [unseen, "web.1 and 1 more wait for a node: no node fits: 1 of 1 drained"]);
    }

    #[test]
    fn a_task_that_waits_says_for_which_one_the_last_of_its_slot_was_stopped() {
        let waits = row(1, TaskState::Pending, |task| task.node_id = None).with_error("no node fits: 1 of 1 drained");
        let preempted = row(1, TaskState::Shutdown, |task| {
            (task.desired_state, task.preempted_by) = (DesiredState::Shutdown, Some("db.3".into()));
        });
        let title = "web.1 waits for a node: preempted by db.3, whose priority is higher; no node fits: 1 of 1 drained";
        assert_eq!(findings(&[waits, preempted]), [Finding { title: title.into(), ..Finding::default() }]);
    }

    #[test]
    fn a_task_that_fails_is_shown_with_its_end_its_checks_and_its_output() {
        let loops = row(1, TaskState::Ready, |task| {
            task.status.attempt = 4;
            task.status.exit_code = Some(137);
            task.status.not_before = Some(Timestamp(5_000));
            let failed = HealthResult { at: Timestamp(1_000), exit_code: Some(1), output: "no\n".into() };
            let log = vec![failed, HealthResult { at: Timestamp(2_000), exit_code: Some(0), output: "ok".into() }];
            task.status.health = Some(Box::new(Health { state: HealthState::Starting, log, ..Health::default() }));
        });
        let found = findings(&[loops.with_error("out of memory").with_restarts(3).in_crash_loop()]);
        let expected = Finding {
            title: "web.1 on  is ready (crash loop): out of memory".into(),
            details: vec![
                "its last container was killed (SIGKILL, exit code 137)".into(),
                "it was started 4 times".into(),
                "its next start is at 1970-01-01T00:00:05.000Z".into(),
                "the health check of 1970-01-01T00:00:01.000Z has ended with 1: no".into(),
            ],
            output_of: Some("t1".into()),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn where_an_image_was_tried_and_what_was_answered_is_listed() {
        let tried = |id: &str, error: &str| {
            row(1, TaskState::Rejected, |task| {
                task.id = id.into();
                (task.status.lacks_image, task.status.error) = (true, error.into());
            })
        };
        let failed = row(1, TaskState::Failed, |task| task.id = "f".into());
        let waits = row(1, TaskState::Ready, |_| {});
        let slot =
            [waits, tried("c", "b answers 401"), failed, tried("b", "a answers 404"), tried("a", "a answers 404")];
        let expected = ["the image was tried on : b answers 401", "the image was tried on : a answers 404"];
        assert_eq!(findings(&slot)[0].details, expected);
    }

    #[test]
    fn a_task_that_has_nothing_to_say_yet_names_the_end_of_the_one_before_it() {
        let full = || row(1, TaskState::Rejected, |task| task.id = "a".into()).with_error("no space left on device");
        let waits = row(1, TaskState::Accepted, |_| {});
        let expected = ["the task before it, on , is rejected: no space left on device"];
        assert_eq!(findings(&[waits, full()])[0].details, expected);
        let pulls = row(1, TaskState::Preparing, |task| task.status.message = "fetches the image".into());
        assert_eq!(findings(&[pulls, full()])[0].details, [""; 0], "it says itself what it does");
        let of_new_spec = row(1, TaskState::Accepted, |task| task.spec_version = 2);
        assert_eq!(findings(&[of_new_spec, full()])[0].details, [""; 0], "another spec may not fail");
    }

    #[test]
    fn the_first_lines_say_how_the_service_and_its_update_stand() {
        let service = |stopped, update| {
            let spec = ServiceSpec { name: "web".into(), stopped, ..ServiceSpec::default() };
            Service { spec: Arc::new(spec), spec_version: 2, update, ..Service::default() }
        };
        let lines = |update| summary(&service(false, update), 1, 3, None).join("\n");
        assert_eq!(lines(UpdateStatus::default()), "web: 1 of 3 tasks run");
        let paused = lines(UpdateStatus::begun(1).paused("web.1: it fell".into()));
        assert!(paused.contains("the update to spec 2 is paused: web.1: it fell\n  `ctl service update --resume web`"));
        let cause = Some("web.1: it fell".to_owned());
        let back = UpdateStatus { phase: UpdatePhase::RolledBack, rollback_cause: cause, ..UpdateStatus::default() };
        assert!(lines(back).ends_with("the last update has failed, and it is back at spec 2: web.1: it fell"));
        let mut scaled = service(false, UpdateStatus::default());
        let policy = ScalePolicy::between(NonZeroU64::MIN, NonZeroU64::MAX);
        scaled.spec = Arc::new(ServiceSpec { scale: Some(policy), ..scaled.spec.as_ref().clone() });
        let decision = ScaleDecision { from: 1, to: 3, reason: "CPU 0.90 of 0.30 a task".into(), ..Default::default() };
        scaled.scale = scaled.scale.decided(decision);
        let why = "the last change was from 1 to 3 at 1970-01-01T00:00:00.000Z: CPU 0.90 of 0.30 a task";
        let line = format!("their number follows the load, from 1 to {}; {why}", u64::MAX);
        assert_eq!(summary(&scaled, 1, 3, None), ["web: 1 of 3 tasks run".to_owned(), line]);
        let stopped = summary(&service(true, UpdateStatus::default()), 0, 0, None);
        assert_eq!(stopped, ["web is stopped: `ctl service start web` starts it"]);
        let job = summary(&service(false, UpdateStatus::default()), 2, 9, Some(4));
        assert_eq!(job, ["web: 4 of 9 tasks have done their work, 2 run"]);
    }
}
