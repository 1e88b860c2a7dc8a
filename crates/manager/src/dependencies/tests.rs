use std::num::NonZeroU64;
use std::sync::Arc;

use super::*;
use flota_api::model::{Health, HealthState, Node, NodeState, RestartPolicy, ServiceMode, TaskStatus, UpdateStatus};
use flota_api::object::StoreObject;
use flota_api::version::Timestamp;

/// A spec from `name: dependency dependency*`, where a star stands for the condition `completed`, a plus for `healthy`, and
/// a question mark for a dependency that is not required.
fn spec(text: &str) -> ServiceSpec {
    let (name, dependencies) = text.split_once(':').expect("a name");
    let depends_on = dependencies.split_whitespace().map(|it| {
        let condition = match () {
            () if it.contains('*') => DependencyCondition::Completed,
            () if it.contains('+') => DependencyCondition::Healthy,
            () => DependencyCondition::Started,
        };
        Dependency { service: it.trim_end_matches(['*', '+', '?']).into(), condition, required: !it.contains('?') }
    });
    ServiceSpec { name: name.into(), depends_on: depends_on.collect(), ..ServiceSpec::of_mode(replicated(2)) }
}

fn replicated(replicas: u64) -> ServiceMode {
    ServiceMode::Replicated { replicas }
}

/// The service has its name as its id.
fn service(spec: ServiceSpec) -> Service {
    let id = spec.name.as_str().into();
    Service { id, spec: Arc::new(spec), spec_version: 1, spec_set_at: Some(Timestamp(100)), ..Service::default() }
}

fn task(service: &str, slot: u64, state: TaskState) -> Task {
    let status = TaskStatus { state, ..TaskStatus::default() };
    let (id, service_id, node_id) = (format!("{service}.{slot}").into(), service.into(), Some("n".into()));
    Task { id, service_id, spec_version: 1, slot, status, node_id, ..Task::default() }
}

fn view(objects: impl IntoIterator<Item = Object>) -> Tables {
    let mut view = Tables::default();
    view.put(Node { id: "n".into(), state: NodeState::Ready, ..Node::default() }.into_object());
    view.put(Node { id: "lost".into(), state: NodeState::Down, ..Node::default() }.into_object());
    objects.into_iter().for_each(|object| view.put(object));
    view
}

fn shown(waits: &[Wait]) -> String {
    sentence(waits).unwrap_or_default()
}

/// What the service `web` waits for before it starts, where there is also `db` with these tasks.
fn start(web: &str, db: Service, tasks: Vec<Task>) -> String {
    let web = service(spec(web));
    let view =
        view([web.clone().into_object(), db.into_object()].into_iter().chain(tasks.into_iter().map(Task::into_object)));
    shown(&start_waits(&web, &view))
}

