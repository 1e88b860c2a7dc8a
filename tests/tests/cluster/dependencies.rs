//! Services that depend on each other: in which order they start, are updated and stop, and what they wait for.

use std::time::Duration;

use flota_api::model::UpdatePhase;
use flota_api::proto::control::{
    DeployStackRequest, GetRequest, RemoveStackRequest, ServiceProgress, StackRow, WatchServiceRequest,
};
use flota_api::proto::specs::{
    Dependency, DependencyCondition, FailureAction, HealthSpec, HealthTest, ServiceMode, ServiceSpec, StackSpec,
    UpdatePolicy, health_test::Test,
};
use flota_api::proto::types::{RestartCondition, RestartPolicy};
use flota_api::reason::Reason;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use flota_worker::{FakeFailure, FakeHealth, FakeProgram, MachineEvent, OnStop, WhatHappened};

use super::services::set_program;
use super::{Seen, another_leads, seen, tasks_of};

const SECOND: Duration = Duration::from_secs(1);

fn on(service: &str, condition: DependencyCondition) -> Dependency {
    Dependency { service: service.into(), condition: condition.into(), optional: false }
}

/// The database `shop_db`, with a health check.
fn db(version: &str) -> ServiceSpec {
    let test = HealthTest { test: Some(Test::Shell("well".into())) };
    let healthcheck = HealthSpec { test: Some(test), interval_ms: Some(500), retries: 10, ..Default::default() };
    let update = Some(UpdatePolicy { parallelism: 1, monitor_ms: 2_000, ..UpdatePolicy::default() });
    ServiceSpec { healthcheck: Some(healthcheck), env: vec![version.into()], update, ..spec("shop_db", 2) }
}

/// The job `shop_job`, which needs a database that is healthy.
fn job(version: &str) -> ServiceSpec {
    let restart = RestartPolicy { condition: RestartCondition::OnFailure.into(), delay_ms: 200, ..Default::default() };
    ServiceSpec {
        mode: ServiceMode::ReplicatedJob.into(),
        restart: Some(restart),
        env: vec![version.into()],
        depends_on: vec![on("shop_db", DependencyCondition::Healthy)],
        ..spec("shop_job", 1)
    }
}

/// The service `shop_app`, which needs the work of the job, and the database.
fn app(version: &str) -> ServiceSpec {
    let update = Some(UpdatePolicy { parallelism: 1, monitor_ms: 1_000, ..UpdatePolicy::default() });
    let depends_on = vec![on("shop_db", DependencyCondition::Started), on("shop_job", DependencyCondition::Completed)];
    ServiceSpec { env: vec![version.into()], depends_on, update, ..spec("shop_app", 2) }
}

fn shop(version: &str) -> Vec<ServiceSpec> {
    vec![app(version), db(version), job(version)]
}

/// Sets the programs of the shop: the database needs some seconds, and the job does its work in one.
fn set_programs(it: &mut Script) {
    let health = FakeHealth::From(2 * SECOND);
    set_program(it, "shop_db", &FakeProgram { start_delay: SECOND, health, ..FakeProgram::default() });
    set_program(it, "shop_job", &FakeProgram { runs: Some(SECOND), ..FakeProgram::default() });
}

fn deploy(it: &mut Script, services: Vec<ServiceSpec>, prune: bool) -> Result<StackRow, tonic::Status> {
    let request_id = format!("deploy at {}", it.cluster().world.now());
    let stack = StackSpec { name: "shop".into(), services, ..StackSpec::default() };
    let request = DeployStackRequest { request_id, spec: Some(stack), prune, ..Default::default() };
    let deployed = it.request(it.leader(), |mut client| async move { client.deploy_stack(request).await });
    Ok(deployed?.into_inner().stack.unwrap_or_default())
}

fn remove(it: &mut Script) {
    let request_id = format!("remove at {}", it.cluster().world.now());
    let request = RemoveStackRequest { request_id, name: "shop".into(), ..Default::default() };
    it.request(it.leader(), |mut client| async move { client.remove_stack(request).await }).unwrap();
}

/// What users read of a service: what it waits for.
fn waits(it: &mut Script, service: &str) -> String {
    let request = GetRequest { name: service.into() };
    let row = it.request(it.leader(), |mut client| async move { client.get_service(request).await });
    row.expect("it is there").into_inner().waits
}

