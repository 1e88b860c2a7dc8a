//! What follows when new tasks fail: rollbacks, pauses, and the specs that are kept for them.

use super::update::{LONG, failing, in_state, new, old, planned_of, served, stopped, successor, updated};
use super::*;
use crate::pin::SpecImages;
use flota_api::model::{Network, NetworkAttachment, Protocol, PublishMode, PublishedPort, UpdatePhase, UpdatePolicy};

/// A service whose update from spec 1 has a failed task, and whose spec 1 is kept.
fn failing_update(view: &mut Tables, action: FailureAction) -> Service {
    let update = UpdatePolicy { failure_action: action, ..UpdatePolicy::default() };
    let first = updated(update);
    let first = Service { spec_version: 1, update: UpdateStatus::default(), ..first };
    view.put(first.clone().into_object());
    let spec = ServiceSpec { image: "worse".into(), ..first.spec.as_ref().clone() };
    let next = revisions::with_spec(&first, spec, SpecImages::default(), Vec::new());
    assert_eq!((next.spec_version, next.revisions.len()), (2, 1));
    view.put(next.clone().into_object());
    next
}

#[test]
fn a_failed_update_is_rolled_back_to_the_spec_before_it_and_only_changed_tasks_are_touched() {
    let mut view = view([]);
    let next = failing_update(&mut view, FailureAction::Rollback);
    for task in [stopped(old(1)), failing("it fell", new(TaskState::Failed)), old(2)] {
        view.put(task.into_object());
    }
    assert_eq!(planned(&view), ["! rolling-back (spec 1): web.1: it fell"]);
    let back = revisions::rolled_back(&next, "web.1: it fell".into(), &view, &mut Plan::default()).expect("it is kept");
    assert_eq!((back.spec.image.as_str(), back.revisions.last().map(|it| it.version)), ("web", Some(2)));
    // As the store notes it.
    view.put(Service { spec_set_at: Some(NOW), ..back.clone() }.into_object());
    assert_eq!(planned(&view), ["+1 after 0 ms"], "slot 2 has the earlier spec");
    let later = Meta { created: 200, created_at: NOW, ..Meta::default() };
    let again = Task { id: "r1".into(), spec_version: 1, meta: later, ..served(1, LONG) };
    view.put(again.clone().into_object());
    assert_eq!(planned(&view), ["! rolled-back (spec 1): web.1: it fell"]);
    let status = TaskStatus { state: TaskState::Failed, error: "it fell too".into(), ..TaskStatus::default() };
    view.put(Task { status, served_at: None, ..again }.into_object());
    assert_eq!(planned(&view), ["! rollback-paused (spec 1): web.1: it fell too"], "there is no second rollback");
}

#[test]
fn an_update_that_takes_another_ones_place_goes_back_to_what_has_worked() {
    let mut view = view([]);
    let second = failing_update(&mut view, FailureAction::Rollback);
    let spec = ServiceSpec { image: "no better".into(), ..second.spec.as_ref().clone() };
    let third = revisions::with_spec(&second, spec, SpecImages::default(), Vec::new());
    assert_eq!((third.spec_version, third.update.previous_version), (3, Some(1)));
    view.put(third.clone().into_object());
    let back = revisions::rolled_back(&third, String::new(), &view, &mut Plan::default()).expect("it is kept");
    assert_eq!((back.spec_version, back.spec.image.as_str()), (1, "web"));
    let after = revisions::with_spec(
        &back,
        ServiceSpec { image: "new".into(), ..back.spec.as_ref().clone() },
        SpecImages::default(),
        Vec::new(),
    );
    assert_eq!(after.spec_version, 4, "a number stands for one spec for ever");
}

