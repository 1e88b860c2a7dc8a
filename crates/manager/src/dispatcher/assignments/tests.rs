//! Tests of what a worker is told of its tasks and images.

use std::num::NonZeroU64;

use prost::Message;

use super::parts::{CHUNK, PART};
use super::*;
use flota_api::model::{
    Attachment, Cluster, DeviceId, Health, HealthResult, HealthState, Image, ImageHolder, Mount, MountSource, Node,
    NodeState, PinnedImage, ScalePolicy, Service, TaskStatus, Volume, VolumeMount, VolumePlace, VolumeSpec,
};
use flota_api::object::{Kind, StoreObject};
use flota_api::proto::dispatcher::{Grant, MountedImage};
use flota_identity::GrantKey;

fn view(states: &[(&str, TaskState, DesiredState)]) -> Tables {
    let mut view = Tables::default();
    view.put(Node { id: "n".into(), ..Node::default() }.into_object());
    view.put(Service { id: "s".into(), spec_version: 1, ..Service::default() }.into_object());
    for (id, state, desired_state) in states {
        let status = TaskStatus { state: *state, ..TaskStatus::default() };
        let task = Task {
            id: (*id).into(),
            service_id: "s".into(),
            spec_version: 1,
            node_id: Some("n".into()),
            ..Task::default()
        };
        view.put(Task { status, desired_state: *desired_state, ..task }.into_object());
    }
    view
}

/// Tells the worker `n` this view, and returns the one message, if there is one.
fn tell(told: &mut Told, view: &Tables) -> Option<Assignments> {
    let mut parts = told.tell(view, &Granter { key: &[], expires: Timestamp(0) }, &|_, _| None, Timestamp(0));
    assert!(parts.len() < 2, "it is small");
    parts.pop()
}

fn nothing_told(held: &[&str]) -> Told {
    Told::new("n".into(), held.iter().map(|it| (*it).to_owned()).collect())
}

fn ids(assignments: &Assignments) -> Vec<&str> {
    assignments.tasks.iter().map(|it| it.task_id.as_str()).collect()
}

#[test]
fn a_worker_is_told_what_is_assigned_and_then_what_changed() {
    use DesiredState::{Running as Run, Shutdown as Stop};
    let mut told = nothing_told(&[]);
    let states = [("a", TaskState::Assigned, Run), ("b", TaskState::Orphaned, Run), ("c", TaskState::Pending, Run)];
    let first = tell(&mut told, &view(&states)).expect("the full set");
    assert!(first.full);
    assert_eq!(ids(&first), ["a"]);
    assert_eq!(tell(&mut told, &view(&[("a", TaskState::Running, Run)])), None, "its own report is not sent back");
    let stopped = view(&[("a", TaskState::Running, Stop), ("d", TaskState::Assigned, Run)]);
    let difference = tell(&mut told, &stopped).expect("two tasks changed");
    assert!(!difference.full);
    assert_eq!(ids(&difference), ["a", "d"]);
    let ended = tell(&mut told, &view(&[("d", TaskState::Assigned, Run)])).expect("one went");
    assert_eq!((ids(&ended).len(), ended.removed_tasks), (0, vec!["a".to_owned()]));
}

#[test]
fn an_ended_task_stays_on_its_node_and_costs_nothing_until_it_is_to_be_removed() {
    use DesiredState::{Running as Run, Shutdown as Stop};
    let mut told = nothing_told(&[]);
    tell(&mut told, &view(&[("a", TaskState::Running, Run)])).expect("the full set");
    for desired in [Run, Stop] {
        assert_eq!(tell(&mut told, &view(&[("a", TaskState::Complete, desired)])), None);
    }
    let mut ended = view(&[("a", TaskState::Complete, Stop)]);
    let task = ended.tasks().next().expect("one task").as_ref().clone();
    ended.put(Task { image_digest: Some("sha256:1".into()), ..task }.into_object());
    let full = tell(&mut nothing_told(&[]), &ended).expect("the full set of a new session");
    assert_eq!((ids(&full), &full.tasks[0].image), (vec!["a"], &None), "its image is not fetched");
    for gone in [view(&[("a", TaskState::Complete, DesiredState::Remove)]), view(&[])] {
        let mut told = nothing_told(&[]);
        tell(&mut told, &ended).expect("the full set");
        assert_eq!(tell(&mut told, &gone).expect("it is to go").removed_tasks, ["a"]);
    }
}

