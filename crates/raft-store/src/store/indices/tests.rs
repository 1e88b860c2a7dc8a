use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::store::Tables;
use flota_api::model::{ImageHolder, NodeState, PendingReason, PinnedImage, Service, ServiceSpec, TaskStatus};
use flota_api::object::{Kind, StoreObject};
use flota_api::state::DesiredState;
use flota_api::version::Meta;

const NODES: [&str; 3] = ["n0", "n1", "n2"];
const SERVICES: [&str; 3] = ["s0", "s1", "s2"];
const STATES: [TaskState; 4] = [TaskState::Pending, TaskState::Running, TaskState::Failed, TaskState::Shutdown];

fn random_task(rng: &mut StdRng) -> Task {
    let name = |prefix: &str, number: u32| format!("{prefix}{number}");
    Task {
        id: name("t", rng.random_range(0..30)).into(),
        service_id: name("s", rng.random_range(0..3)).into(),
        spec_version: 1,
        slot: rng.random_range(1..4),
        node_id: rng.random_bool(0.8).then(|| name("n", rng.random_range(0..3)).into()),
        desired_state: [DesiredState::Running, DesiredState::Remove][rng.random_range(0..2)],
        status: TaskStatus { state: STATES[rng.random_range(0..4)], ..TaskStatus::default() },
        pending_reason: rng.random_bool(0.5).then(|| {
            let node_id = name("n", rng.random_range(0..3)).into();
            Box::new(PendingReason::AwaitsRoom { node_id, node: "w".into(), refused: BTreeMap::new() })
        }),
        image_digest: rng.random_bool(0.5).then(|| name("sha256:", rng.random_range(0..2))),
        mounted_images: (0..rng.random_range(0..3))
            .map(|_| PinnedImage { digest: name("sha256:", rng.random_range(0..3)), ..PinnedImage::default() })
            .collect(),
        ..Task::default()
    }
}

/// Everything that the accessors say about tasks, from the tasks themselves.
fn counted(tables: &Tables) -> (BTreeMap<String, Load>, Vec<String>) {
    let (mut loads, mut facts): (BTreeMap<_, Load>, _) = (BTreeMap::new(), Vec::new());
    for task in tables.tasks() {
        let Task { id, service_id, slot, node_id, status, .. } = task.as_ref();
        facts.push(format!("{id} in {service_id}.{slot}"));
        facts.extend(node_id.iter().map(|node| format!("{id} on {node}")));
        facts.extend(task.is_waiting().then(|| format!("{id} waits in {service_id}")));
        facts.extend(task.claim().map(|node| format!("{id} awaits room on {node}")));
        let has_failed = matches!(status.state, TaskState::Failed | TaskState::Rejected);
        facts.extend(has_failed.then(|| format!("{id} failed in {service_id}")));
        let digests = task.image_digests().filter(|_| !status.state.is_terminal());
        facts.extend(digests.map(|digest| format!("{digest} used on {node_id:?}")));
        if let Some(node) = node_id {
            facts.extend(task.is_live().then(|| format!("{service_id} is live on {node}")));
            if task.holds_resources() {
                let load = loads.entry(node.to_string()).or_default();
                load.reserved = load.reserved.plus(&tables.spec_of(task).expect("its service has it").reservations);
                (load.held, load.live) = (load.held + 1, load.live + u64::from(task.is_live()));
            }
        }
    }
    let takers = tables.nodes().filter(|node| node.takes_tasks()).map(|node| &node.id);
    let live = |node: &NodeId| loads.get(node.as_str()).map_or(0, |load| load.live);
    let mut takers: Vec<_> = takers.map(|node| (live(node), node)).collect();
    takers.sort();
    for service in SERVICES.map(ServiceId::from) {
        let of_service = |node: &NodeId| {
            tables.tasks().filter(|it| it.is_live() && it.service_id == service && it.is_on(node)).count()
        };
        let mut levels: BTreeMap<_, u64> = BTreeMap::new();
        takers.iter().for_each(|(_, node)| *levels.entry(of_service(node)).or_default() += 1);
        let levels: Vec<_> = levels.into_iter().collect();
        facts.push(format!("{service} has {levels:?} on {takers:?}"));
    }
    facts.sort();
    facts.dedup();
    (loads, facts)
}

