//! Updates: how the tasks of a service are replaced by each policy, and what follows when new ones fail.

use std::cell::Cell;
use std::collections::BTreeSet;

use flota_api::model::{Service, UpdatePhase};
use flota_api::proto::control::{GetRequest, PauseUpdateRequest, RollbackServiceRequest};
use flota_api::proto::specs::{FailureAction, NodeSpec, ServiceSpec, UpdateOrder, UpdatePolicy};
use flota_api::proto::types::Resources;
use flota_api::reason::Reason;
use flota_api::state::TaskState;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::{FakeFailure, FakeProgram};

use super::services::{ends_with, running, set_program};
use super::{Seen, seen, tasks_are, tasks_of};

/// The service whose updates start the new task first: the simulation's checks know it by this name.
const STARTED_FIRST: &str = "the-queue";
/// Number of tasks of a service whose updates are counted.
const REPLICAS: usize = 6;

fn with_env(name: &str, replicas: u64, env: &str) -> ServiceSpec {
    ServiceSpec { env: vec![env.into()], ..spec(name, replicas) }
}

/// The policy of an update that replaces so many tasks at once.
fn policy(parallelism: u64, order: UpdateOrder) -> UpdatePolicy {
    UpdatePolicy { parallelism, order: order.into(), monitor_ms: 5_000, ..UpdatePolicy::default() }
}

fn service(cluster: &SimCluster, name: &str) -> Result<Service, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    Ok(view.service_by_name(name).ok_or("there is no such service")?.as_ref().clone())
}

/// The update of the service is in this phase.
fn update_is(name: &'static str, phase: UpdatePhase) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let update = service(cluster, name)?.update;
        seen(update.phase == phase, update)
    }
}

/// The tasks of a service that serve, by slot, with the version of their spec.
fn serving(cluster: &SimCluster, name: &str) -> Result<BTreeSet<(u64, u64)>, String> {
    let tasks = tasks_of(cluster, name)?;
    Ok(tasks.iter().filter(|it| it.is_serving()).map(|it| (it.slot, it.spec_version)).collect())
}

fn roll_back(it: &mut Script, service: &str, version: Option<u64>) -> Result<(), tonic::Status> {
    let request_id = format!("roll back to {version:?} at {}", it.cluster().world.now());
    let request = RollbackServiceRequest { request_id, service: service.into(), version };
    it.request(it.leader(), |mut client| async move { client.rollback_service(request).await.map(drop) })
}

pub(super) fn pause(it: &mut Script, service: &str, paused: bool) -> Result<(), tonic::Status> {
    let request_id = format!("pause {paused} at {}", it.cluster().world.now());
    let request = PauseUpdateRequest { request_id, service: service.into(), paused };
    it.request(it.leader(), |mut client| async move { client.pause_update(request).await.map(drop) })
}

#[test]
fn update_replaces_one_task_after_the_other() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 4)).unwrap();
        it.converge();
        let before = it.picture();
        it.update(it.leader(), "update", with_env("web", 4, "VERSION=2")).unwrap();
        let least = Cell::new(usize::MAX);
        it.wait("all tasks are of the new spec", 30_000, |cluster| {
            least.set(least.get().min(running(cluster)));
            let tasks = tasks_of(cluster, "web")?;
            let new = tasks.iter().filter(|it| it.spec_version == 2 && it.status.state == TaskState::Running).count();
            seen(new == 4, new)
        });
        assert_eq!(least.get(), 3, "one at a time is replaced");
        it.converge();
        let after = it.picture();
        assert!(before.split(", ").all(|task| !after.contains(task)), "{before}; {after}");
    });
}