#[test]
fn the_first_tasks_wait_until_each_dependency_is_as_asked() {
    use TaskState::{Complete, Failed, Running, Starting};
    let db = || service(spec("db:"));
    let job = |completions, most| {
        let mode = ServiceMode::ReplicatedJob { completions, max_concurrent: std::num::NonZeroU64::new(most) };
        service(ServiceSpec { name: "db".into(), ..ServiceSpec::of_mode(mode) })
    };
    let db_1 = |state| task("db", 1, state);
    let db_2 = |state| task("db", 2, state);
    let with_health = |state| {
        let mut task = db_2(Running);
        task.status.health = Some(Box::new(Health { state, ..Health::default() }));
        task
    };
    let stopping = Task { desired_state: DesiredState::Shutdown, ..db_2(Running) };
    let stopped =
        |db: Service| Service { spec: Arc::new(ServiceSpec { stopped: true, ..db.spec.as_ref().clone() }), ..db };
    let of_phase = |phase| Service { update: UpdateStatus { phase, ..UpdateStatus::default() }, ..db() };
    for (web, db, tasks, expected) in [
        ("web: db", db(), vec![], "waits for `db`: 0 of 2 running"),
        ("web: db", db(), vec![db_1(Running), db_2(Starting)], "waits for `db`: 1 of 2 running"),
        ("web: db", db(), vec![db_1(Running), db_2(Running)], ""),
        (
            "web: db",
            db(),
            vec![db_1(Running), Task { id: "x".into(), ..db_1(Running) }],
            "waits for `db`: 1 of 2 running",
        ),
        ("web: db", db(), vec![db_1(Running), stopping], "waits for `db`: 1 of 2 running"),
        (
            "web: db",
            db(),
            vec![db_1(Running), Task { node_id: Some("lost".into()), ..db_2(Running) }],
            "waits for `db`: 1 of 2 running",
        ),
        ("web: db", db(), vec![db_1(Running), with_health(HealthState::Unhealthy)], ""),
        ("web: db+", db(), vec![db_1(Running), with_health(HealthState::Starting)], "waits for `db`: 1 of 2 healthy"),
        ("web: db+", db(), vec![db_1(Running), with_health(HealthState::Healthy)], ""),
        ("web: db*", job(2, 0), vec![db_1(Complete), db_2(Failed)], "waits for `db`: 1 of 2 completed"),
        ("web: db*", job(2, 0), vec![db_1(Complete), db_2(Complete)], ""),
        ("web: db*", job(1, 0), vec![Task { spec_version: 7, ..db_1(Complete) }], "waits for `db`: 0 of 1 completed"),
        ("web: db", job(5, 2), vec![db_1(Running)], "waits for `db`: 1 of 2 running"),
        ("web: db", job(5, 2), vec![db_1(Complete), db_2(Running)], ""),
        ("web: db", stopped(db()), vec![], "waits for `db`: it is stopped"),
        ("web: db?", stopped(db()), vec![], ""),
        ("web: db*", stopped(job(1, 0)), vec![db_1(Complete)], ""),
        ("web: db*", stopped(job(2, 0)), vec![db_1(Complete)], "waits for `db`: it is stopped"),
        ("web: no", db(), vec![], "waits for `no`: there is no such service"),
        ("web: no?", db(), vec![], ""),
        ("web: no db", db(), vec![], "waits for `no`: there is no such service, and for `db`: 0 of 2 running"),
        (
            "web: db",
            of_phase(UpdatePhase::Updating),
            vec![db_1(Running), db_2(Running)],
            "waits for `db`: it is being updated",
        ),
        ("web: db", of_phase(UpdatePhase::Paused), vec![db_1(Running), db_2(Running)], ""),
        // It has begun.
        ("web: db", db(), vec![task("web", 1, Failed)], ""),
        (
            "web: db",
            db(),
            vec![Task { desired_state: DesiredState::Remove, ..task("web", 1, Running) }],
            "waits for `db`: 0 of 2 running",
        ),
    ] {
        assert_eq!(start(web, db, tasks.clone()), expected, "{web} {tasks:?}");
    }
}

#[test]
fn a_service_on_each_node_has_started_once_it_runs_on_all_of_them_and_on_one_at_least() {
    let db = || service(ServiceSpec { name: "db".into(), ..ServiceSpec::of_mode(ServiceMode::Global {}) });
    let on = |node: &str| Task {
        node_id: Some(node.into()),
        pinned_to: Some(node.into()),
        ..task("db", 1, TaskState::Running)
    };
    assert_eq!(start("web: db", db(), vec![]), "waits for `db`: 0 of 1 running");
    assert_eq!(start("web: db", db(), vec![on("n")]), "");
    assert_eq!(start("web: db", db(), vec![on("lost")]), "waits for `db`: 0 of 1 running");
    let web = service(spec("web: db"));
    let mut nowhere = view([web.clone().into_object(), db().into_object()]);
    nowhere.remove(Kind::Node, "n");
    assert_eq!(shown(&start_waits(&web, &nowhere)), "waits for `db`: no node takes its tasks");
}

#[test]
fn a_new_run_of_a_job_waits_as_its_first_one() {
    let job = ServiceSpec {
        depends_on: spec("web: db").depends_on,
        name: "web".into(),
        ..ServiceSpec::of_mode(ServiceMode::GlobalJob {})
    };
    let web = Service { spec_version: 2, ..service(job) };
    let old = task("web", 1, TaskState::Complete);
    let with = |tasks: Vec<Task>| {
        let objects = [web.clone().into_object(), service(spec("db:")).into_object()];
        shown(&start_waits(&web, &view(objects.into_iter().chain(tasks.into_iter().map(Task::into_object)))))
    };
    assert_eq!(with(vec![old.clone()]), "waits for `db`: 0 of 2 running");
    let new = Task { id: "new".into(), spec_version: 2, ..task("web", 2, TaskState::Running) };
    assert_eq!(with(vec![old, new]), "");
}