#[test]
fn a_worker_is_told_which_of_its_devices_a_task_has() {
    let mut view = view(&[("a", TaskState::Assigned, DesiredState::Running)]);
    let gpu = DeviceId { kind: "gpu".into(), id: "nvidia1".into() };
    let task = view.tasks().next().expect("one task").as_ref().clone();
    view.put(Task { device_ids: vec![gpu.clone()], ..task }.into_object());
    let set = tell(&mut nothing_told(&[]), &view).expect("the full set");
    assert_eq!(set.tasks[0].device_ids, [(&gpu).into()]);
}

#[test]
fn a_default_of_the_cluster_is_told_when_it_changes() {
    let mut view = view(&[("a", TaskState::Assigned, DesiredState::Running)]);
    let mut told = nothing_told(&[]);
    assert!(!tell(&mut told, &view).expect("the full set").tasks[0].no_new_privileges);
    view.put(Cluster { no_new_privileges: true, ..Cluster::default() }.into_object());
    assert!(tell(&mut told, &view).expect("it has changed").tasks[0].no_new_privileges);
}

#[test]
fn a_worker_is_told_to_measure_the_tasks_of_a_service_that_is_scaled_by_its_load() {
    let mut view = view(&[("a", TaskState::Running, DesiredState::Running)]);
    let mut told = nothing_told(&[]);
    assert_eq!(tell(&mut told, &view).expect("the full set").tasks[0].measured, None);
    let service = view.services().next().expect("one service").as_ref().clone();
    let scale = Some(ScalePolicy::between(NonZeroU64::MIN, NonZeroU64::MAX));
    let spec = Arc::new(ServiceSpec { scale, ..service.spec.as_ref().clone() });
    view.put(Service { spec, ..service.clone() }.into_object());
    let measured = tell(&mut told, &view).expect("it has changed").tasks[0].measured.clone();
    assert_eq!(measured, Some((&Measured::default()).into()), "its spec version is the same");
    view.put(service.into_object());
    assert_eq!(tell(&mut told, &view).expect("it has changed").tasks[0].measured, None);
}

#[test]
fn credentials_come_with_an_image_that_no_node_of_the_same_architecture_holds() {
    let mut view = view(&[]);
    let status = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
    let (node_id, image_digest) = (Some("n".into()), Some("sha256:1".into()));
    let task = Task { id: "a".into(), service_id: "s".into(), spec_version: 1, node_id, ..Task::default() };
    view.put(Task { image_digest, status, ..task }.into_object());
    let spec = Arc::new(ServiceSpec { image: "registry:5000/app".into(), ..ServiceSpec::default() });
    view.put(Service { id: "s".into(), spec_version: 1, spec, ..Service::default() }.into_object());
    view.put(Registry { id: "r".into(), host: "registry:5000".into(), ..Registry::default() }.into_object());
    let holders = vec![ImageHolder { node_id: "h".into(), confirmed: true }];
    view.put(Image { id: "i".into(), digest: "sha256:1".into(), holders, ..Image::default() }.into_object());
    for (architecture, is_held) in [("", true), ("arm64", false)] {
        let mut holder = Node { id: "h".into(), state: NodeState::Ready, ..Node::default() };
        holder.description.architecture = architecture.into();
        view.put(holder.into_object());
        let set = tell(&mut nothing_told(&[]), &view).expect("the full set");
        let image = set.tasks[0].image.as_ref().expect("it has a digest");
        assert_eq!((image.holders.len(), set.tasks[0].credentials.is_none()), (usize::from(is_held), is_held));
    }
}

