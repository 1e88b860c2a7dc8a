mod credentials;
mod dependencies;
mod global;
mod jobs;
mod rollback;
mod update;

use std::num::NonZeroU64;
use std::time::Duration;

use super::*;
use crate::plan::Change;
use crate::{revisions, wanted};
use flota_api::model::{
    Availability, FailureAction, Node, NodeState, RestartCondition, RestartHistory, RestartPolicy, ServiceMode,
    ServiceSpec, TaskStatus, UpdateStatus,
};
use flota_api::object::{Object, StoreObject};
use flota_api::state::TaskState;
use flota_api::version::{Meta, Timestamp};

const NOW: Timestamp = Timestamp(1_000_000);

fn service(replicas: u64) -> Service {
    let spec = ServiceSpec {
        name: "web".into(),
        image: "web".into(),
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    Service { id: "s".into(), spec: Arc::new(spec), spec_version: 1, ..Service::default() }
}

fn task(id: &str, slot: u64, node: &str, state: TaskState) -> Task {
    Task {
        id: id.into(),
        service_id: "s".into(),
        spec_version: 1,
        slot,
        node_id: (!node.is_empty()).then(|| node.into()),
        status: TaskStatus { state, at: NOW, ..TaskStatus::default() },
        meta: Meta { created: slot, ..Meta::default() },
        ..Task::default()
    }
}

fn node(id: &str, state: NodeState) -> Node {
    Node { id: id.into(), state, ..Node::default() }
}

fn view(objects: impl IntoIterator<Item = Object>) -> Tables {
    let mut view = Tables::default();
    for id in ["a", "b"] {
        view.put(node(id, NodeState::Ready).into_object());
    }
    objects.into_iter().for_each(|object| view.put(object));
    view
}

/// Returns the plan in short form: `+slot` a new task, `id:state` another desired state, `!` another phase of the update.
fn planned(view: &Tables) -> Vec<String> {
    let plan = ServiceTasks::default().plan(&Key::of("s"), view, &mut PlanContext::at(NOW));
    let mut short: Vec<String> = plan
        .changes
        .iter()
        .map(|change| match change {
            Change::Put(Object::Task(task)) if view.task(&task.id).is_none() => {
                let ready = if task.desired_state == DesiredState::Ready { " ready" } else { "" };
                format!("+{}{ready} after {} ms", task.slot, task.not_before.map_or(0, |it| it.0 - NOW.0))
            }
            Change::Put(Object::Task(task)) => format!("{}:{}", task.id, task.desired_state),
            Change::Put(Object::Service(service)) => {
                let UpdateStatus { phase, reason, rollback_cause, .. } = &service.update;
                let (spec, why) = (service.spec_version, reason.as_ref().or(rollback_cause.as_ref()));
                format!("! {phase} (spec {spec}): {}", why.map_or("", String::as_str))
            }
            other => format!("{other:?}"),
        })
        .collect();
    short.sort();
    short
}

#[test]
fn a_service_gets_exactly_its_number_of_tasks() {
    assert_eq!(planned(&view([service(2).into_object()])), ["+1 after 0 ms", "+2 after 0 ms"]);
    let one = task("t1", 1, "a", TaskState::Running).into_object();
    assert_eq!(planned(&view([service(2).into_object(), one.clone()])), ["+2 after 0 ms"]);
    let two = task("t2", 2, "b", TaskState::Running).into_object();
    assert_eq!(planned(&view([service(2).into_object(), one.clone(), two])), [""; 0]);
    assert_eq!(planned(&view([one])), ["t1:remove"], "a removed service's tasks go");
}

#[test]
fn scaling_down_takes_the_unassigned_then_the_fullest_node_then_the_highest_slot() {
    let running = |id: &str, slot, node: &str| task(id, slot, node, TaskState::Running).into_object();
    let mut objects =
        vec![service(3).into_object(), running("t1", 1, "a"), running("t2", 2, "a"), running("t3", 3, "b")];
    objects.push(task("t4", 4, "", TaskState::Pending).into_object());
    assert_eq!(planned(&view(objects.clone())), ["t4:remove"]);
    objects[0] = service(2).into_object();
    objects.pop();
    assert_eq!(planned(&view(objects)), ["t2:remove"]);
    // The kept tasks are spread evenly, and running tasks are kept before others.
    let place = |slot: u64| if slot <= 5 { "a" } else { "b" };
    let nine = (1..=9).map(|slot| running(&format!("t{slot}"), slot, place(slot)));
    let four = planned(&view(nine.chain([service(5).into_object()])));
    assert_eq!(four, ["t3:remove", "t4:remove", "t5:remove", "t9:remove"]);
    let broken = task("t1", 1, "a", TaskState::Preparing).into_object();
    let two = [service(1).into_object(), broken, running("t2", 2, "b")];
    assert_eq!(planned(&view(two)), ["t1:remove"]);
}

#[test]
fn tasks_on_lost_nodes_are_replaced_at_once_and_on_silent_ones_stay() {
    let running = task("t1", 1, "a", TaskState::Running).into_object();
    let with = |node: Node| planned(&view([service(1).into_object(), running.clone(), node.into_object()]));
    assert_eq!(with(node("a", NodeState::Unknown)), [""; 0]);
    assert_eq!(with(node("a", NodeState::Down)), ["+1 after 0 ms", "t1:shutdown"]);
    let mut drained = node("a", NodeState::Ready);
    drained.spec.availability = Availability::Drain;
    assert_eq!(with(drained.clone()), ["+1 ready after 0 ms"], "its successor is prepared first");
    let stopping = Task { desired_state: DesiredState::Shutdown, ..task("t1", 1, "a", TaskState::Running) };
    let status = TaskStatus { state: TaskState::Shutdown, at: NOW, ..TaskStatus::default() };
    let ended = Task { status, ..stopping };
    let objects = [service(1).into_object(), ended.into_object(), drained.clone().into_object()];
    assert_eq!(planned(&view(objects)), ["+1 after 0 ms"]);
    drained.spec.availability = Availability::Pause;
    assert_eq!(with(drained), [""; 0]);
    let mut keeps = service(1);
    keeps.spec = Arc::new(ServiceSpec { keep_on_node_loss: true, ..keeps.spec.as_ref().clone() });
    let down = node("a", NodeState::Down).into_object();
    assert_eq!(planned(&view([keeps.into_object(), running.clone(), down])), [""; 0], "it waits for its node");
}

#[test]
fn task_on_a_drained_node_ends_when_its_successor_is_ready_and_before_that_starts() {
    let mut drained = node("a", NodeState::Ready);
    drained.spec.availability = Availability::Drain;
    let running = task("t1", 1, "a", TaskState::Running);
    let next = |state, updated_at| {
        let meta = Meta { created: 9, updated_at, ..Meta::default() };
        Task { desired_state: DesiredState::Ready, meta, ..task("t2", 1, "b", state) }
    };
    let with = |node: &Node, tasks: [Task; 2]| {
        let tasks = tasks.map(StoreObject::into_object);
        planned(&view([service(1).into_object(), node.clone().into_object()].into_iter().chain(tasks)))
    };
    let ready = next(TaskState::Ready, NOW);
    assert_eq!(with(&drained, [running.clone(), next(TaskState::Preparing, NOW)]), [""; 0]);
    assert_eq!(with(&drained, [running.clone(), ready.clone()]), ["t1:shutdown"]);
    let stopping = Task { desired_state: DesiredState::Shutdown, ..running.clone() };
    assert_eq!(with(&drained, [stopping.clone(), ready.clone()]), [""; 0], "a slot never runs twice");
    let status = TaskStatus { state: TaskState::Shutdown, at: NOW, ..TaskStatus::default() };
    assert_eq!(with(&drained, [Task { status, ..stopping }, ready.clone()]), ["t2:running"]);
    let failed = next(TaskState::Rejected, NOW);
    assert_eq!(with(&drained, [running.clone(), failed]), ["+1 ready after 0 ms"], "the old one runs on meanwhile");
    assert_eq!(with(&node("a", NodeState::Ready), [running.clone(), ready.clone()]), ["t2:shutdown"], "it stays");
    let dead = Node { state: NodeState::Down, ..drained };
    assert_eq!(with(&dead, [running, ready]), ["t1:shutdown"]);
}

#[test]
fn moves_that_another_slot_holds_up_are_looked_at_again() {
    let mut drained = node("a", NodeState::Ready);
    drained.spec.availability = Availability::Drain;
    let ready = Task { desired_state: DesiredState::Ready, ..task("t2", 1, "b", TaskState::Ready) };
    let retried = |other| {
        let tasks = [task("t1", 1, "a", TaskState::Running), ready.clone(), task("t3", 2, "b", other)];
        let tasks = tasks.map(StoreObject::into_object);
        let view = view([service(2).into_object(), drained.clone().into_object()].into_iter().chain(tasks));
        let plan = ServiceTasks::default().plan(&Key::of("s"), &view, &mut PlanContext::at(NOW));
        (plan.changes.len(), plan.retry_at)
    };
    assert_eq!(retried(TaskState::Running), (1, None));
    assert_eq!(retried(TaskState::Starting), (0, Some(NOW + moves::LOOK_AFTER)));
}

#[test]
fn moves_that_other_changes_hold_up_come_after_them() {
    let mut drained = node("a", NodeState::Ready);
    drained.spec.availability = Availability::Drain;
    let objects =
        [service(2).into_object(), drained.into_object(), task("t1", 1, "a", TaskState::Running).into_object()];
    let plan = ServiceTasks::default().plan(&Key::of("s"), &view(objects), &mut PlanContext::at(NOW));
    assert_eq!(
        (plan.changes.len(), plan.retry_at),
        (1, Some(NOW)),
        "the second task is made, and the first moves then"
    );
}

#[test]
fn what_keeps_apart_from_a_service_is_looked_at_when_that_goes() {
    let averse = ServiceSpec { name: "averse".into(), anti_affinity: vec!["web".into()], ..ServiceSpec::default() };
    let averse = Service { id: "averse".into(), spec: averse.into(), ..Service::default() };
    let web =
        Service { spec: ServiceSpec { name: "web".into(), ..service(1).spec.as_ref().clone() }.into(), ..service(1) };
    let view = view([web.clone().into_object(), averse.into_object()]);
    let is_woken = |event: &Event| ServiceTasks::default().dirtied_by(event, &view).contains(&Key::of("averse"));
    let [running, ended] = [TaskState::Running, TaskState::Failed].map(|state| task("t1", 1, "a", state));
    let updated = |old: Task, new: Task| Event::Updated { old: old.into_object(), new: new.into_object() };
    let stopping = Task { desired_state: DesiredState::Shutdown, ..running.clone() };
    assert!(is_woken(&updated(running.clone(), stopping)));
    assert!(is_woken(&updated(running.clone(), ended)));
    assert!(is_woken(&Event::Removed(running.clone().into_object())));
    assert!(is_woken(&Event::Removed(web.clone().into_object())));
    assert!(!is_woken(&updated(running.clone(), Task { moves: 1, ..running })));
    assert!(!is_woken(&Event::Updated { old: web.clone().into_object(), new: web.into_object() }));
}

#[test]
fn a_change_in_a_slot_that_moves_concerns_its_service() {
    let dirtied = |availability| {
        let mut from = node("a", NodeState::Ready);
        from.spec.availability = availability;
        let view =
            view([service(2).into_object(), from.into_object(), task("t1", 1, "a", TaskState::Shutdown).into_object()]);
        let [old, new] = [TaskState::Starting, TaskState::Running].map(|state| task("t2", 1, "b", state).into_object());
        ServiceTasks::default().dirtied_by(&Event::Updated { old, new }, &view)
    };
    assert_eq!(dirtied(Availability::Drain), [Key::of("s")], "the next slot may move now");
    assert_eq!(dirtied(Availability::Active), []);
}

#[test]
fn failures_are_replaced_by_policy_with_growing_delays_within_the_slots_budget() {
    let with = |policy: RestartPolicy, last: Task| {
        let last = Task { meta: Meta { updated_at: NOW, ..last.meta }, ..last };
        let mut service = service(1);
        service.spec = Arc::new(ServiceSpec { restart: policy, ..service.spec.as_ref().clone() });
        planned(&view([service.into_object(), last.into_object()]))
    };
    let policy = |condition| RestartPolicy { condition, ..RestartPolicy::default() };
    let failed = task("t1", 1, "a", TaskState::Failed);
    assert_eq!(with(policy(RestartCondition::Any), failed.clone()), ["+1 after 0 ms"]);
    assert_eq!(with(policy(RestartCondition::None), failed.clone()), [""; 0]);
    let restart_history = RestartHistory { in_a_row: 3, count: 3, times: Vec::new() };
    let often = Task { restart_history, ..failed.clone() };
    assert_eq!(with(policy(RestartCondition::OnFailure), often.clone()), ["+1 after 800 ms"]);
    let budget =
        RestartPolicy { max_attempts: NonZeroU64::new(3), delay: Duration::from_millis(1), ..RestartPolicy::default() };
    assert_eq!(with(budget, often), [""; 0], "the slot's budget is gone");
    let rejected = task("t1", 1, "a", TaskState::Rejected);
    assert_eq!(with(policy(RestartCondition::None), rejected), ["+1 after 0 ms"], "it never ran");
    let complete = task("t1", 1, "a", TaskState::Complete);
    assert_eq!(with(policy(RestartCondition::OnFailure), complete), [""; 0]);
}

#[test]
fn a_slot_whose_restarts_have_left_the_window_has_budget_again() {
    let window = Some(Duration::from_secs(60));
    let policy = RestartPolicy { max_attempts: NonZeroU64::new(2), window, ..RestartPolicy::default() };
    // The worker's clock is an hour ahead of the leader's, and both restarts were so many seconds before the end.
    let after_end = |ages: [u64; 2]| {
        let at = Timestamp(NOW.0 + 3_600_000);
        let times = ages.iter().map(|age| Timestamp(at.0 - age * 1_000)).collect();
        let failed = task("t1", 1, "a", TaskState::Failed);
        let restarts = Some(Box::new(RestartHistory { in_a_row: 0, count: 9, times }));
        let status = TaskStatus { at, restarts, attempt: 10, ..failed.status };
        let failed = Task { status, meta: Meta { updated_at: NOW, ..Meta::default() }, ..failed };
        planned(&view([with_restart(policy.clone()).into_object(), failed.into_object()]))
    };
    assert_eq!(after_end([50, 10]), [""; 0], "both count");
    assert_eq!(after_end([70, 10]), ["+1 after 0 ms"], "one is forgiven");
}

#[test]
fn a_move_takes_the_restarts_along_and_adds_none() {
    let restart_history = RestartHistory { in_a_row: 1, count: 2, times: Vec::new() };
    let next = |state: TaskState, desired_state: DesiredState| {
        let last = Task { restart_history: restart_history.clone(), desired_state, ..task("t1", 1, "a", state) };
        let view = view([service(1).into_object(), last.into_object()]);
        let mut cx = PlanContext::at(NOW);
        let plan = ServiceTasks::default().plan(&Key::of("s"), &view, &mut cx);
        let [Change::Put(Object::Task(task))] = plan.changes.as_slice() else { panic!("{:?}", plan.changes) };
        (task.restart_history.count, task.restarts())
    };
    assert_eq!(next(TaskState::Shutdown, DesiredState::Shutdown), (2, 0));
    assert_eq!(next(TaskState::Failed, DesiredState::Running), (3, 1));
}

#[test]
fn of_two_tasks_in_a_slot_the_lesser_goes() {
    let objects = [
        service(1).into_object(),
        task("t1", 1, "a", TaskState::Running).into_object(),
        task("t2", 1, "b", TaskState::Preparing).into_object(),
    ];
    assert_eq!(planned(&view(objects)), ["t2:shutdown"]);
}

/// A task from an earlier leader whose clock was an hour ahead; `created` still determines its order.
fn from_ahead(created: u64, task: Task) -> Task {
    let ahead = NOW + Duration::from_secs(3600);
    Task { meta: Meta { created_at: ahead, created, ..Meta::default() }, ..task }
}

fn with_restart(policy: RestartPolicy) -> Service {
    let service = service(1);
    Service { spec: Arc::new(ServiceSpec { restart: policy, ..service.spec.as_ref().clone() }), ..service }
}

#[test]
fn an_update_goes_on_past_tasks_of_a_leader_whose_clock_was_ahead() {
    let stopping = Task { desired_state: DesiredState::Shutdown, ..task("o1", 1, "a", TaskState::Shutdown) };
    let new = Task { spec_version: 2, served_at: Some(Timestamp(1)), ..task("n1", 1, "a", TaskState::Running) };
    let new = Task { meta: Meta { created: 50, created_at: Timestamp(1), ..Meta::default() }, ..new };
    let second = from_ahead(2, task("o2", 2, "a", TaskState::Running));
    let service = service(2);
    let service =
        Service { spec_version: 2, spec_set_at: Some(Timestamp(1)), update: UpdateStatus::begun(1), ..service };
    let planned = |first: &Task, new: &Task| {
        let tasks = [first, new, &second].map(|task| task.clone().into_object());
        planned(&view([service.clone().into_object()].into_iter().chain(tasks)))
    };
    let old = from_ahead(1, stopping);
    assert_eq!(planned(&old, &new), ["+2 ready after 0 ms"], "slot 1 is done");
    let status = TaskStatus { state: TaskState::Failed, error: "it fell".into(), ..TaskStatus::default() };
    assert_eq!(
        planned(&old, &Task { status, ..new.clone() }),
        ["! paused (spec 2): web.1: it fell"],
        "the newest says how it goes"
    );
    let ready = Task { desired_state: DesiredState::Ready, ..new };
    let ready = Task { status: TaskStatus { state: TaskState::Ready, ..TaskStatus::default() }, ..ready };
    let running = from_ahead(1, task("o1", 1, "a", TaskState::Running));
    assert_eq!(planned(&running, &ready), ["o1:shutdown"], "it takes over, and none is made beside it");
}

#[test]
fn the_newest_task_of_a_slot_decides_over_its_restart_and_not_the_one_of_a_clock_that_was_ahead() {
    let moved = Task { desired_state: DesiredState::Shutdown, ..task("t1", 1, "a", TaskState::Shutdown) };
    let moved = from_ahead(1, moved);
    let failed = |restarts| {
        let meta = Meta { created: 9, updated_at: NOW, ..Meta::default() };
        let restart_history = RestartHistory { in_a_row: restarts, count: restarts, times: Vec::new() };
        Task { meta, restart_history, ..task("t2", 1, "a", TaskState::Failed) }
    };
    let planned = |policy: RestartPolicy, last: Task| {
        planned(&view([with_restart(policy).into_object(), moved.clone().into_object(), last.into_object()]))
    };
    let never = RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() };
    assert_eq!(planned(never, failed(0)), [""; 0], "it has run, once");
    let twice = RestartPolicy { max_attempts: NonZeroU64::new(2), ..RestartPolicy::default() };
    assert_eq!(planned(twice.clone(), failed(1)), ["+1 after 200 ms"]);
    assert_eq!(planned(twice, failed(2)), [""; 0], "the budget is the slot's");
}

