//! Volumes: where their data is, that it stays there, and that it is removed only when a user asks for it.

use std::collections::BTreeSet;

use flota_api::model::NodeState;
use flota_api::proto::control::{DeployStackRequest, RemoveRequest, RemoveStackRequest};
use flota_api::proto::specs::{Mount, NodeSpec, ServiceMode, ServiceSpec, StackSpec, VolumeMount, VolumeSpec, mount};
use flota_api::proto::types::Availability;
use flota_api::reason::Reason;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::script::{Script, script, spec};
use tonic::Status;

use super::nodes::cut_off;
use super::{Seen, node_is, seen};

fn with_volume(spec: ServiceSpec, volume: &str, per_slot: bool) -> ServiceSpec {
    let source = VolumeMount { name: volume.into(), per_slot, ..VolumeMount::default() };
    let mount = Mount { target: "/data".into(), read_only: false, source: Some(mount::Source::Volume(source)) };
    ServiceSpec { mounts: vec![mount], ..spec }
}

fn db(replicas: u64, per_slot: bool) -> ServiceSpec {
    with_volume(spec("db", replicas), "data", per_slot)
}

/// The data of volumes on each worker's machine, by slot.
fn data(cluster: &SimCluster) -> Vec<BTreeSet<Option<u64>>> {
    let slots = |it: &flota_tests::sim::cluster::WorkerHost| it.machine.volumes().into_iter().map(|(_, slot)| slot);
    cluster.workers.iter().map(|it| slots(it).collect()).collect()
}

/// The running slots of a worker's machine.
fn slots(cluster: &SimCluster) -> Vec<BTreeSet<u64>> {
    let running = cluster.workers.iter().map(|it| it.machine.running());
    running.map(|running| running.into_iter().map(|it| it.slot).collect()).collect()
}

/// No machine has data of a volume, and the store has none of it.
fn nothing_is_left(cluster: &SimCluster) -> Seen {
    let volumes = cluster.view().ok_or("no manager leads")?.volumes().count();
    seen(volumes == 0 && data(cluster).iter().all(BTreeSet::is_empty), (volumes, data(cluster)))
}

fn remove_service(it: &mut Script, name: &str) {
    let request = RemoveRequest { request_id: format!("rm {name}"), name: name.into(), force: false };
    it.request(it.leader(), |mut client| async move { client.remove_service(request).await }).unwrap();
}

fn remove_volume(it: &mut Script, request_id: &str) -> Result<(), Status> {
    let request = RemoveRequest { request_id: request_id.into(), name: "data".into(), force: false };
    it.request(it.leader(), |mut client| async move { client.remove_volume(request).await.map(drop) })
}

/// What the leader says about the tasks that wait.
fn reasons(it: &mut Script) -> String {
    let rows = it.tasks(it.leader());
    rows.iter().map(|row| row.error.as_str()).filter(|error| !error.is_empty()).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_tasks_of_a_shared_volume_stay_on_the_node_that_has_its_data() {
    script(3, |it| {
        it.create(it.leader(), db(2, false)).unwrap();
        it.converge();
        let home = slots(it.cluster()).iter().position(|slots| slots.len() == 2).expect("both are on one node");
        let before = data(it.cluster());
        assert_eq!(before[home], [None].into());
        it.update(it.leader(), "scale", db(4, false)).unwrap();
        it.converge();
        assert_eq!(slots(it.cluster())[home].len(), 4);
        it.update(it.leader(), "update", ServiceSpec { env: vec!["A=2".into()], ..db(4, false) }).unwrap();
        it.converge();
        assert_eq!(slots(it.cluster())[home].len(), 4, "successors are there, too");
        it.cluster().crash_worker(home, true);
        it.wait("the node is down", 10_000, node_is(home, NodeState::Down));
        it.pass(3_000);
        assert!(slots(it.cluster()).iter().all(BTreeSet::is_empty), "its tasks run nowhere else");
        assert!(reasons(it).contains(&format!("its node w{} is down since", home + 1)), "{}", reasons(it));
        it.cluster().start_worker(home);
        it.converge();
        assert_eq!((slots(it.cluster())[home].len(), data(it.cluster())), (4, before));
    });
}

#[test]
fn a_node_that_was_cut_off_runs_the_task_whose_data_it_has_once() {
    script(2, |it| {
        it.create(it.leader(), db(1, false)).unwrap();
        it.converge();
        let home = slots(it.cluster()).iter().position(|slots| !slots.is_empty()).expect("it runs");
        let before = it.picture();
        cut_off(it, home);
        it.wait("the node is down", 10_000, node_is(home, NodeState::Down));
        it.pass(2_000);
        it.cluster().world.network.heal_all();
        it.converge();
        assert_eq!(it.picture(), before, "the task runs on, and no other one has begun beside it");
    });
}

#[test]
fn each_slot_goes_back_to_its_own_data() {
    script(3, |it| {
        it.create(it.leader(), db(3, true)).unwrap();
        it.converge();
        let (before, places) = (slots(it.cluster()), data(it.cluster()));
        assert!(places.iter().all(|slots| slots.len() == 1), "{places:?}");
        it.update(it.leader(), "none", db(0, true)).unwrap();
        it.converge();
        it.update(it.leader(), "again", db(3, true)).unwrap();
        it.converge();
        assert_eq!((slots(it.cluster()), data(it.cluster())), (before.clone(), places.clone()));
        remove_service(it, "db");
        it.converge();
        assert_eq!(data(it.cluster()), places, "nobody has asked to remove the volume");
        it.create(it.leader(), with_volume(spec("other", 3), "data", true)).unwrap();
        it.converge();
        assert_eq!(slots(it.cluster()), before, "the data of a slot is that of the volume's, whatever the service");
    });
}

#[test]
fn a_drained_node_keeps_the_task_whose_data_it_has_and_its_successor_says_why() {
    script(2, |it| {
        it.create(it.leader(), db(1, false)).unwrap();
        it.converge();
        let home = slots(it.cluster()).iter().position(|slots| !slots.is_empty()).expect("it runs");
        let drained = NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() };
        it.update_node(&format!("w{}", home + 1), drained);
        it.pass(5_000);
        assert_eq!(slots(it.cluster())[home], [1].into(), "it runs on");
        let why = reasons(it);
        assert!(why.contains("drained") && why.contains("without the data of a volume"), "{why}");
        assert!(why.contains(&format!("the data of volume `data` is on node w{}", home + 1)), "{why}");
    });
}

