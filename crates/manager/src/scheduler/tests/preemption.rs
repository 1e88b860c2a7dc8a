//! Which tasks are placed first, which node makes room for an important one, and which tasks stop there.

use super::*;
use flota_api::model::{Dependency, DependencyCondition, VolumeMount, VolumePlace, VolumeSpec};

/// A service of this priority, whose tasks reserve so many GiB of memory.
fn ranked(id: &str, priority: i32, gib: u64) -> Service {
    service(id, ServiceSpec { priority, ..reserving(gib * GIB) })
}

/// Nodes of 4 GiB and these services, with running tasks given as `task service node`.
fn cluster(nodes: &[&str], services: Vec<Service>, tasks: &[&str]) -> Vec<Object> {
    let nodes = nodes.iter().map(|id| node(id).into_object());
    let running = |text: &&str| {
        let [id, service, node] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
        let slot = id.bytes().map(u64::from).sum();
        Task { slot, ..task(id, service, node, TaskState::Running) }.into_object()
    };
    nodes.chain(services.into_iter().map(StoreObject::into_object)).chain(tasks.iter().map(running)).collect()
}

/// The waiting task `p` of the service.
fn waits(service: &str) -> Task {
    task("p", service, "", TaskState::Pending)
}

/// Returns what the plan does, in short: `p@n`, `p waits on n`, `p waits`, and `victim` for each task that it stops.
fn steps(view: &Tables, key: &str) -> Vec<String> {
    let short = |change: Change| match change {
        Change::Put(Object::Task(task)) => match (&task.node_id, task.claim(), &task.preempted_by) {
            (Some(_), _, Some(by)) => {
                assert_eq!((task.desired_state, by.as_str()), (DesiredState::Shutdown, "high.1"));
                task.id.to_string()
            }
            (Some(node), _, None) => format!("{}@{node}", task.id),
            (None, Some(node), _) => format!("{} waits on {node}", task.id),
            (None, None, _) => format!("{} waits", task.id),
        },
        other => format!("{other:?}"),
    };
    plan(view, key).changes.into_iter().map(short).collect()
}

/// The steps for a waiting task of `high`, which has the priority 9 and reserves so many GiB.
fn preempts(gib: u64, nodes: &[&str], services: Vec<Service>, tasks: &[&str]) -> String {
    let services = services.into_iter().chain([ranked("high", 9, gib)]).collect();
    let objects = cluster(nodes, services, tasks).into_iter().chain([waits("high").into_object()]).collect();
    steps(&view(objects), "high").join(", ")
}

#[test]
fn the_node_is_that_of_the_least_important_and_fewest_tasks_and_as_few_of_them_stop_as_needed() {
    let services = || vec![ranked("low", 0, 2), ranked("small", 0, 1), ranked("mid", 5, 2), ranked("same", 9, 2)];
    for (gib, nodes, tasks, expected) in [
        // One that is free is taken, whatever else there is.
        (2, &["a", "b"][..], &["l1 low a", "l2 low a"][..], "p@b"),
        (2, &["a"], &["l1 low a", "l2 low a"], "p waits on a, l2"),
        (4, &["a"], &["l1 low a", "l2 low a"], "p waits on a, l1, l2"),
        // The lowest of the highest priorities comes first, then the number, then the usual order of nodes.
        (2, &["a", "b"], &["m1 mid a", "m2 mid a", "l1 low b", "l2 low b"], "p waits on b, l2"),
        (3, &["a", "b"], &["m1 mid a", "m2 mid a", "l1 low b", "m3 mid b"], "p waits on a, m1, m2"),
        (4, &["a", "b"], &["s1 small a", "s2 small a", "l1 low a", "l2 low b", "l3 low b"], "p waits on b, l2, l3"),
        (2, &["b", "a"], &["l1 low a", "l2 low a", "l3 low b", "l4 low b"], "p waits on a, l2"),
        // Large ones go rather than many, and never more than one has to.
        (2, &["a"], &["s1 small a", "s2 small a", "l1 low a"], "p waits on a, l1"),
        (3, &["a"], &["s1 small a", "s2 small a", "l1 low a"], "p waits on a, s2, l1"),
        // Important ones stay although they are the largest.
        (2, &["a"], &["s1 small a", "s2 small a", "m1 mid a"], "p waits on a, s1, s2"),
        // Tasks of the same priority stay, and so do all tasks of a node that has too little room even without the others.
        (2, &["a"], &["e1 same a", "e2 same a"], "p waits"),
        (3, &["a"], &["e1 same a", "l1 low a"], "p waits"),
        (5, &["a"], &["l1 low a", "l2 low a"], "p waits"),
    ] {
        assert_eq!(preempts(gib, nodes, services(), tasks), expected, "{gib} GiB with {tasks:?}");
    }
}

