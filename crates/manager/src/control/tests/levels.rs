//! What raises the feature level in use.

use flota_api::model::{FileSystem, Mount, MountSource, TmpfsMount, VolumeMount, VolumeSpec};
use flota_api::{LEVEL_OF_FILE_SYSTEMS, LEVEL_OF_RENEWAL_GRACE, LEVEL_OF_TMPFS_OWNERS, LEVEL_OF_USER_NAMESPACES};

use super::races::subnet;
use super::*;
use crate::control::cluster::ClusterDefaults;

/// The ways in which a spec comes into the store.
const WAYS: [&str; 3] = ["create", "update", "stack"];

/// Sets a spec of this name, in one of the ways.
async fn set(
    control: &Control<Alone>,
    way: &str,
    with: impl Fn(ServiceSpec) -> ServiceSpec,
) -> Result<(), ControlError> {
    match way {
        "create" => control.create_service(None, with(spec("new")), Never).await.map(drop),
        "update" => control.update_service(None, "web", None, &with(spec("web")), Never, false).await.map(drop),
        _ => {
            let services = vec![spec("shop_a"), with(spec("shop_b"))];
            let stack = StackSpec { name: "shop".into(), services, ..StackSpec::default() };
            control.deploy_stack(None, &stack, &[], Keep, Never).await.map(drop)
        }
    }
}

/// Sets such a spec in each way, with managers that do not know it and with others that do.
async fn raises(level: u32, with: impl Fn(ServiceSpec) -> ServiceSpec) {
    for way in WAYS {
        let control = cluster().await;
        let used = || control.store.view().cluster().expect("it is there").feature_level;
        for (known, is_taken) in [(level - 1, false), (level, true)] {
            for id in ["n1", "n2"] {
                let mut manager = control.store.view().node(id).expect("it is there").as_ref().clone();
                manager.description.feature_level = known;
                control.replace(manager).await;
            }
            match set(&control, way, &with).await {
                Ok(()) => assert!(is_taken, "{way}"),
                Err(error) if is_taken => panic!("{way}: {error}"),
                Err(error) => {
                    assert!(error.to_string().contains("is too old for this: upgrade it first"), "{way}: {error}")
                }
            }
            assert_eq!(used(), if is_taken { level } else { 0 }, "{way}");
        }
    }
}

#[tokio::test]
async fn a_service_with_ids_of_its_own_raises_the_level_once_every_manager_knows_it() {
    raises(LEVEL_OF_USER_NAMESPACES, |spec| ServiceSpec { user_namespace: true, ..spec }).await;
}

#[tokio::test]
async fn a_tmpfs_with_an_owner_raises_the_level_once_every_manager_knows_it() {
    let owned = TmpfsMount { uid: Some(7), ..TmpfsMount::default() };
    for tmpfs in [owned, TmpfsMount { exec: true, ..TmpfsMount::default() }] {
        let mount = Mount { target: "/a".into(), read_only: false, source: MountSource::Tmpfs(tmpfs) };
        raises(LEVEL_OF_TMPFS_OWNERS, |spec| ServiceSpec { mounts: vec![mount.clone()], ..spec }).await;
    }
}

#[tokio::test]
async fn a_volume_that_is_a_file_system_raises_the_level_once_every_manager_knows_it() {
    let file_system = FileSystem::of("nfs", "nas:/srv", "").ok();
    let source = VolumeMount { name: Some("data".into()), file_system: file_system.clone(), ..VolumeMount::default() };
    let mount = Mount { target: "/a".into(), read_only: false, source: MountSource::Volume(source) };
    let in_stack = |spec: ServiceSpec| match spec.name.as_str() {
        // The volumes of a stack are those that it declares.
        "shop_b" => ServiceSpec { user_namespace: true, ..spec },
        _ => ServiceSpec { mounts: vec![mount.clone()], ..spec },
    };
    for way in ["create", "volume", "stack"] {
        let control = cluster().await;
        for (known, is_taken) in [(LEVEL_OF_FILE_SYSTEMS - 1, false), (LEVEL_OF_FILE_SYSTEMS, true)] {
            for id in ["n1", "n2"] {
                let mut manager = control.store.view().node(id).expect("it is there").as_ref().clone();
                manager.description.feature_level = known;
                control.replace(manager).await;
            }
            let volume = VolumeSpec { name: "other".into(), file_system: file_system.clone(), ..VolumeSpec::default() };
            let set = match way {
                "create" => set(&control, way, in_stack).await,
                "volume" => control.create_volume(None, volume).await.map(drop),
                _ => {
                    let services = vec![in_stack(spec("shop_b"))];
                    // Its networks change the cluster as well.
                    let subnets = vec![subnet("10.9.0.0/24")];
                    let networks = vec![NetworkSpec { name: "shop_net".into(), subnets, ..NetworkSpec::default() }];
                    let volumes = vec![volume];
                    let stack = StackSpec { name: "shop".into(), services, volumes, networks };
                    control.deploy_stack(None, &stack, &[], Keep, Never).await.map(drop)
                }
            };
            assert_eq!(set.is_ok(), is_taken, "{way}: {set:?}");
            let used = control.store.view().cluster().expect("it is there").feature_level;
            assert_eq!(used, if is_taken { LEVEL_OF_FILE_SYSTEMS } else { 0 }, "{way}");
        }
    }
}

#[tokio::test]
async fn a_grace_for_renewals_raises_the_level_once_every_manager_knows_it() {
    let control = cluster().await;
    let grace = Some(std::time::Duration::from_secs(30 * 86_400));
    let defaults = ClusterDefaults { renewal_grace: grace, ..ClusterDefaults::default() };
    for (known, is_taken) in [(LEVEL_OF_RENEWAL_GRACE - 1, false), (LEVEL_OF_RENEWAL_GRACE, true)] {
        for id in ["n1", "n2"] {
            let mut manager = control.store.view().node(id).expect("it is there").as_ref().clone();
            manager.description.feature_level = known;
            control.replace(manager).await;
        }
        assert_eq!(control.update_cluster(None, defaults).await.is_ok(), is_taken);
        let cluster = control.store.view().cluster().expect("it is there").as_ref().clone();
        let expected = if is_taken { (LEVEL_OF_RENEWAL_GRACE, grace) } else { (0, None) };
        assert_eq!((cluster.feature_level, cluster.renewal_grace), expected);
    }
    let short = ClusterDefaults { renewal_grace: Some(std::time::Duration::ZERO), ..ClusterDefaults::default() };
    let refused = control.update_cluster(None, short).await.expect_err("it is too short").to_string();
    assert!(refused.starts_with("cert_renewal_grace: it is from"), "{refused}");
}
