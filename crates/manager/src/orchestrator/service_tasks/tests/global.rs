//! Global services: a task on each node that meets the constraints, on the nodes `a` and `b`.

use super::*;
use flota_api::constraint::Constraint;
use flota_api::model::{PinnedImage, Platform};

fn global() -> Service {
    with_spec(|_| {})
}

fn with_spec(change: impl FnOnce(&mut ServiceSpec)) -> Service {
    let mut spec = ServiceSpec { mode: ServiceMode::Global {}, ..service(1).spec.as_ref().clone() };
    change(&mut spec);
    Service { spec: Arc::new(spec), ..service(1) }
}

/// The running task of a slot whose node this is.
fn on(node: &str, slot: u64) -> Task {
    Task { pinned_to: Some(node.into()), ..task(&format!("t{slot}"), slot, node, TaskState::Running) }
}

fn available(id: &str, availability: Availability) -> Node {
    let mut node = node(id, NodeState::Ready);
    node.spec.availability = availability;
    node
}

/// Returns the plan, and the nodes of the new tasks.
fn planned_for(
    service: Service,
    tasks: impl IntoIterator<Item = Task>,
    nodes: impl IntoIterator<Item = Node>,
) -> Vec<String> {
    let mut objects = vec![service.into_object()];
    objects.extend(tasks.into_iter().map(StoreObject::into_object));
    objects.extend(nodes.into_iter().map(StoreObject::into_object));
    let view = view(objects);
    let mut short = planned(&view);
    let plan = ServiceTasks::default().plan(&Key::of("s"), &view, &mut PlanContext::at(NOW));
    let new = plan.changes.iter().filter_map(|change| match change {
        Change::Put(Object::Task(task)) if view.task(&task.id).is_none() => {
            Some(format!("{} on {}", task.slot, task.pinned_to.as_ref().expect("it has a node of its own")))
        }
        _ => None,
    });
    short.retain(|it| !it.starts_with('+'));
    short.extend(new);
    short.sort();
    short
}

#[test]
fn each_node_has_one_task() {
    assert_eq!(planned_for(global(), [], []), ["1 on a", "2 on b"]);
    assert_eq!(planned_for(global(), [on("b", 1)], []), ["2 on a"]);
    assert_eq!(planned_for(global(), [on("b", 1), on("a", 2)], []), [""; 0]);
    assert_eq!(planned_for(global(), [on("b", 1), on("a", 2), on("b", 3)], []), ["t3:remove"]);
    assert_eq!(planned_for(with_spec(|it| it.stopped = true), [on("b", 1)], []), ["t1:remove"]);
}

#[test]
fn a_node_that_is_drained_or_removed_or_no_longer_meets_the_constraints_loses_its_task() {
    assert_eq!(planned_for(global(), [on("b", 1), on("a", 2)], [available("b", Availability::Drain)]), ["t1:remove"]);
    assert_eq!(planned_for(global(), [on("gone", 1), on("a", 2), on("b", 3)], []), ["t1:remove"]);
    let zoned = || with_spec(|it| it.constraints = vec![Constraint::parse("node.labels.zone==a").expect("it is one")]);
    let mut labelled = node("b", NodeState::Ready);
    labelled.spec.labels.insert("zone".into(), "a".into());
    assert_eq!(planned_for(zoned(), [on("a", 1)], [labelled]), ["2 on b", "t1:remove"]);
}

#[test]
fn what_a_job_does_on_a_node_that_is_being_drained_is_done() {
    let job = || {
        with_spec(|it| {
            it.mode = ServiceMode::GlobalJob {};
            it.restart.condition = RestartCondition::OnFailure;
        })
    };
    let told_to_stop = |state| {
        let status = TaskStatus { state, ..TaskStatus::default() };
        [Task { status, desired_state: DesiredState::Shutdown, ..on("b", 1) }, on("a", 2)]
    };
    let drained = || [available("b", Availability::Drain)];
    assert_eq!(planned_for(job(), [on("b", 1), on("a", 2)], drained()), ["t1:shutdown"]);
    for state in [TaskState::Running, TaskState::Complete, TaskState::Shutdown] {
        assert_eq!(planned_for(job(), told_to_stop(state), drained()), [""; 0], "{state}");
    }
    assert_eq!(planned_for(job(), told_to_stop(TaskState::Running), []), [""; 0], "it has not ended yet");
    assert_eq!(
        planned_for(job(), told_to_stop(TaskState::Complete), []),
        [""; 0],
        "it ended well before it was stopped"
    );
    assert_eq!(planned_for(job(), told_to_stop(TaskState::Shutdown), []), ["1 on b"], "the node is back");
}

