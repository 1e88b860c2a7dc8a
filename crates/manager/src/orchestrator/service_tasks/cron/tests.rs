use super::super::ServiceTasks;
use super::*;
use crate::control_loop::{ControlLoop, Key};
use crate::plan::Change;
use flota_api::model::{
    Concurrency, CronStatus, Handled, Mount, MountSource, Node, NodeState, PinnedImage, RestartCondition,
    RestartHistory, RestartPolicy, Revision, ServiceMode, ServiceSpec, TaskStatus,
};
use flota_api::object::{Object, StoreObject};
use flota_api::state::TaskState;
use flota_api::version::{Meta, Timestamp};

/// Noon of the 28th of November 2026, in UTC.
const NOON: Timestamp = Timestamp(1_795_867_200_000);

/// A run of two tasks by the spec 2 that began at noon.
fn run(number: u64) -> CronRun {
    let (state, ended_at) = (RunState::Running, None);
    let number = NonZeroU64::new(number).expect("a number from 1");
    CronRun { number, scheduled_at: NOON, began_at: NOON, ended_at, state, spec_version: 2, completions: 2 }
}

/// A service with the spec 2 that runs every ten minutes, of which the times up to noon are done with.
fn service(concurrency: Concurrency, runs: Vec<CronRun>) -> Service {
    let schedule = Arc::new("*/10 * * * *".parse().expect("a good schedule"));
    let mode = ServiceMode::Cron {
        schedule: Arc::clone(&schedule),
        concurrency,
        start_deadline: None,
        completions: 2,
        max_concurrent: None,
    };
    let last_number = runs.last().map_or(0, |run| run.number.get());
    let cron =
        CronStatus { handled: Some(Handled { schedule, until: NOON }), last_number, runs, ..CronStatus::default() };
    let spec = ServiceSpec { name: "backup".into(), image: "app".into(), ..ServiceSpec::of_mode(mode) };
    Service { id: "s".into(), spec: Arc::new(spec), spec_version: 2, cron, ..Service::default() }
}

fn task(id: &str, run: u64, slot: u64, state: TaskState) -> Task {
    Task {
        id: id.into(),
        service_id: "s".into(),
        spec_version: 2,
        slot,
        run: NonZeroU64::new(run),
        node_id: Some("a".into()),
        status: TaskStatus { state, at: NOON, ..TaskStatus::default() },
        meta: Meta { created: slot, ..Meta::default() },
        ..Task::default()
    }
}

fn view(service: &Service, tasks: &[Task]) -> Tables {
    let mut view = Tables::default();
    view.put(Node { id: "a".into(), state: NodeState::Ready, ..Node::default() }.into_object());
    view.put(service.clone().into_object());
    tasks.iter().for_each(|task| view.put(task.clone().into_object()));
    view
}

/// Plans the service so many minutes after noon, and returns the plan in short form: `+run/slot` a new task, `id:state`
/// another desired state, `run state` the newest run that is recorded.
fn planned(view: &Tables, minutes: u64) -> Vec<String> {
    let mut cx = PlanContext::at(Timestamp(NOON.0 + minutes * 60_000));
    let plan = ServiceTasks::default().plan(&Key::of("s"), view, &mut cx);
    let short = |change: &Change| match change {
        Change::Put(Object::Task(task)) if view.task(&task.id).is_none() => {
            format!("+{}/{}", task.run.expect("it belongs to a run"), task.slot)
        }
        Change::Put(Object::Task(task)) => format!("{}:{}", task.id, task.desired_state),
        Change::Put(Object::Service(service)) => {
            let shown = |run: &CronRun| format!("{} {}", run.number, run.state);
            service.cron.runs.last().map_or("none".to_owned(), shown)
        }
        other => format!("{other:?}"),
    };
    plan.changes.iter().map(short).collect()
}

