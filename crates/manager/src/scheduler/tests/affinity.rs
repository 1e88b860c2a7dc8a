//! Services that run beside others, or apart from them, and those that are packed.

use flota_api::model::PlacementStrategy;

use super::*;
use crate::affinity::must_part;

/// Three nodes; a service `s` with this spec and so many waiting tasks; another one, `db`, with this spec and tasks on these
/// nodes.
fn cluster(spec: ServiceSpec, waiting: u64, other: ServiceSpec, nodes: &[(&str, TaskState)]) -> Tables {
    let mut objects: Vec<Object> = ["a", "b", "c"].map(|id| node(id).into_object()).into();
    objects.push(service("s", spec).into_object());
    objects.push(service("db", other).into_object());
    objects.extend(pending(waiting));
    objects.extend(
        (1..)
            .zip(nodes)
            .map(|(slot, (node, state))| Task { slot, ..task(&format!("db{slot}"), "db", node, *state) }.into_object()),
    );
    view(objects)
}

fn beside_db() -> ServiceSpec {
    ServiceSpec { affinity: vec!["db".into()], ..ServiceSpec::default() }
}

fn apart_from(name: &str) -> ServiceSpec {
    ServiceSpec { anti_affinity: vec![name.into()], ..ServiceSpec::default() }
}

const RUNNING: TaskState = TaskState::Running;

#[test]
fn a_task_runs_beside_the_service_that_it_needs_or_waits_for_it() {
    let none = ServiceSpec::default;
    let with = |nodes: &[(&str, TaskState)]| planned(&cluster(beside_db(), 2, none(), nodes), "s");
    assert_eq!(with(&[("b", RUNNING)]), ["p1@b", "p2@b"]);
    assert_eq!(with(&[("b", RUNNING), ("c", TaskState::Assigned)]), ["p1@b", "p2@c"]);
    let why = "p1: no node fits: 3 of 3 without a task of a service to run beside";
    assert_eq!(with(&[("b", TaskState::Failed)])[0], why);
    let mut alone = cluster(beside_db(), 1, none(), &[]);
    alone.remove(Kind::Service, "db");
    assert_eq!(planned(&alone, "s"), [why], "there is no such service");
}

#[test]
fn a_task_that_waits_for_another_service_is_looked_at_when_that_gets_a_node() {
    let view = cluster(beside_db(), 1, ServiceSpec::default(), &[("b", RUNNING)]);
    let placed = task("db1", "db", "b", TaskState::Assigned);
    let unplaced = task("db1", "db", "", TaskState::Pending);
    let events = [
        Event::Created(placed.clone().into_object()),
        Event::Updated { old: unplaced.into_object(), new: placed.into_object() },
    ];
    for event in events {
        assert_eq!(Scheduler.dirtied_by(&event, &view), [Key::of("s")]);
    }
}

#[test]
fn services_are_kept_apart_whichever_of_them_says_so() {
    let both = [("a", RUNNING), ("b", TaskState::Running)];
    let expected = ["p1@c", "p2@c"];
    assert_eq!(planned(&cluster(apart_from("db"), 2, ServiceSpec::default(), &both), "s"), expected);
    assert_eq!(planned(&cluster(ServiceSpec::default(), 2, apart_from("s"), &both), "s"), expected);
    let everywhere = [("a", RUNNING), ("b", RUNNING), ("c", RUNNING)];
    let why = "p1: no node fits: 3 of 3 with a task of a service to keep apart from";
    assert_eq!(planned(&cluster(apart_from("db"), 1, ServiceSpec::default(), &everywhere), "s"), [why]);
    // A task that is being stopped still runs.
    let mut stopping = cluster(apart_from("db"), 1, ServiceSpec::default(), &everywhere);
    let last = Task { desired_state: DesiredState::Shutdown, slot: 3, ..task("db3", "db", "c", RUNNING) };
    stopping.put(last.clone().into_object());
    assert_eq!(planned(&stopping, "s"), [why]);
    let ended = Task { status: TaskStatus { state: TaskState::Shutdown, ..last.status.clone() }, ..last.clone() };
    stopping.put(ended.clone().into_object());
    assert_eq!(planned(&stopping, "s"), ["p1@c"]);
    let event = Event::Updated { old: last.into_object(), new: ended.into_object() };
    assert_eq!(Scheduler.dirtied_by(&event, &stopping), [Key::of("s")], "and its end is noticed");
}

#[test]
fn what_another_service_no_longer_asks_for_holds_nobody_up() {
    let view = cluster(ServiceSpec::default(), 1, apart_from("s"), &[("a", RUNNING)]);
    let old = view.service("db").expect("it is there").as_ref().clone();
    let new = Service { spec: Arc::new(ServiceSpec { name: "db".into(), ..ServiceSpec::default() }), ..old.clone() };
    let event = Event::Updated { old: old.into_object(), new: new.into_object() };
    assert_eq!(Scheduler.dirtied_by(&event, &view), [Key::of("s")]);
}

#[test]
fn of_two_services_that_have_to_part_one_gives_way() {
    let parts = |first: ServiceSpec, second: ServiceSpec| {
        let mut view = cluster(first, 0, second, &[("a", RUNNING)]);
        view.put(Task { slot: 1, ..task("s1", "s", "a", RUNNING) }.into_object());
        let node = view.node("a").expect("it is there");
        ["s", "db"].map(|id| must_part(view.service(id).expect("it is there"), node, &view))
    };
    assert_eq!(parts(apart_from("db"), ServiceSpec::default()), [true, false]);
    assert_eq!(parts(ServiceSpec::default(), apart_from("s")), [false, true]);
    let both = parts(apart_from("db"), apart_from("s"));
    assert_ne!(both[0], both[1], "else both would move, and might meet again");
}

#[test]
fn a_service_that_is_packed_fills_one_node_after_the_other() {
    let reservations = Resources { nano_cpus: 1_500_000_000, memory_bytes: GIB };
    let packed = ServiceSpec { strategy: PlacementStrategy::Binpack, reservations, ..ServiceSpec::default() };
    let placed = planned(&cluster(packed.clone(), 5, ServiceSpec::default(), &[("b", RUNNING)]), "s");
    assert_eq!(
        placed,
        ["p1@b", "p2@b", "p3@a", "p4@a", "p5@c"],
        "two fit on a node; the one that has a task comes first"
    );
    let zones = vec![NodeProperty::parse("node.labels.zone").expect("it is one")];
    let spread = ServiceSpec { spread_over: zones, ..packed };
    let mut view = cluster(spread, 3, ServiceSpec::default(), &[("b", RUNNING)]);
    view.put(labelled("a", &[("zone", "x")]).into_object());
    view.put(labelled("b", &[("zone", "y")]).into_object());
    view.put(labelled("c", &[("zone", "x")]).into_object());
    assert_eq!(planned(&view, "s"), ["p1@a", "p2@b", "p3@a"], "packed within each zone");
}
