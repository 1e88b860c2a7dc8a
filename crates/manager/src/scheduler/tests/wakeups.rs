//! Which services are planned again after a change, because it may help their waiting tasks.

use super::*;

#[test]
fn another_placement_concerns_the_tasks_that_wait() {
    let old = service("s", ServiceSpec::default());
    let event = Event::Updated { old: old.clone().into_object(), new: old.clone().into_object() };
    let idle = view(vec![old.clone().into_object()]);
    assert_eq!(Scheduler.dirtied_by(&event, &idle), []);
    let waits = view(vec![old.into_object(), task("p", "s", "", TaskState::Pending).into_object()]);
    assert_eq!(Scheduler.dirtied_by(&event, &waits), [Key::of("s")]);
}

#[test]
fn a_task_that_ends_wakes_only_services_that_can_use_its_room() {
    let mut objects = vec![node("a").into_object()];
    for (id, memory) in [("small", GIB), ("large", 5 * GIB)] {
        objects.push(service(id, reserving(memory)).into_object());
        objects.push(task(&format!("of-{id}"), id, "", TaskState::Pending).into_object());
    }
    objects.push(service("other", reserving(4 * GIB)).into_object());
    let (running, ended) = (task("o", "other", "a", TaskState::Running), task("o", "other", "a", TaskState::Complete));
    objects.push(ended.clone().into_object());
    let woken = |old: Task, new: Task| {
        let event = Event::Updated { old: old.into_object(), new: new.into_object() };
        Scheduler.dirtied_by(&event, &view(objects.clone())).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(woken(running.clone(), ended), ["small"]);
    let starting = task("o", "other", "a", TaskState::Starting);
    assert_eq!(woken(starting, running), [""; 0], "a report frees nothing");
}