#[test]
fn nothing_stops_without_a_lower_priority_or_for_another_reason_than_room() {
    let plain = |priority| vec![ranked("low", priority, 2)];
    assert_eq!(preempts(2, &["a"], plain(9), &["l1 low a", "l2 low a"]), "p waits", "there is no lower one");
    let refused = |change: fn(&mut Node), spec: ServiceSpec| {
        let mut objects = cluster(&[], plain(0), &["l1 low a", "l2 low a"]);
        let mut full = node("a");
        change(&mut full);
        let high = service("high", ServiceSpec { priority: 9, ..spec });
        objects.extend([full.into_object(), high.into_object(), waits("high").into_object()]);
        steps(&view(objects), "high").join(", ")
    };
    assert_eq!(refused(|_| {}, reserving(2 * GIB)), "p waits on a, l2");
    assert_eq!(refused(|node| node.spec.availability = Availability::Drain, reserving(2 * GIB)), "p waits");
    assert_eq!(refused(|node| node.state = NodeState::Unknown, reserving(2 * GIB)), "p waits");
    let elsewhere = vec![Constraint::parse("node.labels.zone==x").expect("it is good")];
    assert_eq!(refused(|_| {}, ServiceSpec { constraints: elsewhere, ..reserving(2 * GIB) }), "p waits");
    assert_eq!(refused(|_| {}, ServiceSpec { anti_affinity: vec!["low".into()], ..reserving(2 * GIB) }), "p waits");
    assert_eq!(refused(|_| {}, ServiceSpec { affinity: vec!["low".into()], ..reserving(2 * GIB) }), "p waits");
    let (condition, required) = (DependencyCondition::Started, true);
    let depends_on = vec![Dependency { service: "low".into(), condition, required }];
    assert_eq!(refused(|_| {}, ServiceSpec { depends_on, ..reserving(2 * GIB) }), "p waits", "it would not work");
}

#[test]
fn a_task_that_belongs_to_its_node_is_not_stopped_for_another() {
    let keeps = service("low", ServiceSpec { keep_on_node_loss: true, ..reserving(4 * GIB) });
    assert_eq!(preempts(2, &["a"], vec![keeps], &["l1 low a"]), "p waits");
    let source = MountSource::Volume(VolumeMount { name: Some("data".into()), ..VolumeMount::default() });
    let mounts = vec![Mount { target: "/data".into(), read_only: false, source }];
    let low = service("low", ServiceSpec { mounts, ..reserving(4 * GIB) });
    let mut objects = cluster(&["a"], vec![low, ranked("high", 9, 2)], &["l1 low a"]);
    objects.push(waits("high").into_object());
    assert_eq!(steps(&view(objects.clone()), "high"), ["p waits on a", "l1"], "the volume has no data here");
    let spec = VolumeSpec { name: "data".into(), ..VolumeSpec::default() };
    let places = vec![VolumePlace { slot: None, node_id: "a".into() }];
    objects.push(Volume { id: "v".into(), spec, places, ..Volume::default() }.into_object());
    assert_eq!(steps(&view(objects), "high"), ["p waits"]);
}