#[test]
fn a_delay_counts_from_the_report_of_the_end_whatever_the_workers_clock_said() {
    let policy = RestartPolicy { delay: Duration::from_secs(2), ..RestartPolicy::default() };
    for at in [Timestamp(0), NOW + Duration::from_secs(3600)] {
        let failed = task("t1", 1, "a", TaskState::Failed);
        let restarts = Some(Box::new(RestartHistory { in_a_row: 1, count: 1, times: vec![at] }));
        let status = TaskStatus { at, restarts, ..failed.status };
        let failed = Task { status, meta: Meta { updated_at: NOW, ..Meta::default() }, ..failed };
        let objects = [with_restart(policy.clone()).into_object(), failed.into_object()];
        assert_eq!(planned(&view(objects)), ["+1 after 2000 ms"]);
    }
}

#[test]
fn a_removed_task_concerns_its_slot_and_only_a_slot_that_no_longer_counts_the_service() {
    let gone = Task { desired_state: DesiredState::Shutdown, ..task("t1", 1, "a", TaskState::Shutdown) };
    let dirtied = |rest: Option<Task>| {
        let view = view([service(9).into_object()].into_iter().chain(rest.map(StoreObject::into_object)));
        ServiceTasks::default().dirtied_by(&Event::Removed(gone.clone().into_object()), &view)
    };
    let next = task("t2", 1, "b", TaskState::Running);
    assert_eq!(dirtied(Some(next.clone())), [Key::slot_of(&gone)]);
    assert_eq!(dirtied(None), [Key::of("s")]);
    assert_eq!(dirtied(Some(Task { desired_state: DesiredState::Remove, ..next })), [Key::of("s")]);
}

