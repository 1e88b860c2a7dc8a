//! Tests of the digests that services get with their specs.

use flota_api::model::{PullPolicy, Registry, Service, Stack};
use flota_raft_store::WriteTx;

use super::super::pins::ResolveImage::{self, Always, Changed};
use super::super::pins::Warned;
use super::super::stacks::Absent::Keep;
use super::*;
use crate::resolver::tests::FakeRegistry;

pub(super) const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
pub(super) const NEWER: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

/// A registry in which every tag stands for [`DIGEST`], and a cluster that asks it.
pub(super) async fn with_registry() -> (Arc<FakeRegistry>, Control<Alone>) {
    let registry = Arc::new(FakeRegistry::default());
    registry.holds(DIGEST);
    let control = Control::with_registry(registry.clone());
    let references = ["docker.io/library/kept:latest".to_owned()].into();
    control.put(Image { id: "i1".into(), references, digest: "sha256:aa".into(), ..Image::default() }).await;
    (registry, control)
}

fn with_image(name: &str, image: &str) -> ServiceSpec {
    ServiceSpec { image: image.into(), ..spec(name) }
}

/// Digest and spec version of a service.
fn pinned(control: &Control<Alone>, name: &str) -> (Option<String>, u64) {
    let view = control.store.view();
    let service = view.service_by_name(name).expect("it is there");
    (service.image_digest.clone(), service.spec_version)
}

pub(super) async fn update(control: &Control<Alone>, spec: &ServiceSpec, when: ResolveImage) -> Warned<Arc<Service>> {
    control.update_service(None, &spec.name, None, spec, when, false).await.expect("it is there")
}

