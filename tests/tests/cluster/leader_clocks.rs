//! Leaders whose wall clocks are wrong, and that are replaced by one whose clock is right: nothing that the wrong one has
//! begun is done otherwise, and nothing is done twice.

use flota_api::model::UpdatePhase;
use flota_api::proto::control::NameImageRequest;
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::specs::{ServiceSpec, UpdatePolicy};
use flota_api::proto::types::{RestartCondition, RestartPolicy};
use flota_identity::{GrantKey, verify_grant};
use flota_raft_store::faults::Fault;
use flota_tests::sim::clock::WallClock;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::run::Options;
use flota_tests::sim::script::{Script, script, script_of, spec};
use flota_worker::{FakeProgram, WhatHappened};
use std::time::Duration;

use super::updates::pause;
use super::{another_leads, manual, seen, tasks_of};

const MINUTE: i64 = 60_000;
/// By how much the clock of the first leader is ahead.
const ERRORS: [i64; 2] = [60 * MINUTE, -90 * MINUTE];

/// Lets another manager lead, whose clock is ahead by this many milliseconds.
fn replace_leader(it: &mut Script, ahead: i64) {
    let old = it.leader();
    let cluster = it.cluster();
    let right = WallClock::new(0, 0).now().0.cast_signed();
    for manager in cluster.managers.iter().filter(|manager| manager.host != cluster.managers[old].host) {
        manager.clock.step(right + ahead - manager.clock.now().0.cast_signed());
    }
    cluster.crash_manager(old, false);
    it.wait("another manager leads", 5_000, another_leads(old));
    it.cluster().start_manager(old);
}

/// Runs a test with each wrong clock: it is given a cluster whose leader has that clock.
fn for_each_error(test: impl Fn(&mut Script) + Clone + Send + 'static) {
    for ahead in ERRORS {
        let test = test.clone();
        script(3, move |it| {
            it.pass(1_000);
            replace_leader(it, ahead);
            test(it);
        });
    }
}

/// Number of containers that were started on all machines since the last call.
fn starts(cluster: &SimCluster) -> usize {
    let events = cluster.workers.iter().flat_map(|worker| worker.machine.take_events());
    events.filter(|event| event.what == WhatHappened::Started).count()
}

/// A service whose only task fails after half a second each time.
fn failing(restart: RestartPolicy) -> ServiceSpec {
    ServiceSpec { restart: Some(RestartPolicy { delay_ms: 1_000, ..restart }), ..spec("bad", 1) }
}

fn let_it_fail(it: &mut Script) {
    let program = FakeProgram { runs: Some(Duration::from_millis(500)), exit_code: 1, ..FakeProgram::default() };
    it.cluster().workers.iter().for_each(|worker| worker.machine.set_program("bad", program.clone()));
}

#[test]
fn rolling_update_that_a_leader_with_a_wrong_clock_has_begun_ends() {
    for_each_error(|it| {
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        assert_eq!(starts(it.cluster()), 4);
        let next = ServiceSpec { env: vec!["RELEASE=2".into()], ..spec("web", 4) };
        it.update(it.leader(), "the update", next).unwrap();
        it.wait("some tasks are new, and some are not", 10_000, |cluster| {
            let new = tasks_of(cluster, "web")?.iter().filter(|task| task.is_live() && task.spec_version == 2).count();
            seen((1..4).contains(&new), new)
        });
        replace_leader(it, 0);
        it.converge();
        assert_eq!(starts(it.cluster()), 4, "each task is replaced once");
    });
}

/// Lets a leader whose clock is ahead by this many milliseconds begin an update to a program that fails, of which one task
/// in four may, and the next leader carry it out. Returns how it ends, and in how many slots.
fn bad_update(it: &mut Script, ahead: i64) -> (UpdatePhase, usize) {
    replace_leader(it, ahead);
    it.create(it.leader(), spec("web", 4)).unwrap();
    it.converge();
    let program = FakeProgram { runs: Some(Duration::from_millis(50)), exit_code: 1, ..FakeProgram::default() };
    it.cluster().workers.iter().for_each(|worker| worker.machine.set_program("web", program.clone()));
    let tolerant =
        UpdatePolicy { parallelism: 1, max_failure_millionths: 250_000, monitor_ms: 5_000, ..Default::default() };
    let next = ServiceSpec { env: vec!["RELEASE=2".into()], update: Some(tolerant), ..spec("web", 4) };
    it.update(it.leader(), "the update", next).unwrap();
    pause(it, "web", true).unwrap();
    replace_leader(it, 0);
    pause(it, "web", false).unwrap();
    it.wait("the update has ended", 60_000, |cluster| {
        let view = cluster.view().ok_or("no manager leads")?;
        let update = &view.service_by_name("web").ok_or("there is no such service")?.update;
        seen(!update.is_active(), update)
    });
    let update = it.cluster().view().unwrap().service_by_name("web").unwrap().update.clone();
    (update.phase, update.failed_slots.len())
}

