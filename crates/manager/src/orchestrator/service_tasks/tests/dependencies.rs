//! Services that wait for others, and others for them.

use super::*;
use flota_api::model::{Dependency, DependencyCondition};

/// The service, which depends on `db`.
fn dependent(service: Service) -> Service {
    let on_db = Dependency { service: "db".into(), condition: DependencyCondition::Started, required: true };
    Service { spec: Arc::new(ServiceSpec { depends_on: vec![on_db], ..service.spec.as_ref().clone() }), ..service }
}

/// The service `db` with one task in this state.
fn db(state: TaskState) -> [Object; 2] {
    let spec = Arc::new(ServiceSpec { name: "db".into(), ..ServiceSpec::default() });
    let task = Task { service_id: "d".into(), ..task("db1", 1, "a", state) };
    [Service { id: "d".into(), spec, spec_version: 1, ..Service::default() }.into_object(), task.into_object()]
}

fn with(service: &Service, objects: impl IntoIterator<Item = Object>) -> Tables {
    view(objects.into_iter().chain([service.clone().into_object()]))
}

#[test]
fn first_tasks_wait_and_later_ones_do_not() {
    let web = dependent(service(2));
    assert_eq!(planned(&with(&web, db(TaskState::Starting))), <[String; 0]>::default());
    assert_eq!(planned(&with(&web, db(TaskState::Running))), ["+1 after 0 ms", "+2 after 0 ms"]);
    let mut begun = with(&web, db(TaskState::Failed));
    begun.put(task("t1", 1, "a", TaskState::Running).into_object());
    assert_eq!(planned(&begun), ["+2 after 0 ms"]);
}

#[test]
fn a_plan_that_has_waited_fails_if_what_it_has_waited_for_changes() {
    let expects = |service: &Service, tables: &Tables| {
        let plan = ServiceTasks::default().plan(&Key::of(&service.id), tables, &mut PlanContext::at(NOW));
        plan.expects.contains(&(Kind::Service, "d".into()))
    };
    let web = dependent(service(1));
    let mut tables = with(&web, db(TaskState::Running));
    assert!(expects(&web, &tables));
    tables.put(task("t1", 1, "a", TaskState::Running).into_object());
    assert!(!expects(&web, &tables), "it has begun");
}

#[test]
fn a_new_run_of_a_job_ends_the_one_before_and_waits() {
    let mode = ServiceMode::ReplicatedJob { completions: 1, max_concurrent: None };
    let job = service(1);
    let spec = ServiceSpec { name: "web".into(), ..ServiceSpec::of_mode(mode) };
    let job = dependent(Service { spec: Arc::new(spec), spec_version: 2, spec_set_at: Some(NOW), ..job });
    let old = task("t1", 1, "a", TaskState::Running);
    let mut tables = with(&job, db(TaskState::Starting));
    tables.put(old.clone().into_object());
    assert_eq!(planned(&tables), ["t1:shutdown"]);
    // Neither the slot by itself gets on, nor the service.
    tables.put(Task { desired_state: DesiredState::Shutdown, ..task("t1", 1, "a", TaskState::Shutdown) }.into_object());
    for key in [Key::of("s"), Key::slot_of(&old)] {
        assert_eq!(ServiceTasks::default().plan(&key, &tables, &mut PlanContext::at(NOW)).changes, []);
    }
    db(TaskState::Running).into_iter().for_each(|object| tables.put(object));
    assert_eq!(planned(&tables), ["+1 after 0 ms"]);
}

#[test]
fn an_update_finishes_the_slots_that_it_has_begun_and_begins_with_no_other() {
    let web = dependent(Service { update: UpdateStatus::begun(1), spec_version: 2, ..service(3) });
    let mut tables = with(&web, db(TaskState::Starting));
    (1..=3).for_each(|slot| tables.put(task(&format!("t{slot}"), slot, "a", TaskState::Running).into_object()));
    assert_eq!(planned(&tables), <[String; 0]>::default());
    let new = Task { desired_state: DesiredState::Ready, spec_version: 2, ..task("n1", 1, "b", TaskState::Ready) };
    tables.put(new.into_object());
    assert_eq!(planned(&tables), ["t1:shutdown"]);
    let mut free = with(&web, db(TaskState::Running));
    (1..=3).for_each(|slot| free.put(task(&format!("t{slot}"), slot, "a", TaskState::Running).into_object()));
    assert_eq!(planned(&free), ["+1 ready after 0 ms"]);
}

#[test]
fn what_others_need_stops_after_them_whether_it_was_stopped_or_removed() {
    let stopped = |service: Service| Service {
        spec: Arc::new(ServiceSpec { stopped: true, ..service.spec.as_ref().clone() }),
        ..service
    };
    let planned_of = |id: &str, tables: &Tables| {
        let plan = ServiceTasks::default().plan(&Key::of(id), tables, &mut PlanContext::at(NOW));
        plan.changes.len()
    };
    let mut tables = with(&dependent(service(1)), db(TaskState::Running));
    tables.put(task("t1", 1, "a", TaskState::Running).into_object());
    let database = tables.service("d").expect("it is there").as_ref().clone();
    tables.put(stopped(database.clone()).into_object());
    assert_eq!(planned_of("d", &tables), 1, "what depends on it stays, and is not waited for");
    tables.put(stopped(dependent(service(1))).into_object());
    assert_eq!((planned_of("d", &tables), planned_of("s", &tables)), (0, 1));
    tables.remove(Kind::Service, "s");
    tables.remove(Kind::Service, "d");
    assert_eq!((planned_of("d", &tables), planned_of("s", &tables)), (0, 1));
    tables.put(task("t1", 1, "a", TaskState::Shutdown).into_object());
    assert_eq!(planned_of("d", &tables), 1);
}
