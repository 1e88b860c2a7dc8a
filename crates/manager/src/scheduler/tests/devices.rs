//! Runtimes, privileges and devices: which nodes have them, and who holds which device.

use flota_api::model::BindMount;

use super::*;

fn bound(source: &str) -> ServiceSpec {
    let source = source.to_owned();
    let source = MountSource::Bind(BindMount { source, ..BindMount::default() });
    let mounts = vec![Mount { target: "/x".into(), read_only: false, source }];
    ServiceSpec { mounts, ..ServiceSpec::default() }
}

/// Returns the device ids that each task of the plan got.
fn given(plan: &Plan) -> Vec<(String, String)> {
    let ids = |task: &Task| task.device_ids.iter().map(|it| it.id.as_str()).collect::<Vec<_>>().join(" ");
    let task = |change: &Change| match change {
        Change::Put(Object::Task(task)) => Some((place(task), ids(task))),
        _ => None,
    };
    plan.changes.iter().filter_map(task).collect()
}

#[test]
fn a_task_goes_only_where_its_runtime_its_privileges_and_its_devices_are() {
    let all = |mut node: Node| {
        node.description.runtimes = vec!["flota".into(), "runsc".into()];
        node.description.cdi_devices = vec!["v.com/gpu=0".parse().expect("a name")];
        node.description.allow = Allowance {
            privileged: true,
            devices: vec!["/dev/fuse".into(), "/dev/snd/*".into(), "v.com/gpu=*".into()],
            capabilities: vec!["NET_ADMIN".into()],
            bind_mounts: vec!["/srv".into()],
            file_systems: Vec::new(),
        };
        node
    };
    let spec = ServiceSpec::default;
    let devices = |path: &str| vec![path.parse().expect(path)];
    let cdi = |name: &str| vec![name.parse().expect(name)];
    for (spec, expected) in [
        (ServiceSpec { runtime: Some("flota".into()), init: true, ..spec() }, "p@a"),
        (ServiceSpec { runtime: Some("runsc".into()), ..spec() }, "p@b"),
        (ServiceSpec { runtime: Some("kata".into()), ..spec() }, "p: no node fits: 2 of 2 without the runtime"),
        (ServiceSpec { privileged: true, ..spec() }, "p@b"),
        (ServiceSpec { cap_add: vec!["CHOWN".into()], ..spec() }, "p@a"),
        (ServiceSpec { cap_add: vec!["NET_ADMIN".into()], ..spec() }, "p@b"),
        (ServiceSpec { cap_add: vec!["ALL".into()], ..spec() }, "p: no node fits: 2 of 2 not allowing a capability"),
        (ServiceSpec { devices: devices("/dev/snd/seq"), ..spec() }, "p@b"),
        (ServiceSpec { devices: devices("/dev/mem"), ..spec() }, "p: no node fits: 2 of 2 not allowing a device"),
        (ServiceSpec { cdi_devices: cdi("v.com/gpu=0"), ..spec() }, "p@b"),
        (
            ServiceSpec { cdi_devices: cdi("v.com/gpu=1"), ..spec() },
            "p: no node fits: 1 of 2 not allowing a device, 1 of 2 without a CDI device",
        ),
        (bound("/srv/a"), "p@b"),
        (bound("/etc"), "p: no node fits: 2 of 2 not allowing a bind mount"),
        (wants_gpus(1), "p@b"),
        (wants_gpus(2), "p: no node fits: 2 of 2 without enough free devices"),
    ] {
        let mut objects = vec![node("a").into_object(), all(with_gpus("b", 1)).into_object()];
        objects.push(service("s", spec.clone()).into_object());
        objects.push(task("p", "s", "", TaskState::Pending).into_object());
        assert_eq!(planned(&view(objects), "s"), [expected], "{spec:?}");
    }
    let privileged = ServiceSpec { privileged: true, ..spec() };
    let objects = vec![node("a").into_object(), service("s", privileged).into_object()];
    let mut view = view(objects);
    view.put(task("p", "s", "", TaskState::Pending).into_object());
    assert_eq!(planned(&view, "s"), ["p: no node fits: 1 of 1 not allowing privileged tasks"]);
}

#[test]
fn a_task_gets_the_lowest_free_devices_with_its_node_and_holds_them_until_it_has_ended() {
    let mut objects = vec![with_gpus("n", 12).into_object(), service("s", wants_gpus(3)).into_object()];
    let mut holder = task("r", "other", "n", TaskState::Running);
    // Its service is unknown, but it still holds the device.
    holder.device_ids = vec![DeviceId { kind: "gpu".into(), id: "nvidia1".into() }];
    holder.desired_state = flota_api::state::DesiredState::Remove;
    objects.push(holder.clone().into_object());
    objects.push(task("p1", "s", "", TaskState::Pending).into_object());
    objects.push(task("p2x", "s", "", TaskState::Pending).into_object());
    let mut view = view(objects);
    let both = [("p1@n", "nvidia0 nvidia2 nvidia3"), ("p2x@n", "nvidia4 nvidia5 nvidia6")];
    assert_eq!(given(&plan(&view, "s")), both.map(|(task, ids)| (task.to_owned(), ids.to_owned())));
    holder.status.state = TaskState::Shutdown;
    view.put(holder.into_object());
    assert_eq!(given(&plan(&view, "s"))[0].1, "nvidia0 nvidia1 nvidia2");
}

#[test]
fn no_device_is_ever_held_twice_and_none_is_lost() {
    for seed in 0..40 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut view = view(vec![with_gpus("a", 3).into_object(), with_gpus("b", 11).into_object()]);
        for count in 1..4 {
            view.put(service(&format!("s{count}"), wants_gpus(count)).into_object());
        }
        for step in 0..60 {
            let count = rng.random_range(1..4);
            view.put(task(&format!("t{step}"), &format!("s{count}"), "", TaskState::Pending).into_object());
            for count in 1..4 {
                for change in plan(&view, &format!("s{count}")).changes {
                    let Change::Put(object) = change else { panic!("the scheduler removes nothing") };
                    view.put(object);
                }
            }
            let held = |node: &str| {
                let tasks = view.tasks().filter(|task| task.is_on(&node.into()) && task.holds_resources());
                tasks.flat_map(|task| task.device_ids.clone()).collect::<Vec<_>>()
            };
            let mut free = 0;
            for (node, gpus) in [("a", 3), ("b", 11)] {
                let held = held(node);
                let once: std::collections::BTreeSet<_> = held.iter().collect();
                assert_eq!(once.len(), held.len(), "seed {seed}, step {step}: {node} gave a device twice: {held:?}");
                free = free.max(gpus - held.len());
            }
            let waiting = view.tasks().filter(|task| task.is_waiting());
            let least = waiting.map(|task| view.spec_of(task).expect("it is there").generic_resources[0].count).min();
            assert!(least.is_none_or(|least| least > free as u64), "seed {seed}, step {step}: what fits has a node");
            for task in view.tasks().cloned().collect::<Vec<_>>() {
                assert!(task.node_id.is_none() == task.device_ids.is_empty(), "node and devices come together");
                if task.holds_resources() && rng.random_bool(0.15) {
                    let state = [TaskState::Running, TaskState::Failed, TaskState::Orphaned][rng.random_range(0..3)];
                    let status = TaskStatus { state, ..task.status.clone() };
                    view.put(Task { status, ..task.as_ref().clone() }.into_object());
                }
            }
        }
    }
}
