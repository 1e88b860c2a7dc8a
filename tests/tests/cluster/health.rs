//! Health checks in a cluster: when others may connect to a task, and what an update makes of health.

use std::time::Duration;

use flota_api::id::TaskId;
use flota_api::model::{HealthState, Task};
use flota_api::proto::control::CreateNetworkRequest;
use flota_api::proto::dispatcher::Endpoint;
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::specs::{self as ps, health_test::Test};
use flota_api::state::TaskState;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::manual::{ManualNode, no_streams};
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::{FakeHealth, FakeProgram, WhatHappened};

use super::{Seen, manual, seen, tasks_of};

const SECOND: Duration = Duration::from_secs(1);

/// The service `web`, with a check every second of which the second failure in a row is one too many.
fn checked(replicas: u64, version: u32) -> ps::ServiceSpec {
    let test = ps::HealthTest { test: Some(Test::Shell("well".into())) };
    let healthcheck = ps::HealthSpec { test: Some(test), interval_ms: Some(1_000), retries: 2, ..Default::default() };
    ps::ServiceSpec { healthcheck: Some(healthcheck), env: vec![format!("VERSION={version}")], ..spec("web", replicas) }
}

fn set_health(it: &mut Script, health: FakeHealth) {
    let program = FakeProgram { health, ..FakeProgram::default() };
    it.cluster().workers.iter().for_each(|worker| worker.machine.set_program("web", program.clone()));
}

/// A task of `web` on the second worker, and one on the first, which is the test's; both are in the network `front`.
fn reachable(it: &mut Script, health: FakeHealth) -> (ManualNode, TaskId) {
    let node = manual(it, 0, no_streams);
    let network = ps::NetworkSpec { name: "front".into(), ..ps::NetworkSpec::default() };
    let request = CreateNetworkRequest { request_id: "network".into(), spec: Some(network) };
    it.request(it.leader(), |mut client| async move { client.create_network(request).await.map(drop) }).unwrap();
    set_health(it, health);
    let networks = vec![ps::NetworkAttachment { network: "front".into(), aliases: Vec::new() }];
    it.create(it.leader(), ps::ServiceSpec { networks, ..checked(2, 1) }).unwrap();
    it.wait("its container runs", 5_000, |cluster| {
        let running = cluster.workers[1].machine.running();
        seen(running.len() == 1, running)
    });
    let task = it.cluster().workers[1].machine.running()[0].task.as_str().into();
    (node, task)
}

fn task(cluster: &SimCluster, id: &TaskId) -> Result<Task, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    Ok(view.task(id).ok_or("there is no such task")?.as_ref().clone())
}

fn health_is(id: TaskId, state: HealthState) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let status = task(cluster, &id)?.status;
        seen(status.health.as_ref().is_some_and(|it| it.state == state), status)
    }
}

/// The node was told that the task serves.
fn serves(node: &ManualNode, task: &TaskId) -> Seen {
    let is = |endpoint: &Endpoint| endpoint.task == task.as_str() && endpoint.serving;
    node.was_sent(|message| matches!(message, FromManager::Networks(it) if it.endpoints.iter().any(is)))
}

#[test]
fn others_connect_to_a_task_once_its_first_check_has_succeeded() {
    script(2, |it| {
        let (node, id) = reachable(it, FakeHealth::From(3 * SECOND));
        it.wait("it is starting", 1_000, health_is(id.clone(), HealthState::Starting));
        it.pass(1_500);
        assert_eq!(task(it.cluster(), &id).unwrap().status.state, TaskState::Starting);
        assert!(serves(&node, &id).is_err(), "no check has succeeded yet");
        set_health(it, FakeHealth::Good);
        it.wait("it is replaced, because it was not healthy in time", 10_000, |cluster| {
            let status = task(cluster, &id)?.status;
            seen(status.attempt == 2 && status.state == TaskState::Running, status)
        });
        it.wait("others connect to it", 500, |_| serves(&node, &id));
        let before = task(it.cluster(), &id).unwrap();
        it.pass(10_000);
        let after = task(it.cluster(), &id).unwrap();
        assert_eq!(before.meta.version, after.meta.version, "a result that changes nothing is not stored");
    });
}