#[test]
fn ports_and_devices_of_less_important_tasks_are_room_too() {
    let port = PublishedPort { target: 80, published: Some(80), protocol: Protocol::Tcp, mode: PublishMode::Host };
    let at_port = || ServiceSpec { ports: vec![port], ..ServiceSpec::default() };
    let high = service("high", ServiceSpec { priority: 9, ..at_port() });
    let mut objects = cluster(&["a"], vec![service("low", at_port()), ranked("other", 0, 1), high], &["o other a"]);
    objects.extend([task("l", "low", "a", TaskState::Running).into_object(), waits("high").into_object()]);
    assert_eq!(steps(&view(objects), "high"), ["p waits on a", "l"]);

    let high = service("high", ServiceSpec { priority: 9, ..wants_gpus(2) });
    let services = [high, service("low", wants_gpus(1)), service("other", ServiceSpec::default())];
    let mut objects: Vec<Object> = services.into_iter().map(StoreObject::into_object).collect();
    objects.extend([with_gpus("a", 3).into_object(), waits("high").into_object()]);
    objects.push(task("o", "other", "a", TaskState::Running).into_object());
    for number in 0..3 {
        let gpu = with_gpus("a", 3).description.devices[number].clone();
        let device_ids = vec![DeviceId { kind: gpu.kind, id: gpu.id }];
        let id = format!("l{}", "x".repeat(number));
        objects.push(Task { device_ids, ..task(&id, "low", "a", TaskState::Running) }.into_object());
    }
    assert_eq!(steps(&view(objects), "high"), ["p waits on a", "lx", "lxx"], "the oldest keeps its own");
}

#[test]
fn tasks_that_are_being_stopped_are_awaited_before_others_go_and_hold_their_room_for_the_task() {
    let services = || vec![ranked("low", 0, 2), ranked("high", 9, 2), ranked("same", 9, 2), ranked("top", 10, 2)];
    let mut objects = cluster(&["a", "b"], services(), &["l1 low a", "l2 low a", "l3 low b", "l4 low b"]);
    let stopping = Task { desired_state: DesiredState::Shutdown, ..task("l4", "low", "b", TaskState::Running) };
    objects.push(Task { slot: 4, ..stopping.clone() }.into_object());
    objects.push(waits("high").into_object());
    let mut cluster = view(objects);
    assert_eq!(steps(&cluster, "high"), ["p waits on b"], "no other has to go");
    plan(&cluster, "high").changes.into_iter().for_each(|change| match change {
        Change::Put(object) => cluster.put(object),
        other @ Change::Remove(..) => panic!("{other:?}"),
    });
    assert_eq!(steps(&cluster, "high"), [""; 0], "it waits on");
    cluster.put(Node { state: NodeState::Unknown, ..node("b") }.into_object());
    assert_eq!(steps(&cluster, "high"), ["p waits on b"], "the node may come back, and the counts say how it is");
    cluster.put(node("b").into_object());
    assert_eq!(steps(&cluster, "high"), [""; 0]);
    // What the task leaves is for the one that waits for it, and for those that are more important. Its equal gets the
    // room of another one there.
    cluster.put(
        Task { slot: 4, status: TaskStatus { state: TaskState::Shutdown, ..stopping.status.clone() }, ..stopping }
            .into_object(),
    );
    for (service, expected) in [("low", "q waits"), ("same", "q waits on b"), ("top", "q@b"), ("high", "p@b")] {
        let mut cluster = cluster.clone();
        if service != "high" {
            cluster.put(Task { slot: 9, ..task("q", service, "", TaskState::Pending) }.into_object());
        }
        let planned = plan(&cluster, service).changes;
        let Some(Change::Put(Object::Task(task))) = planned.first() else { panic!("{planned:?}") };
        let place = task.node_id.as_ref().map(|node| format!("@{node}"));
        let shown = place.or(task.claim().map(|node| format!(" waits on {node}"))).unwrap_or(" waits".into());
        assert_eq!(format!("{}{shown}", task.id), expected, "{service}");
    }
    // If the node is lost, another one makes room.
    cluster.put(Node { state: NodeState::Down, ..node("b") }.into_object());
    assert_eq!(steps(&cluster, "high"), ["p waits on a", "l2"]);
}

#[test]
fn the_room_that_an_update_makes_is_its_successors_unless_that_is_less_important() {
    let room = |priority| {
        let services = vec![ranked("other", priority, 4), ranked("low", 0, 4), ranked("high", 9, 4)];
        let mut objects = cluster(&["a", "b"], services, &["l1 low b"]);
        let old = task("e1", "other", "a", TaskState::Running);
        objects.push(Task { desired_state: DesiredState::Shutdown, ..old }.into_object());
        objects.push(task("e2", "other", "", TaskState::Pending).into_object());
        objects.push(waits("high").into_object());
        steps(&view(objects), "high")
    };
    assert_eq!(room(0), ["p waits on a"]);
    assert_eq!(room(9), ["p waits on b", "l1"], "the update would fail");
}