fn indexed(tables: &Tables) -> (BTreeMap<String, Load>, Vec<String>) {
    let mut facts = Vec::new();
    for service in tables.services_with_tasks() {
        for slot in 1..4 {
            facts.extend(tables.tasks_of_slot(service, slot).map(|task| format!("{} in {service}.{slot}", task.id)));
        }
        facts.extend(tables.tasks_failed(service).map(|task| format!("{} failed in {service}", task.id)));
    }
    let takers: Vec<_> = tables.takers().map(|node| (tables.load(&node.id).live, &node.id)).collect();
    for service in SERVICES.map(ServiceId::from) {
        facts.push(format!("{service} has {:?} on {takers:?}", tables.live_task_levels(&service).collect::<Vec<_>>()));
        let is_live = |node: &&str| tables.live_tasks(&service, &(*node).into()) > 0;
        facts.extend(NODES.into_iter().filter(is_live).map(|node| format!("{service} is live on {node}")));
    }
    for service in tables.services_waiting() {
        facts.extend(tables.tasks_waiting(service).map(|task| format!("{} waits in {service}", task.id)));
    }
    for node in NODES {
        facts.extend(tables.tasks_of_node(&node.into()).map(|task| format!("{} on {node}", task.id)));
        facts.extend(tables.claims_on(&node.into()).map(|task| format!("{} awaits room on {node}", task.id)));
    }
    for digest in ["sha256:0", "sha256:1", "sha256:2"] {
        facts.extend(tables.users_of_image(digest).map(|node| format!("{digest} used on {:?}", node.cloned())));
    }
    facts.sort();
    let loads = NODES.map(|node| (node.to_owned(), tables.load(&node.into())));
    (loads.into_iter().filter(|(_, load)| load.held > 0).collect(), facts)
}

#[test]
fn the_indices_say_what_the_tasks_say_after_any_changes() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut tables = Tables::default();
    for number in 0..3u64 {
        let reservations = Resources { nano_cpus: number, memory_bytes: 1 };
        let spec = Arc::new(ServiceSpec { name: format!("s{number}"), reservations, ..ServiceSpec::default() });
        let id = format!("s{number}").into();
        tables.put(Service { id, spec, spec_version: 1, ..Service::default() }.into_object());
    }
    for step in 0..3_000 {
        if rng.random_bool(0.1) {
            let state = if rng.random_bool(0.5) { NodeState::Ready } else { NodeState::Unknown };
            let id = NODES[rng.random_range(0..3)].into();
            tables.put(Node { id, state, ..Node::default() }.into_object());
        } else if rng.random_bool(0.02) {
            tables.remove(Kind::Node, NODES[rng.random_range(0..3)]);
        }
        let task = random_task(&mut rng);
        match tables.task(&task.id).cloned() {
            Some(task) if rng.random_bool(0.3) => drop(tables.remove(Kind::Task, task.id.as_str())),
            // The service and the slot of a task never change.
            Some(old) => tables.put(Task { service_id: old.service_id.clone(), slot: old.slot, ..task }.into_object()),
            None => tables.put(task.into_object()),
        }
        assert_eq!(indexed(&tables), counted(&tables), "after {step} steps");
    }
}

#[test]
fn a_pinned_image_is_used_until_its_last_service_lets_go() {
    let mut tables = Tables::default();
    let pinned = |id: &str, digest: Option<&str>| {
        Service { id: id.into(), image_digest: digest.map(str::to_owned), ..Service::default() }.into_object()
    };
    let mounting = |id: &str, digest: &str| {
        let image = PinnedImage { digest: digest.into(), ..PinnedImage::default() };
        Service { id: id.into(), mounted_images: vec![image], ..Service::default() }.into_object()
    };
    tables.put(pinned("a", Some("sha256:1")));
    tables.put(pinned("b", Some("sha256:1")));
    tables.put(pinned("a", Some("sha256:2")));
    assert!(tables.is_pinned("sha256:1") && tables.is_pinned("sha256:2"));
    tables.remove(Kind::Service, "b");
    tables.put(mounting("a", "sha256:2"));
    assert!(!tables.is_pinned("sha256:1") && tables.is_pinned("sha256:2"));
    tables.put(pinned("a", None));
    assert!(!tables.is_pinned("sha256:1") && !tables.is_pinned("sha256:2"));
}