#[tokio::test]
async fn a_service_gets_the_digest_of_its_image_and_keeps_its_spec() {
    let (registry, control) = with_registry().await;
    let digest = format!("any/name:2@{NEWER}");
    for (name, image, when, expected) in [
        ("asked", "app:1", Changed, Some(DIGEST)),
        ("kept", "kept", Always, Some("sha256:aa")),
        ("fixed", digest.as_str(), Always, Some(NEWER)),
        ("fixed-too", digest.as_str(), Never, Some(NEWER)),
        ("not-asked", "app:1", Never, None),
        ("kept-by-name", "kept", Never, None),
    ] {
        let created = control.create_service(None, with_image(name, image), when).await.expect("it is new");
        assert_eq!(created.warnings, Vec::<String>::new());
        assert_eq!((created.changed.spec.image.as_str(), created.changed.image_digest.as_deref()), (image, expected));
    }
    assert_eq!(registry.asked(), ["docker.io/library/app:1"]);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_can_not_be_resolved_is_a_warning_and_no_error() {
    let (registry, control) = with_registry().await;
    registry.falls_silent();
    let created = control.create_service(None, with_image("web", "app:1"), Changed).await.expect("it is created");
    assert_eq!(created.changed.image_digest, None);
    let [warning] = created.warnings.as_slice() else { panic!("{:?}", created.warnings) };
    assert!(warning.starts_with("failed to resolve docker.io/library/app:1: its registry has not"), "{warning}");
    assert!(warning.ends_with("each node asks the registry by itself, and nodes may run different images"));
}

/// Digest, platforms and spec version of a service.
fn platforms_of(control: &Control<Alone>, name: &str) -> (String, u64) {
    let view = control.store.view();
    let service = view.service_by_name(name).expect("it is there");
    let names: Vec<_> = service.image_platforms.iter().map(ToString::to_string).collect();
    (names.join(" "), service.spec_version)
}

#[tokio::test(start_paused = true)]
async fn a_service_gets_the_platforms_of_its_image_and_those_of_each_earlier_spec_are_kept() {
    let (registry, control) = with_registry().await;
    registry.is_for(&["arm64", "amd64"]);
    let web = with_image("web", "app:1");
    control.create_service(None, web.clone(), Changed).await.expect("it is new");
    assert_eq!(platforms_of(&control, "web"), ("linux/amd64 linux/arm64".into(), 1));
    update(&control, &ServiceSpec { stopped: true, ..web.clone() }, Changed).await;
    assert_eq!(platforms_of(&control, "web"), ("linux/amd64 linux/arm64".into(), 1), "it keeps its reference");
    // Another image is for other machines.
    registry.holds(NEWER);
    registry.is_for(&["s390x"]);
    update(&control, &with_image("web", "app:2"), Changed).await;
    assert_eq!(platforms_of(&control, "web"), ("linux/s390x".into(), 2));
    assert_eq!(registry.asked_platforms(), [DIGEST, NEWER]);
    // Those of an image that the cluster knows are not asked for again.
    registry.falls_silent_about_platforms();
    let silent = update(&control, &with_image("web", "app:2"), Always).await;
    assert_eq!((platforms_of(&control, "web"), silent.warnings.len()), (("linux/s390x".into(), 2), 0));
    update(&control, &with_image("web", "app:3"), Never).await;
    assert_eq!(platforms_of(&control, "web"), (String::new(), 3), "nobody was asked");
    control.rollback_service(None, "web", Some(1)).await.expect("it is kept");
    assert_eq!(platforms_of(&control, "web"), ("linux/amd64 linux/arm64".into(), 1));
}

#[tokio::test]
async fn platforms_that_were_not_known_before_replace_no_task() {
    let (registry, control) = with_registry().await;
    let web = with_image("web", "app:1");
    control.create_service(None, web.clone(), Changed).await.expect("it is new");
    assert_eq!(platforms_of(&control, "web"), (String::new(), 1));
    registry.is_for(&["amd64"]);
    update(&control, &web, Always).await;
    assert_eq!(platforms_of(&control, "web"), ("linux/amd64".into(), 1));
}

#[tokio::test]
async fn an_image_of_the_cluster_has_the_platforms_that_its_node_has_found() {
    let (registry, control) = with_registry().await;
    registry.is_for(&["s390x"]);
    control.put(node("n1", "m1", Role::Manager, OWN_RAFT_ID)).await;
    let named = Naming { platforms: crate::resolver::tests::platforms(&["amd64"]), ..naming("n1") };
    let image = control.name_image(None, &named).await.expect("it is legal");
    let fixed = format!("any/name@{}", image.digest);
    for (name, image, when, expected) in [
        ("by-name", "new", Changed, "linux/amd64"),
        ("by-digest", fixed.as_str(), Changed, "linux/amd64"),
        ("never", fixed.as_str(), Never, ""),
        ("elsewhere", &format!("any/name@{NEWER}"), Changed, "linux/s390x"),
        // A user has brought it, so no registry need have it.
        ("older-build", "kept", Changed, ""),
    ] {
        control.create_service(None, with_image(name, image), when).await.expect("it is new");
        assert_eq!(platforms_of(&control, name), (expected.into(), 1), "{name}");
    }
    assert_eq!(registry.asked(), Vec::<String>::new(), "no digest was unknown");
}

#[tokio::test]
async fn an_update_resolves_anew_what_it_names_and_replaces_tasks_only_if_the_digest_differs() {
    let (registry, control) = with_registry().await;
    let web = with_image("web", "app:1");
    control.create_service(None, web.clone(), Changed).await.expect("it is new");
    update(&control, &web, Always).await;
    assert_eq!(pinned(&control, "web"), (Some(DIGEST.into()), 1), "the same image");
    registry.holds(NEWER);
    for when in [Changed, Never] {
        let scaled = ServiceSpec { mode: ServiceMode::Replicated { replicas: 3 }, ..web.clone() };
        update(&control, &scaled, when).await;
        assert_eq!(pinned(&control, "web"), (Some(DIGEST.into()), 1), "it keeps its reference");
    }
    assert_eq!(registry.asked().len(), 2);
    update(&control, &web, Always).await;
    assert_eq!(pinned(&control, "web"), (Some(NEWER.into()), 2), "the tag has moved");
    update(&control, &with_image("web", "app:2"), Changed).await;
    assert_eq!(registry.asked().last().expect("one"), "docker.io/library/app:2");
    update(&control, &with_image("web", "app:3"), Never).await;
    assert_eq!(pinned(&control, "web"), (None, 4), "the old digest is not that of the new name");
}

#[tokio::test]
async fn a_service_that_always_pulls_is_resolved_anew_by_every_update_that_may_ask() {
    let (registry, control) = with_registry().await;
    let web = with_image("web", "app:1");
    control.create_service(None, web.clone(), Changed).await.expect("it is new");
    registry.holds(NEWER);
    let always = ServiceSpec { pull: PullPolicy::Always, ..web };
    update(&control, &always, Never).await;
    assert_eq!(pinned(&control, "web"), (Some(DIGEST.into()), 1), "the policy alone replaces nothing");
    update(&control, &always, Changed).await;
    assert_eq!(pinned(&control, "web"), (Some(NEWER.into()), 2));
}

#[tokio::test]
async fn a_stack_asks_once_for_each_image_and_as_its_user_wants() {
    let (registry, control) = with_registry().await;
    let names = ["s_a", "s_b", "s_c"];
    let services: Vec<_> =
        names.iter().zip(["app:1", "app:1", "db:1"]).map(|(name, it)| with_image(name, it)).collect();
    let stack = StackSpec { name: "s".into(), services, ..StackSpec::default() };
    let asked = async |when| {
        let before = registry.asked().len();
        control.deploy_stack(None, &stack, &[], Keep, when).await.expect("it is valid");
        registry.asked()[before..].to_vec()
    };
    assert_eq!(asked(Never).await, Vec::<String>::new());
    assert!(names.iter().all(|name| pinned(&control, name) == (None, 1)));
    assert_eq!(asked(Changed).await, Vec::<String>::new(), "nothing has");
    assert_eq!(asked(Always).await, ["docker.io/library/app:1", "docker.io/library/db:1"]);
    assert!(names.iter().all(|name| pinned(&control, name) == (Some(DIGEST.into()), 2)));
    registry.holds(NEWER);
    asked(Always).await;
    assert!(names.iter().all(|name| pinned(&control, name) == (Some(NEWER.into()), 3)));
}

#[tokio::test]
async fn a_registry_is_asked_with_the_clusters_credentials_and_once_for_a_request() {
    let (registry, control) = with_registry().await;
    let (host, username) = ("registry:5000".to_owned(), "builder".to_owned());
    control.put(Registry { id: "r".into(), host, username, ..Registry::default() }).await;
    for _ in 0..2 {
        control.create_service(Some("once"), with_image("web", "registry:5000/app"), Changed).await.expect("it is new");
    }
    assert_eq!(registry.asked(), ["registry:5000/app:latest as builder"]);
}

#[tokio::test]
async fn a_service_that_changes_between_the_question_and_the_write_is_not_left_without_a_digest() {
    let (registry, control) = with_registry().await;
    control.create_service(None, with_image("web", "app:1"), Changed).await.expect("it is new");
    // Another user gives it another image while the registry is silent about another service of the stack.
    control
        .put(Stack { id: "k".into(), spec: StackSpec { name: "s".into(), ..Default::default() }, ..Default::default() })
        .await;
    let change = |image: &str| {
        let view = control.store.view();
        let service = view.service_by_name("web").expect("it is there").as_ref().clone();
        let spec = Arc::new(with_image("web", image));
        let mut tx = WriteTx::new(view, None);
        tx.update(Service { spec, stack_id: Some("k".into()), ..service });
        tx.finish()
    };
    control.member.propose(change("app:1")).await.expect("it is there");
    registry.falls_silent();
    let stack = StackSpec {
        name: "s".into(),
        services: vec![with_image("web", "app:1"), with_image("db", "db:1")],
        ..StackSpec::default()
    };
    let deploy = control.deploy_stack(None, &stack, &[], Keep, Changed);
    let interfere = async {
        while registry.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        control.member.propose(change("app:2")).await.expect("it is there");
        registry.holds(DIGEST);
    };
    let (deployed, ()) = tokio::join!(deploy, interfere);
    assert_eq!(refusal(deployed), Some(Reason::ChangedMeanwhile));
}

/// Whether a service keeps its image is a fact of the view, which may be old.
#[tokio::test]
async fn a_manager_that_can_not_prove_that_it_leads_asks_no_registry() {
    let (registry, control) = with_registry().await;
    control.create_service(None, with_image("web", "app:1"), Changed).await.expect("it is new");
    let asked = registry.asked();
    control.depose();
    let update = control.update_service(None, "web", None, &with_image("web", "app:2"), Changed, false).await;
    assert!(update.is_err());
    assert_eq!(registry.asked(), asked);
}

#[tokio::test]
async fn a_service_that_takes_the_place_of_one_that_is_removed_meanwhile_gets_its_digest() {
    let (registry, control) = with_registry().await;
    control.create_service(None, with_image("web", "app:1"), Changed).await.expect("it is new");
    registry.falls_silent();
    let create = control.create_service(None, with_image("web", "app:1"), Changed);
    let interfere = async {
        while registry.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        control.remove_service(None, "web").await.expect("it is there");
        registry.holds(NEWER);
    };
    let (created, ()) = tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(create, interfere) })
        .await
        .expect("the registry is asked although there is a service of that name");
    assert_eq!(created.expect("it is new").changed.image_digest.as_deref(), Some(NEWER));
}

