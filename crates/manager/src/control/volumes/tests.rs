//! Tests of the operations on volumes, and of how services and stacks name them.

use flota_api::model::{
    Cluster, FileSystem, Mount, Node, ServiceMode, Stack, Task, TaskStatus, VolumeMount, VolumePlace,
};
use flota_api::object::StoreObject;
use flota_api::reason::{Detail, Reason};
use flota_api::state::{DesiredState, TaskState};
use tonic::Status;

use super::*;
use crate::control::pins::ResolveImage::Never;
use crate::control::stacks::Absent::Keep;
use crate::control::tests::alone::Alone;
use crate::write::Consensus;

/// A service with a mount of the volume.
fn service(name: &str, volume: &str, per_slot: bool) -> ServiceSpec {
    let source = MountSource::Volume(VolumeMount { name: Some(volume.into()), per_slot, ..VolumeMount::default() });
    let mounts = vec![Mount { target: "/data".into(), read_only: false, source }];
    ServiceSpec { name: name.into(), image: "web".into(), mounts, ..ServiceSpec::default() }
}

fn global(name: &str, volume: &str) -> ServiceSpec {
    ServiceSpec { mode: ServiceMode::Global {}, ..service(name, volume, false) }
}

fn volume(name: &str, per_slot: bool) -> VolumeSpec {
    VolumeSpec { name: name.into(), per_slot, ..VolumeSpec::default() }
}

fn stack(services: Vec<ServiceSpec>, volumes: Vec<VolumeSpec>) -> StackSpec {
    StackSpec { name: "shop".into(), services, volumes, ..StackSpec::default() }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ControlError>) -> (Option<Reason>, String) {
    let error = result.expect_err("it is refused");
    let text = error.to_string();
    (Detail::of(&Status::from(error)).map(|it| it.reason), text)
}

async fn cluster() -> Control<Alone> {
    let control = Control::alone();
    control.put(Cluster { id: "c".into(), ..Cluster::default() }).await;
    control.put(Node { id: "n".into(), ..Node::default() }).await;
    control
}

/// Replaces an object.
async fn update(control: &Control<Alone>, object: impl StoreObject) {
    let mut tx = WriteTx::new(control.store.view(), None);
    tx.update(object);
    control.member.propose(tx.finish()).await.expect("it is there");
}

/// Gives the volume data on the node.
async fn place(control: &Control<Alone>, name: &str) {
    let volume = control.get_volume(name).await.expect("it is there").volume;
    update(control, volume.placed(None, &"n".into()).expect("it has none yet")).await;
}