#[test]
fn images_are_found_by_digest_and_by_holder_and_a_named_one_first() {
    let mut tables = Tables::default();
    let held_by = |node: &str| vec![ImageHolder { node_id: node.into(), confirmed: true }];
    let image = |id: &str, reference: Option<&str>, node: &str| Image {
        id: id.into(),
        references: reference.into_iter().map(Into::into).collect(),
        digest: "sha256:1".into(),
        holders: held_by(node),
        ..Image::default()
    };
    tables.put(image("a", None, "n").into_object());
    tables.put(image("b", Some("web"), "n").into_object());
    let found = |tables: &Tables| tables.image_by_digest("sha256:1").map(|image| image.id.to_string());
    let held = |tables: &Tables, node: &str| tables.images_of_node(&node.into()).count();
    assert_eq!((found(&tables), held(&tables, "n")), (Some("b".into()), 2));
    tables.put(image("b", None, "m").into_object());
    assert_eq!((found(&tables), held(&tables, "n"), held(&tables, "m")), (Some("a".into()), 1, 1));
    tables.remove(Kind::Image, "a");
    tables.remove(Kind::Image, "b");
    assert_eq!((found(&tables), held(&tables, "n"), held(&tables, "m")), (None, 0, 0));
}

#[test]
fn the_priorities_are_those_that_services_have_now() {
    let mut tables = Tables::default();
    let service = |id: &str, priority| {
        let spec = Arc::new(ServiceSpec { priority, ..ServiceSpec::default() });
        Service { id: id.into(), spec, ..Service::default() }.into_object()
    };
    for (id, priority) in [("a", 0), ("b", 7), ("c", 7), ("d", -3)] {
        tables.put(service(id, priority));
    }
    assert_eq!(tables.priorities().collect::<Vec<_>>(), [-3, 0, 7]);
    tables.put(service("b", 9));
    tables.remove(Kind::Service, "d");
    assert_eq!(tables.priorities().collect::<Vec<_>>(), [0, 7, 9]);
    assert_eq!((tables.priority_of(&"b".into()), tables.priority_of(&"d".into())), (9, 0));
}

#[test]
fn managers_are_the_nodes_of_that_role() {
    let mut tables = Tables::default();
    let node = |role| Node { id: "n".into(), role, ..Node::default() }.into_object();
    for (role, expected) in [(Role::Worker, 0), (Role::Manager, 1), (Role::Worker, 0), (Role::Manager, 1)] {
        tables.put(node(role));
        assert_eq!(tables.managers().count(), expected);
    }
    tables.remove(Kind::Node, "n");
    assert_eq!(tables.managers().count(), 0);
}

#[test]
fn waiting_tasks_have_their_turn_by_the_room_that_was_made_for_them_then_by_spec_and_age() {
    let mut tables = Tables::default();
    // Ids that would give another order.
    for (id, spec_version, created, slot, has_room) in [
        ("e", 2, 9, 1, true),
        ("d", 1, 4, 1, false),
        ("c", 1, 4, 2, false),
        ("b", 1, 5, 1, false),
        ("a", 2, 1, 1, false),
    ] {
        let made = PendingReason::AwaitsRoom { node_id: "n".into(), node: "n".into(), refused: BTreeMap::new() };
        let meta = Meta { created, ..Meta::default() };
        let (id, service_id, pending_reason) = (id.into(), "s".into(), has_room.then(|| Box::new(made)));
        tables.put(Task { id, meta, service_id, spec_version, slot, pending_reason, ..Task::default() }.into_object());
    }
    let turns: String = tables.tasks_waiting(&"s".into()).map(|task| task.id.to_string()).collect();
    assert_eq!(turns, "edcba");
}
