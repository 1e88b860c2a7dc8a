//! Credentials that have changed since a registry did not send the image of a task.

use super::*;
use flota_api::model::Registry;

const BOUNDED: NonZeroU64 = NonZeroU64::MIN;

/// A service of which each slot is restarted once.
fn bounded() -> Service {
    with_restart(RestartPolicy { max_attempts: Some(BOUNDED), ..RestartPolicy::default() })
}

/// A task of slot 1 that was made at this version.
fn made(id: &str, created: u64, state: TaskState) -> Task {
    let task = task(id, 1, "a", state);
    let lacks_image = state == TaskState::Rejected;
    Task {
        meta: Meta { created, updated_at: NOW, ..Meta::default() },
        status: TaskStatus { lacks_image, ..task.status },
        ..task
    }
}

/// A task that was rejected although its slot had been restarted as often as it may.
fn rejected(created: u64) -> Task {
    let restart_history = RestartHistory { in_a_row: 1, count: 1, times: Vec::new() };
    Task { restart_history, ..made("t1", created, TaskState::Rejected) }
}

/// The credentials of a registry that were changed at this version.
fn registry(host: &str, version: u64) -> Object {
    let meta = Meta { version, ..Meta::default() };
    Registry { id: host.into(), host: host.into(), meta, ..Registry::default() }.into_object()
}

#[test]
fn a_slot_that_was_given_up_is_tried_again_when_the_credentials_have_changed() {
    let after = |registry: Object, last: Task| planned(&view([bounded().into_object(), last.into_object(), registry]));
    assert_eq!(after(registry("docker.io", 6), rejected(5)), ["+1 after 0 ms"]);
    assert_eq!(after(registry("docker.io", 4), rejected(5)), [""; 0], "it has tried these");
    assert_eq!(after(registry("other", 6), rejected(5)), [""; 0], "its image is elsewhere");
    let damaged = rejected(5);
    let damaged = Task { status: TaskStatus { lacks_image: false, ..damaged.status.clone() }, ..damaged };
    assert_eq!(after(registry("docker.io", 6), damaged), [""; 0], "it had its image");
    let failed = Task { restart_history: rejected(5).restart_history, ..made("t1", 5, TaskState::Failed) };
    assert_eq!(after(registry("docker.io", 6), failed), [""; 0], "it ran");
}

#[test]
fn the_budget_begins_anew_with_other_credentials() {
    let objects = [bounded().into_object(), rejected(5).into_object(), registry("docker.io", 6)];
    let plan = ServiceTasks::default().plan(&Key::of("s"), &view(objects), &mut PlanContext::at(NOW));
    let [Change::Put(Object::Task(task))] = plan.changes.as_slice() else { panic!("{:?}", plan.changes) };
    assert_eq!((task.restart_history.count, task.restarts()), (0, 1));
}

#[test]
fn a_task_that_waits_after_one_without_image_is_replaced_by_one_that_does_not() {
    let waiting =
        |created| Task { not_before: Some(NOW + Duration::from_secs(60)), ..made("t2", created, TaskState::Ready) };
    let with = |version, waiting: Task| {
        let before = rejected(5).into_object();
        planned(&view([bounded().into_object(), before, waiting.into_object(), registry("docker.io", version)]))
    };
    assert_eq!(with(8, waiting(7)), ["t2:shutdown"]);
    assert_eq!(with(6, waiting(7)), [""; 0], "it was made with these");
    assert_eq!(with(8, Task { status: made("", 0, TaskState::Running).status, ..waiting(7) }), [""; 0], "it runs");
    let told = Task { desired_state: DesiredState::Shutdown, ..waiting(7) };
    let ended = Task { status: made("", 0, TaskState::Shutdown).status, ..told };
    assert_eq!(with(8, ended), ["+1 after 0 ms"]);
}

#[test]
fn other_credentials_concern_the_services_with_images_of_that_registry_alone() {
    let mut view = view([service(1).into_object()]);
    let concerned = |view: &Tables, host| ServiceTasks::default().dirtied_by(&Event::Created(registry(host, 6)), view);
    assert_eq!(concerned(&view, "docker.io"), [Key::of("s")]);
    assert_eq!(concerned(&view, "other"), []);
    let running = made("t1", 5, TaskState::Running).into_object();
    view.put(running);
    view.put(registry("docker.io", 6));
    assert_eq!(planned(&view), [""; 0], "what runs is left alone");
}
