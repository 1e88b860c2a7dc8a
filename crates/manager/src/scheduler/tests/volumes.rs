//! Where tasks with volumes are placed, and what becomes of the volumes then.

use flota_api::model::{FileSystem, Mount, MountSource, VolumeMount, VolumePlace, VolumeSpec};

use super::*;

fn spec(volumes: &[&str]) -> ServiceSpec {
    let mount = |name: &&str| Mount {
        target: format!("/{name}"),
        read_only: false,
        source: MountSource::Volume(VolumeMount { name: Some((*name).into()), ..VolumeMount::default() }),
    };
    ServiceSpec { mounts: volumes.iter().map(mount).collect(), ..ServiceSpec::default() }
}

/// A volume of this name and id, with data of slots on nodes.
fn volume(name: &str, per_slot: bool, places: &[(Option<u64>, &str)]) -> Object {
    let place = |(slot, node): &(Option<u64>, &str)| VolumePlace { slot: *slot, node_id: (*node).into() };
    let spec = VolumeSpec { name: name.into(), per_slot, ..VolumeSpec::default() };
    Volume { id: name.into(), spec, places: places.iter().map(place).collect(), ..Volume::default() }.into_object()
}

fn waiting(slot: u64) -> Task {
    Task { slot, ..task(&format!("p{slot}{}", "x".repeat(slot as usize)), "s", "", TaskState::Pending) }
}

/// Three nodes, a service with this spec, and these tasks and volumes.
fn cluster(spec: ServiceSpec, slots: &[u64], volumes: Vec<Object>) -> Tables {
    let mut objects: Vec<Object> = ["a", "b", "c"].map(|id| node(id).into_object()).into();
    objects.push(service("s", spec).into_object());
    objects.extend(slots.iter().map(|slot| waiting(*slot).into_object()));
    objects.extend(volumes);
    view(objects)
}

/// Plans, and puts the changes into the view. Returns `SLOT@NODE` or `SLOT: REASON` for each task, then the last places of
/// each volume that has changed, as `VOLUME: SLOT@NODE…`.
fn applied(view: &mut Tables) -> Vec<String> {
    let plan = plan(view, "s");
    let (mut shown, mut volumes) = (Vec::new(), BTreeMap::new());
    for change in plan.changes {
        let Change::Put(object) = change else { panic!("{change:?}") };
        match &object {
            Object::Task(task) => shown.push(match (&task.node_id, &task.pending_reason) {
                (Some(node), _) => format!("{}@{node}", task.slot),
                (None, reason) => format!("{}: {}", task.slot, reason.as_ref().expect("the scheduler says why")),
            }),
            Object::Volume(volume) => {
                let place =
                    |it: &VolumePlace| format!(" {}@{}", it.slot.map_or("-".into(), |it| it.to_string()), it.node_id);
                volumes.insert(volume.id.to_string(), volume.places.iter().map(place).collect::<String>());
            }
            other => panic!("{other:?}"),
        }
        view.put(object);
    }
    shown.extend(volumes.into_iter().map(|(id, places)| format!("{id}:{places}")));
    shown
}

#[test]
fn the_first_task_decides_where_a_volume_is_and_the_others_follow() {
    let mut view = cluster(spec(&["db"]), &[1, 2, 3], vec![volume("db", false, &[])]);
    assert_eq!(applied(&mut view), ["1@a", "2@a", "3@a", "db: -@a"]);
    view.put(waiting(4).into_object());
    assert_eq!(applied(&mut view), ["4@a"], "it is there already");
}

#[test]
fn each_slot_has_its_own_data_where_it_was_placed_first() {
    let mut view = cluster(spec(&["db"]), &[1, 2, 3], vec![volume("db", true, &[(Some(3), "a")])]);
    assert_eq!(applied(&mut view), ["1@a", "2@b", "3@a", "db: 3@a 1@a 2@b"]);
    // The tasks end, and each slot goes back to its data.
    let tasks: Vec<_> = view.tasks().map(|it| it.as_ref().clone()).collect();
    for task in tasks {
        let status = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
        let next = Task { id: format!("next{}", task.slot).as_str().into(), ..waiting(task.slot) };
        view.put(Task { status, ..task }.into_object());
        view.put(next.into_object());
    }
    let mut placed = applied(&mut view);
    placed.sort();
    assert_eq!(placed, ["1@a", "2@b", "3@a"]);
}

