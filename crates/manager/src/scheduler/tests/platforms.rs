//! Tasks go to nodes that have one of the platforms of their image.

use super::*;
use flota_api::model::{PinnedImage, Platform, Revision};

fn with_platform(id: &str, os: &str, architecture: &str, variant: &str) -> Node {
    let mut node = node(id);
    let description = &mut node.description;
    (description.os, description.architecture, description.variant) = (os.into(), architecture.into(), variant.into());
    node
}

fn platforms(names: &[&str]) -> Vec<Platform> {
    let platform = |name: &str| {
        let parts: Vec<&str> = name.split('/').collect();
        Platform::new(parts[0], parts[1], parts.get(2).copied()).expect("legal")
    };
    names.iter().map(|name| platform(name)).collect()
}

fn with_image(spec: ServiceSpec, image: &[&str]) -> Service {
    Service { image_platforms: platforms(image), ..service("s", spec) }
}

/// Where two tasks of a service with this image go, of four nodes.
fn placed(image: &[&str]) -> Vec<String> {
    let nodes = [
        with_platform("amd", "linux", "amd64", "v3"),
        with_platform("arm", "linux", "arm64", "v8"),
        with_platform("pi", "linux", "arm", "v6"),
        node("unknown"),
    ];
    let objects = nodes.into_iter().map(StoreObject::into_object);
    let service = with_image(ServiceSpec::default(), image).into_object();
    planned(&view(objects.chain([service]).chain(pending(2)).collect()), "s")
}

#[test]
fn a_task_goes_only_where_its_image_runs() {
    assert_eq!(placed(&[]), ["p1@amd", "p2@arm"], "nothing is known of it");
    assert_eq!(placed(&["linux/arm64"]), ["p1@arm", "p2@arm"]);
    assert_eq!(placed(&["linux/amd64", "linux/arm64"]), ["p1@amd", "p2@arm"]);
    assert_eq!(placed(&["linux/amd64/v3"]), ["p1@amd", "p2@amd"]);
    assert_eq!(placed(&["linux/arm/v5", "linux/arm/v7"]), ["p1@arm", "p2@pi"], "one of 64 bits runs it as well");
    assert_eq!(placed(&["linux/386", "linux/arm/v8"]), ["p1@amd", "p2@arm"]);
}

#[test]
fn a_task_whose_image_runs_nowhere_says_for_which_machines_it_is() {
    let text = |image| format!("no node fits: 4 of 4 of another platform than the image's ({image})");
    let waits = |image| [format!("p1: {}", text(image)), format!("p2: {}", text(image))];
    assert_eq!(placed(&["linux/s390x"]), waits("linux/s390x"));
    assert_eq!(placed(&["linux/amd64/v4", "linux/arm64/v9"]), waits("linux/amd64/v4, linux/arm64/v9"));
    let mut drained = with_platform("amd", "linux", "amd64", "v3");
    drained.spec.availability = Availability::Drain;
    let objects = [drained.into_object(), with_platform("arm", "linux", "arm64", "v8").into_object()];
    let service = with_image(ServiceSpec::default(), &["linux/amd64"]).into_object();
    let both = "p1: no node fits: 1 of 2 drained, 1 of 2 of another platform than the image's (linux/amd64)";
    assert_eq!(planned(&view(objects.into_iter().chain([service]).chain(pending(1)).collect()), "s"), [both]);
}

#[test]
fn a_task_goes_only_where_there_is_a_part_for_the_node_of_each_image_that_it_mounts() {
    let placed = |own: &[&str], mounted: &[&[&str]]| {
        let nodes = [with_platform("amd", "linux", "amd64", "v3"), with_platform("arm", "linux", "arm64", "v8")];
        let image = |names: &&[&str]| PinnedImage { platforms: platforms(names), ..PinnedImage::default() };
        let mounted_images = mounted.iter().map(image).collect();
        let service = Service { mounted_images, ..with_image(ServiceSpec::default(), own) };
        let objects = nodes.into_iter().map(StoreObject::into_object).chain([service.into_object()]);
        planned(&view(objects.chain(pending(2)).collect()), "s")
    };
    let both = &["linux/amd64", "linux/arm64"];
    assert_eq!(placed(both, &[both, &[]]), ["p1@amd", "p2@arm"]);
    assert_eq!(placed(both, &[both, &["linux/arm64"]]), ["p1@arm", "p2@arm"]);
    assert_eq!(placed(&[], &[&["linux/arm64"]]), ["p1@arm", "p2@arm"]);
    let nowhere = "no node fits: 2 of 2 of another platform than the image's (linux/s390x)";
    assert_eq!(placed(both, &[&["linux/s390x"]]), [format!("p1: {nowhere}"), format!("p2: {nowhere}")]);
}

#[test]
fn each_spec_of_a_service_has_the_platforms_of_its_own_image() {
    let old = with_image(ServiceSpec { image: "old".into(), ..ServiceSpec::default() }, &["linux/amd64"]);
    let earlier = Revision {
        version: 1,
        image_digest: Some("sha256:1".into()),
        image_platforms: old.image_platforms.clone(),
        ..Revision::default()
    };
    let new = with_image(ServiceSpec { image: "new".into(), ..ServiceSpec::default() }, &["linux/arm64"]);
    let new = Service { spec_version: 2, revisions: vec![earlier], ..new };
    let running = Task { slot: 9, ..task("running", "s", "amd", TaskState::Running) };
    let of_old = Task { slot: 1, ..task("a", "s", "", TaskState::Pending) };
    let of_new = Task { slot: 2, spec_version: 2, ..task("b", "s", "", TaskState::Pending) };
    let nodes = [with_platform("amd", "linux", "amd64", "v3"), with_platform("arm", "linux", "arm64", "v8")];
    let mut objects: Vec<Object> = nodes.into_iter().map(StoreObject::into_object).collect();
    objects.extend([old.into_object(), running.into_object(), new.into_object()]);
    objects.extend([of_old.into_object(), of_new.into_object()]);
    assert_eq!(planned(&view(objects), "s"), ["a@amd", "b@arm"]);
}

#[test]
fn a_successor_that_lacks_room_alone_where_its_image_runs_needs_the_room() {
    let spec = reserving(4 * GIB);
    let old = service("s", spec.clone());
    let new = Service { spec_version: 2, ..with_image(ServiceSpec { force: 1, ..spec }, &["linux/amd64"]) };
    let nodes = [with_platform("amd", "linux", "amd64", "v3"), with_platform("arm", "linux", "arm64", "v8")];
    let mut objects: Vec<Object> = nodes.into_iter().map(StoreObject::into_object).collect();
    objects.push(old.into_object());
    objects.push(task("old", "s", "amd", TaskState::Running).into_object());
    objects.push(new.into_object());
    let successor =
        Task { desired_state: DesiredState::Ready, spec_version: 2, ..task("p", "s", "", TaskState::Pending) };
    objects.push(successor.into_object());
    let plan = plan(&view(objects), "s");
    let [Change::Put(Object::Task(task))] = plan.changes.as_slice() else { panic!("one task waits") };
    assert!(task.pending_reason.as_ref().expect("it waits").needs_room());
}
