//! Names of images are resolved once, by the leader, and all tasks of a service run one image.

use std::time::Duration;

use flota_api::proto::control::{
    CreateServiceRequest, DeployStackRequest, PutRegistryRequest, ResolveImage, ServiceChange, UpdateServiceRequest,
};
use flota_api::proto::specs::{ServiceSpec, StackSpec};
use flota_api::state::TaskState;
use flota_tests::sim::script::{Script, script, spec};
use tonic::Status;

use super::{another_leads, seen, tasks_are, tasks_of};

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const NEWER: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
const WHOLE: &str = "registry:5000/app:1";

fn app(replicas: u64) -> ServiceSpec {
    ServiceSpec { image: WHOLE.into(), ..spec("app", replicas) }
}

/// Creates the service through a manager that does not lead.
fn create(it: &mut Script, replicas: u64, resolve_image: ResolveImage) -> Result<ServiceChange, Status> {
    let follower = (it.leader() + 1) % 3;
    let (request_id, resolve_image) = (format!("create {replicas}"), resolve_image.into());
    let request = CreateServiceRequest { request_id, spec: Some(app(replicas)), resolve_image };
    it.request(
        follower,
        |mut client| async move { client.create_service(request).await.map(tonic::Response::into_inner) },
    )
}

/// The digests of the tasks of the service that may run.
fn digests(it: &mut Script) -> Vec<Option<String>> {
    let tasks = tasks_of(it.cluster(), "app").unwrap().into_iter().filter(flota_api::model::Task::is_live);
    let mut digests: Vec<_> = tasks.map(|task| task.image_digest).collect();
    digests.sort();
    digests.dedup();
    digests
}

#[test]
fn hundred_tasks_run_one_image_though_its_tag_moves_and_its_registry_is_asked_once() {
    script(3, |it| {
        it.cluster().registry.push(WHOLE, DIGEST);
        let created = create(it, 100, ResolveImage::Changed).unwrap();
        assert_eq!((created.service.unwrap().image_digest.as_deref(), created.warnings.len()), (Some(DIGEST), 0));
        it.cluster().registry.push(WHOLE, NEWER);
        it.wait("all run", 60_000, tasks_are("app", 100, TaskState::Running));
        let leader = it.leader();
        it.cluster().crash_manager(leader, true);
        it.wait("another manager leads", 10_000, another_leads(leader));
        it.cluster().crash_worker(0, true);
        it.wait("the tasks of a lost node are replaced", 60_000, |cluster| {
            let lost = cluster.workers[0].node_id.clone();
            let tasks = tasks_of(cluster, "app")?;
            let elsewhere = tasks.iter().filter(|it| it.is_live() && !it.is_on(&lost) && it.node_id.is_some()).count();
            seen(elsewhere == 100, elsewhere)
        });
        assert_eq!(digests(it), [Some(DIGEST.to_owned())]);
        assert_eq!(it.cluster().registry.lookups().len(), 1);
    });
}

#[test]
fn tag_that_has_moved_replaces_the_tasks_when_a_user_names_it_again() {
    script(3, |it| {
        it.cluster().registry.push(WHOLE, DIGEST);
        create(it, 3, ResolveImage::Changed).unwrap();
        it.converge();
        it.cluster().registry.push(WHOLE, NEWER);
        let update = |it: &mut Script, resolve_image: ResolveImage| {
            let request = UpdateServiceRequest {
                request_id: format!("{resolve_image:?}"),
                service: "app".into(),
                spec: Some(app(3)),
                resolve_image: resolve_image.into(),
                ..UpdateServiceRequest::default()
            };
            it.request(it.leader(), |mut client| async move { client.update_service(request).await }).unwrap();
            it.converge();
        };
        update(it, ResolveImage::Changed);
        assert_eq!(digests(it), [Some(DIGEST.to_owned())]);
        update(it, ResolveImage::Always);
        assert_eq!(digests(it), [Some(NEWER.to_owned())]);
    });
}

#[test]
fn request_that_is_repeated_while_the_registry_is_slow_waits_for_the_same_answer() {
    script(3, |it| {
        it.cluster().registry.push(WHOLE, DIGEST);
        it.cluster().registry.answer_after(Duration::from_secs(4));
        let leader = it.leader();
        let request = CreateServiceRequest { request_id: "r".into(), spec: Some(app(1)), ..Default::default() };
        let first = request.clone();
        let asked = it.begin(leader, |mut client| async move { client.create_service(first).await.map(drop) });
        it.pass(1_500);
        assert!(it.end(asked).is_none(), "the user has lost patience");
        let created = it.request((leader + 1) % 3, |mut client| async move { client.create_service(request).await });
        assert_eq!(created.unwrap().into_inner().service.unwrap().image_digest.as_deref(), Some(DIGEST));
        assert_eq!(it.cluster().registry.lookups().len(), 1);
    });
}

#[test]
fn registry_that_does_not_answer_delays_a_service_and_does_not_prevent_it() {
    script(3, |it| {
        it.cluster().registry.answer_after(Duration::from_secs(3_600));
        let begun = it.cluster().world.now();
        let created = create(it, 1, ResolveImage::Changed).unwrap();
        assert!(it.cluster().world.now() - begun < 6_000, "the wait is bounded");
        assert_eq!(created.service.unwrap().image_digest, None);
        let [warning] = created.warnings.as_slice() else { panic!("{:?}", created.warnings) };
        assert!(warning.contains("its registry has not answered for 5s; each node asks"), "{warning}");
        it.converge();
        assert_eq!(digests(it), [None]);
    });
}

#[test]
fn service_whose_user_does_not_want_it_is_not_resolved() {
    script(1, |it| {
        it.cluster().registry.push(WHOLE, DIGEST);
        assert_eq!(create(it, 1, ResolveImage::Never).unwrap().service.unwrap().image_digest, None);
        assert!(it.cluster().registry.lookups().is_empty());
    });
}

#[test]
fn stack_asks_with_the_clusters_credentials_once_for_each_image() {
    script(1, |it| {
        it.cluster().registry.push(WHOLE, DIGEST);
        let login = PutRegistryRequest {
            request_id: "login".into(),
            host: "registry:5000".into(),
            username: "builder".into(),
            password: "letmein".into(),
        };
        it.request(it.leader(), |mut client| async move { client.put_registry(login).await }).unwrap();
        let services = ["s_a", "s_b"].map(|name| ServiceSpec { image: WHOLE.into(), ..spec(name, 1) });
        let stack = StackSpec { name: "s".into(), services: services.into(), ..StackSpec::default() };
        let request = DeployStackRequest { request_id: "deploy".into(), spec: Some(stack), ..Default::default() };
        it.request(it.leader(), |mut client| async move { client.deploy_stack(request).await }).unwrap();
        let view = it.cluster().view().unwrap();
        assert!(view.services().all(|it| it.image_digest.as_deref() == Some(DIGEST)));
        let lookups = it.cluster().registry.lookups();
        let asked: Vec<_> = lookups.iter().map(|it| (it.reference.as_str(), it.username.as_deref())).collect();
        assert_eq!(asked, [(WHOLE, Some("builder"))]);
    });
}
