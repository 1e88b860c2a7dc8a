//! Tests of the digests that services get for the images that their tasks mount.

use flota_api::model::{Mount, MountSource, PinnedImage, PullPolicy, Service};

use super::super::pins::ResolveImage::{Always, Changed, Never};
use super::pins::{DIGEST, NEWER, update, with_registry};
use super::*;

/// A service of an image of the cluster that mounts these.
fn mounting(references: &[&str]) -> ServiceSpec {
    let mount = |(index, reference): (usize, &&str)| Mount {
        target: format!("/{index}"),
        read_only: true,
        source: MountSource::Image { reference: (*reference).to_owned(), subpath: None },
    };
    let mounts = references.iter().enumerate().map(mount).collect();
    ServiceSpec { image: "kept".into(), mounts, ..spec("web") }
}

/// The images that the tasks of the service mount, and the number of its spec.
fn mounted(control: &Control<Alone>) -> (Vec<String>, u64) {
    let view = control.store.view();
    let service: &Arc<Service> = view.service_by_name("web").expect("it is there");
    let names = |it: &PinnedImage| it.platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let shown = |it: &PinnedImage| format!("{} {} {}", it.reference, &it.digest[7..9], names(it));
    (service.mounted_images.iter().map(shown).collect(), service.spec_version)
}

#[tokio::test(start_paused = true)]
async fn what_a_service_mounts_is_resolved_once_and_anew_as_its_own_image_is() {
    let (registry, control) = with_registry().await;
    registry.is_for(&["amd64"]);
    let web = mounting(&["kept", "data:1", "data:1"]);
    let created = control.create_service(None, web.clone(), Changed).await.expect("it is new");
    assert_eq!(created.warnings, Vec::<String>::new());
    let first = (vec!["data:1 11 linux/amd64".to_owned(), "kept aa ".to_owned()], 1);
    assert_eq!(mounted(&control), first);
    assert_eq!(registry.asked(), ["docker.io/library/data:1"]);
    // What keeps its reference keeps its digest.
    registry.holds(NEWER);
    update(&control, &ServiceSpec { stopped: true, ..web.clone() }, Changed).await;
    assert_eq!(mounted(&control), first);
    update(&control, &mounting(&["data:2", "data:1"]), Changed).await;
    let second = (vec!["data:1 11 linux/amd64".to_owned(), "data:2 22 linux/amd64".to_owned()], 2);
    assert_eq!(mounted(&control), second, "only the new one is resolved");
    // A tag that has moved replaces the tasks when it is asked for.
    update(&control, &mounting(&["data:2", "data:1"]), Always).await;
    assert_eq!(mounted(&control).1, 3);
    assert_eq!(mounted(&control).0[0], "data:1 22 linux/amd64");
    let pulls = ServiceSpec { pull: PullPolicy::Always, ..mounting(&["data:2", "data:1"]) };
    registry.holds(DIGEST);
    update(&control, &pulls, Changed).await;
    assert_eq!(mounted(&control).1, 4);
    // Each earlier spec has what it had.
    control.rollback_service(None, "web", Some(1)).await.expect("it is kept");
    assert_eq!(mounted(&control), first);
    control.rollback_service(None, "web", Some(2)).await.expect("it is kept");
    assert_eq!(mounted(&control), second);
    update(&control, &mounting(&["data:3"]), Never).await;
    assert_eq!(mounted(&control), (Vec::new(), 5), "nobody was asked");
}

#[tokio::test(start_paused = true)]
async fn a_mounted_image_that_can_not_be_resolved_is_a_warning_and_keeps_what_is_known() {
    let (registry, control) = with_registry().await;
    let web = mounting(&["data:1"]);
    control.create_service(None, web.clone(), Changed).await.expect("it is new");
    registry.falls_silent();
    let silent = update(&control, &web, Always).await;
    assert_eq!((mounted(&control).1, silent.warnings.len()), (1, 1), "{:?}", silent.warnings);
    let other = update(&control, &mounting(&["data:2"]), Changed).await;
    assert_eq!(mounted(&control), (Vec::new(), 2));
    assert!(other.warnings[0].starts_with("failed to resolve docker.io/library/data:2:"), "{:?}", other.warnings);
}

#[tokio::test]
async fn an_image_that_a_service_mounts_is_removed_by_force_alone() {
    let (_, control) = with_registry().await;
    let web = ServiceSpec { image: "app:1".into(), ..mounting(&["kept"]) };
    control.create_service(None, web, Changed).await.expect("it is new");
    for reference in ["kept", "i1", "sha256:aa"] {
        assert_eq!(refusal(control.remove_image(None, reference, false).await), Some(Reason::InUse), "{reference}");
    }
    // The name goes to another image: the spec is pinned to the first one all the same.
    control.put(node("n1", "m1", Role::Manager, OWN_RAFT_ID)).await;
    control.name_image(None, &Naming { reference: "kept".into(), ..naming("n1") }).await.expect("it is legal");
    assert_eq!(refusal(control.remove_image(None, "i1", false).await), Some(Reason::InUse));
    control.remove_image(None, "i1", true).await.expect("it is forced");
    assert!(control.store.view().image("i1").is_some(), "it goes with the last that needs it");
    control.remove_service(None, "web").await.expect("it is there");
    control.remove_image(None, "i1", false).await.expect("no service mounts it");
    assert!(control.store.view().image("i1").is_none());
}