#[test]
fn update_has_exactly_the_surge_and_the_shortage_that_its_policy_allows() {
    use UpdateOrder::{StartFirst, StopFirst};
    for (name, parallelism, order, shortage, surge) in [
        ("web", 1, StopFirst, 1, 0),
        ("web", 4, StopFirst, 4, 0),
        ("web", 0, StopFirst, REPLICAS, 0),
        (STARTED_FIRST, 1, StartFirst, 0, 1),
        (STARTED_FIRST, 2, StartFirst, 0, 2),
        (STARTED_FIRST, 0, StartFirst, 0, REPLICAS),
    ] {
        script(3, move |it| {
            let spec = |env: &str| ServiceSpec {
                update: Some(policy(parallelism, order)),
                ..with_env(name, REPLICAS as u64, env)
            };
            it.create(it.leader(), spec("VERSION=1")).unwrap();
            it.converge();
            it.update(it.leader(), "update", spec("VERSION=2")).unwrap();
            let seen = shortage_and_surge(it, name, UpdatePhase::Completed);
            assert_eq!(seen, (shortage, surge), "{name}: {parallelism} at once, {order:?}");
            let all: BTreeSet<_> = (1..=REPLICAS as u64).map(|slot| (slot, 2)).collect();
            assert_eq!(serving(it.cluster(), name), Ok(all));
            it.converge();
        });
    }
}

#[test]
fn rollback_has_exactly_the_surge_and_the_shortage_that_its_own_policy_allows() {
    use UpdateOrder::{StartFirst, StopFirst};
    for (name, update, rollback, shortage, surge) in [
        ("web", policy(0, StopFirst), policy(1, StopFirst), 1, 0),
        ("web", policy(1, StopFirst), policy(4, StopFirst), 4, 0),
        (STARTED_FIRST, policy(0, StartFirst), policy(1, StartFirst), 0, 1),
        (STARTED_FIRST, policy(1, StartFirst), policy(2, StopFirst), 2, 0),
        (STARTED_FIRST, policy(1, StopFirst), policy(3, StartFirst), 0, 3),
    ] {
        script(3, move |it| {
            let spec = |env: &str| ServiceSpec {
                update: Some(update),
                rollback: Some(rollback),
                ..with_env(name, REPLICAS as u64, env)
            };
            it.create(it.leader(), spec("VERSION=1")).unwrap();
            it.converge();
            it.update(it.leader(), "update", spec("VERSION=2")).unwrap();
            it.wait("the update is done", 60_000, update_is(name, UpdatePhase::Completed));
            roll_back(it, name, None).unwrap();
            let seen = shortage_and_surge(it, name, UpdatePhase::RolledBack);
            assert_eq!(seen, (shortage, surge), "{name}: {rollback:?}");
            let all: BTreeSet<_> = (1..=REPLICAS as u64).map(|slot| (slot, 1)).collect();
            assert_eq!(serving(it.cluster(), name), Ok(all));
            it.converge();
        });
    }
}

/// Waits for the end of an update of a service with [`REPLICAS`] tasks. Returns how many fewer have served than it is to
/// have, and how many more have run.
fn shortage_and_surge(it: &mut Script, name: &'static str, end: UpdatePhase) -> (usize, usize) {
    let (least, most) = (Cell::new(usize::MAX), Cell::new(0));
    // The condition is asked after each event of the simulation.
    it.wait("the update is done", 60_000, |cluster| {
        let serving = tasks_of(cluster, name)?.iter().filter(|task| task.is_serving()).count();
        least.set(least.get().min(serving));
        most.set(most.get().max(running(cluster)));
        update_is(name, end)(cluster)
    });
    (REPLICAS - least.get(), most.get() - REPLICAS)
}

/// The update of `web` is paused, for this reason.
fn paused_because(reason: &'static str) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let view = cluster.view().ok_or("no manager leads")?;
        let service = view.service_by_name("web").ok_or("there is no such service")?;
        let paused = format!("{:?}", service.update);
        seen(paused.contains(reason), paused)
    }
}

#[test]
fn update_whose_first_task_does_not_stay_up_is_paused_and_touches_no_other_slot() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 3)).unwrap();
        it.converge();
        set_program(it, "web", &ends_with(3));
        it.update(it.leader(), "bad", with_env("web", 3, "VERSION=2")).unwrap();
        it.wait("the update is paused", 20_000, paused_because("it does not stay up (exit code 3)"));
        it.pass(10_000);
        let tasks = tasks_of(it.cluster(), "web").unwrap();
        let old = tasks.iter().filter(|it| it.spec_version == 1 && it.status.state == TaskState::Running);
        assert_eq!(old.count(), 2, "{tasks:?}");
        set_program(it, "web", &FakeProgram::default());
        it.update(it.leader(), "good", with_env("web", 3, "VERSION=3")).unwrap();
        it.converge();
    });
}