#[test]
fn the_images_that_a_task_mounts_come_from_nodes_or_with_the_credentials_of_their_registry() {
    let mut view = view(&[]);
    let mount = |reference: &str, target: &str| Mount {
        target: target.into(),
        read_only: true,
        source: MountSource::Image { reference: reference.into(), subpath: None },
    };
    let mounts = vec![mount("registry:5000/b", "/b"), mount("registry:5000/a", "/a"), mount("registry:5000/a", "/c")];
    let spec = Arc::new(ServiceSpec { image: "app".into(), mounts, ..ServiceSpec::default() });
    view.put(Service { id: "s".into(), spec_version: 1, spec, ..Service::default() }.into_object());
    let pinned =
        PinnedImage { reference: "registry:5000/b".into(), digest: "sha256:b".into(), ..PinnedImage::default() };
    let status = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
    let task = Task { id: "a".into(), service_id: "s".into(), spec_version: 1, status, ..Task::default() };
    let task = Task { node_id: Some("n".into()), mounted_images: vec![pinned], ..task };
    view.put(task.clone().into_object());
    view.put(Registry { id: "r".into(), host: "registry:5000".into(), ..Registry::default() }.into_object());
    view.put(Node { id: "h".into(), state: NodeState::Ready, ..Node::default() }.into_object());
    let holders = vec![ImageHolder { node_id: "h".into(), confirmed: true }];
    view.put(Image { id: "i".into(), digest: "sha256:b".into(), holders, ..Image::default() }.into_object());
    let mut told = nothing_told(&[]);
    let shown = |set: &Assignments| -> Vec<String> {
        let mounted = set.tasks[0].mounted_images.iter();
        let source = |image: &MountedImage| image.source.as_ref().map(|it| (it.digest.clone(), it.holders.len()));
        mounted.map(|it| format!("{} {:?} {}", it.reference, source(it), it.credentials.is_some())).collect()
    };
    let set = tell(&mut told, &view).expect("the full set");
    assert_eq!(
        shown(&set),
        ["registry:5000/a None true", "registry:5000/b Some((\"sha256:b\", 1)) false"],
        "each once; what one of them means is not known"
    );
    assert!(tell(&mut told, &view).is_none(), "nothing has changed");
    view.put(Node { id: "h".into(), state: NodeState::Down, ..Node::default() }.into_object());
    let set = tell(&mut told, &view).expect("its holder is down");
    assert_eq!(shown(&set)[1], "registry:5000/b Some((\"sha256:b\", 0)) true");
    let ended = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
    view.put(Task { status: ended, ..task }.into_object());
    let set = tell(&mut nothing_told(&[]), &view).expect("the full set");
    assert!(set.tasks[0].mounted_images.is_empty(), "it needs none any more");
}

#[test]
fn a_grant_is_signed_once_until_it_is_renewed_and_told_again_then() {
    let mut view = view(&[]);
    let holders = vec![ImageHolder { node_id: "h".into(), confirmed: true }];
    view.put(Node { id: "h".into(), state: NodeState::Ready, ..Node::default() }.into_object());
    view.put(Image { id: "i".into(), digest: "sha256:1".into(), holders, ..Image::default() }.into_object());
    let status = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
    let task = Task { service_id: "s".into(), spec_version: 1, node_id: Some("n".into()), ..Task::default() };
    for id in ["a", "b"] {
        let image_digest = Some("sha256:1".into());
        view.put(Task { id: id.into(), image_digest, status: status.clone(), ..task.clone() }.into_object());
    }
    let key = GrantKey::generate();
    let granter = |expires| Granter { key: &key, expires: Timestamp(expires) };
    let mut told = nothing_told(&[]);
    let first = told.tell(&view, &granter(1), &|_, _| None, Timestamp(0));
    let grants = |parts: &[Assignments]| -> Vec<Option<Grant>> {
        parts[0].tasks.iter().map(|task| task.image.as_ref().and_then(|image| image.grant.clone())).collect()
    };
    assert!(grants(&first)[0].is_some() && grants(&first)[0] == grants(&first)[1]);
    assert!(told.tell(&view, &granter(1), &|_, _| None, Timestamp(0)).is_empty(), "nothing has changed");
    let renewed = told.tell(&view, &granter(2), &|_, _| None, Timestamp(0));
    assert!(grants(&renewed).iter().flatten().all(|grant| grant.expires_at == 2));
    assert_eq!(renewed[0].tasks.len(), 2);
}

