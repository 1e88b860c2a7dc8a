use std::sync::Arc;

use super::*;
use flota_api::model::{ServiceMode, ServiceSpec};
use flota_api::version::Meta;

/// Noon of the 28th of November 2026, in UTC.
const NOON: Timestamp = Timestamp(1_795_867_200_000);
const MINUTE: u64 = 60_000;

/// This many minutes after noon; before it, if negative.
fn at(minutes: i64) -> Timestamp {
    Timestamp(NOON.0.saturating_add_signed(minutes * 60_000))
}

/// A service that was created at noon and runs every ten minutes, or at another schedule.
fn service(schedule: &str, concurrency: Concurrency) -> Service {
    let schedule = Arc::new(schedule.parse().expect("a good schedule"));
    let mode = ServiceMode::Cron { schedule, concurrency, start_deadline: None, completions: 2, max_concurrent: None };
    let meta = Meta { created_at: NOON, updated_at: NOON, ..Meta::default() };
    Service { spec: Arc::new(ServiceSpec::of_mode(mode)), spec_version: 3, meta, ..Service::default() }
}

fn with(service: &Service, change: impl FnOnce(&mut ServiceSpec), set_at: Timestamp) -> Service {
    let mut spec = service.spec.as_ref().clone();
    change(&mut spec);
    let meta = Meta { updated_at: set_at, ..service.meta.clone() };
    Service { spec: Arc::new(spec), meta, ..service.clone() }
}

/// Lets the time come, with runs that are all as far as this, and records what follows.
fn come(service: &mut Service, time: Timestamp, progress: RunProgress) {
    service.cron = advance(service, |_| progress, time);
}

