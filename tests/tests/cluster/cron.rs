//! Services of the mode cron: runs that begin when their time comes.

use std::num::NonZeroU64;
use std::time::Duration;

use flota_api::model::{CronRun, RunState};
use flota_api::proto::control::RunServiceRequest;
use flota_api::proto::specs::{Concurrency, ServiceMode, ServiceSpec};
use flota_api::proto::types::{RestartCondition, RestartPolicy};
use flota_api::state::TaskState;
use flota_tests::sim::clock::WallClock;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::{FakeProgram, WhatHappened};

use super::services::{ends_with, running, set_program};
use super::{Seen, another_leads, seen, tasks_of};

/// Longest time until the next minute begins and a run is under way.
const NEXT: u64 = 65_000;

/// The service `backup`, with runs of so many tasks, each minute.
fn backup(completions: u64, concurrency: Concurrency) -> ServiceSpec {
    let restart = RestartPolicy { condition: RestartCondition::OnFailure.into(), delay_ms: 200, ..Default::default() };
    let (mode, schedule) = (ServiceMode::Cron.into(), "* * * * *".into());
    let (concurrency, restart) = (concurrency.into(), Some(restart));
    ServiceSpec { mode, schedule, concurrency, restart, ..spec("backup", completions) }
}

fn runs_for(seconds: u64) -> FakeProgram {
    FakeProgram { runs: Some(Duration::from_secs(seconds)), ..FakeProgram::default() }
}

/// The runs of the service that are recorded.
fn runs(cluster: &SimCluster) -> Result<Vec<CronRun>, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    Ok(view.service_by_name("backup").ok_or("there is no such service")?.cron.runs.clone())
}

/// The newest run has this number and state.
fn newest_is(number: u64, state: RunState) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let runs = runs(cluster)?;
        seen(runs.last().is_some_and(|run| (run.number.get(), run.state) == (number, state)), runs)
    }
}

/// How often a container has been started since the last call.
fn starts(it: &mut Script) -> usize {
    let events = it.cluster().workers.iter().flat_map(|worker| worker.machine.take_events());
    events.filter(|event| event.what == WhatHappened::Started).count()
}

/// Makes the clocks of all managers right.
fn set_clocks(it: &mut Script) {
    let right = WallClock::new(0, 0).now().0.cast_signed();
    it.cluster().managers.iter().for_each(|it| it.clock.step(right - it.clock.now().0.cast_signed()));
}

#[test]
fn each_time_begins_one_run_that_works_to_its_count_also_after_a_change_of_leader() {
    script(2, |it| {
        set_clocks(it);
        set_program(it, "backup", &runs_for(1));
        it.create(it.leader(), backup(3, Concurrency::Forbid)).unwrap();
        it.wait("a run is over", NEXT, newest_is(1, RunState::Complete));
        assert_eq!(starts(it), 3);
        set_program(it, "backup", &runs_for(10));
        it.wait("another one is under way", NEXT, newest_is(2, RunState::Running));
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another one leads", 10_000, another_leads(leader));
        it.wait("the run is over", 30_000, newest_is(2, RunState::Complete));
        assert_eq!(starts(it), 3);
        it.wait("the next one is over", NEXT + 20_000, newest_is(3, RunState::Complete));
        assert_eq!((starts(it), running(it.cluster())), (3, 0));
        let times: Vec<u64> = runs(it.cluster()).unwrap().iter().map(|run| run.scheduled_at.0).collect();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 60_000), "{times:?}");
    });
}

#[test]
fn no_run_that_was_due_while_nobody_led_is_lost_but_the_newest_is_made_up_for() {
    script(2, |it| {
        set_clocks(it);
        set_program(it, "backup", &runs_for(1));
        it.create(it.leader(), backup(1, Concurrency::Forbid)).unwrap();
        it.wait("a run is over", NEXT, newest_is(1, RunState::Complete));
        let first = runs(it.cluster()).unwrap()[0].scheduled_at;
        (0..3).for_each(|manager| it.cluster().crash_manager(manager, false));
        it.pass(150_000);
        (0..3).for_each(|manager| it.cluster().start_manager(manager));
        it.wait("it is made up for", 20_000, newest_is(2, RunState::Complete));
        let second = runs(it.cluster()).unwrap()[1].scheduled_at;
        let missed = it.cluster().view().unwrap().service_by_name("backup").unwrap().cron.missed;
        assert_eq!(second.0 - first.0, 60_000 * (missed + 1));
        assert!(missed >= 1, "two minutes passed at least");
    });
}