#[test]
fn a_run_is_recorded_before_its_tasks_and_gets_those_that_it_lacks_from_any_leader() {
    use TaskState::{Complete, Running};
    let idle = service(Concurrency::Forbid, Vec::new());
    assert_eq!(planned(&view(&idle, &[]), 9), [""; 0]);
    assert_eq!(planned(&view(&idle, &[]), 10), ["1 running", "+1/1", "+1/2"]);
    // The leader died after it had recorded the run.
    let begun = service(Concurrency::Forbid, vec![run(1)]);
    assert_eq!(planned(&view(&begun, &[]), 1), ["+1/1", "+1/2"]);
    let one = task("t1", 1, 1, Complete);
    assert_eq!(planned(&view(&begun, std::slice::from_ref(&one)), 1), ["+1/2"]);
    assert_eq!(planned(&view(&begun, &[one.clone(), task("t2", 1, 2, Running)]), 1), [""; 0]);
    assert_eq!(planned(&view(&begun, &[one, task("t2", 1, 2, Complete)]), 1), ["1 complete"]);
}

#[test]
fn a_run_begins_no_more_tasks_than_may_work_at_once() {
    let mut one_by_one = service(Concurrency::Forbid, vec![run(1)]);
    let mode = one_by_one.spec.mode.with_max_concurrent(std::num::NonZeroU64::new(1)).expect("it is cron");
    Arc::make_mut(&mut one_by_one.spec).mode = mode;
    assert_eq!(planned(&view(&one_by_one, &[]), 1), ["+1/1"]);
    assert_eq!(planned(&view(&one_by_one, &[task("t1", 1, 1, TaskState::Running)]), 1), [""; 0]);
    assert_eq!(planned(&view(&one_by_one, &[task("t1", 1, 1, TaskState::Complete)]), 1), ["+1/2"]);
}

#[test]
fn runs_that_overlap_use_other_slots_and_later_ones_the_same_again() {
    let running = |run, first, second| {
        [
            task(&format!("a{run}"), run, first, TaskState::Running),
            task(&format!("b{run}"), run, second, TaskState::Running),
        ]
    };
    let overlapping = service(Concurrency::Allow, vec![run(1)]);
    assert_eq!(planned(&view(&overlapping, &running(1, 1, 2)), 10), ["2 running", "+2/3", "+2/4"]);
    let over = CronRun { state: RunState::Complete, ended_at: Some(NOON), ..run(1) };
    let done = [task("t1", 1, 1, TaskState::Complete), task("t2", 1, 2, TaskState::Complete)];
    let again = service(Concurrency::Forbid, vec![over]);
    assert_eq!(planned(&view(&again, &done), 10), ["2 running", "+2/1", "+2/2"]);
}

#[test]
fn a_run_that_is_replaced_stops_and_the_new_one_waits_for_its_end() {
    let replaced = service(Concurrency::Replace, vec![run(1)]);
    let running = [task("t1", 1, 1, TaskState::Running), task("t2", 1, 2, TaskState::Complete)];
    assert_eq!(planned(&view(&replaced, &running), 10), ["1 replaced", "t1:shutdown"]);
    let stopping = service(Concurrency::Replace, vec![CronRun { state: RunState::Replaced, ..run(1) }]);
    let told = Task { desired_state: DesiredState::Shutdown, ..running[0].clone() };
    assert_eq!(planned(&view(&stopping, std::slice::from_ref(&told)), 11), [""; 0]);
    let ended = Task { status: TaskStatus { state: TaskState::Shutdown, ..told.status.clone() }, ..told };
    assert_eq!(planned(&view(&stopping, &[ended]), 11), ["2 running", "+2/1", "+2/2"]);
}

