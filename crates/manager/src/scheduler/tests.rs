mod affinity;
mod devices;
mod outdated;
mod platforms;
mod preemption;
mod successors;
mod usage;
mod volumes;
mod wakeups;

use std::num::NonZeroU64;

use rand::{Rng, SeedableRng};

use super::*;
use crate::plan::Change;
use flota_api::constraint::{Constraint, NodeProperty};
use flota_api::model::{
    Allowance, Attachment, Availability, DeviceId, GenericResource, Mount, MountSource, Network, NetworkAttachment,
    NetworkSpec, NodeDevice, NodePort, NodeState, Protocol, PublishMode, PublishedPort, Service, ServiceMode,
    ServiceSpec, TunnelKey,
};
use flota_api::object::{Kind, StoreObject};
use flota_api::resources::Resources;
use flota_api::version::{Meta, Timestamp};
use flota_api::{FEATURE_LEVEL, LEVEL_OF_USER_NAMESPACES};

const GIB: u64 = 1 << 30;

fn node(id: &str) -> Node {
    let mut node = Node { id: id.into(), state: NodeState::Ready, ..Node::default() };
    node.description.resources = Resources { nano_cpus: 4_000_000_000, memory_bytes: 4 * GIB };
    node.description.feature_level = FEATURE_LEVEL;
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
        node_id: (!node.is_empty()).then(|| node.into()),
        status: TaskStatus { state, ..TaskStatus::default() },
        meta: Meta { created: id.len() as u64, ..Meta::default() },
        ..Task::default()
    }
}

fn view(objects: Vec<Object>) -> Tables {
    let mut view = Tables::default();
    objects.into_iter().for_each(|object| view.put(object));
    view
}

/// Returns `task@node`.
fn place(task: &Task) -> String {
    format!("{}@{}", task.id, task.node_id.as_ref().map_or("", |node| node.as_str()))
}

/// Returns `task@node` or `task: reason` for each task.
fn planned(view: &Tables, key: &str) -> Vec<String> {
    let plan = plan(view, key);
    let short = |change: &Change| match change {
        Change::Put(Object::Task(task)) if task.node_id.is_none() => {
            let reason = task.pending_reason.as_ref().expect("the scheduler says why");
            format!("{}: {reason}", task.id)
        }
        Change::Put(Object::Task(task)) => place(task),
        other => format!("{other:?}"),
    };
    plan.changes.iter().map(short).collect()
}

#[test]
fn a_task_that_is_pinned_to_a_node_goes_there_or_waits_for_it() {
    let spec = ServiceSpec { mode: ServiceMode::Global {}, ..ServiceSpec::default() };
    let spec = ServiceSpec { reservations: Resources { nano_cpus: 0, memory_bytes: 3 * GIB }, ..spec };
    let mut objects: Vec<Object> = ["a", "b", "c"].map(|id| node(id).into_object()).into();
    objects.push(service("s", spec).into_object());
    objects.push(task("r", "s", "b", TaskState::Running).into_object());
    for (id, slot, node) in [("p1", 1, "c"), ("p2x", 2, "b"), ("p3xx", 3, "a"), ("p4xxx", 4, "gone")] {
        let pinned_to = Some(node.into());
        objects.push(Task { pinned_to, slot, ..task(id, "s", "", TaskState::Pending) }.into_object());
    }
    let full = "p2x: no node fits: 1 of 1 without enough memory";
    assert_eq!(planned(&view(objects), "s"), ["p1@c", full, "p3xx@a", "p4xxx: there is no node"]);
}

/// A node with these labels.
fn labelled(id: &str, labels: &[(&str, &str)]) -> Node {
    let mut node = node(id);
    node.spec.labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    node
}

fn pending(count: u64) -> impl Iterator<Item = Object> {
    (1..=count).map(|slot| {
        let meta = Meta { created: slot, ..Meta::default() };
        Task { slot, meta, ..task(&format!("p{slot}"), "s", "", TaskState::Pending) }.into_object()
    })
}

