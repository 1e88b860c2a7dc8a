//! How the runs of a service of the mode cron are shown.

use serde_json::{Value, json};

use flota_api::model::{CronRun, RunState, Service};
use flota_api::proto::control::RunServiceRequest;
use flota_api::version::Timestamp;

use crate::client::{Client, request_id};
use crate::printer;

/// Begins a run, and prints the name of the service.
pub(super) async fn begin(client: &Client, name: &str) -> anyhow::Result<()> {
    let request = RunServiceRequest { request_id: request_id(), service: name.to_owned() };
    client.change(request, |mut control, request| async move { control.run_service(request).await }).await?;
    printer::line(name);
    Ok(())
}

/// Returns the time of the next run; `None` for a service that is stopped or of another mode.
fn next(service: &Service, now: Timestamp) -> Option<Timestamp> {
    let (schedule, _) = service.spec.mode.cron().filter(|_| !service.spec.stopped)?;
    schedule.next_after(now)
}

/// Returns the whole service as JSON, with the time of its next run.
pub(super) fn with_next(service: &Service, now: Timestamp) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(service)?;
    if let Some(next) = next(service, now) {
        value["cron"]["nextRunAt"] = json!(next);
    }
    Ok(value)
}

/// Returns how many tasks run, and how far the runs are; `None` for a service of another mode.
pub(super) fn column(
    service: &Service,
    running: u64,
    desired: u64,
    done: Option<u64>,
    now: Timestamp,
) -> Option<String> {
    service.spec.mode.cron()?;
    let rest = match next(service, now) {
        _ if desired > 0 => format!("{}/{desired} done", done.unwrap_or_default()),
        None => "stopped".to_owned(),
        Some(next) => format!("next {next}"),
    };
    Some(format!("{running} ({rest})"))
}

/// Returns how the runs stand, for people; empty for a service of another mode.
pub(super) fn summary(service: &Service, running: u64, desired: u64, done: Option<u64>, now: Timestamp) -> Vec<String> {
    let (name, cron) = (&service.spec.name, &service.cron);
    let Some((schedule, concurrency)) = service.spec.mode.cron() else { return Vec::new() };
    let numbers: Vec<String> = cron.live().map(|run| run.number.to_string()).collect();
    let mut lines = vec![match (numbers.as_slice(), next(service, now)) {
        ([], None) => format!("{name} is stopped: `ctl service start {name}` starts it"),
        ([], Some(next)) => format!("{name}: no run is under way, and the next is due at {next} ({schedule})"),
        (numbers, _) => {
            let done = done.unwrap_or_default();
            let runs = if numbers.len() == 1 { "run" } else { "runs" };
            let numbers = numbers.join(", ");
            format!("{name}: {runs} {numbers} under way: {done} of {desired} tasks have done their work, {running} run")
        }
    }];
    let last = |is_such: &dyn Fn(&&CronRun) -> bool| cron.runs.iter().rev().find(is_such);
    if let Some(run) = last(&|run| !run.is_live() && run.state != RunState::Skipped) {
        lines.push(format!("run {}, due at {}, is the last that is over: {}", run.number, run.scheduled_at, run.state));
    }
    if let Some(run) = last(&|run| run.state == RunState::Skipped) {
        let why = format!("an earlier one was under way, and the rule is `{concurrency}`");
        lines.push(format!("the run that was due at {} was skipped: {why}", run.scheduled_at));
    }
    if cron.missed > 0 {
        lines.push(format!("{} times have passed without a run, which could not begin in time", cron.missed));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use std::num::NonZeroU64;

    use super::*;
    use flota_api::model::{CronStatus, ModeName, ServiceMode, ServiceSpec};

    const NOON: Timestamp = Timestamp(1_795_867_200_000);

    fn run(number: u64, state: RunState) -> CronRun {
        CronRun {
            number: NonZeroU64::new(number).expect("a number from 1"),
            scheduled_at: NOON,
            began_at: NOON,
            ended_at: (state != RunState::Running).then_some(NOON),
            state,
            spec_version: 1,
            completions: 3,
        }
    }

    fn service(stopped: bool, runs: Vec<CronRun>) -> Service {
        let schedule = "*/5 * * * *".parse().expect("a good schedule");
        let mode = ServiceMode::named(ModeName::Cron, Some(schedule)).expect("it has its schedule");
        let spec = ServiceSpec { name: "backup".into(), stopped, ..ServiceSpec::of_mode(mode) };
        let cron = CronStatus { runs, ..CronStatus::default() };
        Service { spec: Arc::new(spec), cron, ..Service::default() }
    }

    #[test]
    fn the_column_says_how_far_a_run_is_or_when_the_next_begins() {
        let idle = service(false, Vec::new());
        assert_eq!(column(&idle, 0, 0, Some(0), NOON).as_deref(), Some("0 (next 2026-11-28T12:05:00.000Z)"));
        let busy = service(false, vec![run(1, RunState::Running)]);
        assert_eq!(column(&busy, 1, 3, Some(2), NOON).as_deref(), Some("1 (2/3 done)"));
        assert_eq!(column(&service(true, Vec::new()), 0, 0, Some(0), NOON).as_deref(), Some("0 (stopped)"));
        assert_eq!(column(&Service::default(), 1, 1, None, NOON), None, "it is replicated");
    }

    #[test]
    fn an_explanation_names_the_runs_under_way_the_last_one_and_what_was_skipped() {
        let runs = vec![run(6, RunState::Failed), run(7, RunState::Skipped), run(8, RunState::Running)];
        let lines = summary(&service(false, runs), 1, 3, Some(2), NOON);
        assert_eq!(
            lines,
            [
                "backup: run 8 under way: 2 of 3 tasks have done their work, 1 run",
                "run 6, due at 2026-11-28T12:00:00.000Z, is the last that is over: failed",
                "the run that was due at 2026-11-28T12:00:00.000Z was skipped: an earlier one was under way, and the rule \
                 is `forbid`",
            ]
        );
        let idle = summary(&service(false, Vec::new()), 0, 0, Some(0), NOON);
        assert_eq!(idle.len(), 1);
        assert!(idle[0].contains("the next is due at 2026-11-28T12:05:00.000Z (*/5 * * * * UTC)"), "{idle:?}");
        let next = &with_next(&service(false, Vec::new()), NOON).expect("it is a map")["cron"]["nextRunAt"];
        assert_eq!(next, "2026-11-28T12:05:00.000Z");
    }
}
