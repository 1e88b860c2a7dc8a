//! Services: restarts, scaling, and tasks that wait for room.

use std::time::Duration;

use flota_api::model::NodeState;
use flota_api::proto::control::{CreateServiceRequest, PutRegistryRequest, RemoveRequest, RemoveTaskRequest};
use flota_api::proto::specs::{GenericResource, NodeSpec, ServiceSpec};
use flota_api::proto::types::{Resources, RestartCondition, RestartPolicy};
use flota_api::state::TaskState;
use flota_tests::sim::cluster::{DEVICE_KIND, SimCluster};
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::{FakeFailure, FakeProgram, OnStop, WhatHappened};

use super::{containers, node_is, seen, tasks_are, tasks_of};

/// A program that ends after a tenth of a second.
pub(super) fn ends_with(exit_code: i32) -> FakeProgram {
    FakeProgram { runs: Some(Duration::from_millis(100)), exit_code, ..FakeProgram::default() }
}

pub(super) fn set_program(it: &mut Script, service: &str, program: &FakeProgram) {
    it.cluster().workers.iter().for_each(|worker| worker.machine.set_program(service, program.clone()));
}

fn restarting(name: &str, condition: RestartCondition, max_attempts: u64) -> ServiceSpec {
    let restart = RestartPolicy { condition: condition.into(), delay_ms: 1_000, max_attempts, window_ms: 0 };
    ServiceSpec { restart: Some(restart), ..spec(name, 1) }
}

#[test]
fn request_of_another_method_with_the_same_id_is_another_request() {
    script(1, |it| {
        let create = CreateServiceRequest { request_id: "x".into(), spec: Some(spec("web", 1)), ..Default::default() };
        let remove = RemoveRequest { request_id: "x".into(), name: "web".into(), ..RemoveRequest::default() };
        for _ in 0..2 {
            let create = create.clone();
            it.request(it.leader(), |mut client| async move { client.create_service(create).await }).unwrap();
        }
        assert_eq!(it.cluster().view().unwrap().services().count(), 1, "a repeated request is carried out once");
        for _ in 0..2 {
            let remove = remove.clone();
            it.request(it.leader(), |mut client| async move { client.remove_service(remove).await }).unwrap();
        }
        assert_eq!(it.cluster().view().unwrap().services().count(), 0);
    });
}

#[test]
fn failing_program_is_restarted_with_growing_delays_until_its_budget_is_gone() {
    script(1, |it| {
        set_program(it, "bad", &ends_with(7));
        it.create(it.leader(), restarting("bad", RestartCondition::Any, 3)).unwrap();
        it.wait("the worker has given up", 20_000, tasks_are("bad", 1, TaskState::Failed));
        let tasks = tasks_of(it.cluster(), "bad").unwrap();
        let task = &tasks[0];
        assert_eq!((task.status.attempt, task.restarts(), task.status.exit_code), (4, 3, Some(7)));
        let events = it.cluster().workers[0].machine.take_events();
        let starts: Vec<_> = events.iter().filter(|it| it.what == WhatHappened::Started).map(|it| it.at).collect();
        let pauses: Vec<_> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        // None before the first restart, then the policy's second, doubled each time; a program runs for 100 ms.
        let expected = [100..300, 1_100..1_300, 2_100..2_300];
        assert!(pauses.len() == 3 && pauses.iter().zip(&expected).all(|(it, range)| range.contains(it)), "{pauses:?}");
        it.pass(10_000);
        assert_eq!(tasks_of(it.cluster(), "bad").unwrap().len(), 1, "the slot stays down when its budget is gone");
    });
}

#[test]
fn program_that_keeps_failing_is_tried_on_another_node_after_seven_starts() {
    script(2, |it| {
        set_program(it, "bad", &ends_with(7));
        it.create(it.leader(), restarting("bad", RestartCondition::Any, 9)).unwrap();
        it.wait("its budget is gone", 400_000, |cluster| {
            let tasks = tasks_of(cluster, "bad")?;
            let is_over = tasks.iter().all(|task| task.status.state == TaskState::Failed);
            seen(is_over && tasks.len() > 1, tasks.iter().map(|task| &task.status).collect::<Vec<_>>())
        });
        let mut tasks = tasks_of(it.cluster(), "bad").unwrap();
        tasks.sort_by_key(|task| task.meta.order());
        let [first, second] = tasks.as_slice() else { panic!("{tasks:?}") };
        assert_eq!((first.status.attempt, second.status.attempt), (7, 3), "a start and nine restarts");
        assert_ne!(first.node_id, second.node_id);
        assert_eq!(second.restarts(), 9);
    });
}