/// The runs, each as `number@minutes after noon state`, with `…` while it is not over.
fn runs(service: &Service) -> String {
    let shown = |run: &CronRun| {
        let minutes = run.scheduled_at.0.abs_diff(NOON.0) / MINUTE;
        format!("{}@{minutes} {}{}", run.number, run.state, if run.is_live() { "…" } else { "" })
    };
    service.cron.runs.iter().map(shown).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_time_begins_one_run_and_a_run_ends_once_its_tasks_have() {
    let mut service = service("*/10 * * * *", Concurrency::Forbid);
    come(&mut service, at(9), RunProgress::Idle);
    assert_eq!((runs(&service).as_str(), service.cron.last_number), ("", 0));
    come(&mut service, at(10), RunProgress::Idle);
    let begun = service.cron.runs[0].clone();
    assert_eq!((begun.scheduled_at, begun.began_at, begun.spec_version, begun.completions), (at(10), at(10), 3, 2));
    for (minutes, progress, expected) in [
        (10, RunProgress::Idle, "1@10 running…"),
        (11, RunProgress::Busy, "1@10 running…"),
        (12, RunProgress::Complete, "1@10 complete"),
        (19, RunProgress::Idle, "1@10 complete"),
        (21, RunProgress::Idle, "1@10 complete, 2@20 running…"),
        (22, RunProgress::Failed, "1@10 complete, 2@20 failed"),
    ] {
        come(&mut service, at(minutes), progress);
        assert_eq!(runs(&service), expected);
    }
    assert_eq!(service.cron.runs[1].ended_at, Some(at(22)));
}

#[test]
fn what_is_due_while_a_run_is_under_way_is_skipped_or_overlaps_or_replaces_it() {
    let mut forbid = service("*/10 * * * *", Concurrency::Forbid);
    for minutes in [10, 20, 30] {
        come(&mut forbid, at(minutes), RunProgress::Busy);
    }
    assert_eq!(runs(&forbid), "1@10 running…, 2@20 skipped, 3@30 skipped");

    let mut allow = service("*/10 * * * *", Concurrency::Allow);
    for minutes in [10, 20, 30] {
        come(&mut allow, at(minutes), RunProgress::Busy);
    }
    assert_eq!(runs(&allow), "1@10 running…, 2@20 running…, 3@30 running…");

    let mut replace = service("*/10 * * * *", Concurrency::Replace);
    for (minutes, progress, expected) in [
        (10, RunProgress::Busy, "1@10 running…"),
        (20, RunProgress::Busy, "1@10 replaced…"),
        (21, RunProgress::Busy, "1@10 replaced…"),
        // The last task has ended, and the one that was due follows late.
        (22, RunProgress::Idle, "1@10 replaced, 2@20 running…"),
        (30, RunProgress::Busy, "1@10 replaced, 2@20 replaced…"),
        (45, RunProgress::Idle, "1@10 replaced, 2@20 replaced, 3@40 running…"),
    ] {
        come(&mut replace, at(minutes), progress);
        assert_eq!(runs(&replace), expected);
    }
    assert_eq!(replace.cron.missed, 1, "the one at 12:30 was not run");
}

#[test]
fn runs_that_do_not_end_do_not_pile_up() {
    let mut allow = service("* * * * *", Concurrency::Allow);
    for minutes in 1..=150 {
        come(&mut allow, at(minutes), RunProgress::Busy);
    }
    assert_eq!(allow.cron.live().count(), RUNS_AT_ONCE);
    let skipped = allow.cron.runs.iter().filter(|run| run.state == RunState::Skipped);
    assert_eq!(skipped.count(), RUNS_KEPT);
}

#[test]
fn of_the_times_that_were_missed_the_newest_is_run_once_and_the_others_are_counted() {
    // No manager led from 12:01 to 12:47, or the clock jumped.
    let mut service = service("*/10 * * * *", Concurrency::Forbid);
    come(&mut service, at(1), RunProgress::Idle);
    come(&mut service, at(47), RunProgress::Idle);
    assert_eq!((runs(&service).as_str(), service.cron.missed), ("1@40 running…", 3));
    come(&mut service, at(48), RunProgress::Complete);
    assert_eq!(runs(&service), "1@40 complete");
    // A leader died before it had ever looked at the service.
    let mut new = self::service("*/10 * * * *", Concurrency::Forbid);
    come(&mut new, at(11), RunProgress::Idle);
    assert_eq!(runs(&new), "1@10 running…");
}

#[test]
fn a_time_is_missed_if_no_run_could_begin_by_its_deadline() {
    let within = |minutes: u64, concurrency| {
        let deadline = |spec: &mut ServiceSpec| match &mut spec.mode {
            ServiceMode::Cron { start_deadline, .. } => *start_deadline = Some(Duration::from_secs(minutes * 60)),
            other => panic!("{other:?}"),
        };
        let mut service = with(&service("*/10 * * * *", concurrency), deadline, NOON);
        come(&mut service, at(1), RunProgress::Idle);
        service
    };
    let mut missed = within(6, Concurrency::Forbid);
    come(&mut missed, at(47), RunProgress::Idle);
    assert_eq!((runs(&missed).as_str(), missed.cron.missed), ("", 4), "the one at 12:40 is seven minutes late");
    come(&mut missed, at(50), RunProgress::Idle);
    assert_eq!((runs(&missed).as_str(), missed.cron.missed), ("1@50 running…", 4), "the next one is in time");
    let mut made_up_for = within(7, Concurrency::Forbid);
    come(&mut made_up_for, at(47), RunProgress::Idle);
    assert_eq!((runs(&made_up_for).as_str(), made_up_for.cron.missed), ("1@40 running…", 3));
    // A user asks for a run now, whatever the schedule.
    let mut asked = within(6, Concurrency::Forbid);
    asked.cron.requested = true;
    come(&mut asked, at(47), RunProgress::Idle);
    assert_eq!((runs(&asked).as_str(), asked.cron.missed), ("1@47 running…", 4));
    // The run that is replaced takes too long to stop.
    let mut replaced = within(6, Concurrency::Replace);
    come(&mut replaced, at(10), RunProgress::Idle);
    come(&mut replaced, at(20), RunProgress::Busy);
    come(&mut replaced, at(27), RunProgress::Complete);
    assert_eq!((runs(&replaced).as_str(), replaced.cron.missed), ("1@10 complete", 1));
}

#[test]
fn a_clock_that_is_set_back_begins_no_run_a_second_time() {
    let mut service = service("*/10 * * * *", Concurrency::Forbid);
    come(&mut service, at(20), RunProgress::Idle);
    for minutes in [5, 10, 15, 20] {
        come(&mut service, at(minutes), RunProgress::Complete);
        assert_eq!(runs(&service), "1@20 complete");
    }
    assert_eq!(look_at(&service.cron, at(5), Timestamp(1)), Some(Timestamp(1) + LOOK_AFTER));
    come(&mut service, at(30), RunProgress::Idle);
    assert_eq!(runs(&service), "1@20 complete, 2@30 running…");
}

#[test]
fn a_clock_that_was_wrong_by_more_than_a_day_does_not_stop_a_schedule() {
    let mut service = service("0 * * * *", Concurrency::Forbid);
    let years = 3 * 365 * 24 * 60;
    come(&mut service, at(years), RunProgress::Idle);
    come(&mut service, at(30), RunProgress::Complete);
    come(&mut service, at(60), RunProgress::Idle);
    assert_eq!(service.cron.runs.last().map(|run| run.scheduled_at), Some(at(60)));
}

#[test]
fn nothing_that_was_due_while_a_service_was_stopped_is_run() {
    let mut service = service("*/10 * * * *", Concurrency::Forbid);
    come(&mut service, at(10), RunProgress::Busy);
    let mut stopped = with(&service, |spec| spec.stopped = true, at(12));
    come(&mut stopped, at(12), RunProgress::Busy);
    assert_eq!(runs(&stopped), "1@10 stopped…", "its tasks are being stopped");
    come(&mut stopped, at(25), RunProgress::Idle);
    assert_eq!((runs(&stopped).as_str(), look_at(&stopped.cron, at(25), NOON)), ("1@10 stopped", None));
    let mut started = with(&stopped, |spec| spec.stopped = false, at(38));
    come(&mut started, at(39), RunProgress::Idle);
    assert_eq!(runs(&started), "1@10 stopped");
    come(&mut started, at(40), RunProgress::Idle);
    assert_eq!((runs(&started).as_str(), started.cron.missed), ("1@10 stopped, 2@40 running…", 0));
}

#[test]
fn another_schedule_counts_from_when_it_was_set_and_another_rule_or_number_changes_no_run() {
    let mut service = service("0 * * * *", Concurrency::Forbid);
    come(&mut service, at(30), RunProgress::Idle);
    let each_minute = |spec: &mut ServiceSpec| {
        let (schedule, max_concurrent) = (Arc::new("* * * * *".parse().expect("a good schedule")), None);
        let (concurrency, start_deadline) = (Concurrency::Allow, None);
        spec.mode = ServiceMode::Cron { schedule, concurrency, start_deadline, completions: 7, max_concurrent };
    };
    let mut changed = with(&service, each_minute, at(31));
    come(&mut changed, at(31), RunProgress::Idle);
    assert_eq!(runs(&changed), "");
    come(&mut changed, at(32), RunProgress::Idle);
    assert_eq!((runs(&changed).as_str(), changed.cron.runs[0].completions), ("1@32 running…", 7));
    let three = |spec: &mut ServiceSpec| spec.mode = spec.mode.with_replicas(3).expect("it has a number");
    let mut scaled = with(&changed, three, at(32));
    come(&mut scaled, at(33), RunProgress::Busy);
    assert_eq!(scaled.cron.runs.iter().map(|run| run.completions).collect::<Vec<_>>(), [7, 3]);
}

#[test]
fn a_user_begins_a_run_as_far_as_the_rule_for_runs_that_overlap_permits_it() {
    let mut service = service("0 * * * *", Concurrency::Forbid);
    come(&mut service, at(1), RunProgress::Idle);
    assert_eq!(refusal(&service), None);
    service.cron.requested = true;
    assert!(refusal(&service).is_some_and(|why| why.contains("has not begun yet")), "two would become one");
    come(&mut service, at(5), RunProgress::Idle);
    come(&mut service, at(6), RunProgress::Busy);
    assert_eq!((runs(&service).as_str(), service.cron.requested), ("1@5 running…", false));
    assert!(refusal(&service).is_some_and(|why| why.contains("is under way")));
    come(&mut service, at(60), RunProgress::Complete);
    assert_eq!(runs(&service), "1@5 complete, 2@60 running…", "the schedule goes on");

    let mut replace = self::service("0 * * * *", Concurrency::Replace);
    for (minutes, progress) in [(5, RunProgress::Idle), (7, RunProgress::Busy), (9, RunProgress::Idle)] {
        replace.cron.requested |= minutes != 9;
        assert_eq!(refusal(&replace), None);
        come(&mut replace, at(minutes), progress);
    }
    assert_eq!(runs(&replace), "1@5 replaced, 2@9 running…");

    let stopped = with(&replace, |spec| spec.stopped = true, at(10));
    assert!(refusal(&stopped).is_some_and(|why| why.contains("is stopped")));
    assert!(refusal(&Service::default()).is_some_and(|why| why.contains("is replicated")));
}

#[test]
fn the_last_runs_and_skipped_times_are_kept_and_those_under_way() {
    let mut service = service("* * * * *", Concurrency::Forbid);
    for minutes in 1..=20 {
        come(&mut service, at(minutes), RunProgress::Complete);
    }
    // Each is over when the next begins.
    assert_eq!(service.cron.runs.iter().map(|run| run.number.get()).collect::<Vec<_>>(), [15, 16, 17, 18, 19, 20]);
    for minutes in 21..=40 {
        come(&mut service, at(minutes), RunProgress::Busy);
    }
    let numbers: Vec<u64> = service.cron.runs.iter().map(|run| run.number.get()).collect();
    assert_eq!(numbers, [15, 16, 17, 18, 19, 20, 36, 37, 38, 39, 40]);
}

#[test]
fn a_schedule_is_looked_at_when_its_next_time_comes_and_each_minute_before() {
    let mut service = service("*/10 * * * *", Concurrency::Forbid);
    come(&mut service, at(1), RunProgress::Idle);
    // The clock for delays is another one.
    let now = Timestamp(1_000);
    assert_eq!(look_at(&service.cron, at(1), now), Some(now + LOOK_AFTER));
    assert_eq!(look_at(&service.cron, Timestamp(at(10).0 - 300), now), Some(Timestamp(1_300)));
}