#[test]
fn failed_update_is_rolled_back_and_touches_only_the_slots_that_it_has_changed() {
    script(2, |it| {
        let policy =
            UpdatePolicy { failure_action: FailureAction::Rollback.into(), ..policy(1, UpdateOrder::StopFirst) };
        let spec = |env: &str| ServiceSpec { update: Some(policy), ..with_env("web", 3, env) };
        it.create(it.leader(), spec("VERSION=1")).unwrap();
        it.converge();
        let before = it.picture();
        set_program(it, "web", &ends_with(3));
        it.update(it.leader(), "bad", spec("VERSION=2")).unwrap();
        it.wait("it is rolled back", 20_000, update_is("web", UpdatePhase::RollingBack));
        set_program(it, "web", &FakeProgram::default());
        it.wait("the rollback is done", 20_000, update_is("web", UpdatePhase::RolledBack));
        let service = service(it.cluster(), "web").unwrap();
        assert_eq!((service.spec_version, service.spec.env[0].as_str()), (1, "VERSION=1"));
        let reason = service.update.rollback_cause.unwrap_or_default();
        assert!(reason.starts_with("web.") && reason.ends_with(": it does not stay up (exit code 3)"), "{reason}");
        it.converge();
        let after = it.picture();
        let kept = before.split(", ").filter(|task| after.contains(task)).count();
        assert_eq!(kept, 2, "{before}; {after}");
    });
}

#[test]
fn failure_of_a_start_first_update_takes_nothing_from_what_serves() {
    script(2, |it| {
        let spec = |env: &str| ServiceSpec {
            update: Some(policy(1, UpdateOrder::StartFirst)),
            ..with_env(STARTED_FIRST, 2, env)
        };
        it.create(it.leader(), spec("VERSION=1")).unwrap();
        it.converge();
        let before = it.picture();
        let start_failure = Some(FakeFailure::always("no such file"));
        set_program(it, STARTED_FIRST, &FakeProgram { start_failure, ..FakeProgram::default() });
        it.update(it.leader(), "bad", spec("VERSION=2")).unwrap();
        it.wait("the update is paused", 20_000, |cluster| {
            let now = serving(cluster, STARTED_FIRST)?;
            assert_eq!(now.len(), 2, "a task that served is gone");
            update_is(STARTED_FIRST, UpdatePhase::Paused)(cluster)
        });
        it.pass(10_000);
        assert_eq!(it.picture(), before);
        roll_back(it, STARTED_FIRST, None).unwrap();
        it.wait("the rollback is done", 20_000, update_is(STARTED_FIRST, UpdatePhase::RolledBack));
        assert_eq!(it.picture(), before, "the old tasks have what is wanted");
    });
}