#[test]
fn a_task_that_waits_for_room_keeps_others_apart_that_are_not_more_important() {
    let apart = |priority, gib| {
        let spec = ServiceSpec { priority, anti_affinity: vec!["high".into()], ..reserving(gib * GIB) };
        let services = vec![ranked("low", 0, 4), ranked("high", 9, 4), service("other", spec)];
        let mut objects = cluster(&["a", "b"], services, &["l1 low a", "l2 low b"]);
        let claim = PendingReason::AwaitsRoom { node_id: "a".into(), node: "a".into(), refused: BTreeMap::new() };
        objects.push(Task { pending_reason: Some(Box::new(claim)), ..waits("high") }.into_object());
        objects.push(task("q", "other", "", TaskState::Pending).into_object());
        let changes = plan(&view(objects), "other").changes;
        let Some(Change::Put(Object::Task(task))) = changes.first() else { panic!("{changes:?}") };
        task.node_id.as_ref().or(task.claim()).map(ToString::to_string)
    };
    assert_eq!(apart(0, 0).as_deref(), Some("b"));
    assert_eq!(apart(9, 2).as_deref(), Some("b"), "nobody stops in vain on the node of the other one");
    assert_eq!(apart(10, 0).as_deref(), Some("a"));
}

#[test]
fn several_tasks_of_a_service_share_what_one_victim_leaves_and_stop_no_more_than_they_need() {
    let services = vec![ranked("low", 0, 4), ranked("high", 9, 2)];
    let mut objects = cluster(&["a", "b"], services, &["l1 low a", "l2 low b"]);
    for slot in 1..=5 {
        let id = format!("p{}", "x".repeat(slot));
        objects.push(Task { slot: slot as u64, ..task(&id, "high", "", TaskState::Pending) }.into_object());
    }
    let plan = plan(&view(objects), "high");
    let mut victims: BTreeMap<String, usize> = BTreeMap::new();
    let mut claims = Vec::new();
    for change in plan.changes {
        let Change::Put(Object::Task(task)) = change else { panic!("{change:?}") };
        match (&task.preempted_by, task.claim()) {
            (Some(by), _) => *victims.entry(format!("{} by {by}", task.id)).or_default() += 1,
            (None, claim) => claims.push(claim.map_or("", |node| node.as_str()).to_owned()),
        }
    }
    let victims: Vec<_> = victims.into_iter().collect();
    assert_eq!(victims, [("l1 by high.1".to_owned(), 1), ("l2 by high.3".to_owned(), 1)], "each is told once");
    assert_eq!(claims, ["a", "a", "b", "b", ""]);
}

#[test]
fn a_successor_that_gets_the_room_of_its_predecessor_and_a_move_to_a_better_node_stop_nobody() {
    let services = || vec![ranked("low", 0, 2), ranked("high", 9, 2)];
    let objects = |old: Task, new: Task| {
        let mut objects = cluster(&["a"], services(), &["l1 low a"]);
        objects.extend([old.into_object(), new.into_object()]);
        view(objects)
    };
    let old = || task("old", "high", "a", TaskState::Running);
    let successor = || Task { desired_state: DesiredState::Ready, ..waits("high") };
    let reason = |view: &Tables| match plan(view, "high").changes.as_slice() {
        [Change::Put(Object::Task(task))] => *task.pending_reason.clone().expect("it says why"),
        other => panic!("{other:?}"),
    };
    let refused = BTreeMap::from([(Filter::Memory, 1)]);
    assert_eq!(reason(&objects(old(), successor())), PendingReason::NeedsRoom(refused.clone()));
    let moves = Task { relocates: true, ..old() };
    let beside = Task { replaces: Some("old".into()), ..waits("high") };
    assert_eq!(reason(&objects(moves, beside)), PendingReason::NoNodeFits(refused));
    assert_eq!(steps(&objects(old(), waits("high")), "high"), ["p waits on a", "l1"], "one that starts first does");
}