#[test]
fn a_task_of_a_global_service_has_the_data_of_its_node() {
    let mut view = cluster(
        ServiceSpec { mode: ServiceMode::Global {}, ..spec(&["db"]) },
        &[],
        vec![volume("db", true, &[(Some(1), "c"), (None, "a")])],
    );
    for (slot, node) in [(1, "a"), (2, "b")] {
        view.put(Task { pinned_to: Some(node.into()), ..waiting(slot) }.into_object());
    }
    assert_eq!(applied(&mut view), ["1@a", "2@b", "db: 1@c -@a -@b"]);
}

#[test]
fn a_task_waits_for_the_node_that_has_its_data_and_says_so() {
    let down = Node { state: NodeState::Down, ..node("a") };
    let mut drained = node("a");
    drained.spec.availability = Availability::Drain;
    let mut full = node("a");
    full.description.hostname = "w1".into();
    full.description.resources.nano_cpus = 0;
    let busy = ServiceSpec { reservations: Resources { nano_cpus: 1, memory_bytes: 0 }, ..spec(&["db"]) };
    let others = "2 of 3 without the data of a volume";
    for (home, spec, refused, shown) in [
        (down, spec(&["db"]), "1 of 3 not ready", ""),
        (drained, spec(&["db"]), "1 of 3 drained", ""),
        (full, busy, "1 of 3 without enough CPU", "w1"),
    ] {
        let mut view = cluster(spec, &[1], vec![volume("db", false, &[(None, "a")])]);
        view.put(home.into_object());
        let counts = if refused < others { format!("{refused}, {others}") } else { format!("{others}, {refused}") };
        let expected = format!("1: no node fits: {counts}; the data of volume `db` is on node {shown}");
        assert_eq!(applied(&mut view), [expected]);
        assert_eq!(applied(&mut view), [] as [&str; 0], "it is no news");
        view.put(node("a").into_object());
        view.put(node("b").into_object());
        assert_eq!(applied(&mut view), ["1@a"], "it goes there and nowhere else");
    }
}

#[test]
fn a_task_whose_volumes_are_on_different_nodes_or_on_a_removed_one_says_so() {
    let apart = vec![volume("db", false, &[(None, "a")]), volume("log", false, &[(None, "gone")])];
    let mut view = cluster(spec(&["db", "log"]), &[1], apart);
    let expected = "1: no node fits: 3 of 3 without the data of a volume; the data of volume `db` is on node ; the data of \
                    volume `log` was on node gone, which was removed";
    assert_eq!(applied(&mut view), [expected]);
    let mut view = cluster(spec(&["db"]), &[1], vec![volume("db", false, &[(None, "gone")])]);
    let expected = "1: no node fits: 3 of 3 without the data of a volume; the data of volume `db` was on node gone, which \
                    was removed";
    assert_eq!(applied(&mut view), [expected]);
    let mut view = cluster(spec(&["db"]), &[1], Vec::new());
    assert_eq!(applied(&mut view), ["1: no node fits: 3 of 3 without the data of a volume"], "it does not exist");
}

#[test]
fn a_volume_without_data_joins_those_that_have_some() {
    let volumes = vec![volume("db", false, &[]), volume("log", false, &[(None, "c")])];
    let mut view = cluster(spec(&["db", "log"]), &[1], volumes);
    assert_eq!(applied(&mut view), ["1@c", "db: -@c"]);
}

#[test]
fn a_successor_needs_the_room_of_the_task_before_it_on_the_node_of_its_data() {
    let reservations = Resources { nano_cpus: 3_000_000_000, memory_bytes: 0 };
    let spec = ServiceSpec { reservations, ..spec(&["db"]) };
    let mut view = cluster(spec, &[], vec![volume("db", false, &[(None, "a")])]);
    view.put(task("old", "s", "a", TaskState::Running).into_object());
    view.put(Task { desired_state: DesiredState::Ready, ..waiting(1) }.into_object());
    applied(&mut view);
    let reason = view.tasks().find_map(|task| task.pending_reason.clone()).expect("it waits");
    assert!(reason.needs_room(), "{reason}");
    let Some(old) = view.task("old").cloned() else { panic!("it is there") };
    view.put(Task { node_id: Some("b".into()), ..old.as_ref().clone() }.into_object());
    view.put(task("other", "s", "a", TaskState::Running).into_object());
    let other = view.task("other").cloned().expect("it is there");
    view.put(Task { slot: 9, ..other.as_ref().clone() }.into_object());
    applied(&mut view);
    let reason = view.tasks().find_map(|task| task.pending_reason.clone()).expect("it waits");
    assert!(!reason.needs_room(), "the task before it is elsewhere: {reason}");
}