#[test]
fn nothing_is_rolled_back_to_a_spec_whose_network_is_gone_or_that_publishes_another_port() {
    let mut view = view([]);
    let plain = Service { spec_version: 1, update: UpdateStatus::default(), ..updated(UpdatePolicy::default()) };
    let back_to = |view: &mut Tables, first: ServiceSpec| {
        let first = Service { spec: Arc::new(first), ..plain.clone() };
        view.put(first.clone().into_object());
        let next = ServiceSpec { image: "worse".into(), ..plain.spec.as_ref().clone() };
        let next = revisions::with_spec(&first, next, SpecImages::default(), Vec::new());
        view.put(next.clone().into_object());
        let mut plan = Plan::default();
        let is_back = revisions::rolled_back(&next, String::new(), view, &mut plan).is_some();
        is_back
            .then(|| plan.touches.iter().map(|it| format!("{} {}", it.kind(), it.id())).collect::<Vec<_>>().join(", "))
    };
    let attached = NetworkAttachment { network: "net".into(), ..NetworkAttachment::default() };
    let in_network = ServiceSpec { networks: vec![attached], ..plain.spec.as_ref().clone() };
    assert_eq!(back_to(&mut view, in_network.clone()), None, "its network is gone");
    view.put(Network { id: "net".into(), ..Network::default() }.into_object());
    assert_eq!(back_to(&mut view, in_network).as_deref(), Some("network net"), "who removes it now meets a conflict");
    let port = PublishedPort { target: 80, published: Some(8080), protocol: Protocol::Tcp, mode: PublishMode::Ingress };
    let published = ServiceSpec { ports: vec![port], ..plain.spec.as_ref().clone() };
    assert_eq!(back_to(&mut view, published), None, "another service may have taken it");
    let port = PublishedPort { target: 80, published: Some(8080), protocol: Protocol::Tcp, mode: PublishMode::Host };
    let on_nodes = ServiceSpec { ports: vec![port], ..plain.spec.as_ref().clone() };
    assert_eq!(back_to(&mut view, on_nodes.clone()).as_deref(), Some(""));
    let spec = ServiceSpec {
        name: "other".into(),
        ports: vec![PublishedPort { mode: PublishMode::Ingress, ..port }],
        ..ServiceSpec::default()
    };
    view.put(Service { id: "other".into(), spec: spec.into(), ..Service::default() }.into_object());
    assert_eq!(back_to(&mut view, on_nodes), None, "another service has it on every node");
    let depending = |on: &str| ServiceSpec {
        depends_on: vec![flota_api::model::Dependency {
            service: on.into(),
            condition: flota_api::model::DependencyCondition::Started,
            required: true,
        }],
        ..plain.spec.as_ref().clone()
    };
    let first = Service { spec: Arc::new(depending("other")), ..plain.clone() };
    let spec = ServiceSpec { image: "worse".into(), ..plain.spec.as_ref().clone() };
    let next = revisions::with_spec(&first, spec, SpecImages::default(), Vec::new());
    view.put(first.into_object());
    view.put(next.clone().into_object());
    let mut plan = Plan::default();
    revisions::rolled_back(&next, String::new(), &view, &mut plan).expect("there is no circle");
    assert_eq!(plan.expects, [(Kind::Service, "other".into())], "it may come to depend on this one");
}

#[test]
fn an_update_that_goes_on_tries_a_slot_again_that_kept_its_old_task() {
    let failed = failing("no image", successor(TaskState::Rejected));
    let mut service = updated(UpdatePolicy::default());
    service.update = UpdateStatus { failed_slots: [1].into(), ..service.update }.paused("web.1: no image".into());
    assert_eq!(planned_of(service.clone(), [old(1), failed.clone(), old(2)]), [""; 0]);
    let update = UpdateStatus { started_at: Timestamp(NOW.0 + 1), ..service.update.resumed([].into()) };
    let goes_on = Service { update, ..service.clone() };
    assert_eq!(planned_of(goes_on, [old(1), failed, old(2)]), ["+1 ready after 0 ms"]);
    let looping = new(TaskState::Running);
    let looping = Task { status: TaskStatus { attempt: 2, exit_code: Some(3), ..looping.status }, ..looping };
    let update = UpdateStatus { started_at: Timestamp(NOW.0 + 1), ..service.update.resumed([1].into()) };
    let goes_on = Service { update, ..service };
    assert_eq!(planned_of(goes_on, [stopped(old(1)), looping, old(2)]), ["+2 ready after 0 ms"], "it stays");
}

#[test]
fn the_kept_specs_are_bounded() {
    let mut service = updated(UpdatePolicy::default());
    for number in 0..20 {
        let spec = ServiceSpec { image: format!("web:{number}"), ..service.spec.as_ref().clone() };
        service = revisions::with_spec(&service, spec, SpecImages::default(), Vec::new());
    }
    let versions: Vec<u64> = service.revisions.iter().map(|it| it.version).collect();
    assert_eq!(versions, (12..22).collect::<Vec<_>>());
}

#[test]
fn what_changes_no_task_changes_no_spec_and_leaves_a_paused_update_alone() {
    let mut service = updated(UpdatePolicy::default());
    service.update = service.update.paused("x".into());
    let labels = std::collections::BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let mode = ServiceMode::Replicated { replicas: 9 };
    let update = UpdatePolicy { parallelism: None, ..UpdatePolicy::default() };
    let spec = ServiceSpec { labels, mode, update, stopped: true, ..service.spec.as_ref().clone() };
    let changed = revisions::with_spec(&service, spec.clone(), SpecImages::default(), Vec::new());
    assert_eq!((changed.spec_version, &changed.update, changed.spec.stopped), (2, &service.update, true));
    assert_eq!(changed.revisions, []);
    service.update.phase = UpdatePhase::RolledBack;
    assert_eq!(
        revisions::with_spec(&service, spec, SpecImages::default(), Vec::new()).update.phase,
        UpdatePhase::Completed,
        "a user has set it"
    );
}

#[test]
fn a_lost_task_of_a_paused_update_comes_back_with_the_spec_that_its_slot_has() {
    let mut view = view([]);
    let next = failing_update(&mut view, FailureAction::Pause);
    view.put(Service { update: next.update.paused("web.1: it fell".into()), ..next }.into_object());
    let moved = Task { desired_state: DesiredState::Shutdown, ..in_state(TaskState::Shutdown, old(2)) };
    for task in [new(TaskState::Running), moved] {
        view.put(task.into_object());
    }
    let plan = ServiceTasks::default().plan(&Key::of("s"), &view, &mut PlanContext::at(NOW));
    let [Change::Put(Object::Task(task))] = &plan.changes[..] else { panic!("one new task: {:?}", plan.changes) };
    assert_eq!((task.slot, task.spec_version), (2, 1));
}