#[test]
fn a_large_set_comes_in_small_parts_with_each_spec_once_in_a_part_and_nothing_missing() {
    let task = |number: u64| TaskAssignment {
        task_id: number.to_string(),
        service_id: (number % 7).to_string(),
        ..TaskAssignment::default()
    };
    // Seven large specs are sent once each, and small ones share a part.
    for (bytes, expected) in [(300 << 10, 7..=7), (1, 1..=3)] {
        let spec = Arc::new(ServiceSpec { env: vec!["x".repeat(bytes)], ..ServiceSpec::default() });
        let specs = (0..7).map(|number| ((number.to_string(), 0), Arc::clone(&spec))).collect();
        let removed_tasks = vec!["gone".to_owned()];
        let tasks = (0..500).map(task).collect();
        let parts =
            cut(Assignments { tasks, removed_tasks, version: 3, ..Default::default() }, &specs, &BTreeMap::new());
        assert!(expected.contains(&parts.len()), "{} parts with specs of {bytes} bytes", parts.len());
        for (index, part) in parts.iter().enumerate() {
            assert!(part.encoded_len() < bytes + PART + PART / 2);
            assert_eq!((part.more, part.version), (index + 1 < parts.len(), 3));
            let known = |task: &TaskAssignment| part.specs.iter().filter(|it| it.service_id == task.service_id).count();
            assert!(
                part.tasks.iter().all(|task| task.spec.is_none() && known(task) == 1),
                "each part stands by itself"
            );
        }
        assert_eq!(parts.iter().map(|part| part.tasks.len()).sum::<usize>(), 500);
        assert_eq!(parts.iter().map(|part| part.removed_tasks.len()).sum::<usize>(), 1);
    }
    assert_eq!(cut(Assignments::default(), &Specs::new(), &BTreeMap::new()).len(), 1, "an empty set is a message too");
}

#[test]
fn a_node_is_asked_for_the_images_that_it_is_not_known_to_have() {
    let mut view = view(&[]);
    let image = |digest: &str, confirmed| Image {
        id: digest.into(),
        digest: digest.into(),
        holders: vec![ImageHolder { node_id: "n".into(), confirmed }],
        ..Image::default()
    };
    view.put(image("sha256:here", true).into_object());
    view.put(image("sha256:new", false).into_object());
    let mut told = nothing_told(&[]);
    let asked = |set: Assignments| set.images.into_iter().map(|it| it.digest).collect::<Vec<_>>();
    assert_eq!(asked(tell(&mut told, &view).expect("the full set")), ["sha256:new"]);
    view.remove(Kind::Image, "sha256:here");
    assert_eq!(tell(&mut told, &view).expect("it went").dropped_images, ["sha256:here"], "it is known to have it");
}

#[test]
fn an_image_that_no_object_stands_for_may_be_dropped_and_no_other() {
    let mut view = view(&[]);
    let holders = vec![ImageHolder { node_id: "n".into(), confirmed: true }];
    view.put(Image { id: "i".into(), digest: "sha256:kept".into(), holders, ..Image::default() }.into_object());
    let mut told = nothing_told(&["sha256:kept", "sha256:old"]);
    assert_eq!(tell(&mut told, &view).expect("the full set").dropped_images, ["sha256:old"]);
    view.remove(Kind::Image, "i");
    assert_eq!(tell(&mut told, &view).expect("it went").dropped_images, ["sha256:kept"]);
}