#[test]
fn user_brings_a_service_back_to_any_kept_spec_and_its_number_of_tasks_stays() {
    script(2, |it| {
        for (number, replicas) in [(1, 2), (2, 2), (3, 4)] {
            let spec = with_env("web", replicas, &format!("VERSION={number}"));
            if number == 1 {
                it.create(it.leader(), spec).unwrap();
            } else {
                it.update(it.leader(), &format!("update {number}"), spec).unwrap();
            }
            it.wait("it is done", 30_000, update_is("web", UpdatePhase::Completed));
            it.converge();
        }
        roll_back(it, "web", Some(1)).unwrap();
        it.wait("it is done", 30_000, update_is("web", UpdatePhase::RolledBack));
        let all = |version| (1..=4).map(|slot| (slot, version)).collect::<BTreeSet<_>>();
        assert_eq!(serving(it.cluster(), "web"), Ok(all(1)));
        let first = service(it.cluster(), "web").unwrap();
        assert_eq!((first.spec.env[0].as_str(), first.spec.mode.replicas()), ("VERSION=1", Some(4)));
        let history = |it: &mut Script| {
            let request = GetRequest { name: "web".into() };
            let answer = it.request(it.leader(), |mut client| async move { client.get_service_history(request).await });
            let version = |it: &flota_api::proto::control::ServiceRevision| it.revision.as_ref().unwrap().version;
            answer.unwrap().into_inner().revisions.iter().map(version).collect::<Vec<_>>()
        };
        assert_eq!(history(it), [1, 3, 2]);
        let error = roll_back(it, "web", None).unwrap_err();
        assert!(error.message().contains("service `web` is back at spec 1 already: say which other one"), "{error}");
        roll_back(it, "web", Some(3)).unwrap();
        it.wait("it is done", 30_000, update_is("web", UpdatePhase::RolledBack));
        assert_eq!(serving(it.cluster(), "web"), Ok(all(3)));
        assert_eq!(history(it), [3, 1, 2]);
        for (version, reason, why) in [
            (3, Reason::WrongState, "service `web` has spec 3 now"),
            (9, Reason::Invalid, "there is no spec 9 of service `web` any more"),
        ] {
            let error = roll_back(it, "web", Some(version)).unwrap_err();
            assert!(Reason::of(&error) == Some(reason) && error.message().contains(why), "{error}");
        }
    });
}

#[test]
fn user_pauses_an_update_and_lets_it_go_on() {
    script(2, |it| {
        it.create(it.leader(), with_env("web", 4, "VERSION=1")).unwrap();
        it.converge();
        let error = pause(it, "web", true).unwrap_err();
        assert!(error.message().contains("service `web` is not being updated"), "{error}");
        it.update(it.leader(), "update", with_env("web", 4, "VERSION=2")).unwrap();
        pause(it, "web", true).unwrap();
        it.pass(20_000);
        let done = serving(it.cluster(), "web").unwrap().into_iter().filter(|(_, version)| *version == 2).count();
        assert!(done < 4, "{done} are replaced");
        it.update(it.leader(), "scale", with_env("web", 5, "VERSION=2")).unwrap();
        it.pass(10_000);
        let update = service(it.cluster(), "web").unwrap().update;
        assert!(update.is_paused() && update.reason.as_deref() == Some("a user has paused it"), "{update:?}");
        pause(it, "web", false).unwrap();
        it.wait("it is done", 30_000, update_is("web", UpdatePhase::Completed));
        assert_eq!(serving(it.cluster(), "web"), Ok((1..=5).map(|slot| (slot, 2)).collect()));
        let error = pause(it, "web", false).unwrap_err();
        assert!(error.message().contains("the update of service `web` is not paused"), "{error}");
    });
}

#[test]
fn update_that_goes_on_after_a_failure_leaves_the_failing_slot_and_tolerates_what_its_policy_says() {
    script(2, |it| {
        let tolerant = UpdatePolicy { max_failure_millionths: 250_000, ..policy(1, UpdateOrder::StopFirst) };
        let spec = |env: &str| ServiceSpec { update: Some(tolerant), ..with_env("web", 4, env) };
        it.create(it.leader(), spec("VERSION=1")).unwrap();
        it.converge();
        set_program(it, "web", &ends_with(3));
        it.update(it.leader(), "bad", spec("VERSION=2")).unwrap();
        it.wait("the update is paused", 20_000, update_is("web", UpdatePhase::Paused));
        let failed = service(it.cluster(), "web").unwrap().update.failed_slots;
        assert_eq!(failed.len(), 2, "one of four may fail: {failed:?}");
        set_program(it, "web", &FakeProgram::default());
        pause(it, "web", false).unwrap();
        it.wait("the update is done", 60_000, update_is("web", UpdatePhase::Completed));
        it.converge();
        assert_eq!(serving(it.cluster(), "web"), Ok((1..=4).map(|slot| (slot, 2)).collect()));
    });
}

