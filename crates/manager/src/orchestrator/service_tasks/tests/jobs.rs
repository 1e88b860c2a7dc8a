//! The runs of jobs.

use super::*;

/// A job with one task, whose present run has this number.
fn job(run: u64) -> Service {
    let mode = ServiceMode::ReplicatedJob { completions: 1, max_concurrent: None };
    let restart = RestartPolicy { condition: RestartCondition::OnFailure, ..RestartPolicy::default() };
    let service = service(1);
    let spec = ServiceSpec { mode, restart, ..service.spec.as_ref().clone() };
    Service { spec: Arc::new(spec), job_run: NonZeroU64::new(run), ..service }
}

fn of_run(id: &str, run: u64, state: TaskState) -> Task {
    Task { run: NonZeroU64::new(run), meta: Meta { created: run, ..Meta::default() }, ..task(id, 1, "a", state) }
}

/// The run and slot of the task that is made for a job with these tasks; `None` if there is nothing to do.
fn made(job: &Service, tasks: &[Task]) -> Option<(Option<u64>, u64)> {
    let objects = [job.clone().into_object()].into_iter().chain(tasks.iter().map(|it| it.clone().into_object()));
    let plan = ServiceTasks::default().plan(&Key::of("s"), &view(objects), &mut PlanContext::at(NOW));
    match plan.changes.as_slice() {
        [] => None,
        [Change::Put(Object::Task(task))] => Some((task.run.map(NonZeroU64::get), task.slot)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_tasks_of_a_job_have_the_number_of_its_run() {
    assert_eq!(made(&job(1), &[]), Some((Some(1), 1)));
    assert_eq!(made(&job(1), &[of_run("t1", 1, TaskState::Failed)]), Some((Some(1), 1)), "the same run goes on");
    assert_eq!(made(&service(1), &[]), Some((None, 1)), "a service has no runs");
}

#[test]
fn what_an_earlier_run_has_done_is_done_again_also_by_the_same_spec() {
    let done = of_run("t1", 1, TaskState::Complete);
    assert_eq!(made(&job(1), std::slice::from_ref(&done)), None, "it is done");
    assert_eq!(
        made(&job(3), std::slice::from_ref(&done)),
        Some((Some(3), 1)),
        "a rollback took its spec back and forth"
    );
    let given_up = of_run("t1", 1, TaskState::Failed);
    let never = |job: Service| {
        let restart = RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() };
        Service { spec: Arc::new(ServiceSpec { restart, ..job.spec.as_ref().clone() }), ..job }
    };
    assert_eq!(made(&never(job(1)), std::slice::from_ref(&given_up)), None);
    assert_eq!(made(&never(job(3)), &[given_up]), Some((Some(3), 1)));
    let restarted = |run| {
        let restarts = Some(Box::new(RestartHistory { count: 3, ..RestartHistory::default() }));
        let task = of_run("t1", 1, TaskState::Failed);
        let status = TaskStatus { restarts, ..task.status.clone() };
        let objects = [job(run).into_object(), Task { status, ..task }.into_object()];
        let plan = ServiceTasks::default().plan(&Key::of("s"), &view(objects), &mut PlanContext::at(NOW));
        let [Change::Put(Object::Task(task))] = plan.changes.as_slice() else { panic!("{plan:?}") };
        task.restart_history.count
    };
    assert_eq!([restarted(1), restarted(3)], [4, 0], "a new run has its restarts before it");
    let objects = [job(3).into_object(), of_run("t1", 1, TaskState::Running).into_object()];
    let plan = ServiceTasks::default().plan(&Key::of("s"), &view(objects), &mut PlanContext::at(NOW));
    let [Change::Put(Object::Task(stopped))] = plan.changes.as_slice() else { panic!("{plan:?}") };
    assert_eq!(stopped.desired_state, DesiredState::Shutdown, "a new run takes the place of the one before");
    let later = of_run("t2", 2, TaskState::Complete);
    let earlier_spec_again = Task { spec_version: 2, ..later };
    assert_eq!(made(&job(3), &[done.clone(), earlier_spec_again]), Some((Some(3), 1)));
    let third = Task { meta: Meta { created: 9, ..Meta::default() }, ..of_run("t3", 3, TaskState::Complete) };
    assert_eq!(made(&job(3), &[done, third]), None);
}

#[test]
fn no_more_slots_work_at_once_than_may_also_while_a_slot_that_is_not_wanted_any_more_ends() {
    let job = |completions| {
        let mode = ServiceMode::ReplicatedJob { completions, max_concurrent: NonZeroU64::new(1) };
        let job = job(2);
        Service { spec: Arc::new(ServiceSpec { mode, ..job.spec.as_ref().clone() }), ..job }
    };
    let begun = |slot| Task { slot, desired_state: DesiredState::Remove, ..of_run("t1", 1, TaskState::Running) };
    for slot in [1, 2] {
        assert_eq!(made(&job(1), &[begun(slot)]), None, "slot {slot} has not ended");
    }
    let ended = Task { slot: 2, desired_state: DesiredState::Remove, ..of_run("t1", 1, TaskState::Shutdown) };
    assert_eq!(made(&job(1), &[ended]), Some((Some(2), 1)));
    let lost = Task { node_id: Some("gone".into()), ..begun(2) };
    assert_eq!(made(&job(1), &[lost]), Some((Some(2), 1)), "nobody can say that it has ended");
}

#[test]
fn what_a_task_has_done_while_it_was_told_to_stop_is_not_done_again_unless_a_user_wants_it() {
    let done = |desired_state| Task { desired_state, ..of_run("t1", 1, TaskState::Complete) };
    assert_eq!(made(&job(1), &[done(DesiredState::Shutdown)]), None, "it ended while its node was drained");
    assert_eq!(made(&job(1), &[done(DesiredState::Remove)]), Some((Some(1), 2)), "its own number is not free yet");
    let [old, new] = [DesiredState::Running, DesiredState::Remove].map(|it| done(it).into_object());
    let view = view([job(1).into_object(), new.clone()]);
    assert_eq!(ServiceTasks::default().dirtied_by(&Event::Updated { old, new }, &view), [Key::of("s")]);
    let stopped = Task { desired_state: DesiredState::Shutdown, ..of_run("t1", 1, TaskState::Shutdown) };
    assert_eq!(made(&job(1), &[stopped]), Some((Some(1), 1)));
}