#[test]
fn update_that_a_leader_with_a_wrong_clock_has_begun_is_paused_when_tasks_fail_under_the_next() {
    for ahead in ERRORS {
        script(3, move |it| assert_eq!(bad_update(it, ahead), (UpdatePhase::Paused, 2)));
    }
}

#[test]
fn an_order_by_the_clock_is_found() {
    script_of(Options { fault: Some(Fault::OrderByClock), ..Options::new(1) }, |it| {
        let (phase, failed) = bad_update(it, ERRORS[0]);
        assert_eq!(
            (phase, failed),
            (UpdatePhase::Completed, 1),
            "tasks of the second leader seem to be older than the update"
        );
    });
}

#[test]
fn task_that_is_not_to_start_again_does_not_under_the_next_leader() {
    for_each_error(|it| {
        let_it_fail(it);
        let never = RestartPolicy { condition: RestartCondition::None.into(), ..RestartPolicy::default() };
        it.create(it.leader(), failing(never)).unwrap();
        it.pass(3_000);
        replace_leader(it, 0);
        it.pass(20_000);
        assert_eq!(starts(it.cluster()), 1);
    });
}

#[test]
fn budget_of_two_restarts_allows_two_under_both_leaders_together() {
    for_each_error(|it| {
        let_it_fail(it);
        it.create(it.leader(), failing(RestartPolicy { max_attempts: 2, ..RestartPolicy::default() })).unwrap();
        it.wait("it has failed once", 5_000, |cluster| {
            let restarts = tasks_of(cluster, "bad")?.iter().map(|task| task.restarts()).max();
            seen(restarts == Some(1), restarts)
        });
        replace_leader(it, 0);
        it.pass(30_000);
        assert_eq!(starts(it.cluster()), 3);
    });
}

#[test]
fn retry_of_a_request_that_was_done_is_answered_as_done_by_the_next_leader() {
    for_each_error(|it| {
        let release = |number: u32| ServiceSpec { env: vec![format!("RELEASE={number}")], ..spec("web", 1) };
        it.create(it.leader(), release(1)).unwrap();
        it.update(it.leader(), "the first", release(2)).unwrap();
        it.update(it.leader(), "the second", release(3)).unwrap();
        replace_leader(it, 0);
        it.create(it.leader(), release(1)).unwrap();
        it.update(it.leader(), "the first", release(2)).unwrap();
        let view = it.cluster().view().unwrap();
        let service = view.service_by_name("web").unwrap();
        assert_eq!((service.spec.env.clone(), service.spec_version), (vec!["RELEASE=3".to_owned()], 3));
    });
}

#[test]
fn image_can_be_fetched_with_the_grant_of_a_leader_whose_clock_is_wrong() {
    for_each_error(|it| {
        let digest = format!("sha256:{}", "1".repeat(64));
        let nodes = [0, 1, 2].map(|worker| manual(it, worker, |_, _| Box::pin(std::future::ready(()))));
        let request = NameImageRequest {
            request_id: "name".into(),
            reference: "docker.io/library/app:1".into(),
            digest: digest.clone(),
            size: 1_000,
            node: it.cluster().workers[0].node_id.to_string(),
            ..NameImageRequest::default()
        };
        it.request(it.leader(), |mut client| async move { client.name_image(request).await }).unwrap();
        // The holder checks the grant by its own clock, which is right.
        let view = it.cluster().view().unwrap();
        let key = GrantKey::from_der(&view.cluster().unwrap().grant_key.0).unwrap().public_key();
        let ids: Vec<String> = it.cluster().workers.iter().map(|worker| worker.node_id.to_string()).collect();
        it.wait("a node gets a grant that the holder accepts", 5_000, |cluster| {
            let now = cluster.workers[0].clock.now();
            let is_granted = |node: usize, message: &FromManager| match message {
                FromManager::Assignments(it) => it.images.iter().any(|image| {
                    let grant = image.grant.as_ref().filter(|_| image.digest == digest);
                    grant.is_some_and(|grant| verify_grant(grant, &key, &ids[node], now))
                }),
                _ => false,
            };
            let mut asked = (1..3).map(|node| nodes[node].was_sent(|message| is_granted(node, message)));
            asked.find(Result::is_ok).unwrap_or(Err("no grant".into()))
        });
    });
}