#[test]
fn a_job_that_runs_by_an_earlier_spec_again_waits_anew() {
    let mode = ServiceMode::ReplicatedJob { completions: 1, max_concurrent: None };
    let job = ServiceSpec { depends_on: spec("web: db").depends_on, name: "web".into(), ..ServiceSpec::of_mode(mode) };
    // A rollback brings the number of the spec back.
    let web = Service { job_run: NonZeroU64::new(3), ..service(job) };
    let waits = |run| {
        let done = Task { run: NonZeroU64::new(run), ..task("web", 1, TaskState::Complete) };
        let objects = [web.clone().into_object(), service(spec("db:")).into_object(), done.into_object()];
        shown(&start_waits(&web, &view(objects)))
    };
    assert_eq!(waits(1), "waits for `db`: 0 of 2 running");
    assert_eq!(waits(3), "");
}

#[test]
fn an_update_waits_for_the_updates_of_its_dependencies_and_for_those_that_have_failed_since() {
    let cause = Some("db.1: it fell".to_owned());
    let update =
        |phase| UpdateStatus { phase, reason: cause.clone(), rollback_cause: cause.clone(), ..UpdateStatus::default() };
    let web = |phase| Service { update: update(phase), ..service(spec("web: db")) };
    let running = || [1, 2].map(|slot| task("db", slot, TaskState::Running).into_object());
    let back = "its update has failed and was rolled back: db.1: it fell";
    for (web_phase, phase, set_at, expected) in [
        (UpdatePhase::Updating, UpdatePhase::Completed, 100, ""),
        (UpdatePhase::Updating, UpdatePhase::Updating, 100, "it is being updated"),
        (UpdatePhase::Updating, UpdatePhase::RollingBack, 101, "it is being updated"),
        (UpdatePhase::Updating, UpdatePhase::Paused, 50, "its update is paused: db.1: it fell"),
        (UpdatePhase::Updating, UpdatePhase::RollbackPaused, 50, "its update is paused: db.1: it fell"),
        (UpdatePhase::Updating, UpdatePhase::RolledBack, 101, back),
        // Whoever asked for the update knew of the failure.
        (UpdatePhase::Updating, UpdatePhase::RolledBack, 99, ""),
        (UpdatePhase::RollingBack, UpdatePhase::Updating, 100, ""),
        (UpdatePhase::Completed, UpdatePhase::Updating, 100, ""),
    ] {
        let (web, db) = (
            web(web_phase),
            Service { update: update(phase), spec_set_at: Some(Timestamp(set_at)), ..service(spec("db:")) },
        );
        let view = view([web.clone().into_object(), db.into_object()].into_iter().chain(running()));
        let expected = if expected.is_empty() { String::new() } else { format!("waits for `db`: {expected}") };
        assert_eq!(shown(&update_waits(&web, &view)), expected, "{web_phase} {phase} {set_at}");
    }
    let web = web(UpdatePhase::Updating);
    let [one, _] = running();
    let mut view = view([web.clone().into_object(), service(spec("db:")).into_object(), one]);
    assert_eq!(shown(&update_waits(&web, &view)), "waits for `db`: 1 of 2 running");
    // What users read says so only while a task is left to replace.
    view.put(task("web", 1, TaskState::Running).into_object());
    assert_eq!(waits(&web, &view), []);
    view.put(Task { spec_version: 7, ..task("web", 1, TaskState::Running) }.into_object());
    assert_eq!(shown(&waits(&web, &view)), "waits for `db`: 1 of 2 running");
}

/// A view in which the services of these specs, two tasks each, were removed.
fn removed(specs: &[&str], stays: &[&str]) -> Tables {
    let tasks =
        |text: &&str| [1, 2].map(|slot| task(text.split(':').next().expect("a name"), slot, TaskState::Running));
    let mut view = view(specs.iter().chain(stays).map(|text| service(spec(text)).into_object()));
    specs.iter().chain(stays).flat_map(tasks).for_each(|task| view.put(task.into_object()));
    for text in specs {
        view.remove(Kind::Service, text.split(':').next().expect("a name"));
    }
    view
}

#[test]
fn what_others_depend_on_stops_after_them_if_they_stop_too() {
    for (gone, stays, id, expected) in [
        (&["db:", "web: db"][..], &[][..], "db", "waits for `web` to stop: 2 tasks are left"),
        (&["db:", "web: db"], &[], "web", ""),
        (&["db:"], &["web: db"], "db", ""),
        (&["db:", "web: db", "app: web"], &[], "web", "waits for `app` to stop: 2 tasks are left"),
        (
            &["db:", "web: db", "app: web"],
            &[],
            "db",
            "waits for `app` to stop: 2 tasks are left, and for `web` to stop: 2 tasks are left",
        ),
        // A circle stops at once.
        (&["db: web", "web: db"], &[], "db", ""),
        (&["db: web", "web: db", "app: db"], &[], "db", "waits for `app` to stop: 2 tasks are left"),
    ] {
        assert_eq!(shown(&stop_waits(&id.into(), &removed(gone, stays))), expected, "{gone:?} {stays:?} {id}");
    }
}