#[test]
fn a_node_on_which_the_image_does_not_run_has_no_task() {
    let platform = |architecture: &str| Platform::new("linux", architecture, None).expect("legal");
    let of = |architecture: &str| Service { image_platforms: vec![platform(architecture)], ..global() };
    let nodes = || {
        let described = |(id, architecture): (&str, &str)| {
            let mut node = node(id, NodeState::Ready);
            (node.description.os, node.description.architecture) = ("linux".into(), architecture.into());
            node
        };
        [("a", "amd64"), ("b", "arm64")].map(described)
    };
    assert_eq!(planned_for(of("arm64"), [], nodes()), ["1 on b"]);
    assert_eq!(planned_for(of("arm64"), [on("a", 1), on("b", 2)], nodes()), ["t1:remove"]);
    assert_eq!(planned_for(of("amd64"), [on("b", 1)], nodes()), ["2 on a", "t1:remove"]);
    let mounting = PinnedImage { platforms: vec![platform("arm64")], ..PinnedImage::default() };
    let mounting = Service { mounted_images: vec![mounting], ..global() };
    assert_eq!(planned_for(mounting, [], nodes()), ["1 on b"], "nor one on which there is no image for its mount");
    let zoned = |architecture: &str| {
        let zone = vec![Constraint::parse("node.labels.zone==x").expect("it is one")];
        Service { image_platforms: vec![platform(architecture)], ..with_spec(|it| it.constraints = zone) }
    };
    let labelled = || {
        nodes().map(|mut node| {
            let zone = if node.id.as_str() == "b" { "x" } else { "y" };
            node.spec.labels.insert("zone".into(), zone.into());
            node
        })
    };
    assert_eq!(planned_for(zoned("arm64"), [], labelled()), ["1 on b"]);
    assert_eq!(
        planned_for(zoned("amd64"), [on("b", 1)], labelled()),
        [""; 0],
        "the node with that platform is none of its"
    );
    assert_eq!(planned_for(zoned("amd64"), [], labelled()), ["1 on b"], "it waits and says why");
    let nowhere = [on("a", 1), on("b", 2)];
    assert_eq!(planned_for(of("s390x"), nowhere, nodes()), [""; 0], "what runs goes on");
    assert_eq!(planned_for(of("s390x"), [], nodes()), ["1 on a", "2 on b"], "they wait and say why");
}

#[test]
fn a_paused_node_keeps_its_task_and_gets_none() {
    let paused = || [available("b", Availability::Pause)];
    assert_eq!(planned_for(global(), [on("a", 1)], paused()), [""; 0]);
    assert_eq!(planned_for(global(), [on("a", 1), on("b", 2)], paused()), [""; 0]);
}

#[test]
fn a_node_that_is_down_keeps_its_task_because_no_other_can_have_it() {
    let down = || [node("b", NodeState::Down)];
    assert_eq!(planned_for(global(), [on("a", 1), on("b", 2)], down()), [""; 0]);
    assert_eq!(planned_for(global(), [on("a", 1)], down()), [""; 0]);
}

#[test]
fn a_task_that_has_failed_is_replaced_on_its_node() {
    let failed = Task { pinned_to: Some("b".into()), ..task("t2", 2, "b", TaskState::Failed) };
    let failed = Task { meta: Meta { updated_at: NOW, ..failed.meta }, ..failed };
    assert_eq!(planned_for(global(), [on("a", 1), failed], []), ["2 on b"]);
}