#[test]
fn services_are_planned_in_the_order_of_their_priorities_and_then_of_their_age() {
    let dirty = |ids: &[&str]| ids.iter().map(|id| Key::of(*id)).collect::<BTreeSet<Key>>();
    let aged = |id: &str, priority, created| {
        let meta = Meta { created, ..Meta::default() };
        Service { meta, ..ranked(id, priority, 1) }.into_object()
    };
    let order = |services: [Object; 3]| {
        let keys = Scheduler.order(&dirty(&["a", "b", "c"]), &view(services.into()));
        keys.map(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(order([aged("a", 0, 3), aged("b", 0, 2), aged("c", 0, 1)]), None, "nobody has set one");
    assert_eq!(order([aged("a", -1, 1), aged("b", 0, 3), aged("c", 0, 2)]), Some("c b a".into()));
    assert_eq!(order([aged("a", 0, 1), aged("b", 1, 3), aged("c", 2, 2)]), Some("c b a".into()));
}

#[test]
fn those_that_may_get_room_are_woken_when_a_claim_ends_or_a_priority_changes() {
    let refused = BTreeMap::new();
    let claim = PendingReason::AwaitsRoom { node_id: "a".into(), node: "a".into(), refused };
    let claims = Task { pending_reason: Some(Box::new(claim)), ..waits("high") };
    let objects = |with: &[&Task]| {
        let mut objects = cluster(&["a", "b"], vec![ranked("low", 0, 4), ranked("high", 9, 4)], &[]);
        objects.push(task("q", "low", "", TaskState::Pending).into_object());
        objects.extend(with.iter().map(|task| (*task).clone().into_object()));
        view(objects)
    };
    let woken = |event: Event, view: &Tables| {
        Scheduler.dirtied_by(&event, view).iter().map(ToString::to_string).collect::<BTreeSet<_>>()
    };
    let updated = |new: &Task| Event::Updated { old: claims.clone().into_object(), new: new.clone().into_object() };
    let elsewhere = Task { node_id: Some("b".into()), pending_reason: None, ..claims.clone() };
    let there = Task { node_id: Some("a".into()), ..elsewhere.clone() };
    let told = Task { desired_state: DesiredState::Remove, ..claims.clone() };
    let only = |id: &str| BTreeSet::from([id.to_owned()]);
    assert_eq!(woken(updated(&elsewhere), &objects(&[&elsewhere])), only("low"));
    assert_eq!(woken(updated(&told), &objects(&[&told])), only("low"));
    assert_eq!(woken(Event::Removed(claims.clone().into_object()), &objects(&[])), only("low"));
    assert_eq!(woken(updated(&there), &objects(&[&there])), BTreeSet::new(), "it has its room");
    // Another task has taken the room.
    let other = task("t", "low", "a", TaskState::Assigned);
    let placed =
        Event::Updated { old: Task { node_id: None, ..other.clone() }.into_object(), new: other.clone().into_object() };
    assert!(woken(placed, &objects(&[&claims, &other])).contains("high"));
    let [old, new] = [0, 3].map(|priority| ranked("low", priority, 4).into_object());
    let both = BTreeSet::from(["high".to_owned(), "low".to_owned()]);
    assert_eq!(woken(Event::Updated { old, new }, &objects(&[&claims])), both);
}

#[test]
fn a_task_is_woken_by_what_lets_it_stop_others_although_its_node_stays_full() {
    let woken = |lowest: Service, event: Event| {
        let services = vec![lowest, ranked("same", 9, 2), ranked("high", 9, 4)];
        let objects = cluster(&["a"], services, &["l1 low a"]);
        let view = view(objects.into_iter().chain([waits("high").into_object()]).collect());
        Scheduler.dirtied_by(&event, &view).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let ends = || {
        let [old, new] =
            [TaskState::Running, TaskState::Complete].map(|state| task("s1", "same", "a", state).into_object());
        Event::Updated { old, new }
    };
    assert_eq!(woken(ranked("low", 0, 2), ends()), ["high"]);
    assert_eq!(woken(ranked("low", 9, 2), ends()), [""; 0], "it can't stop that one");
    let keeps = service("low", ServiceSpec { keep_on_node_loss: true, ..reserving(2 * GIB) });
    let released = Event::Updated { old: keeps.into_object(), new: ranked("low", 0, 2).into_object() };
    assert_eq!(woken(ranked("low", 0, 2), released), ["high"]);
}

#[test]
fn a_rebalance_leaves_alone_the_room_for_which_a_task_waits() {
    let mut node = Candidate::new(&Arc::new(node("a")), &"s".into(), &Tables::default()).free();
    assert_eq!(node.memory_bytes, 4 * GIB);
    let claim = PendingReason::AwaitsRoom { node_id: "a".into(), node: "a".into(), refused: BTreeMap::new() };
    let mut objects = cluster(&["a"], vec![ranked("low", 0, 1), ranked("high", 9, 3)], &[]);
    objects.push(Task { pending_reason: Some(Box::new(claim)), ..waits("high") }.into_object());
    let view = view(objects);
    let free = |service: &str| Candidate::new(view.node("a").expect("it is there"), &service.into(), &view).free();
    node = free("low");
    assert_eq!((node.memory_bytes, free("high").memory_bytes), (GIB, 4 * GIB), "its own tasks are planned with it");
}

/// Plans many random clusters to the end, as if each task that is told to stop ended some time later.
#[test]
fn no_node_is_oversold_and_no_task_goes_for_one_that_is_not_more_important_and_in_the_end_nothing_changes() {
    for seed in 0..40 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let nodes = ["a", "b", "c"];
        let services: Vec<Service> = (0..4)
            .map(|number| ranked(&format!("s{number}"), rng.random_range(-1..3), rng.random_range(1..4)))
            .collect();
        let priority = |id: &ServiceId| services[id.as_str()[1..].parse::<usize>().expect("a number")].spec.priority;
        let mut view = view(cluster(&nodes, services.clone(), &[]));
        let mut created = 0;
        for step in 0..100 {
            created += 1;
            // New tasks come for a while; each that was told to stop ends, and its slot gets a new one.
            let stopping: Vec<Task> =
                view.tasks().filter(|it| it.desired_state.is_stopping()).map(|it| it.as_ref().clone()).collect();
            if let Some(ended) = stopping.first().filter(|_| rng.random_bool(0.7)) {
                view.remove(Kind::Task, ended.id.as_str());
                let meta = Meta { created, ..Meta::default() };
                let again = task(&format!("t{created}"), ended.service_id.as_str(), "", TaskState::Pending);
                view.put(Task { meta, slot: ended.slot, ..again }.into_object());
            } else if step < 25 {
                let meta = Meta { created, ..Meta::default() };
                let service = format!("s{}", rng.random_range(0..4));
                let new = task(&format!("t{created}"), &service, "", TaskState::Pending);
                view.put(Task { meta, slot: created, ..new }.into_object());
            }
            let dirty = Scheduler.all(&view).into_iter().collect();
            let keys = Scheduler.order(&dirty, &view).unwrap_or_else(|| dirty.iter().copied().collect());
            for key in keys {
                for change in Scheduler.plan(&key, &view, &mut PlanContext::at(Timestamp(1))).changes {
                    let Change::Put(Object::Task(new)) = change else { panic!("{change:?}") };
                    let is_news = view.task(&new.id).is_some_and(|old| old.preempted_by.is_none());
                    if let Some(by) = new.preempted_by.as_ref().filter(|_| is_news) {
                        let by = by.split_once('.').expect("a name of a task").0;
                        assert!(priority(&new.service_id) < priority(&by.into()), "seed {seed}: {new:?}");
                    }
                    view.put(Object::Task(new));
                }
            }
            for node in nodes.map(NodeId::from) {
                let reserved = view.load(&node).reserved.memory_bytes;
                assert!(reserved <= 4 * GIB, "seed {seed}, step {step}: {node} has {reserved}");
            }
        }
        assert!(view.tasks().all(|task| task.is_live() && task.claim().is_none()), "seed {seed}: it has settled");
        let waiting = view.tasks().filter(|task| task.is_waiting());
        for task in waiting {
            let least = view.spec_of(task).expect("it has one").reservations.memory_bytes;
            for node in nodes.map(NodeId::from) {
                let others = view.tasks_of_node(&node);
                let stays = others.filter(|it| priority(&it.service_id) >= priority(&task.service_id));
                let held: u64 = stays.map(|it| view.spec_of(it).expect("it has one").reservations.memory_bytes).sum();
                assert!(held + least > 4 * GIB, "seed {seed}: {} could have room on {node}", task.id);
            }
        }
    }
}