#[test]
fn a_run_under_way_makes_the_next_one_wait_its_turn_as_the_rule_says() {
    for (concurrency, expected) in [
        (Concurrency::Forbid, "1 running, 2 skipped"),
        (Concurrency::Allow, "1 running, 2 running"),
        (Concurrency::Replace, "1 replaced, 2 running"),
    ] {
        script(2, move |it| {
            set_clocks(it);
            set_program(it, "backup", &FakeProgram::default());
            it.create(it.leader(), backup(2, concurrency)).unwrap();
            it.wait("a run is under way", NEXT, newest_is(1, RunState::Running));
            it.wait("the next one was due", NEXT, |cluster| {
                let runs = runs(cluster)?;
                let shown = runs.iter().map(|run| format!("{} {}", run.number, run.state)).collect::<Vec<_>>();
                let wanted = if concurrency == Concurrency::Allow { 4 } else { 2 };
                seen(shown.join(", ") == expected && running(cluster) == wanted, runs)
            });
        });
    }
}

#[test]
fn a_run_that_fails_for_good_is_over_and_the_next_one_begins_anew() {
    script(2, |it| {
        set_clocks(it);
        set_program(it, "backup", &ends_with(3));
        let mut bounded = backup(1, Concurrency::Forbid);
        bounded.restart.as_mut().unwrap().max_attempts = 2;
        it.create(it.leader(), bounded).unwrap();
        it.wait("it has failed", NEXT + 20_000, newest_is(1, RunState::Failed));
        set_program(it, "backup", &runs_for(1));
        it.wait("the next one has not", NEXT + 20_000, newest_is(2, RunState::Complete));
        let tasks = tasks_of(it.cluster(), "backup").unwrap();
        let of_run =
            |run, state| tasks.iter().any(|task| task.run == NonZeroU64::new(run) && task.status.state == state);
        assert!(of_run(1, TaskState::Failed) && of_run(2, TaskState::Complete), "{tasks:?}");
    });
}

#[test]
fn a_user_begins_a_run_unless_one_is_under_way() {
    script(2, |it| {
        set_program(it, "backup", &runs_for(5));
        let yearly = ServiceSpec { schedule: "@yearly".into(), ..backup(2, Concurrency::Forbid) };
        it.create(it.leader(), yearly).unwrap();
        let begin = |it: &mut Script, id: &str| {
            let request = RunServiceRequest { request_id: id.into(), service: "backup".into() };
            it.request(it.leader(), |mut client| async move { client.run_service(request).await.map(drop) })
        };
        begin(it, "first").unwrap();
        it.wait("it is under way", 10_000, newest_is(1, RunState::Running));
        let refused = begin(it, "second").unwrap_err();
        assert!(refused.message().contains("is under way"), "{refused}");
        begin(it, "first").unwrap();
        it.wait("it is over", 20_000, newest_is(1, RunState::Complete));
        assert_eq!(starts(it), 2, "a request that is made twice begins one run");
    });
}

#[test]
fn a_service_that_is_stopped_or_removed_begins_no_run_and_old_runs_go_with_their_tasks() {
    script(2, |it| {
        set_clocks(it);
        set_program(it, "backup", &runs_for(1));
        it.create(it.leader(), backup(2, Concurrency::Forbid)).unwrap();
        it.wait("there were seven runs", 8 * NEXT, newest_is(7, RunState::Complete));
        it.wait("five are kept, with their tasks", 5_000, |cluster| {
            let (runs, tasks) = (runs(cluster)?, tasks_of(cluster, "backup")?);
            let is_kept = tasks.len() == 10 && tasks.iter().all(|task| task.run > NonZeroU64::new(2));
            seen(is_kept && runs.first().is_some_and(|run| run.number.get() == 3), (runs, tasks))
        });
        let stopped = ServiceSpec { stopped: true, ..backup(2, Concurrency::Forbid) };
        it.update(it.leader(), "stop", stopped).unwrap();
        it.pass(130_000);
        newest_is(7, RunState::Complete)(it.cluster()).unwrap();
        it.update(it.leader(), "start", backup(2, Concurrency::Forbid)).unwrap();
        it.wait("the next one is over", NEXT + 5_000, newest_is(8, RunState::Complete));
        let missed = it.cluster().view().unwrap().service_by_name("backup").unwrap().cron.missed;
        assert_eq!(missed, 0, "nobody misses what was stopped");
    });
}
