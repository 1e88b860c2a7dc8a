use super::*;
use flota_api::model::{ServiceSpec, TaskStatus};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::Meta;

fn service(id: &str, name: &str) -> Service {
    let spec = Arc::new(ServiceSpec { name: name.into(), ..ServiceSpec::default() });
    Service { id: id.into(), spec, spec_version: 1, ..Service::default() }
}

fn task(id: &str, service: &str, slot: u64, state: TaskState) -> Task {
    let status = TaskStatus { state, ..TaskStatus::default() };
    Task { id: id.into(), service_id: service.into(), spec_version: 1, slot, status, ..Task::default() }
}

fn tables(services: Vec<Service>, tasks: Vec<Task>) -> Tables {
    let mut tables = Tables::default();
    services.into_iter().for_each(|it| tables.put(it.into_object()));
    tasks.into_iter().for_each(|it| tables.put(it.into_object()));
    tables
}

/// Returns the id that the reference identifies, otherwise the ids of the candidates, which may be none.
fn meant<T: Referable>(found: Result<&Arc<T>, ControlError>) -> Result<String, Vec<String>> {
    match found {
        Ok(object) => Ok(object.id().to_string()),
        Err(ControlError::Ambiguous { candidates, .. }) => Err(candidates.into_iter().map(|it| it.id).collect()),
        Err(ControlError::NotFound { .. } | ControlError::NoTask { .. }) => Err(Vec::new()),
        Err(other) => panic!("a reference is never refused with {other}"),
    }
}

fn ids(ids: &[&str]) -> Result<String, Vec<String>> {
    Err(ids.iter().map(|id| (*id).to_owned()).collect())
}

#[test]
fn an_id_wins_over_a_name_and_a_name_over_the_beginning_of_an_id() {
    let all = [("abc1", "web"), ("abc2", "xyz"), ("xyz1", "abc1"), ("fff1", "db")];
    let view = tables(all.into_iter().map(|(id, name)| service(id, name)).collect(), Vec::new());
    let of = |reference: &str| meant(resolve::<Service>(&view, reference));
    assert_eq!(of("abc1"), Ok("abc1".into()), "an id comes before a name");
    assert_eq!(of("xyz"), Ok("abc2".into()), "a name comes before the beginning of an id");
    assert_eq!(of("fff"), Ok("fff1".into()));
    assert_eq!(of("abc"), ids(&["abc1", "abc2"]));
    assert_eq!(of("ff"), ids(&[]), "it is too short to be the beginning of an id");
    assert_eq!(of("we"), ids(&[]), "the beginning of a name is nothing");
    assert_eq!(of(""), ids(&[]));
}

#[test]
fn two_machines_of_one_hostname_are_told_apart_by_their_ids() {
    let mut view = Tables::default();
    for id in ["node-1", "node-2"] {
        let mut node = Node { id: id.into(), ..Node::default() };
        node.description.hostname = "host".into();
        view.put(node.into_object());
    }
    assert_eq!(meant(resolve::<Node>(&view, "host")), ids(&["node-1", "node-2"]));
    assert_eq!(meant(resolve::<Node>(&view, "node-2")), Ok("node-2".into()));
    let text = resolve::<Node>(&view, "host").expect_err("it is ambiguous").to_string();
    assert_eq!(text, "`host` is ambiguous: it may be any of node host (node-1); node host (node-2)");
}

#[test]
fn an_image_is_found_by_every_form_of_its_reference_and_by_its_digest() {
    let references = ["docker.io/library/web:latest".to_owned()].into();
    let image = Image { id: "i1".into(), references, digest: "sha256:aa".into(), ..Image::default() };
    let unnamed = Image { id: "i2".into(), digest: "sha256:bb".into(), ..Image::default() };
    let mut view = Tables::default();
    view.put(image.into_object());
    view.put(unnamed.into_object());
    for reference in ["web", "web:latest", "docker.io/library/web:latest", "sha256:aa"] {
        assert_eq!(meant(resolve::<Image>(&view, reference)), Ok("i1".into()), "{reference}");
    }
    assert_eq!(meant(resolve::<Image>(&view, "sha256:bb")), Ok("i2".into()));
    assert_eq!(meant(resolve::<Image>(&view, "No Reference")), ids(&[]));
}

#[test]
fn the_name_of_a_slot_means_the_task_that_counts_there() {
    let live = task("live", "s1", 1, TaskState::Running);
    let newer = Task { meta: Meta { created: 9, ..Meta::default() }, ..task("newer", "s1", 1, TaskState::Failed) };
    let stopping = Task { desired_state: DesiredState::Shutdown, ..task("stopping", "s1", 1, TaskState::Running) };
    let mut tasks = vec![newer, stopping, live];
    let of = |tasks: &[Task]| meant(resolve::<Task>(&tables(vec![service("s1", "web")], tasks.to_vec()), "web.1"));
    assert_eq!(of(&tasks), Ok("live".into()), "what may still run comes first");
    tasks.pop();
    assert_eq!(of(&tasks), Ok("newer".into()), "then what is furthest");
    assert_eq!(of(&[]), ids(&[]));
}