#[test]
fn task_whose_image_a_registry_refused_is_made_anew_with_other_credentials_and_no_other_is_touched() {
    script(2, |it| {
        let refused = FakeProgram { prepare_failure: Some(FakeFailure::always("401")), ..FakeProgram::default() };
        it.create(it.leader(), spec("web", 1)).unwrap();
        it.wait("another service runs", 5_000, tasks_are("web", 1, TaskState::Running));
        let others = tasks_of(it.cluster(), "web").unwrap();
        set_program(it, "private", &refused);
        it.create(it.leader(), restarting("private", RestartCondition::Any, 1)).unwrap();
        it.wait("it is given up", 60_000, tasks_are("private", 2, TaskState::Rejected));
        it.pass(60_000);
        tasks_are("private", 2, TaskState::Rejected)(it.cluster()).expect("its budget is gone");
        set_program(it, "private", &FakeProgram::default());
        let (request_id, host) = ("login".into(), "docker.io".into());
        let login = PutRegistryRequest { request_id, host, username: "ada".into(), password: "p".into() };
        it.request(it.leader(), |mut client| async move { client.put_registry(login).await }).unwrap();
        it.wait("it runs", 5_000, tasks_are("private", 1, TaskState::Running));
        let ids = |tasks: &[flota_api::model::Task]| tasks.iter().map(|task| task.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&tasks_of(it.cluster(), "web").unwrap()), ids(&others), "it has its image");
    });
}

#[test]
fn program_that_ends_well_is_complete_where_only_failures_are_restarted() {
    script(1, |it| {
        set_program(it, "job", &ends_with(0));
        it.create(it.leader(), restarting("job", RestartCondition::OnFailure, 0)).unwrap();
        it.wait("it is complete", 5_000, tasks_are("job", 1, TaskState::Complete));
        it.pass(10_000);
        let tasks = tasks_of(it.cluster(), "job").unwrap();
        assert_eq!((tasks.len(), tasks[0].status.attempt), (1, 1), "{tasks:?}");
    });
}

#[test]
fn program_that_fails_is_not_started_again_where_nothing_is_restarted() {
    script(1, |it| {
        set_program(it, "once", &ends_with(3));
        it.create(it.leader(), restarting("once", RestartCondition::None, 0)).unwrap();
        it.wait("it has failed", 5_000, tasks_are("once", 1, TaskState::Failed));
        it.pass(10_000);
        let tasks = tasks_of(it.cluster(), "once").unwrap();
        assert_eq!((tasks.len(), tasks[0].status.attempt), (1, 1), "{tasks:?}");
    });
}

#[test]
fn container_that_is_killed_from_outside_is_started_again_by_its_worker() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 1)).unwrap();
        it.converge();
        let worker = (0..2).find(|number| !it.cluster().workers[*number].machine.running().is_empty()).unwrap();
        let before = it.cluster().workers[worker].machine.running()[0].task.clone();
        it.cluster().workers[worker].machine.kill(&before);
        it.wait("the second attempt runs", 5_000, |cluster| {
            let tasks = tasks_of(cluster, "web")?;
            let status = tasks.first().map(|task| (task.status.attempt, task.status.state));
            seen(status == Some((2, TaskState::Running)), status)
        });
        assert_eq!(it.cluster().workers[worker].machine.running()[0].task, before, "the same task, on its node");
    });
}

#[test]
fn program_that_ignores_the_stop_signal_is_killed_after_its_grace() {
    script(1, |it| {
        set_program(it, "web", &FakeProgram { on_stop: OnStop::Ignore, ..FakeProgram::default() });
        it.create(it.leader(), spec("web", 1)).unwrap();
        it.converge();
        let request = RemoveRequest { request_id: "rm".into(), name: "web".into(), ..RemoveRequest::default() };
        it.request(it.leader(), |mut client| async move { client.remove_service(request).await }).unwrap();
        let took = it.wait("it is gone", 5_000, containers(0, 0));
        assert!((900..1_500).contains(&took), "its grace is a second: it took {took} ms");
        it.wait("nothing is left of the service", 5_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            seen(view.tasks().count() == 0 && view.services().count() == 0, view.tasks().count())
        });
    });
}

/// Containers of `web` that run, on all machines.
pub(super) fn running(cluster: &SimCluster) -> usize {
    cluster.workers.iter().map(|worker| worker.machine.running().len()).sum()
}

#[test]
fn scaling_replaces_nothing() {
    script(3, |it| {
        it.create(it.leader(), spec("web", 3)).unwrap();
        it.converge();
        let three = it.picture();
        it.update(it.leader(), "more", spec("web", 6)).unwrap();
        it.converge();
        let six = it.picture();
        assert!(three.split(", ").all(|task| six.contains(task)), "{three}; {six}");
        it.update(it.leader(), "fewer", spec("web", 2)).unwrap();
        it.converge();
        let two = it.picture();
        assert!(two.split(", ").all(|task| six.contains(task)), "{six}; {two}");
    });
}