#[test]
fn a_node_concerns_global_services_when_it_comes_goes_or_changes() {
    let view = view([global().into_object()]);
    let dirtied = |old: Node, new: Node| {
        let event = Event::Updated { old: old.into_object(), new: new.into_object() };
        !ServiceTasks::default().dirtied_by(&event, &view).is_empty()
    };
    let ready = || node("a", NodeState::Ready);
    assert!(!dirtied(ready(), ready()));
    assert!(dirtied(node("a", NodeState::Down), ready()));
    assert!(dirtied(ready(), available("a", Availability::Drain)));
    let mut labelled = ready();
    labelled.spec.labels.insert("zone".into(), "a".into());
    assert!(dirtied(ready(), labelled));
    let created = Event::Created(node("c", NodeState::Ready).into_object());
    assert_eq!(ServiceTasks::default().dirtied_by(&created, &view), [Key::of("s")]);
    let removed = Event::Removed(ready().into_object());
    assert_eq!(ServiceTasks::default().dirtied_by(&removed, &view), [Key::of("s")]);
}

#[test]
fn as_many_tasks_are_wanted_as_nodes_can_run_one() {
    let wanted = |nodes: Vec<Node>, tasks: Vec<Task>| {
        let nodes = nodes.into_iter().map(StoreObject::into_object);
        let view = view(nodes.chain(tasks.into_iter().map(StoreObject::into_object)));
        wanted::tasks(&global(), &view)
    };
    assert_eq!(wanted(vec![], vec![]), 2);
    assert_eq!(wanted(vec![available("b", Availability::Drain)], vec![]), 1);
    assert_eq!(wanted(vec![available("b", Availability::Pause)], vec![]), 1);
    assert_eq!(wanted(vec![available("b", Availability::Pause)], vec![on("b", 1)]), 2);
    assert_eq!(wanted(vec![node("b", NodeState::Unknown)], vec![on("b", 1)]), 2);
    assert_eq!(wanted(vec![node("b", NodeState::Down)], vec![on("b", 1)]), 1);
}

#[test]
fn a_node_gets_its_next_task_when_the_one_before_has_ended() {
    let leaving = Task { desired_state: DesiredState::Remove, ..on("b", 1) };
    assert_eq!(planned_for(global(), [leaving.clone(), on("a", 2)], []), [""; 0]);
    let ended = Task { status: TaskStatus { state: TaskState::Shutdown, ..TaskStatus::default() }, ..leaving.clone() };
    assert_eq!(planned_for(global(), [ended, on("a", 2)], []), ["3 on b"]);
    let view = view([global().into_object()]);
    assert_eq!(ServiceTasks::default().dirtied_by(&Event::Removed(leaving.into_object()), &view), [Key::of("s")]);
}

#[test]
fn an_update_leaves_nodes_out_that_take_no_tasks_and_goes_on_when_they_do() {
    let updated = |update| Service { spec_version: 2, spec_set_at: Some(Timestamp(1)), update, ..global() };
    let new = |node, slot| Task { spec_version: 2, served_at: Some(Timestamp(1)), ..on(node, slot) };
    let planned = |service: Service, away: Option<Node>| {
        let tasks = [new("a", 1), on("b", 2)].map(StoreObject::into_object);
        super::planned(&view(
            [service.into_object()].into_iter().chain(tasks).chain(away.map(StoreObject::into_object)),
        ))
    };
    for away in [node("b", NodeState::Down), available("b", Availability::Pause)] {
        assert_eq!(planned(updated(UpdateStatus::begun(1)), Some(away.clone())), ["! completed (spec 2): "]);
        assert_eq!(planned(updated(UpdateStatus::default()), Some(away)), [""; 0]);
    }
    assert_eq!(planned(updated(UpdateStatus::default()), None), ["! updating (spec 2): "], "it is back");
    assert_eq!(planned(updated(UpdateStatus::begun(1)), None), ["+2 ready after 0 ms"]);
    let mut left = node("b", NodeState::Down);
    left.state_reason = Some(flota_api::model::NodeStateReason::Left);
    assert_eq!(planned(updated(UpdateStatus::default()), Some(left)), ["t2:remove"]);
}