#[test]
fn a_global_service_has_data_on_each_node() {
    script(3, |it| {
        let agent = ServiceSpec { mode: ServiceMode::Global.into(), ..with_volume(spec("agent", 0), "data", false) };
        it.create(it.leader(), agent).unwrap();
        it.converge();
        assert_eq!(data(it.cluster()), vec![BTreeSet::from([None]); 3]);
    });
}

#[test]
fn a_volume_goes_when_it_is_removed_and_not_before() {
    script(2, |it| {
        it.create(it.leader(), db(2, true)).unwrap();
        it.converge();
        let refused = remove_volume(it, "too early").unwrap_err();
        assert_eq!(Reason::of(&refused), Some(Reason::InUse));
        assert_eq!(refused.message(), "volume `data` is used by db");
        remove_service(it, "db");
        it.converge();
        assert_eq!(data(it.cluster()).iter().flatten().count(), 2);
        remove_volume(it, "now").unwrap();
        it.wait("every node has dropped it", 5_000, nothing_is_left);
    });
}

#[test]
fn a_node_that_was_down_drops_a_removed_volume_when_it_is_back() {
    script(2, |it| {
        it.create(it.leader(), db(2, true)).unwrap();
        it.converge();
        it.cluster().crash_worker(1, true);
        it.wait("the node is down", 10_000, node_is(1, NodeState::Down));
        remove_service(it, "db");
        it.pass(3_000);
        remove_volume(it, "rm").unwrap();
        it.pass(5_000);
        let left = data(it.cluster());
        assert_eq!(left.iter().map(BTreeSet::len).collect::<Vec<_>>(), [0, 1], "the other node has dropped it");
        // Another volume of the same name is not meant.
        let other = with_volume(spec("other", 1), "data", false);
        let constraints = vec!["node.hostname==w1".into()];
        it.create(it.leader(), ServiceSpec { constraints, ..other }).unwrap();
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another manager leads", 10_000, super::another_leads(leader));
        it.cluster().start_manager(leader);
        it.cluster().start_worker(1);
        it.wait("it has dropped it, too", 20_000, |cluster| {
            let counts = data(cluster).iter().map(BTreeSet::len).collect::<Vec<_>>();
            seen(counts == [1, 0], counts)
        });
        it.converge();
    });
}

#[test]
fn the_volumes_of_a_stack_stay_with_their_data_unless_they_are_to_go() {
    script(2, |it| {
        let deploy = |it: &mut Script, request_id: &str| {
            let service = with_volume(spec("shop_db", 1), "shop_data", false);
            let volumes = vec![VolumeSpec { name: "shop_data".into(), ..VolumeSpec::default() }];
            let stack = StackSpec { name: "shop".into(), services: vec![service], volumes, ..StackSpec::default() };
            let request = DeployStackRequest { request_id: request_id.into(), spec: Some(stack), ..Default::default() };
            it.request(it.leader(), |mut client| async move { client.deploy_stack(request).await }).unwrap();
            it.converge();
        };
        let remove = |it: &mut Script, request_id: &str, volumes: bool| {
            let request = RemoveStackRequest { request_id: request_id.into(), name: "shop".into(), volumes };
            it.request(it.leader(), |mut client| async move { client.remove_stack(request).await }).unwrap();
        };
        deploy(it, "first");
        let before = (slots(it.cluster()), data(it.cluster()));
        remove(it, "rm", false);
        it.converge();
        deploy(it, "second");
        assert_eq!((slots(it.cluster()), data(it.cluster())), before, "the same data, on the same node");
        // Its task still runs when the volume is removed, and the node drops the data after its end.
        remove(it, "rm all", true);
        it.wait("every node has dropped it", 10_000, nothing_is_left);
    });
}