#[test]
fn tasks_spread_evenly_over_the_values_of_labels_level_by_level() {
    let over = |keys: &[&str]| {
        let keys = keys.iter().map(|key| NodeProperty::parse(key).expect("a property of nodes")).collect();
        ServiceSpec { spread_over: keys, ..ServiceSpec::default() }
    };
    let nodes = [
        ("a", vec![("zone", "x"), ("rack", "1")]),
        ("b", vec![("zone", "x"), ("rack", "1")]),
        ("c", vec![("zone", "x"), ("rack", "2")]),
        ("d", vec![("zone", "y"), ("rack", "1")]),
        ("e", vec![]),
    ];
    let view = |spec: ServiceSpec, tasks: u64, other: Vec<Object>| {
        let nodes = nodes.iter().map(|(id, labels)| labelled(id, labels).into_object());
        view(nodes.chain([service("s", spec).into_object()]).chain(pending(tasks)).chain(other).collect())
    };
    let zones = || over(&["node.labels.zone"]);
    let placed = planned(&view(zones(), 6, vec![]), "s");
    assert_eq!(placed, ["p1@e", "p2@a", "p3@d", "p4@e", "p5@b", "p6@d"], "no label is a group too");
    let racks = over(&["node.labels.zone", "node.labels.rack"]);
    let placed = planned(&view(racks, 9, vec![]), "s");
    assert_eq!(placed, ["p1@e", "p2@a", "p3@d", "p4@e", "p5@c", "p6@d", "p7@e", "p8@b", "p9@d"]);
    let there = Task { slot: 9, ..task("r", "s", "d", TaskState::Running) }.into_object();
    assert_eq!(planned(&view(zones(), 3, vec![there]), "s"), ["p1@e", "p2@a", "p3@e"]);
    let few = ServiceSpec { max_replicas_per_node: NonZeroU64::new(1), ..zones() };
    let placed = planned(&view(few, 6, vec![]), "s");
    assert_eq!(placed[..5], ["p1@e", "p2@a", "p3@d", "p4@b", "p5@c"], "a full group does not hold the others up");
    let full = "p6: no node fits: 5 of 5 with as many tasks of the service as allowed";
    assert_eq!(placed[5], full);
}

#[test]
fn a_node_that_comes_and_goes_gets_tasks_last() {
    let flapping = Node { losses: vec![Timestamp(0), Timestamp(0)], ..node("a") };
    let lost_once = Node { losses: vec![Timestamp(0)], ..node("b") };
    let nodes = [flapping, lost_once, node("c")].map(StoreObject::into_object);
    let objects = nodes.into_iter().chain([service("s", ServiceSpec::default()).into_object()]).chain(pending(4));
    assert_eq!(planned(&view(objects.collect()), "s"), ["p1@b", "p2@c", "p3@b", "p4@c"]);
}

#[test]
fn tasks_spread_over_the_nodes_that_have_the_fewest_of_their_service_then_of_all() {
    let mut objects: Vec<Object> = ["a", "b", "c"].map(|id| node(id).into_object()).into();
    objects.push(service("s", ServiceSpec::default()).into_object());
    objects.push(service("other", ServiceSpec::default()).into_object());
    objects.push(Task { slot: 9, ..task("r", "s", "a", TaskState::Running) }.into_object());
    objects.push(task("o", "other", "b", TaskState::Running).into_object());
    objects.push(task("p1", "s", "", TaskState::Pending).into_object());
    objects.push(Task { slot: 2, ..task("p2x", "s", "", TaskState::Pending) }.into_object());
    assert_eq!(planned(&view(objects.clone()), "s"), ["p1@c", "p2x@b"], "service balance wins, total breaks ties");
    // Many tasks of another service do not keep this one away.
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
    // A task that has ended holds no resources.
    objects[4] = task("r", "s", "c", TaskState::Failed).into_object();
    assert_eq!(planned(&view(objects), "s"), ["p1@c"]);
    let alone =
        vec![service("s", ServiceSpec::default()).into_object(), task("p1", "s", "", TaskState::Pending).into_object()];
    assert_eq!(planned(&view(alone), "s"), ["p1: there is no node"]);
}