/// The first report of the progress of a service, by its id.
fn progress(it: &mut Script, service: String) -> ServiceProgress {
    let watched = it.request(it.leader(), |mut client| async move {
        client.watch_service(WatchServiceRequest { service }).await?.into_inner().message().await
    });
    watched.expect("it is answered").expect("there is a report")
}

/// The starts and ends of all containers since the last call, in their order.
fn events(it: &mut Script) -> Vec<MachineEvent> {
    let mut events: Vec<_> = it.cluster().workers.iter().flat_map(|worker| worker.machine.take_events()).collect();
    events.sort_by_key(|event| event.at);
    events
}

fn places(events: &[MachineEvent], service: &str, is: impl Fn(WhatHappened) -> bool) -> Vec<usize> {
    let found = events.iter().enumerate().filter(|(_, event)| event.service == service && is(event.what));
    found.map(|(place, _)| place).collect()
}

fn starts(events: &[MachineEvent], service: &str) -> Vec<usize> {
    places(events, service, |what| what == WhatHappened::Started)
}

fn ends(events: &[MachineEvent], service: &str) -> Vec<usize> {
    places(events, service, |what| matches!(what, WhatHappened::Ended(_)))
}

/// So many tasks of a service serve, and have this version of its spec.
fn serving(service: &'static str, count: usize, version: u64) -> impl Fn(&SimCluster) -> Seen {
    move |cluster| {
        let tasks = tasks_of(cluster, service)?;
        let serve = tasks.iter().filter(|task| task.is_proven() && task.spec_version == version).count();
        seen(serve == count, tasks)
    }
}

/// Makes a shop that runs, and forgets how it came to be.
fn with_shop(it: &mut Script) {
    set_programs(it);
    deploy(it, shop("V=1"), false).expect("it is valid");
    it.wait("all of the stack runs", 30_000, serving("shop_app", 2, 1));
    it.converge();
    events(it);
}

#[test]
fn services_of_a_stack_start_when_those_on_which_they_depend_are_ready() {
    script(3, |it| {
        set_programs(it);
        deploy(it, shop("V=1"), false).expect("it is valid");
        it.pass(500);
        assert_eq!(waits(it, "shop_job"), "waits for `shop_db`: 0 of 2 healthy");
        let expected = "waits for `shop_db`: 0 of 2 running, and for `shop_job`: 0 of 1 completed";
        assert_eq!(waits(it, "shop_app"), expected);
        assert_eq!(progress(it, "shop_app".into()).waits, expected);
        it.wait("the last of the stack runs", 30_000, serving("shop_app", 2, 1));
        assert_eq!(waits(it, "shop_app"), "");
        let events = events(it);
        let [db, job, app] = ["shop_db", "shop_job", "shop_app"].map(|name| starts(&events, name));
        assert_eq!((db.len(), job.len(), app.len()), (2, 1, 2), "{events:?}");
        assert!(db.iter().all(|it| *it < job[0]), "{events:?}");
        let healthy = events[db[1]].at + 2 * SECOND;
        assert!(events[job[0]].at >= healthy, "the checks of the database come first: {events:?}");
        assert!(app.iter().all(|it| *it > ends(&events, "shop_job")[0]), "{events:?}");
    });
}

#[test]
fn what_has_started_does_not_depend_on_others_any_more() {
    script(3, |it| {
        with_shop(it);
        let app_tasks = tasks_of(it.cluster(), "shop_app").expect("it is there");
        let start_failure = Some(FakeFailure::always("no such file"));
        set_program(it, "shop_db", &FakeProgram { start_failure, ..FakeProgram::default() });
        let victims: Vec<String> =
            tasks_of(it.cluster(), "shop_db").expect("it is there").iter().map(|task| task.id.to_string()).collect();
        it.cluster().workers.iter().for_each(|worker| victims.iter().for_each(|task| worker.machine.kill(task)));
        it.wait("no database runs", 10_000, |cluster| {
            let tasks = tasks_of(cluster, "shop_db")?;
            seen(!tasks.iter().any(|task| task.is_serving()), tasks)
        });
        it.pass(5_000);
        let now = tasks_of(it.cluster(), "shop_app").expect("it is there");
        assert!(app_tasks.iter().all(|task| now.iter().any(|it| it.id == task.id && it.is_serving())), "{now:?}");
        // Neither scaling nor a restart is held up.
        it.update(it.leader(), "more", ServiceSpec { replicas: 4, ..app("V=1") }).unwrap();
        it.wait("two more run", 10_000, serving("shop_app", 4, 1));
        let one = now[0].id.to_string();
        it.cluster().workers.iter().for_each(|worker| worker.machine.kill(&one));
        it.wait("the one that has ended runs again", 20_000, serving("shop_app", 4, 1));
    });
}