#[test]
fn a_task_that_fails_is_tried_again_until_the_budget_is_used_up_and_then_the_run_has_failed() {
    let mut bounded = service(Concurrency::Forbid, vec![run(1)]);
    let restart = RestartPolicy { condition: RestartCondition::OnFailure, ..RestartPolicy::default() };
    let restart = RestartPolicy { max_attempts: std::num::NonZeroU64::new(1), ..restart };
    Arc::make_mut(&mut bounded.spec).restart = restart;
    let done = task("t2", 1, 2, TaskState::Complete);
    let failed = task("t1", 1, 1, TaskState::Failed);
    assert_eq!(planned(&view(&bounded, &[failed.clone(), done.clone()]), 1), ["+1/1"]);
    let again = Task {
        restart_history: RestartHistory { in_a_row: 1, count: 1, times: Vec::new() },
        meta: Meta { created: 9, ..Meta::default() },
        ..task("t3", 1, 1, TaskState::Failed)
    };
    assert_eq!(planned(&view(&bounded, &[failed, again, done]), 1), ["1 failed"]);
}

#[test]
fn a_run_goes_on_by_the_spec_with_which_it_began() {
    let mut updated = service(Concurrency::Forbid, vec![run(1)]);
    let source = MountSource::Image { reference: "data".into(), subpath: None };
    let mounts = vec![Mount { target: "/data".into(), read_only: true, source }];
    Arc::make_mut(&mut updated.spec).mounts = mounts;
    let before = view(&updated, &[task("t1", 1, 1, TaskState::Running)]);
    updated.revisions = vec![Revision {
        version: 2,
        image_digest: Some("sha256:old".into()),
        mounted_images: vec![PinnedImage {
            reference: "data".into(),
            digest: "sha256:data".into(),
            platforms: Vec::new(),
        }],
        set_at: Some(NOON),
        ..Revision::default()
    }];
    updated.spec_version = 3;
    Arc::make_mut(&mut updated.spec).env = vec!["NEW=1".into()];
    let mut after = before;
    after.replace(updated.clone().into_object());
    let mut cx = PlanContext::at(NOON);
    let plan = ServiceTasks::default().plan(&Key::of("s"), &after, &mut cx);
    let [Change::Put(Object::Task(second))] = plan.changes.as_slice() else { panic!("{:?}", plan.changes) };
    assert_eq!((second.run, second.slot, second.spec_version), (NonZeroU64::new(1), 2, 2));
    assert_eq!(second.image_digests().collect::<Vec<_>>(), ["sha256:old", "sha256:data"]);
    // The next run has the new one.
    updated.cron.runs.clear();
    let plan = ServiceTasks::default().plan(
        &Key::of("s"),
        &view(&updated, &[]),
        &mut PlanContext::at(NOON + std::time::Duration::from_secs(600)),
    );
    let versions: Vec<u64> = plan
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Put(Object::Task(task)) => Some(task.spec_version),
            _ => None,
        })
        .collect();
    assert_eq!(versions, [3, 3]);
}

#[test]
fn a_service_that_is_stopped_stops_its_runs() {
    let mut stopped = service(Concurrency::Allow, vec![run(1)]);
    Arc::make_mut(&mut stopped.spec).stopped = true;
    let running = [task("t1", 1, 1, TaskState::Running), task("t2", 1, 2, TaskState::Complete)];
    assert_eq!(planned(&view(&stopped, &running), 10), ["1 stopped", "t1:shutdown"]);
}

#[test]
fn a_task_on_a_lost_node_of_a_run_is_replaced_in_its_slot() {
    let begun = service(Concurrency::Forbid, vec![run(1)]);
    let mut view = view(&begun, &[task("t1", 1, 1, TaskState::Running), task("t2", 1, 2, TaskState::Complete)]);
    view.replace(Node { id: "a".into(), state: NodeState::Down, ..Node::default() }.into_object());
    assert_eq!(planned(&view, 1), ["t1:shutdown", "+1/1"]);
}

#[test]
fn tasks_of_a_run_that_is_not_under_way_are_stopped() {
    let over = CronRun { state: RunState::Complete, ended_at: Some(NOON), ..run(1) };
    let left = [task("t1", 1, 1, TaskState::Running)];
    assert_eq!(planned(&view(&service(Concurrency::Forbid, vec![over]), &left), 1), ["t1:shutdown"]);
    assert_eq!(planned(&view(&service(Concurrency::Forbid, Vec::new()), &left), 1), ["t1:shutdown"]);
}