fn reserving(memory_bytes: u64) -> ServiceSpec {
    ServiceSpec { reservations: Resources { memory_bytes, ..Resources::default() }, ..ServiceSpec::default() }
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
fn a_placement_fails_if_its_node_has_changed_meanwhile() {
    let objects = vec![
        node("a").into_object(),
        service("s", ServiceSpec::default()).into_object(),
        task("p", "s", "", TaskState::Pending).into_object(),
    ];
    assert_eq!(plan(&view(objects), "s").expects, [(Kind::Node, "a".into())]);
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

#[test]
fn a_task_with_a_port_of_its_node_goes_where_no_program_of_the_node_has_it() {
    let port = |published| PublishedPort {
        target: 80,
        published: Some(published),
        protocol: Protocol::Tcp,
        mode: PublishMode::Host,
    };
    let listening = |id: &str, ports: &[u16]| {
        let mut node = node(id);
        let port = |number: &u16| NodePort { protocol: Protocol::Tcp, number: *number };
        node.description.listeners = ports.iter().map(port).collect();
        node.into_object()
    };
    for (published, expected) in [(22, "p@b"), (80, "p@a"), (443, "p: no node fits: 2 of 2 with the port taken")] {
        let spec = ServiceSpec { ports: vec![port(published)], ..ServiceSpec::default() };
        let mut objects = vec![listening("a", &[22, 443]), listening("b", &[80, 443])];
        objects.extend([service("s", spec).into_object(), task("p", "s", "", TaskState::Pending).into_object()]);
        assert_eq!(planned(&view(objects), "s"), [expected], "{published}");
    }
}

fn with_gpus(id: &str, gpus: usize) -> Node {
    let mut node = node(id);
    let gpu = |number: usize| NodeDevice {
        kind: "gpu".into(),
        id: format!("nvidia{number}"),
        paths: vec![format!("/dev/nvidia{number}")],
    };
    node.description.devices = (0..gpus).map(gpu).collect();
    node
}

fn wants_gpus(count: u64) -> ServiceSpec {
    let generic_resources = vec![GenericResource { kind: "gpu".into(), count }];
    ServiceSpec { generic_resources, ..ServiceSpec::default() }
}

fn plan(view: &Tables, key: &str) -> Plan {
    Scheduler.plan(&Key::of(key), view, &mut PlanContext::at(Timestamp(1)))
}

#[test]
fn a_plan_stops_where_there_is_no_more_room_for_it() {
    let mut objects = vec![node("a").into_object(), service("s", ServiceSpec::default()).into_object()];
    objects.extend((0..5).map(|number| task(&format!("p{number}"), "s", "", TaskState::Pending).into_object()));
    let mut cx = PlanContext { room: 3, ..PlanContext::at(Timestamp(1)) };
    assert_eq!(Scheduler.plan(&Key::of("s"), &view(objects), &mut cx).changes.len(), 3);
}

#[test]
fn a_task_behind_many_that_go_on_waiting_has_its_turn_in_the_same_plan() {
    let mut objects = vec![node("a").into_object(), service("s", ServiceSpec::default()).into_object()];
    let number = TOGETHER as u64 + 1;
    objects.extend((1..=number).map(|slot| {
        let (meta, waiting) =
            (Meta { created: slot, ..Meta::default() }, task(&format!("p{slot}"), "s", "", TaskState::Pending));
        let pending_reason = Some(Box::new(PendingReason::NoNode));
        Task { slot, meta, pinned_to: Some("gone".into()), pending_reason, ..waiting }.into_object()
    }));
    let meta = Meta { created: number + 1, ..Meta::default() };
    objects.push(Task { slot: number + 1, meta, ..task("last", "s", "", TaskState::Pending) }.into_object());
    assert_eq!(planned(&view(objects), "s"), ["last@a"]);
}

#[test]
fn tasks_get_the_same_nodes_however_many_changes_a_pass_has_room_for() {
    let placed = |room: usize| {
        let nodes = ["a", "b", "c"].map(|id| node(id).into_object()).into_iter();
        let mut view =
            view(nodes.chain([service("s", ServiceSpec::default()).into_object()]).chain(pending(8)).collect());
        for _ in 0..8 {
            let mut cx = PlanContext { room, ..PlanContext::at(Timestamp(1)) };
            let changes = Scheduler.plan(&Key::of("s"), &view, &mut cx).changes;
            for change in changes.into_iter().take(room) {
                let Change::Put(object) = change else { panic!("{change:?}") };
                view.put(object);
            }
        }
        view.tasks().map(|task| place(task)).collect::<Vec<_>>()
    };
    let expected = placed(8);
    assert!(expected.iter().all(|task| !task.ends_with('@')), "{expected:?}");
    for room in [1, 2, 3] {
        assert_eq!(placed(room), expected, "with room for {room}");
    }
}

#[test]
fn a_node_whose_kernel_can_not_encrypt_gets_no_task_of_an_encrypted_network() {
    let network = |id: &str, encrypted| {
        let spec = Arc::new(NetworkSpec { name: id.into(), encrypted, ..NetworkSpec::default() });
        Network { id: id.into(), spec, ..Network::default() }.into_object()
    };
    let joins = |id: &str| {
        let networks = vec![NetworkAttachment { network: id.into(), aliases: Vec::new() }];
        ServiceSpec { networks, ..ServiceSpec::default() }
    };
    let mut able = node("able");
    able.description.tunnel_keys = vec![TunnelKey { public: [7; 32], port: 51_820 }];
    let cluster = |nodes: Vec<Node>, of: &str| {
        let mut objects = vec![network("secret", true), network("clear", false), service("s", joins(of)).into_object()];
        let attachments = vec![Attachment { network: of.into(), addresses: vec![[10, 0, 0, 2].into()] }];
        objects.push(Task { attachments, ..task("t", "s", "", TaskState::Pending) }.into_object());
        objects.extend(nodes.into_iter().map(StoreObject::into_object));
        planned(&view(objects), "s")
    };
    let reason = "t: no node fits: 1 of 1 without WireGuard for an encrypted network";
    assert_eq!(cluster(vec![node("a")], "secret"), [reason]);
    assert_eq!(cluster(vec![node("a")], "clear"), ["t@a"]);
    assert_eq!(cluster(vec![node("a"), able, node("b")], "secret"), ["t@able"]);
}

#[test]
fn a_task_with_ids_of_its_own_gets_a_node_that_can_give_them() {
    let spec = ServiceSpec { user_namespace: true, ..ServiceSpec::default() };
    let planned_on = |nodes: Vec<Node>| {
        let mut objects =
            vec![service("s", spec.clone()).into_object(), task("t", "s", "", TaskState::Pending).into_object()];
        objects.extend(nodes.into_iter().map(StoreObject::into_object));
        planned(&view(objects), "s")
    };
    let mut able = node("able");
    able.description.user_namespaces = true;
    assert_eq!(planned_on(vec![node("a")]), ["t: no node fits: 1 of 1 without user namespaces for tasks"]);
    assert_eq!(planned_on(vec![node("a"), able.clone(), node("b")]), ["t@able"]);
    able.description.feature_level = LEVEL_OF_USER_NAMESPACES - 1;
    assert_eq!(planned_on(vec![able]), ["t: no node fits: 1 of 1 of a version that is too old"]);
}
