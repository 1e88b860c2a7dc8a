//! Successors: tasks that take the place of another one of their slot.

use super::*;

#[test]
fn a_new_task_may_stand_beside_the_one_that_it_replaces_although_the_node_has_as_many_as_allowed() {
    let spec = ServiceSpec { max_replicas_per_node: NonZeroU64::new(1), ..ServiceSpec::default() };
    for desired_state in [DesiredState::Running, DesiredState::Ready] {
        let mut objects = vec![node("a").into_object(), service("s", spec.clone()).into_object()];
        objects.push(task("r", "s", "a", TaskState::Running).into_object());
        objects.push(Task { desired_state, ..task("p1", "s", "", TaskState::Pending) }.into_object());
        let placed = |objects: &[Object]| planned(&view(objects.to_vec()), "s");
        assert_eq!(placed(&objects), ["p1@a"], "{desired_state}: both are of slot 1");
        objects.pop();
        objects.push(Task { slot: 2, ..task("p2", "s", "", TaskState::Pending) }.into_object());
        assert_eq!(placed(&objects), ["p2: no node fits: 1 of 1 with as many tasks of the service as allowed"]);
    }
}

#[test]
fn a_successor_takes_no_room_of_another_slot_whose_successor_has_no_node() {
    let spec = ServiceSpec { max_replicas_per_node: NonZeroU64::new(1), ..ServiceSpec::default() };
    let old = |slot, node| Task { slot, ..task(&format!("old{slot}"), "s", node, TaskState::Running) }.into_object();
    let new = |slot| Task {
        slot,
        desired_state: DesiredState::Ready,
        ..task(&format!("new{slot}"), "s", "", TaskState::Pending)
    };
    let mut objects: Vec<Object> = ["a", "b"].map(|id| node(id).into_object()).into();
    objects.extend([service("s", spec).into_object(), old(1, "a"), old(2, "b")]);
    // The first one can only run on a node that is lost.
    objects.push(Task { pinned_to: Some("gone".into()), ..new(1) }.into_object());
    objects.push(new(2).into_object());
    objects.push(task("o", "other", "b", TaskState::Running).into_object());
    assert_eq!(
        planned(&view(objects.clone()), "s"),
        ["new1: there is no node", "new2@b"],
        "the less loaded node has slot 1"
    );
    objects[5] = new(1).into_object();
    assert_eq!(planned(&view(objects), "s"), ["new1@a", "new2@b"], "no node has two slots");
}

#[test]
fn a_successor_goes_where_the_service_is_spread_best_without_the_task_that_it_replaces() {
    let mut objects: Vec<Object> = ["a", "b"].map(|id| node(id).into_object()).into();
    objects.push(service("s", ServiceSpec::default()).into_object());
    // The first slot has moved from `b` to `a`, and the second one is next.
    objects.push(task("r", "s", "a", TaskState::Running).into_object());
    objects.push(Task { slot: 2, ..task("old", "s", "a", TaskState::Running) }.into_object());
    objects.push(task("o", "other", "a", TaskState::Running).into_object());
    let new = Task { slot: 2, desired_state: DesiredState::Ready, ..task("new", "s", "", TaskState::Pending) };
    objects.push(new.into_object());
    assert_eq!(planned(&view(objects.clone()), "s"), ["new@b"]);
    objects.remove(3);
    objects.push(task("r", "s", "b", TaskState::Running).into_object());
    assert_eq!(planned(&view(objects), "s"), ["new@a"]);
}

/// Returns why the successor of a task that reserves 3 of its node's 4 GiB has no node.
fn reason_of_successor(spec: ServiceSpec, others: Vec<Object>) -> PendingReason {
    let old = ServiceSpec { reservations: Resources { memory_bytes: 3 * GIB, ..Resources::default() }, ..spec.clone() };
    let mut objects = vec![node("a").into_object(), Node { state: NodeState::Down, ..node("b") }.into_object()];
    objects.push(service("s", ServiceSpec { constraints: Vec::new(), ..old }).into_object());
    objects.push(task("old", "s", "a", TaskState::Running).into_object());
    objects.push(Service { spec_version: 2, ..service("s", spec) }.into_object());
    let successor =
        Task { desired_state: DesiredState::Ready, spec_version: 2, ..task("p", "s", "", TaskState::Pending) };
    objects.push(successor.into_object());
    objects.extend(others);
    let plan = plan(&view(objects), "s");
    let [Change::Put(Object::Task(task))] = plan.changes.as_slice() else { panic!("one task waits") };
    *task.pending_reason.clone().expect("the scheduler says why")
}

#[test]
fn a_successor_that_fits_without_the_task_it_replaces_needs_its_room() {
    let counts = BTreeMap::from([(Filter::NotReady, 1), (Filter::Memory, 1)]);
    assert_eq!(reason_of_successor(reserving(4 * GIB), Vec::new()), PendingReason::NeedsRoom(counts));
}

#[test]
fn a_successor_that_fits_on_no_node_at_all_needs_no_room() {
    let counts = BTreeMap::from([(Filter::NotReady, 1), (Filter::Memory, 1)]);
    assert_eq!(reason_of_successor(reserving(5 * GIB), Vec::new()), PendingReason::NoNodeFits(counts));
}

#[test]
fn a_successor_that_a_constraint_keeps_away_needs_no_room() {
    let counts = BTreeMap::from([(Filter::NotReady, 1), (Filter::Constraint, 1)]);
    let spec = ServiceSpec {
        constraints: vec![Constraint::parse("node.labels.zone==nowhere").expect("it is good")],
        ..reserving(3 * GIB)
    };
    assert_eq!(reason_of_successor(spec, Vec::new()), PendingReason::NoNodeFits(counts));
}

#[test]
fn a_successor_whose_room_another_service_has_needs_no_room() {
    let counts = BTreeMap::from([(Filter::NotReady, 1), (Filter::Memory, 1)]);
    let other = service("other", reserving(GIB)).into_object();
    let others = vec![other, task("o", "other", "a", TaskState::Running).into_object()];
    assert_eq!(reason_of_successor(reserving(4 * GIB), others), PendingReason::NoNodeFits(counts));
}