#[test]
fn what_is_done_stays_done_although_a_task_was_prepared_to_take_its_place() {
    let policy = RestartPolicy { condition: RestartCondition::OnFailure, ..RestartPolicy::default() };
    let service = || with_restart(policy.clone()).into_object();
    let done = task("t1", 1, "a", TaskState::Complete).into_object();
    let ready = Task { desired_state: DesiredState::Ready, ..task("t2", 1, "b", TaskState::Ready) };
    let ready = Task { meta: Meta { created: 9, ..Meta::default() }, ..ready };
    assert_eq!(planned(&view([service(), done.clone(), ready.clone().into_object()])), ["t2:shutdown"]);
    let stopped = Task { desired_state: DesiredState::Shutdown, ..ready };
    let status = TaskStatus { state: TaskState::Shutdown, ..TaskStatus::default() };
    let objects = [service(), done, Task { status, ..stopped }.into_object()];
    assert_eq!(planned(&view(objects)), [""; 0], "nor does the end of that one begin another");
}

#[test]
fn a_task_that_is_kept_on_a_lost_node_is_not_run_elsewhere_beside_it() {
    let mut service = service(1);
    service.spec = Arc::new(ServiceSpec { keep_on_node_loss: true, ..service.spec.as_ref().clone() });
    let stopping = Task { desired_state: DesiredState::Shutdown, ..task("t1", 1, "a", TaskState::Running) };
    let with = |node: Node| {
        planned(&view([service.clone().into_object(), stopping.clone().into_object(), node.into_object()]))
    };
    assert_eq!(with(node("a", NodeState::Down)), [""; 0], "its container may run there");
    let mut drained = node("a", NodeState::Down);
    drained.spec.availability = Availability::Drain;
    assert_eq!(with(drained), ["+1 after 0 ms"], "a user has given the node up");
}