#[test]
fn a_change_of_a_volume_wakes_the_services_that_wait_with_it() {
    let view = cluster(spec(&["db"]), &[1], Vec::new());
    let woken = |name: &str| Scheduler.dirtied_by(&Event::Created(volume(name, false, &[])), &view);
    assert_eq!(woken("db"), [Key::of("s")]);
    assert_eq!(woken("other"), []);
}

#[test]
fn data_is_used_by_the_next_task_only_when_the_one_before_has_ended() {
    let there = || vec![volume("db", false, &[(None, "a")])];
    let stopping = |service: &str, slot: u64| Task {
        slot,
        desired_state: DesiredState::Shutdown,
        ..task("old", service, "a", TaskState::Running)
    };
    let waits = |spec: ServiceSpec, mut old: Task, other: Option<ServiceSpec>| {
        let mut view = cluster(spec, &[1], there());
        // A service whose tasks are still stopping may have been removed.
        let is_removed = other.is_none();
        view.put(service("other", other.unwrap_or_else(|| self::spec(&["db"]))).into_object());
        view.put(old.clone().into_object());
        if is_removed {
            view.remove(Kind::Service, "other");
        }
        let waits = applied(&mut view).is_empty();
        old.status.state = TaskState::Shutdown;
        view.put(old.into_object());
        if waits {
            assert_eq!(applied(&mut view), ["1@a"], "it has ended");
        }
        waits
    };
    let db = || spec(&["db"]);
    assert!(waits(db(), stopping("s", 1), Some(db())), "the one before in its slot");
    assert!(!waits(db(), stopping("s", 2), Some(db())), "another slot shares the data");
    assert!(!waits(db(), stopping("other", 1), Some(db())), "and so does another service");
    assert!(waits(db(), stopping("other", 1), None), "which was removed");
    assert!(!waits(db(), stopping("other", 1), Some(spec(&[]))), "it does not use it");
    let running = Task { desired_state: DesiredState::Running, ..stopping("s", 1) };
    assert!(!waits(db(), running, Some(db())), "an update that starts first has both, as its users want");
}

#[test]
fn a_volume_that_is_a_file_system_has_no_home_and_goes_where_it_is_allowed_and_known() {
    let share = |kind: &str, device: &str, o: &str| {
        let file_system = Some(FileSystem::of(kind, device, o).expect("a good one"));
        let spec = VolumeSpec { name: "db".into(), file_system, ..VolumeSpec::default() };
        Volume { id: "db".into(), spec, ..Volume::default() }.into_object()
    };
    let mut view = cluster(spec(&["db"]), &[1, 2, 3], vec![share("tmpfs", "", "")]);
    assert_eq!(applied(&mut view), ["1@a", "2@b", "3@c"], "no node is its home");

    let nfs = || share("nfs", "nas:/srv", "");
    let mut view = cluster(spec(&["db"]), &[1], vec![nfs()]);
    assert_eq!(applied(&mut view), ["1: no node fits: 3 of 3 not allowing a file system"]);
    let allow = |view: &mut Tables, id: &str, level: u32| {
        let mut node = node(id);
        node.description.allow.file_systems = vec!["nfs:nas:*".into()];
        node.description.allow.bind_mounts = vec!["/srv".into()];
        node.description.feature_level = level;
        view.put(node.into_object());
    };
    let mut view = cluster(spec(&["db"]), &[1, 2], vec![nfs()]);
    allow(&mut view, "a", flota_api::LEVEL_OF_FILE_SYSTEMS - 1);
    allow(&mut view, "c", flota_api::LEVEL_OF_FILE_SYSTEMS);
    assert_eq!(applied(&mut view), ["1@c", "2@c"]);
    for (device, expected) in [
        ("/srv/a", "1@c"),
        ("/etc", "1: no node fits: 2 of 3 not allowing a bind mount, 1 of 3 of a version that is too old"),
    ] {
        let mut view = cluster(spec(&["db"]), &[1], vec![share("none", device, "bind")]);
        allow(&mut view, "a", flota_api::LEVEL_OF_FILE_SYSTEMS - 1);
        allow(&mut view, "c", flota_api::LEVEL_OF_FILE_SYSTEMS);
        assert_eq!(applied(&mut view), [expected]);
    }
}