#[test]
fn a_stop_is_held_back_until_it_is_confirmed_or_its_time_is_over_which_the_worker_is_told() {
    let state = |stops: bool| {
        let desired = if stops { DesiredState::Shutdown } else { DesiredState::Running };
        let mut view = view(&[("a", TaskState::Running, desired)]);
        view.put(Node { id: "late".into(), description: hostname("w9"), ..Node::default() }.into_object());
        let task = view.task("a").expect("it is there").as_ref().clone();
        let attachments = vec![Attachment { network: "x".into(), addresses: vec![[10, 0, 0, 2].into()] }];
        view.put(Task { attachments, ..task }.into_object());
        view
    };
    let granter = Granter { key: &[], expires: Timestamp(0) };
    let waits = |_: &Task, _| Some(vec![NodeId::from("late")]);
    let stopping = i32::from(flota_api::proto::types::DesiredState::Shutdown);
    let end = Timestamp(0) + WITHDRAWAL_WAIT;

    let mut told = nothing_told(&[]);
    told.tell(&state(false), &granter, &waits, Timestamp(0));
    assert!(told.tell(&state(true), &granter, &waits, Timestamp(0)).is_empty());
    assert_eq!(told.held_until(), Some(end));
    let confirmed = told.tell(&state(true), &granter, &|_, _| None, Timestamp(5)).remove(0);
    assert_eq!((confirmed.tasks[0].desired_state, told.held_until()), (stopping, None));
    assert!(confirmed.tasks[0].unconfirmed_nodes.is_empty() && told.take_unconfirmed_stops() == 0);

    let mut told = nothing_told(&[]);
    told.tell(&state(false), &granter, &waits, Timestamp(0));
    told.tell(&state(true), &granter, &waits, Timestamp(0));
    let late = told.tell(&state(true), &granter, &waits, end).remove(0);
    assert_eq!((late.tasks[0].desired_state, &late.tasks[0].unconfirmed_nodes[..]), (stopping, &["w9".to_owned()][..]));
    assert!(told.tell(&state(true), &granter, &|_, _| None, end).is_empty(), "what was said stays");
    assert_eq!([told.take_unconfirmed_stops(), told.take_unconfirmed_stops()], [1, 0]);

    let mut told = nothing_told(&[]);
    let first = told.tell(&state(true), &granter, &waits, Timestamp(0)).remove(0);
    assert_eq!(first.tasks[0].desired_state, stopping, "a worker that knows nothing is told all of it at once");
}

#[test]
fn an_unhealthy_task_may_stop_when_its_withdrawal_is_confirmed_or_its_time_is_over() {
    let state = |attempt, state| {
        let mut view = view(&[("a", TaskState::Running, DesiredState::Running)]);
        let mut task = view.task("a").expect("it is there").as_ref().clone();
        let log = vec![HealthResult::default()];
        (task.status.attempt, task.status.health) =
            (attempt, Some(Box::new(Health { state, failing_streak: 3, log, ..Health::default() })));
        task.attachments = vec![Attachment { network: "x".into(), addresses: vec![[10, 0, 0, 2].into()] }];
        view.put(task.into_object());
        // The report has the version 7; that of the task is older.
        view.version = 7;
        view
    };
    let (healthy, unhealthy) = (state(4, HealthState::Healthy), state(4, HealthState::Unhealthy));
    let granter = Granter { key: &[], expires: Timestamp(0) };
    let waits = |_: &Task, version| (version == 7).then(|| vec![NodeId::from("late")]);
    let end = Timestamp(0) + WITHDRAWAL_WAIT;
    let withdrawn = |mut sets: Vec<Assignments>| sets.remove(0).tasks.remove(0).withdrawn_attempt;

    let mut told = nothing_told(&[]);
    let first = told.tell(&healthy, &granter, &waits, Timestamp(0)).remove(0).tasks.remove(0);
    assert_eq!(first.withdrawn_attempt, 0);
    assert!(first.status.and_then(|it| it.health).expect("it is told").log.is_empty(), "the worker has the results");
    assert!(told.tell(&unhealthy, &granter, &waits, Timestamp(0)).is_empty());
    assert_eq!(told.held_until(), Some(end));
    assert_eq!(withdrawn(told.tell(&unhealthy, &granter, &|_, _| None, Timestamp(5))), 4);
    assert_eq!(told.held_until(), None);
    assert!(told.tell(&unhealthy, &granter, &waits, Timestamp(6)).is_empty(), "what was said stays");
    assert_eq!(withdrawn(told.tell(&state(5, HealthState::Starting), &granter, &waits, Timestamp(7))), 0);

    let mut told = nothing_told(&[]);
    told.tell(&healthy, &granter, &waits, Timestamp(0));
    assert!(told.tell(&unhealthy, &granter, &waits, Timestamp(0)).is_empty());
    assert_eq!(withdrawn(told.tell(&unhealthy, &granter, &waits, end)), 4);
}

fn hostname(name: &str) -> flota_api::model::NodeDescription {
    flota_api::model::NodeDescription { hostname: name.into(), ..Default::default() }
}