#[test]
fn task_whose_constraint_no_node_meets_starts_when_one_does() {
    script(2, |it| {
        let constraints = vec!["node.labels.zone==a".into()];
        it.create(it.leader(), ServiceSpec { constraints, ..spec("web", 1) }).unwrap();
        it.wait("it waits", 5_000, tasks_are("web", 1, TaskState::Pending));
        it.pass(5_000);
        assert_eq!(running(it.cluster()), 0);
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        it.update_node("w2", NodeSpec { labels, ..NodeSpec::default() });
        it.wait("it runs on the node that has the label now", 5_000, containers(1, 1));
    });
}

#[test]
fn tasks_move_off_nodes_that_no_longer_meet_the_constraints_and_the_others_stay() {
    script(3, |it| {
        let label =
            |zone: &str| NodeSpec { labels: [("zone".to_owned(), zone.to_owned())].into(), ..NodeSpec::default() };
        for (node, zone) in [("w1", "a"), ("w2", "a"), ("w3", "b")] {
            it.update_node(node, label(zone));
        }
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        let before = it.picture();
        let stayed = |it: &mut Script, before: &str| {
            let after = it.picture();
            before.split(", ").filter(|task| after.contains(task)).count()
        };
        let on = |it: &mut Script, worker: usize| it.cluster().workers[worker].machine.running().len();
        let staying = on(it, 0) + on(it, 1);
        let constraints = vec!["node.labels.zone==a".into()];
        it.update(it.leader(), "constrained", ServiceSpec { constraints, ..spec("web", 4) }).unwrap();
        it.wait("none is left on the third node", 10_000, containers(2, 0));
        it.converge();
        assert_eq!(stayed(it, &before), staying, "no task is touched whose node meets the constraint");
        let (before, staying) = (it.picture(), on(it, 1));
        it.update_node("w1", label("b"));
        it.wait("none is left on the first node", 10_000, containers(0, 0));
        it.converge();
        assert_eq!(stayed(it, &before), staying);
        it.update_node("w2", label("b"));
        it.pass(10_000);
        containers(1, 4)(it.cluster()).unwrap();
    });
}

#[test]
fn task_without_room_starts_when_another_service_makes_room() {
    script(1, |it| {
        let whole = Resources { nano_cpus: 8_000_000_000, ..Resources::default() };
        let large = |name: &str| ServiceSpec { reservations: Some(whole), ..spec(name, 1) };
        it.create(it.leader(), large("first")).unwrap();
        it.converge();
        it.create(it.leader(), large("second")).unwrap();
        it.wait("it waits", 5_000, tasks_are("second", 1, TaskState::Pending));
        it.pass(5_000);
        let request = RemoveRequest { request_id: "rm".into(), name: "first".into(), ..RemoveRequest::default() };
        it.request(it.leader(), |mut client| async move { client.remove_service(request).await }).unwrap();
        it.converge();
        assert_eq!(it.cluster().workers[0].machine.running()[0].service, "second");
    });
}

#[test]
fn each_device_goes_to_one_task_and_to_the_next_when_it_is_free() {
    script(1, |it| {
        let device = GenericResource { kind: DEVICE_KIND.into(), count: 1 };
        it.create(it.leader(), ServiceSpec { generic_resources: vec![device], ..spec("web", 3) }).unwrap();
        it.wait("two run", 5_000, tasks_are("web", 2, TaskState::Running));
        it.wait("the third waits", 5_000, tasks_are("web", 1, TaskState::Pending));
        let mut ids: Vec<_> =
            tasks_of(it.cluster(), "web").unwrap().iter().flat_map(|it| it.device_ids.clone()).collect();
        ids.sort_by(|left, right| left.id.cmp(&right.id));
        ids.dedup();
        assert_eq!(ids.len(), 2, "each has one of its own");
        let first = tasks_of(it.cluster(), "web").unwrap().into_iter().find(|it| it.status.state == TaskState::Running);
        let name = first.unwrap().id.to_string();
        let request = RemoveTaskRequest { request_id: "rm".into(), name, shrink: true };
        it.request(it.leader(), |mut client| async move { client.remove_task(request).await }).unwrap();
        it.converge();
        assert_eq!(running(it.cluster()), 2);
    });
}

#[test]
fn tasks_are_spread_over_the_nodes_that_are_ready() {
    script(4, |it| {
        it.cluster().crash_worker(3, true);
        it.wait("the node is down", 6_000, node_is(3, NodeState::Down));
        it.create(it.leader(), spec("web", 6)).unwrap();
        it.wait("two run on each of the others", 5_000, |cluster| {
            (0..3).try_for_each(|worker| containers(worker, 2)(cluster))
        });
    });
}