#[test]
fn tasks_that_have_ended_or_are_lost_are_not_waited_for() {
    let mut view = removed(&["db:", "web: db"], &[]);
    view.put(task("web", 1, TaskState::Shutdown).into_object());
    assert_eq!(shown(&stop_waits(&"db".into(), &view)), "waits for `web` to stop: 1 task is left");
    view.put(Task { node_id: Some("lost".into()), ..task("web", 2, TaskState::Running) }.into_object());
    assert_eq!(stop_waits(&"db".into(), &view), []);
    view.put(Task { node_id: None, ..task("web", 2, TaskState::Pending) }.into_object());
    assert_eq!(stop_waits(&"db".into(), &view), []);
    assert!(!may_stop(&task("db", 1, TaskState::Complete), true), "it says who stops before whom");
    assert!(may_stop(&Task { node_id: None, ..task("db", 1, TaskState::Pending) }, true), "nothing of it runs");
    assert!(!may_stop(&task("db", 1, TaskState::Running), true) && may_stop(&task("db", 1, TaskState::Running), false));
}

#[test]
fn only_services_that_may_go_on_are_looked_at_again() {
    let found = |event: Event, view: &Tables| {
        let changed = view.services().map(|it| it.id.clone()).collect::<Vec<_>>();
        concerned(&event, changed.into_iter(), view).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let starting = || task("db", 1, TaskState::Starting).into_object();
    let running = || task("db", 1, TaskState::Running).into_object();
    let has_started = || Event::Updated { old: starting(), new: running() };
    let mut waiting = view(["db:", "web: db", "app: web"].map(|text| service(spec(text)).into_object()));
    waiting.put(running());
    assert_eq!(found(has_started(), &waiting), "web");
    assert_eq!(found(Event::Updated { old: running(), new: running() }, &waiting), "");
    let node = waiting.node("n").expect("it is there").as_ref().clone().into_object();
    assert_eq!(found(Event::Removed(node), &waiting), "app web");
    let db = service(spec("db:")).into_object();
    assert_eq!(found(Event::Created(db.clone()), &waiting), "web");
    waiting.put(task("web", 1, TaskState::Running).into_object());
    assert_eq!(found(has_started(), &waiting), "", "it has begun");
    // The end of a task lets those stop that were waiting for it.
    let gone = removed(&["db:", "web: db", "app: web"], &[]);
    let ended = |service: &str| Event::Updated {
        old: task(service, 1, TaskState::Running).into_object(),
        new: task(service, 1, TaskState::Shutdown).into_object(),
    };
    assert_eq!(found(ended("app"), &gone), "db web", "also through others");
    assert_eq!(found(ended("web"), &gone), "db");
    let mut without_web = gone.clone();
    let last = || Event::Removed(task("web", 2, TaskState::Shutdown).into_object());
    for number in 1..=2 {
        assert!(!is_last_trace(&last(), &without_web));
        without_web.remove(Kind::Task, task("web", number, TaskState::Running).id.as_str());
    }
    assert!(is_last_trace(&last(), &without_web) && !is_last_trace(&ended("web"), &without_web));
    let left: Vec<String> = all_leaving(&without_web).map(ToString::to_string).collect();
    assert_eq!(left, ["app", "db"]);
    assert_eq!(found(ended("db"), &gone), "");
    let alone = view([service(ServiceSpec { restart: RestartPolicy::default(), ..spec("db:") }).into_object()]);
    assert_eq!(found(Event::Created(db), &alone), "");
}

#[test]
fn a_watch_follows_those_for_which_its_service_waits() {
    let view = removed(&["db:", "web: db"], &["app: no db"]);
    let of = |name: &str| Event::Removed(task(name, 1, TaskState::Running).into_object());
    let stops = Watched::of(&"db".into(), &view);
    assert!(stops.has(&of("web")) && !stops.has(&of("app")));
    let starts = Watched::of(&"app".into(), &view);
    assert!(starts.has(&Event::Created(service(spec("no:")).into_object())));
    assert!(!starts.has(&of("web")));
}