#[test]
fn only_the_name_that_a_task_has_means_it() {
    let view = tables(vec![service("s1", "web")], vec![task("t1", "s1", 1, TaskState::Running)]);
    assert_eq!(meant(resolve::<Task>(&view, "web.1")), Ok("t1".into()));
    for other in ["web.01", "web.+1", "web.2", "web", "web.", ".1", "db.1"] {
        assert_eq!(meant(resolve::<Task>(&view, other)), ids(&[]), "{other}");
    }
}

#[test]
fn a_service_name_with_a_dot_never_stands_for_another_services_task() {
    let services = || vec![service("s1", "a"), service("s2", "a.1")];
    let tasks = || vec![task("of-a", "s1", 1, TaskState::Running), task("of-a.1", "s2", 1, TaskState::Running)];
    let view = tables(services(), tasks());
    assert_eq!(meant(resolve::<Task>(&view, "a.1")), ids(&["of-a", "s2"]));
    assert_eq!(meant(resolve::<Task>(&view, "of-a")), Ok("of-a".into()), "its id is not ambiguous");
    assert_eq!(meant(resolve::<Service>(&view, "a.1")), Ok("s2".into()), "a task is never meant by a service's name");
    assert_eq!(meant(resolve::<Task>(&view, "a.1.1")), Ok("of-a.1".into()));
    assert_eq!(meant(resolve_running(&view, "a.1")), ids(&["of-a", "s2"]));
    assert_eq!(meant(resolve_running(&view, "a")), Ok("of-a".into()));
    assert_eq!(meant(resolve_running(&view, "a.1.1")), Ok("of-a.1".into()));
    // The slot of `a` is empty, so only the service matches.
    let view = tables(services(), tasks().into_iter().skip(1).collect());
    assert_eq!(meant(resolve::<Task>(&view, "a.1")), ids(&[]));
    assert_eq!(meant(resolve_running(&view, "a.1")), Ok("of-a.1".into()));
}

#[test]
fn a_service_stands_for_its_first_task_that_runs() {
    let tasks = vec![
        task("t1", "s1", 1, TaskState::Failed),
        task("t2", "s1", 2, TaskState::Running),
        task("t3", "s1", 3, TaskState::Running),
    ];
    let view = tables(vec![service("s1", "web"), service("s2", "idle")], tasks);
    assert_eq!(meant(resolve_running(&view, "web")), Ok("t2".into()));
    assert_eq!(meant(resolve_running(&view, "t1")), Ok("t1".into()), "a task that is named is not replaced by another");
    assert!(matches!(resolve_running(&view, "idle"), Err(ControlError::NoTask { .. })));
    assert!(matches!(resolve_running(&view, "none"), Err(ControlError::NotFound { .. })));
}

#[test]
fn tasks_of_a_removed_service_are_meant_where_no_service_has_its_name() {
    let left = || task("left", "gone", 1, TaskState::Running);
    let with = |services: Vec<Service>, tasks: Vec<Task>| {
        let mut view = tables(vec![service("gone", "web"), service("gone-too", "web")], Vec::new());
        tasks.into_iter().for_each(|it| view.put(it.into_object()));
        for id in ["gone", "gone-too"] {
            view.remove(Service::KIND, id);
        }
        services.into_iter().for_each(|it| view.put(it.into_object()));
        view
    };
    let view = with(Vec::new(), vec![left()]);
    assert_eq!(meant(resolve::<Task>(&view, "web.1")), Ok("left".into()));
    let new = task("new", "s2", 1, TaskState::Pending);
    let view = with(vec![service("s2", "web")], vec![left(), new]);
    assert_eq!(meant(resolve::<Task>(&view, "web.1")), Ok("new".into()));
    let other = task("other", "gone-too", 1, TaskState::Running);
    let view = with(Vec::new(), vec![left(), other]);
    assert_eq!(meant(resolve::<Task>(&view, "web.1")), ids(&["left", "other"]));
}

#[test]
fn no_more_candidates_are_named_than_a_user_reads() {
    let services = (0..20).map(|number| service(&format!("same-{number:02}"), &format!("n{number}")));
    let view = tables(services.collect(), Vec::new());
    let Err(ControlError::Ambiguous { candidates, .. }) = resolve::<Service>(&view, "same") else {
        panic!("it is ambiguous")
    };
    assert_eq!(candidates.len(), CANDIDATES_BOUND);
    let first = Candidate { kind: "service".into(), id: "same-00".into(), name: "n0".into() };
    assert_eq!(candidates[0], first);
}