async fn names(control: &Control<Alone>) -> Vec<String> {
    let listed = control.list_volumes(Freshness::Linearizable, &[]).await.expect("a list");
    let mut names: Vec<String> = listed.rows.iter().map(|row| row.volume.spec.name.clone()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_service_creates_the_volume_that_it_names_and_no_second_one() {
    let control = cluster().await;
    control.create_service(None, service("web", "data", false), Never).await.expect("a service");
    let made = control.get_volume("data").await.expect("it was created");
    assert_eq!((made.volume.spec.per_slot, made.services), (false, ["web".to_owned()].into()));
    control.create_service(None, service("api", "data", false), Never).await.expect("it may share it");
    control.update_service(None, "api", None, &service("api", "other", true), Never, false).await.expect("another one");
    assert_eq!(names(&control).await, ["data", "other"]);
    let same = control.get_volume("data").await.expect("it is there");
    assert_eq!((same.volume.id.clone(), same.services), (made.volume.id.clone(), ["web".to_owned()].into()));
    assert!(control.get_volume("other").await.expect("it is there").volume.spec.per_slot);
    control.create_service(None, global("agent", "logs"), Never).await.expect("a service");
    assert!(control.get_volume("logs").await.expect("it is there").volume.spec.per_slot, "each node has its own");
}

#[tokio::test]
async fn a_volume_with_one_set_of_data_is_not_used_as_if_it_had_several() {
    let control = cluster().await;
    control.create_volume(None, volume("data", false)).await.expect("a volume");
    let (reason, text) = refused(control.create_service(None, global("agent", "data"), Never).await);
    assert_eq!(reason, Some(Reason::Invalid));
    assert!(text.starts_with("mounts[0].source: volume `data` has one set of data"), "{text}");
    let (_, text) = refused(control.create_service(None, service("web", "data", true), Never).await);
    assert_eq!(text, "mounts[0].source: volume `data` exists, and has one set of data for all slots");
    let again = control.create_volume(None, volume("data", true)).await;
    assert_eq!(refused(again).0, Some(Reason::AlreadyExists));
    let (reason, text) = refused(control.create_volume(None, volume("a/b", false)).await);
    assert_eq!(reason, Some(Reason::Invalid));
    assert!(text.starts_with("name: `a/b`: the name of a volume has"), "{text}");
}

#[tokio::test]
async fn a_volume_that_is_used_is_not_removed_and_its_users_are_named() {
    let control = cluster().await;
    let web = control.create_service(None, service("web", "data", false), Never).await.expect("a service").changed;
    let in_use = (Some(Reason::InUse), "volume `data` is used by web".to_owned());
    assert_eq!(refused(control.remove_volume(None, "data").await), in_use);
    let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
    let old = Task { id: "t".into(), service_id: web.id.clone(), spec_version: 1, status, ..Task::default() };
    control.put(old.clone()).await;
    let without = ServiceSpec { mounts: Vec::new(), ..service("web", "data", false) };
    control.update_service(None, "web", None, &without, Never, false).await.expect("without it");
    assert_eq!(refused(control.remove_volume(None, "data").await), in_use, "a task of the old spec runs");
    update(&control, Task { desired_state: DesiredState::Shutdown, ..old }).await;
    control.remove_volume(None, "data").await.expect("the task is being stopped");
    assert_eq!(refused(control.get_volume("data").await).0, Some(Reason::NotFound));
}

#[tokio::test]
async fn a_removed_volume_with_data_is_kept_without_its_name_until_its_node_has_dropped_it() {
    let control = cluster().await;
    let old = control.create_volume(None, volume("data", false)).await.expect("a volume");
    place(&control, "data").await;
    control.remove_volume(None, "data").await.expect("nothing uses it");
    let left = control.store.view().volume(&old.id).cloned().expect("the node has data");
    assert!(left.is_removed && left.places == [VolumePlace { slot: None, node_id: "n".into() }]);
    assert_eq!(names(&control).await, [] as [&str; 0]);
    for reference in ["data", old.id.as_str()] {
        assert_eq!(refused(control.remove_volume(None, reference).await).0, Some(Reason::NotFound), "{reference}");
    }
    let new = control.create_volume(None, volume("data", true)).await.expect("the name is free");
    assert!(new.id != old.id && new.places.is_empty());
    control.remove_volume(None, "data").await.expect("nothing uses it");
    assert_eq!(control.store.view().volume(&new.id), None, "no node has data of it");
}

#[tokio::test]
async fn a_service_gets_back_the_volume_of_an_earlier_spec() {
    let control = cluster().await;
    control.create_service(None, service("web", "data", false), Never).await.expect("a service");
    let without = ServiceSpec { mounts: Vec::new(), ..service("web", "data", false) };
    control.update_service(None, "web", None, &without, Never, false).await.expect("without it");
    control.remove_volume(None, "data").await.expect("nothing uses it");
    control.rollback_service(None, "web", None).await.expect("the spec is kept");
    assert_eq!(names(&control).await, ["data"], "a new one");
}

#[tokio::test]
async fn the_volumes_of_a_stack_outlive_it_unless_they_are_to_go() {
    let control = cluster().await;
    let spec = stack(vec![service("shop_web", "shop_db", false)], vec![volume("shop_db", false)]);
    control.deploy_stack(None, &spec, &[], Keep, Never).await.expect("a stack");
    let made = control.get_volume("shop_db").await.expect("it was created").volume;
    let version = made.meta.version;
    control.deploy_stack(None, &spec, &[], Keep, Never).await.expect("the same again");
    assert_eq!(control.get_volume("shop_db").await.expect("it is there").volume.meta.version, version);
    place(&control, "shop_db").await;
    control.remove_stack(None, "shop", false).await.expect("it is there");
    control.deploy_stack(None, &spec, &[], Keep, Never).await.expect("a stack of that name again");
    let same = control.get_volume("shop_db").await.expect("it stayed").volume;
    assert_eq!((&same.id, same.places.len()), (&made.id, 1), "with its data");
    control.create_service(None, service("other", "shop_db", false), Never).await.expect("another user");
    let in_use = (Some(Reason::InUse), "volume `shop_db` is used by other".to_owned());
    assert_eq!(refused(control.remove_stack(None, "shop", true).await), in_use);
    assert!(control.store.view().stack_by_name("shop").is_some(), "nothing was removed");
    control.remove_service(None, "other").await.expect("it is there");
    control.remove_stack(None, "shop", true).await.expect("it is there");
    assert_eq!(names(&control).await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_stack_takes_no_volume_that_is_not_its_own_and_creates_no_external_one() {
    let control = cluster().await;
    control.put(Stack { id: "k".into(), ..Stack::default() }).await;
    control.create_volume(None, volume("mine", false)).await.expect("a volume");
    let foreign = stack(vec![service("shop_web", "mine", false)], vec![volume("mine", false)]);
    let (reason, text) = refused(control.deploy_stack(None, &foreign, &[], Keep, Never).await);
    assert_eq!(reason, Some(Reason::Invalid));
    assert!(text.starts_with("volumes.mine: it exists already and does not belong to this stack"), "{text}");
    let external = |name: &str| stack(vec![service("shop_web", name, false)], Vec::new());
    let missing = control.deploy_stack(None, &external("theirs"), &[], Keep, Never).await;
    assert_eq!(refused(missing), (Some(Reason::NotFound), "there is no volume `theirs`".into()));
    control.deploy_stack(None, &external("mine"), &[], Keep, Never).await.expect("it is there");
    let bad = stack(vec![], vec![volume("..", false), volume("twice", false), volume("twice", true)]);
    let (_, text) = refused(control.deploy_stack(None, &bad, &[], Keep, Never).await);
    assert!(
        text.contains("volumes....name: `..`: the name") && text.contains("volumes.twice: it is declared twice"),
        "{text}"
    );
}

#[tokio::test]
async fn a_volume_that_is_a_file_system_is_for_all_tasks_and_its_options_stay() {
    let control = cluster().await;
    let node = Node::clone(control.store.view().node("n").expect("it is there"));
    let description =
        flota_api::model::NodeDescription { feature_level: flota_api::FEATURE_LEVEL, ..node.description.clone() };
    update(&control, Node { description, ..node }).await;
    let share = |o: &str| Some(FileSystem::of("nfs", "nas:/srv", o).expect("a good one"));
    let with = |mut spec: ServiceSpec, file_system: Option<FileSystem>| {
        let MountSource::Volume(mount) = &mut spec.mounts[0].source else { panic!("{spec:?}") };
        mount.file_system = file_system;
        spec
    };
    let created = control.create_service(None, with(global("agent", "data"), share("ro")), Never).await;
    created.expect("each node mounts it");
    let made = control.get_volume("data").await.expect("it was created").volume.spec.clone();
    assert_eq!((made.per_slot, made.file_system), (false, share("ro")));
    control.create_service(None, global("other", "data"), Never).await.expect("it need not say so again");
    control
        .create_service(None, with(service("same", "data", false), share("ro")), Never)
        .await
        .expect("the same options");
    let (reason, text) =
        refused(control.create_service(None, with(service("web", "data", false), share("rw")), Never).await);
    let expected = "mounts[0].source: volume `data` exists, and has other options";
    assert_eq!((reason, text.as_str()), (Some(Reason::Invalid), expected));
    let (_, text) = refused(control.create_service(None, service("web", "data", true), Never).await);
    assert_eq!(text, "mounts[0].source: volume `data` exists, and has one set of data for all slots");

    let declared = |o: &str, per_slot| VolumeSpec { file_system: share(o), ..volume("shop_db", per_slot) };
    let deploy =
        async |spec: VolumeSpec| control.deploy_stack(None, &stack(vec![], vec![spec]), &[], Keep, Never).await;
    deploy(declared("", false)).await.expect("a stack");
    let (_, text) = refused(deploy(declared("ro", false)).await);
    assert_eq!(text, "volumes.shop_db: it exists with other options, which can't change: remove the volume first");
    let (_, text) = refused(deploy(declared("", true)).await);
    let expected = format!("volumes.shop_db.perSlot: {}; volumes.shop_db: its data", flota_api::model::NOT_PER_SLOT);
    assert!(text.starts_with(&expected), "{text}");
    let bad = VolumeSpec { file_system: FileSystem::of("nfs", "/srv", "").ok(), ..volume("bad", false) };
    let (reason, text) = refused(control.create_volume(None, bad).await);
    assert_eq!(reason, Some(Reason::Invalid));
    assert!(text.starts_with("options: device: `/srv` does not have the form SERVER:/PATH"), "{text}");
}
