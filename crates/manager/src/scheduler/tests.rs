use rand::SeedableRng;

use super::*;
use crate::plan::Change;
use flota_api::model::{Availability, NodeState, Service};
use flota_api::object::StoreObject;
use flota_api::version::{Meta, Timestamp};

const GIB: u64 = 1 << 30;

fn node(id: &str) -> Node {
    let mut node = Node { id: id.into(), state: NodeState::Ready, ..Node::default() };
    node.description.resources = Resources { nano_cpus: 4_000_000_000, memory_bytes: 4 * GIB, pids: 0 };
    node
}

fn service(id: &str, spec: ServiceSpec) -> Service {
    let spec = Arc::new(ServiceSpec { name: id.into(), ..spec });
    Service { id: id.into(), spec, spec_version: 1, ..Service::default() }
}

fn task(id: &str, service: &str, node: &str, state: TaskState) -> Task {
    Task {
        id: id.into(),
        service_id: service.into(),
        spec_version: 1,
        node_id: node.into(),
        status: TaskStatus { state, ..TaskStatus::default() },
        meta: Meta { created_at: Timestamp(id.len() as u64), ..Meta::default() },
        ..Task::default()
    }
}

fn view(objects: Vec<Object>) -> Tables {
    let mut view = Tables::default();
    objects.into_iter().for_each(|object| view.put(object));
    view
}

/// `task@node`, or `task: reason`.
fn planned(view: &Tables, key: &str) -> Vec<String> {
    let mut cx = PlanContext { now: Timestamp(1), rng: rand::rngs::StdRng::seed_from_u64(1) };
    let plan = Scheduler.plan(key, view, &mut cx);
    let short = |change: &Change| match change {
        Change::Put(Object::Task(task)) if task.node_id.is_empty() => format!("{}: {}", task.id, task.pending_reason),
        Change::Put(Object::Task(task)) => format!("{}@{}", task.id, task.node_id),
        other => format!("{other:?}"),
    };
    plan.changes.iter().map(short).collect()
}

#[test]
fn tasks_spread_over_the_nodes_that_have_the_fewest_of_their_service_then_of_all() {
    let mut objects: Vec<Object> = ["a", "b", "c"].map(|id| node(id).into_object()).into();
    objects.push(service("s", ServiceSpec::default()).into_object());
    objects.push(service("other", ServiceSpec::default()).into_object());
    objects.push(task("r", "s", "a", TaskState::Running).into_object());
    objects.push(task("o", "other", "b", TaskState::Running).into_object());
    objects.push(task("p1", "s", "", TaskState::Pending).into_object());
    objects.push(task("p2x", "s", "", TaskState::Pending).into_object());
    assert_eq!(planned(&view(objects.clone()), "s"), ["p1@c", "p2x@b"], "service balance wins, total breaks ties");
    // A crowd of another service does not keep this one away.
    objects
        .extend((0..5).map(|number| task(&format!("crowd{number}"), "other", "c", TaskState::Running).into_object()));
    assert_eq!(planned(&view(objects), "s"), ["p1@b", "p2x@c"]);
}

#[test]
fn a_task_that_fits_nowhere_says_why_by_counts() {
    let mut drained = node("a");
    drained.spec.availability = Availability::Drain;
    let down = Node { state: NodeState::Down, ..node("b") };
    let full = node("c");
    let reservations = Resources { memory_bytes: 3 * GIB, ..Resources::default() };
    let spec = ServiceSpec { reservations, ..ServiceSpec::default() };
    let mut objects =
        vec![drained.into_object(), down.into_object(), full.into_object(), service("s", spec).into_object()];
    objects.push(task("r", "s", "c", TaskState::Running).into_object());
    objects.push(task("p1", "s", "", TaskState::Pending).into_object());
    let reason = "p1: no node fits: 1 of 3 drained, 1 of 3 not ready, 1 of 3 without enough memory";
    assert_eq!(planned(&view(objects.clone()), "s"), [reason]);
    // What has ended holds nothing.
    objects[4] = task("r", "s", "c", TaskState::Failed).into_object();
    assert_eq!(planned(&view(objects), "s"), ["p1@c"]);
    let alone =
        vec![service("s", ServiceSpec::default()).into_object(), task("p1", "s", "", TaskState::Pending).into_object()];
    assert_eq!(planned(&view(alone), "s"), ["p1: there is no node"]);
}

#[test]
fn one_pass_never_oversells_a_node() {
    let reservations = Resources { nano_cpus: 3_000_000_000, ..Resources::default() };
    let spec = ServiceSpec { reservations, ..ServiceSpec::default() };
    let mut objects = vec![node("a").into_object(), service("s", spec).into_object()];
    objects.push(task("p1", "s", "", TaskState::Pending).into_object());
    objects.push(task("p2x", "s", "", TaskState::Pending).into_object());
    assert_eq!(planned(&view(objects), "s"), ["p1@a", "p2x: no node fits: 1 of 1 without enough CPU"]);
}

#[test]
fn a_node_where_the_spec_has_failed_comes_last() {
    let mut objects: Vec<Object> = ["a", "b"].map(|id| node(id).into_object()).into();
    objects.push(service("s", ServiceSpec::default()).into_object());
    objects.push(task("f", "s", "a", TaskState::Rejected).into_object());
    objects.push(task("r", "s", "b", TaskState::Running).into_object());
    objects.push(task("p1", "s", "", TaskState::Pending).into_object());
    assert_eq!(planned(&view(objects), "s"), ["p1@b"]);
}

#[test]
fn what_was_told_to_stop_is_not_scheduled() {
    let mut stopping = task("p1", "s", "", TaskState::Pending);
    stopping.desired_state = flota_api::state::DesiredState::Shutdown;
    let objects =
        vec![node("a").into_object(), service("s", ServiceSpec::default()).into_object(), stopping.into_object()];
    assert_eq!(planned(&view(objects), "s"), [""; 0]);
}