#[tokio::test]
async fn an_image_that_a_service_is_pinned_to_is_kept() {
    let (_, control) = with_registry().await;
    control.create_service(None, with_image("web", "kept"), Changed).await.expect("it is new");
    control.put(node("n1", "m1", Role::Manager, OWN_RAFT_ID)).await;
    let moved = Naming { reference: "kept".into(), ..naming("n1") };
    control.name_image(None, &moved).await.expect("the name goes to another image");
    assert_eq!(refusal(control.remove_image(None, "i1", false).await), Some(Reason::InUse));
    control.remove_image(None, "i1", true).await.expect("it is forced");
    assert!(control.store.view().image("i1").is_some(), "it goes with the last that needs it");
}

#[tokio::test]
async fn a_request_that_was_refused_is_told_so_when_it_comes_again_and_nothing_is_in_its_way_any_more() {
    let (_, control) = with_registry().await;
    let web = with_image("web", "app:1");
    let update = async || refusal(control.update_service(Some("u"), "web", None, &web, Always, false).await);
    let create = async || refusal(control.create_service(Some("c"), web.clone(), Changed).await);
    assert_eq!(update().await, Some(Reason::NotFound));
    control.create_service(None, web.clone(), Changed).await.expect("it is new");
    assert_eq!(create().await, Some(Reason::AlreadyExists));
    assert_eq!(update().await, Some(Reason::RefusedBefore));
    control.remove_service(None, "web").await.expect("it is there");
    assert_eq!(create().await, Some(Reason::RefusedBefore));
}