#[test]
fn service_that_is_stopped_has_no_tasks_and_keeps_its_number() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 3)).unwrap();
        it.converge();
        let stopped = |stopped| ServiceSpec { stopped, ..spec("web", 3) };
        it.update(it.leader(), "stop", stopped(true)).unwrap();
        it.wait("no task is left", 10_000, |cluster| seen(tasks_of(cluster, "web")?.is_empty(), running(cluster)));
        it.pass(5_000);
        assert_eq!(running(it.cluster()), 0);
        it.update(it.leader(), "start", stopped(false)).unwrap();
        it.wait("all run again", 10_000, tasks_are("web", 3, TaskState::Running));
        assert_eq!(service(it.cluster(), "web").unwrap().spec_version, 1, "that is no update");
    });
}

#[test]
fn update_of_labels_and_policies_alone_replaces_nothing() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 3)).unwrap();
        it.converge();
        let before = it.picture();
        let labels = [("a".to_owned(), "b".to_owned())].into();
        let update = Some(policy(3, UpdateOrder::StartFirst));
        it.update(it.leader(), "labels", ServiceSpec { labels, update, rollback: update, ..spec("web", 3) }).unwrap();
        it.pass(10_000);
        assert_eq!(it.picture(), before);
    });
}

#[test]
fn update_whose_constraint_no_node_meets_stops_no_healthy_task() {
    script(2, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        let before = it.picture();
        let constraints = vec!["node.labels.zone==a".into()];
        let update = UpdatePolicy { progress_deadline_ms: Some(40_000), ..policy(1, UpdateOrder::StopFirst) };
        let spec = ServiceSpec { constraints, update: Some(update), ..with_env("web", 2, "VERSION=2") };
        it.update(it.leader(), "update", spec).unwrap();
        it.wait("a new task waits", 5_000, tasks_are("web", 1, TaskState::Pending));
        it.pass(30_000);
        assert_eq!(it.picture(), before);
        it.wait("it has waited for long enough", 15_000, update_is("web", UpdatePhase::Paused));
        let reason = service(it.cluster(), "web").unwrap().update.reason.unwrap();
        let why = "no node fits: 2 of 5 excluded by a constraint, 3 of 5 not ready";
        assert_eq!(reason, format!("web.1: it does not serve within 40 s: {why}"));
        assert_eq!(it.picture(), before);
        pause(it, "web", false).unwrap();
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        it.update_node("w2", NodeSpec { labels, ..NodeSpec::default() });
        it.converge();
        let running = [0, 1].map(|worker| it.cluster().workers[worker].machine.running().len());
        assert_eq!(running, [0, 2], "the update goes on, where the node has the label");
    });
}

#[test]
fn update_that_needs_the_room_of_the_old_task_goes_on() {
    script(1, |it| {
        let whole = Resources { nano_cpus: 8_000_000_000, ..Resources::default() };
        let large = |env: &str| ServiceSpec { reservations: Some(whole), ..with_env("web", 1, env) };
        it.create(it.leader(), large("VERSION=1")).unwrap();
        it.converge();
        let before = it.picture();
        it.update(it.leader(), "update", large("VERSION=2")).unwrap();
        it.converge();
        let after = it.picture();
        assert!(after != before && running(it.cluster()) == 1, "{before}; {after}");
    });
}

#[test]
fn many_updates_in_a_row_end_in_the_last_one() {
    script(3, |it| {
        it.create(it.leader(), spec("web", 2)).unwrap();
        for number in 1..=40 {
            let replicas = 1 + number % 4;
            let spec = with_env("web", replicas, &format!("N={number}"));
            it.update(it.leader(), &format!("update {number}"), spec).unwrap();
        }
        it.converge();
        let tasks = tasks_of(it.cluster(), "web").unwrap();
        let view = it.cluster().view().unwrap();
        let live: Vec<_> = tasks.iter().filter(|task| task.is_live()).collect();
        assert_eq!(live.len(), 1, "{tasks:?}");
        assert_eq!(view.spec_of(live[0]).unwrap().env, ["N=40"]);
    });
}