#[test]
fn an_update_of_a_stack_follows_the_order_of_its_services() {
    script(3, |it| {
        with_shop(it);
        deploy(it, shop("V=2"), false).expect("it is valid");
        it.pass(500);
        assert!(
            waits(it, "shop_app").starts_with("waits for `shop_db`: it is being updated"),
            "{}",
            waits(it, "shop_app")
        );
        it.wait("the last of the stack is updated", 60_000, serving("shop_app", 2, 2));
        it.converge();
        let events = events(it);
        let [db, job, new] = ["shop_db", "shop_job", "shop_app"].map(|name| starts(&events, name));
        assert_eq!((db.len(), job.len(), new.len()), (2, 1, 2), "{events:?}");
        assert!(db.iter().all(|it| *it < job[0]), "{events:?}");
        let stopped = ends(&events, "shop_app");
        assert!(stopped.iter().all(|it| *it > ends(&events, "shop_job")[0]), "{events:?}");
        // What depends on others alone has changed: no task is replaced.
        let other = ServiceSpec { depends_on: vec![on("shop_db", DependencyCondition::Healthy)], ..app("V=2") };
        it.update(it.leader(), "other dependencies", other).unwrap();
        it.pass(2_000);
        assert_eq!(self::events(it), []);
    });
}

#[test]
fn an_update_that_has_failed_holds_up_those_that_depend_on_it_until_a_user_decides() {
    script(3, |it| {
        with_shop(it);
        // Its old tasks go on.
        let prepare_failure = Some(FakeFailure::always("no such image"));
        set_program(it, "shop_db", &FakeProgram { prepare_failure, ..FakeProgram::default() });
        let failure_action = FailureAction::Rollback.into();
        let policy = UpdatePolicy { failure_action, parallelism: 1, monitor_ms: 2_000, ..UpdatePolicy::default() };
        let bad = ServiceSpec { update: Some(policy), ..db("V=2") };
        let app_alone = |version: &str| {
            let depends_on = vec![on("shop_db", DependencyCondition::Started)];
            ServiceSpec { depends_on, ..app(version) }
        };
        deploy(it, vec![app_alone("V=2"), bad, job("V=1")], false).expect("it is valid");
        it.wait("the database is rolled back", 60_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            let update = view.service_by_name("shop_db").ok_or("there is no such service")?.update.clone();
            seen(update.phase == UpdatePhase::RolledBack, update)
        });
        it.pass(10_000);
        let why = waits(it, "shop_app");
        assert!(why.starts_with("waits for `shop_db`: its update has failed and was rolled back: shop_db."), "{why}");
        assert!(serving("shop_app", 2, 1)(it.cluster()).is_ok(), "its tasks are as before");
        // A later update is asked for by somebody who can know.
        it.update(it.leader(), "again", app_alone("V=3")).unwrap();
        it.wait("it is updated", 30_000, serving("shop_app", 2, 3));
    });
}

#[test]
fn services_of_a_removed_stack_stop_after_those_that_depend_on_them() {
    script(3, |it| {
        set_programs(it);
        let on_stop = OnStop::Exit { after: SECOND / 2, code: 0 };
        set_program(it, "shop_app", &FakeProgram { on_stop, ..FakeProgram::default() });
        deploy(it, shop("V=1"), false).expect("it is valid");
        it.wait("all of the stack runs", 30_000, serving("shop_app", 2, 1));
        let id = it.cluster().view().and_then(|view| Some(view.service_by_name("shop_db")?.id.to_string()));
        events(it);
        remove(it);
        let progress = progress(it, id.expect("it was there"));
        assert_eq!(progress.waits, "waits for `shop_app` to stop: 2 tasks are left");
        assert_eq!(progress.hanging[0].reason, progress.waits);
        it.wait("nothing is left", 20_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            seen(view.tasks().count() == 0, view.tasks().count())
        });
        let events = events(it);
        let (app, db) = (ends(&events, "shop_app"), ends(&events, "shop_db"));
        assert_eq!((app.len(), db.len()), (2, 2), "{events:?}");
        assert!(app[1] < db[0], "{events:?}");
    });
}