#[test]
fn an_unhealthy_task_is_withdrawn_first_and_restarted_when_all_nodes_have_confirmed_it_or_after_a_while() {
    script(2, |it| {
        let (node, id) = reachable(it, FakeHealth::Until(3 * SECOND + SECOND / 2));
        it.wait("others connect to it", 5_000, |_| serves(&node, &id));
        let restarted = |attempt| {
            let id = id.clone();
            move |cluster: &SimCluster| {
                let status = task(cluster, &id)?.status;
                seen(status.attempt == attempt, status)
            }
        };
        it.wait("it is unhealthy, and restarted", 10_000, restarted(2));
        it.wait("it is healthy again", 5_000, health_is(id.clone(), HealthState::Healthy));
        node.stop_programming();
        it.wait("it is unhealthy again", 10_000, health_is(id.clone(), HealthState::Unhealthy));
        let status = task(it.cluster(), &id).unwrap().status;
        assert_eq!((status.state, status.error.as_str()), (TaskState::Running, "unhealthy: the program is not well"));
        assert_eq!(status.health.expect("it has a check").log.len(), 5);
        it.wait("it is restarted all the same", 2_000, restarted(3));
        // A container is unhealthy after five seconds. The first one waited for the confirmation, the second one in vain.
        let lives = lives(it);
        assert!(lives.len() == 2 && lives[0] < 5_500 && (6_000..6_500).contains(&lives[1]), "{lives:?}");
    });
}

/// The milliseconds for which each container on the second worker ran.
fn lives(it: &mut Script) -> Vec<u128> {
    let events = it.cluster().workers[1].machine.take_events();
    let times = |is: fn(WhatHappened) -> bool| events.iter().filter(move |it| is(it.what)).map(|it| it.at);
    let ends = times(|what| matches!(what, WhatHappened::Ended(_)));
    times(|what| what == WhatHappened::Started).zip(ends).map(|(start, end)| (end - start).as_millis()).collect()
}

/// So many tasks of the version of the spec run.
fn running(cluster: &SimCluster, version: u64) -> Result<usize, String> {
    let runs = |task: &&Task| task.spec_version == version && task.status.state == TaskState::Running;
    Ok(tasks_of(cluster, "web")?.iter().filter(runs).count())
}

#[test]
fn an_update_waits_until_a_new_task_is_healthy() {
    script(2, |it| {
        it.create(it.leader(), checked(2, 1)).unwrap();
        it.converge();
        let slow = ps::HealthSpec { start_period_ms: Some(10_000), start_interval_ms: Some(1_000), ..health() };
        set_health(it, FakeHealth::From(6 * SECOND));
        it.update(it.leader(), "slow", ps::ServiceSpec { healthcheck: Some(slow), ..checked(2, 2) }).unwrap();
        it.wait("the first new task waits for its health", 5_000, |cluster| {
            let tasks = tasks_of(cluster, "web")?;
            let starting = |task: &&Task| task.spec_version == 2 && task.status.state == TaskState::Starting;
            seen(tasks.iter().filter(starting).count() == 1, tasks.len())
        });
        it.pass(4_000);
        assert_eq!(running(it.cluster(), 1), Ok(1), "the other slot is not touched meanwhile");
        it.wait("both are replaced", 30_000, |cluster| seen(running(cluster, 2)? == 2, running(cluster, 1)));
    });
}

fn health() -> ps::HealthSpec {
    checked(1, 1).healthcheck.expect("it has one")
}

#[test]
fn an_update_whose_first_task_is_unhealthy_is_paused_with_the_output_of_the_check() {
    script(2, |it| {
        it.create(it.leader(), checked(2, 1)).unwrap();
        it.converge();
        set_health(it, FakeHealth::From(1_000 * SECOND));
        it.update(it.leader(), "bad", checked(2, 2)).unwrap();
        it.wait("the update is paused", 20_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            let service = view.service_by_name("web").ok_or("there is no such service")?;
            let why = service.update.reason.clone().filter(|_| service.update.is_paused()).unwrap_or_default();
            seen(why.ends_with(": it does not stay up (unhealthy: the program is not well)"), why)
        });
        it.pass(10_000);
        assert_eq!(running(it.cluster(), 1), Ok(1), "no other slot is touched");
    });
}