#[test]
fn a_worker_is_told_the_volumes_of_its_tasks_and_which_to_drop_until_it_has() {
    let mut view = view(&[]);
    let source = MountSource::Volume(VolumeMount { name: Some("db".into()), per_slot: true, ..VolumeMount::default() });
    let mounts = ["/a", "/b"].map(|at| Mount { target: at.into(), read_only: false, source: source.clone() }).into();
    let spec = Arc::new(ServiceSpec { mounts, ..ServiceSpec::default() });
    view.put(Service { id: "s".into(), spec_version: 1, spec, ..Service::default() }.into_object());
    let volume = |id: &str, name: &str| Volume {
        id: id.into(),
        spec: VolumeSpec { name: name.into(), per_slot: true, ..VolumeSpec::default() },
        places: vec![VolumePlace { slot: Some(3), node_id: "n".into() }],
        ..Volume::default()
    };
    view.put(volume("v", "db").into_object());
    let status = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
    let (service_id, node_id) = ("s".into(), Some("n".into()));
    let task = Task { id: "t".into(), service_id, spec_version: 1, slot: 3, node_id, status, ..Task::default() };
    view.put(task.into_object());
    let mut told = nothing_told(&[]);
    let first = tell(&mut told, &view).expect("the full set");
    let expected = TaskVolume { name: "db".into(), id: "v".into(), slot: Some(3), file_system: None };
    assert_eq!((&first.tasks[0].volumes, first.dropped_volumes.len()), (&vec![expected], 0));
    view.put(Volume { is_removed: true, ..volume("old", "x") }.into_object());
    assert_eq!(tell(&mut told, &view).expect("one was removed").dropped_volumes, ["old"]);
    assert_eq!(tell(&mut told, &view), None, "it knows");
    assert_eq!(tell(&mut nothing_told(&[]), &view).expect("another session").dropped_volumes, ["old"]);
    view.remove(Kind::Volume, "old");
    assert_eq!(tell(&mut told, &view), None, "its own report is not sent back");
}

#[test]
fn secrets_go_to_the_node_of_a_task_that_uses_them_and_once() {
    use flota_api::model::{PinnedValue, Service, ValueUse};
    use flota_api::object::StoreObject;
    let data = |id: &str, size: usize| {
        ValueData { id: id.into(), bytes: vec![7; size].into(), ..ValueData::default() }.into_object()
    };
    let pin = |version: u64| PinnedValue { value: "v".into(), version, data: format!("d{version}").into() };
    let followed = ValueUse { signal: Some("HUP".into()), ..ValueUse::of("db") };
    let spec = Arc::new(ServiceSpec { secrets: vec![followed], ..ServiceSpec::default() });
    let service = |version| Service {
        id: "s".into(),
        spec: Arc::clone(&spec),
        spec_version: 1,
        values: vec![pin(version)],
        ..Service::default()
    };
    let mut view = Tables::default();
    view.put(data("d1", 3 * CHUNK + 1));
    view.put(data("d2", 1));
    view.put(service(1).into_object());
    let status = flota_api::model::TaskStatus { state: TaskState::Running, ..Default::default() };
    let task =
        Task { id: "t".into(), service_id: "s".into(), spec_version: 1, node_id: Some("n".into()), ..Task::default() };
    view.put(Task { status, values: vec![pin(1)], ..task }.into_object());
    let granter = Granter { key: &[], expires: Timestamp(0) };
    let tell = |told: &mut Told, view: &Tables| {
        let messages = told.tell(view, &granter, &|_, _| None, Timestamp(1));
        let chunks = messages.iter().flat_map(|it| &it.value_data);
        chunks.map(|it| (it.data_id.clone(), it.bytes.len())).collect::<Vec<_>>()
    };
    let (mut own, mut other) = (Told::new("n".into(), BTreeSet::new()), Told::new("m".into(), BTreeSet::new()));
    let first = tell(&mut own, &view);
    assert_eq!(first.iter().map(|it| it.1).collect::<Vec<_>>(), [CHUNK, CHUNK, CHUNK, 1]);
    assert_eq!(tell(&mut other, &view), [], "no other node gets it");
    assert_eq!(tell(&mut own, &view), [], "it is not sent again");
    view.put(service(2).into_object());
    assert_eq!(tell(&mut own, &view), [("d2".to_owned(), 1)], "the file is to be replaced");
    let task = Task { desired_state: DesiredState::Shutdown, ..view.task("t").expect("it is there").as_ref().clone() };
    view.put(task.into_object());
    assert_eq!(tell(&mut own, &view), [], "what the node has of a task, it keeps");
}