#[test]
fn a_lost_node_does_not_keep_what_its_tasks_depend_on() {
    script(2, |it| {
        set_program(it, "shop_app", &FakeProgram { on_stop: OnStop::Ignore, ..FakeProgram::default() });
        let app = ServiceSpec {
            depends_on: vec![on("shop_db", DependencyCondition::Started)],
            stop_grace_ms: 60_000,
            ..spec("shop_app", 2)
        };
        deploy(it, vec![app, spec("shop_db", 2)], false).expect("it is valid");
        it.wait("all run", 20_000, serving("shop_app", 2, 1));
        remove(it);
        it.pass(5_000);
        let count = |cluster: &SimCluster, service: &str| {
            let running = cluster.workers.iter().flat_map(|it| it.machine.running());
            running.filter(|it| it.service == service).count()
        };
        assert_eq!((count(it.cluster(), "shop_app"), count(it.cluster(), "shop_db")), (2, 2));
        (0..2).for_each(|worker| it.cluster().crash_worker(worker, true));
        it.wait("the tasks of the database are told to stop", 20_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            seen(view.tasks().all(|task| task.desired_state.is_stopping()), view.tasks().count())
        });
    });
}

#[test]
fn the_order_holds_although_the_leader_dies() {
    script(3, |it| {
        set_programs(it);
        deploy(it, shop("V=1"), false).expect("it is valid");
        it.wait("the database starts", 10_000, |cluster| {
            let tasks = tasks_of(cluster, "shop_db")?;
            seen(tasks.len() == 2, tasks)
        });
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another one leads", 10_000, another_leads(leader));
        it.cluster().start_manager(leader);
        it.wait("the last of the stack runs", 30_000, serving("shop_app", 2, 1));
        let events = events(it);
        let [db, job, app] = ["shop_db", "shop_job", "shop_app"].map(|name| starts(&events, name));
        assert!(db.iter().all(|it| *it < job[0]), "{events:?}");
        assert!(app.iter().all(|it| *it > ends(&events, "shop_job")[0]), "{events:?}");
        remove(it);
        let leader = it.leader();
        it.cluster().crash_manager(leader, false);
        it.cluster().start_manager(leader);
        it.wait("a manager leads and nothing is left", 60_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            seen(view.tasks().count() == 0, view.tasks().count())
        });
        let events = self::events(it);
        assert!(ends(&events, "shop_app").iter().max() < ends(&events, "shop_db").iter().min(), "{events:?}");
    });
}

#[test]
fn what_can_never_start_is_refused_and_says_why() {
    script(1, |it| {
        let on_app = vec![on("shop_app", DependencyCondition::Started)];
        let circle = vec![app("V=1"), ServiceSpec { depends_on: on_app.clone(), ..db("V=1") }, job("V=1")];
        let refused = deploy(it, circle, false).expect_err("none could start");
        assert_eq!(Reason::of(&refused), Some(Reason::Invalid));
        let expected = "services.shop_app.depends_on[0]: it closes a circle: `shop_app` depends on `shop_db`, which depends \
                        on `shop_app`";
        assert!(refused.message().contains(expected), "{}", refused.message());
        let app =
            ServiceSpec { depends_on: vec![on("shop_db", DependencyCondition::Completed)], ..spec("shop_app", 1) };
        it.create(it.leader(), app).unwrap();
        it.pass(2_000);
        assert_eq!(waits(it, "shop_app"), "waits for `shop_db`: there is no such service");
        let refused = it.create(it.leader(), ServiceSpec { depends_on: on_app, ..spec("shop_db", 1) });
        let text = refused.expect_err("a circle").message().to_owned();
        assert!(text.contains("depends_on[0]: it closes a circle"), "{text}");
        assert!(text.contains("restart.condition: `shop_app` waits until `shop_db` has completed"), "{text}");
    });
}
