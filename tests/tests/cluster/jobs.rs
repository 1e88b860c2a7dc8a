//! Jobs: tasks that end when their work is done.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::time::Duration;

use flota_api::model::NodeState;
use flota_api::proto::control::{GetRequest, RemoveTaskRequest};
use flota_api::proto::specs::{NodeSpec, ServiceMode, ServiceSpec};
use flota_api::proto::types::{Availability, RestartCondition, RestartPolicy};
use flota_api::reason::Reason;
use flota_api::state::TaskState;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::{FakeProgram, WhatHappened};

use super::services::{ends_with, running, set_program};
use super::{Seen, another_leads, node_is, seen, tasks_are, tasks_of};

/// The job `job`, which is over after so many of its tasks have ended well.
fn job(completions: u64, max_concurrent: u64) -> ServiceSpec {
    let restart = RestartPolicy { condition: RestartCondition::OnFailure.into(), delay_ms: 200, ..Default::default() };
    let mode = ServiceMode::ReplicatedJob.into();
    ServiceSpec { mode, max_concurrent, restart: Some(restart), ..spec("job", completions) }
}

fn global_job() -> ServiceSpec {
    ServiceSpec { mode: ServiceMode::GlobalJob.into(), ..job(0, 0) }
}

fn runs_for(seconds: u64) -> FakeProgram {
    FakeProgram { runs: Some(Duration::from_secs(seconds)), ..FakeProgram::default() }
}

/// So many tasks of the job's present spec have done their work.
fn done(count: usize) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let version = cluster.view().ok_or("no manager leads")?.service_by_name("job").map(|it| it.spec_version);
        let tasks = tasks_of(cluster, "job")?;
        let done = tasks.iter().filter(|it| Some(it.spec_version) == version && it.status.state == TaskState::Complete);
        seen(done.count() == count, tasks)
    }
}

/// How often a container of the job has been started.
fn starts(it: &mut Script) -> usize {
    let workers = &it.cluster().workers;
    let events = workers.iter().flat_map(|worker| worker.machine.take_events());
    events.filter(|event| event.what == WhatHappened::Started).count()
}

#[test]
fn a_job_runs_to_its_count_and_no_further_and_never_more_at_once_than_asked() {
    script(3, |it| {
        set_program(it, "job", &runs_for(1));
        it.create(it.leader(), job(7, 2)).unwrap();
        let most = Cell::new(0);
        it.wait("all have done their work", 30_000, |cluster| {
            most.set(most.get().max(running(cluster)));
            done(7)(cluster)
        });
        assert_eq!(most.get(), 2);
        it.pass(10_000);
        assert_eq!((starts(it), running(it.cluster())), (7, 0));
        it.update(it.leader(), "more", job(9, 2)).unwrap();
        it.wait("two more have done their work", 10_000, done(9));
        assert_eq!(starts(it), 2, "what is done stays done");
    });
}

#[test]
fn a_job_that_is_done_is_not_run_again_after_a_change_of_leader_or_of_nodes() {
    script(3, |it| {
        set_program(it, "job", &runs_for(1));
        it.create(it.leader(), job(3, 0)).unwrap();
        it.wait("all have done their work", 10_000, done(3));
        assert_eq!(starts(it), 3);
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another one leads", 10_000, another_leads(leader));
        it.cluster().crash_worker(0, true);
        it.wait("a node is down", 10_000, node_is(0, NodeState::Down));
        it.update_node("w2", NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() });
        it.pass(10_000);
        done(3)(it.cluster()).unwrap();
        assert_eq!(starts(it), 0);
    });
}

#[test]
fn what_a_task_of_a_job_has_done_is_done_again_only_if_a_user_removes_it() {
    script(2, |it| {
        set_program(it, "job", &runs_for(1));
        it.create(it.leader(), job(1, 0)).unwrap();
        it.wait("it has done its work", 20_000, done(1));
        let first = tasks_of(it.cluster(), "job").unwrap()[0].id.to_string();
        let request = RemoveTaskRequest { request_id: "rm".into(), name: first.clone(), shrink: false };
        it.request(it.leader(), |mut client| async move { client.remove_task(request).await }).unwrap();
        it.wait("another one has done it again", 20_000, |cluster| {
            let tasks = tasks_of(cluster, "job")?;
            let others = tasks.iter().filter(|task| task.id.as_str() != first);
            seen(others.filter(|task| task.status.state == TaskState::Complete).count() == 1, tasks)
        });
        assert_eq!(starts(it), 2);
    });
}

#[test]
fn a_forced_update_is_another_run_and_ends_the_one_before() {
    script(2, |it| {
        set_program(it, "job", &runs_for(1));
        it.create(it.leader(), job(2, 0)).unwrap();
        it.wait("the first run is over", 10_000, done(2));
        set_program(it, "job", &FakeProgram::default());
        it.update(it.leader(), "again", ServiceSpec { force: 1, ..job(2, 0) }).unwrap();
        it.wait("the second run is under way", 10_000, tasks_are("job", 2, TaskState::Running));
        let tasks = tasks_of(it.cluster(), "job").unwrap();
        let runs: Vec<_> = tasks.iter().map(|task| (task.run.map_or(0, NonZeroU64::get), task.status.state)).collect();
        let of_run = |run, state| runs.iter().filter(|it| **it == (run, state)).count();
        assert_eq!((of_run(1, TaskState::Complete), of_run(2, TaskState::Running)), (2, 2), "{runs:?}");
        set_program(it, "job", &runs_for(1));
        it.update(it.leader(), "and again", ServiceSpec { force: 2, ..job(2, 0) }).unwrap();
        it.wait("the third run is over", 20_000, done(2));
        assert_eq!((starts(it), running(it.cluster())), (6, 0));
        let service = it.cluster().view().unwrap().service_by_name("job").unwrap().as_ref().clone();
        assert_eq!((service.spec_version, service.update.is_active()), (3, false));
    });
}

#[test]
fn a_task_of_a_job_that_fails_is_tried_again_and_one_on_a_lost_node_runs_elsewhere() {
    script(2, |it| {
        set_program(it, "job", &ends_with(3));
        it.create(it.leader(), job(2, 1)).unwrap();
        it.wait("it is tried again", 10_000, |cluster| {
            let tasks = tasks_of(cluster, "job")?;
            seen(tasks.len() == 1 && tasks[0].status.attempt > 2, tasks)
        });
        set_program(it, "job", &runs_for(5));
        it.wait("one has done its work", 30_000, done(1));
        it.wait("the second runs", 10_000, tasks_are("job", 1, TaskState::Running));
        let busy = (0..2).find(|worker| !it.cluster().workers[*worker].machine.running().is_empty()).unwrap();
        it.cluster().crash_worker(busy, true);
        it.wait("both have done their work", 30_000, done(2));
    });
}

#[test]
fn a_job_whose_task_has_failed_for_good_says_that_it_has_failed() {
    script(1, |it| {
        set_program(it, "job", &ends_with(3));
        let once = RestartPolicy { condition: RestartCondition::None.into(), ..RestartPolicy::default() };
        it.create(it.leader(), ServiceSpec { restart: Some(once), ..job(1, 0) }).unwrap();
        it.wait("it has failed", 10_000, tasks_are("job", 1, TaskState::Failed));
        let request = flota_api::proto::control::WatchServiceRequest { service: "job".into() };
        let last = it.request(it.leader(), |mut client| async move {
            let mut reports = client.watch_service(request).await?.into_inner();
            let mut last = None;
            while let Some(report) = reports.message().await? {
                last = Some(report);
            }
            Ok(last)
        });
        let last = last.unwrap().expect("there is a report, and the reports end");
        assert!(last.failed && !last.converged && last.done == Some(0), "{last:?}");
    });
}

#[test]
fn a_global_job_runs_once_on_each_node_also_on_one_that_comes_later() {
    script(3, |it| {
        set_program(it, "job", &runs_for(1));
        it.update_node("w3", NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() });
        it.create(it.leader(), global_job()).unwrap();
        it.wait("both nodes have done it", 10_000, done(2));
        it.update_node("w3", NodeSpec::default());
        it.wait("so has the third", 10_000, done(3));
        it.update_node("w1", NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() });
        it.pass(3_000);
        it.update_node("w1", NodeSpec::default());
        it.pass(5_000);
        assert_eq!(starts(it), 3, "what is done stays done");
        let request = GetRequest { name: "job".into() };
        let row = it.request(it.leader(), |mut client| async move { client.get_service(request).await });
        let row = row.unwrap().into_inner();
        assert_eq!((row.running, row.done, row.desired), (0, Some(3), 3));
    });
}

#[test]
fn a_global_job_that_a_drain_has_stopped_runs_again_when_its_node_is_back() {
    script(2, |it| {
        set_program(it, "job", &runs_for(20));
        it.create(it.leader(), global_job()).unwrap();
        it.wait("both nodes work", 10_000, |cluster| seen(running(cluster) == 2, running(cluster)));
        it.update_node("w1", NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() });
        it.wait("one is stopped", 10_000, |cluster| seen(running(cluster) == 1, running(cluster)));
        it.update_node("w1", NodeSpec::default());
        it.wait("both nodes have done it", 60_000, done(2));
        assert_eq!(starts(it), 3);
    });
}

#[test]
fn a_job_that_would_never_end_is_refused() {
    script(1, |it| {
        let restart = Some(RestartPolicy { condition: RestartCondition::Any.into(), ..RestartPolicy::default() });
        let error = it.create(it.leader(), ServiceSpec { restart, ..job(1, 0) }).unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::Invalid));
        assert!(error.message().contains("restart.condition: a job is not started again"), "{error}");
    });
}
