//! Deletes tasks whose removal was requested and that have ended, tasks of removed nodes, and old history. The history
//! of a slot are its newest tasks, as many as the cluster's setting says, its last failure, and the last one that was
//! preempted; of the mode cron, those of each run that is kept.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use flota_api::defaults::TASK_HISTORY_LIMIT;
use flota_api::id::ServiceId;
use flota_api::model::{RestartCondition, Task};
use flota_api::object::{Kind, Object};
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are services and slots.
#[derive(Debug, Default)]
pub(crate) struct Reaper;

impl ControlLoop for Reaper {
    fn name(&self) -> &'static str {
        "reaper"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.services_with_tasks().map(Key::of).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            Event::Removed(Object::Node(node)) => view.tasks_of_node(&node.id).map(|task| Key::slot_of(task)).collect(),
            // A new task makes an older one history.
            Event::Created(Object::Task(task)) => vec![Key::slot_of(task)],
            // The tasks of a run that is forgotten go with it.
            Event::Updated { old: Object::Service(old), new: Object::Service(new) }
                if old.cron.runs != new.cron.runs =>
            {
                vec![Key::of(&new.id)]
            }
            Event::Updated { old: Object::Cluster(old), new: Object::Cluster(new) }
                if old.task_history_limit != new.task_history_limit =>
            {
                self.all(view)
            }
            Event::Updated { old: Object::Task(old), new: Object::Task(new) }
                if old.desired_state != new.desired_state
                    || old.status.state.is_terminal() != new.status.state.is_terminal() =>
            {
                vec![Key::slot_of(new)]
            }
            _ => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let service = ServiceId::from(key.id);
        let tasks: Vec<&Arc<Task>> = match key.slot {
            Some(slot) => view.tasks_of_slot(&service, slot).collect(),
            None => view.tasks_of_service(&service).collect(),
        };
        for slot in tasks.chunk_by(|left, right| left.slot == right.slot) {
            let has_schedule = view.service(&service).is_some_and(|it| it.spec.mode.cron().is_some());
            let mut runs: BTreeMap<Option<NonZeroU64>, Vec<&Arc<Task>>> = BTreeMap::new();
            slot.iter().for_each(|task| runs.entry(task.run.filter(|_| has_schedule)).or_default().push(task));
            runs.values().for_each(|tasks| reap(tasks, view, &mut plan));
            if plan.is_full(cx) {
                break;
            }
        }
        plan
    }
}

/// Removes what is not needed of the tasks of one slot; of the mode cron, in one run.
fn reap(slot: &[&Arc<Task>], view: &Tables, plan: &mut Plan) {
    // The newest tasks are the history. Of these, the very newest decides whether its slot gets another one.
    let limit = view.cluster().map_or(TASK_HISTORY_LIMIT, |cluster| cluster.task_history_limit()).get();
    let mut newest: Vec<_> = slot.iter().collect();
    newest.sort_by_key(|task| std::cmp::Reverse(task.meta.order()));
    newest.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let failures = slot.iter().filter(|task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected));
    let last_failure = failures.max_by_key(|task| task.meta.order()).map(|task| &task.id);
    let preempted = slot.iter().filter(|task| task.preempted_by.is_some());
    let last_preempted = preempted.max_by_key(|task| task.meta.order()).map(|task| &task.id);
    for task in slot {
        let service = view.service(&task.service_id);
        let unassigned = task.node_id.is_none();
        let ended = task.status.state.is_terminal() || unassigned;
        // The result of a job is kept, so that its work is not done again.
        let is_result = task.has_done_its_work()
            && service.is_some_and(|service| {
                let is_present = service.spec_version == task.spec_version && service.job_run == task.run
                    || service.cron.run_of(task).is_some();
                service.spec.restart.condition != RestartCondition::Any && is_present
            });
        let nowhere = !unassigned && view.node_of(task).is_none() && !is_result;
        let unwanted =
            task.desired_state == DesiredState::Remove || (unassigned && task.desired_state == DesiredState::Shutdown);
        let has_schedule = service.is_some_and(|service| service.spec.mode.cron().is_some());
        let is_forgotten = has_schedule && service.is_some_and(|service| service.cron.run_of(task).is_none());
        let is_of_history = newest.iter().any(|it| it.id == task.id)
            || [last_failure, last_preempted].contains(&Some(&task.id))
            || is_result;
        let kept = is_of_history && !is_forgotten || !task.status.state.is_terminal();
        if nowhere || (unwanted && ended) || !kept {
            plan.remove(Kind::Task, &task.id);
        }
        // An earlier loop may have made history of it in this pass. If its changes meet a conflict, so must this one.
        if !kept {
            newest.iter().take(1).for_each(|it| plan.expect(Kind::Task, &it.id));
            if service.is_some() && (task.run.is_some() || task.has_done_its_work()) {
                plan.expect(Kind::Service, &task.service_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{
        Cluster, CronRun, CronStatus, ModeName, Node, RestartPolicy, RunState, Service, ServiceMode, ServiceSpec,
        TaskStatus,
    };
    use flota_api::object::StoreObject;
    use flota_api::schedule::Schedule;
    use flota_api::version::{Meta, Timestamp};

    use crate::plan::Change;

    /// A task of the slot 1 that is to run, on the node `n`. Those with longer ids are newer.
    fn task(id: &str, state: TaskState) -> Task {
        let status = TaskStatus { state, ..TaskStatus::default() };
        let meta = Meta { created: id.len() as u64, ..Meta::default() };
        let (service_id, node_id) = ("s".into(), Some("n".into()));
        Task { id: id.into(), meta, service_id, node_id, slot: 1, status, ..Task::default() }
    }

    fn unwanted(task: Task) -> Task {
        Task { desired_state: DesiredState::Remove, ..task }
    }

    /// Returns the tasks that are removed, in order.
    fn removed(tasks: Vec<Task>) -> Vec<String> {
        removed_of(None, tasks)
    }

    /// Returns the tasks of a service that are removed, in order.
    fn removed_of(service: Option<Service>, tasks: Vec<Task>) -> Vec<String> {
        removed_with_limit(1, service, tasks)
    }

    /// As `removed_of`, where so many tasks of a slot are kept.
    fn removed_with_limit(limit: u64, service: Option<Service>, tasks: Vec<Task>) -> Vec<String> {
        let mut view = Tables::default();
        let task_history_limit = std::num::NonZeroU64::new(limit);
        view.put(Cluster { id: "c".into(), task_history_limit, ..Cluster::default() }.into_object());
        service.into_iter().for_each(|service| view.put(service.into_object()));
        view.put(Node { id: "n".into(), ..Node::default() }.into_object());
        tasks.into_iter().for_each(|task| view.put(task.into_object()));
        let plan = Reaper.plan(&Key::of("s"), &view, &mut PlanContext::at(Timestamp::default()));
        let id = |change: &Change| match change {
            Change::Remove(Kind::Task, id) => id.to_string(),
            other => panic!("{other:?}"),
        };
        let mut ids: Vec<_> = plan.changes.iter().map(id).collect();
        ids.sort();
        ids
    }

    #[test]
    fn a_slot_keeps_its_newest_task_and_its_last_failure() {
        use TaskState::{Complete, Failed, Rejected, Running};
        let history = || vec![task("a", Failed), task("aa", Rejected), task("aaa", Complete), task("aaaa", Running)];
        assert_eq!(removed(history()), ["a", "aaa"]);
        assert_eq!(removed(history().split_off(2)), ["aaa"], "a success tells little");
        assert_eq!(removed(vec![task("a", Failed)]), [] as [&str; 0], "it decides whether there is another one");
    }

    #[test]
    fn as_many_tasks_of_a_slot_are_kept_as_the_cluster_says() {
        use TaskState::{Complete, Failed, Running, Shutdown};
        let history = || {
            let states = [Failed, Shutdown, Failed, Complete, Shutdown, Running];
            states.iter().enumerate().map(|(age, state)| task(&"a".repeat(age + 1), *state)).collect::<Vec<_>>()
        };
        assert_eq!(removed_with_limit(6, None, history()), [] as [&str; 0]);
        assert_eq!(removed_with_limit(5, None, history()), ["a"]);
        assert_eq!(removed_with_limit(1, None, history()), ["a", "aa", "aaaa", "aaaaa"], "and the last failure");
        let old = Cluster::default();
        let new = Cluster { task_history_limit: std::num::NonZeroU64::new(2), ..old.clone() };
        let mut view = Tables::default();
        view.put(task("a", Running).into_object());
        let event = Event::Updated { old: old.into_object(), new: new.into_object() };
        assert_eq!(Reaper.dirtied_by(&event, &view), [Key::of("s")], "a lower limit is for all slots");
    }

    #[test]
    fn the_results_of_the_present_run_of_a_job_stay_and_those_of_earlier_ones_are_history() {
        let of_run = |id: &str, run| Task { run: NonZeroU64::new(run), ..task(id, TaskState::Complete) };
        let mode = ServiceMode::ReplicatedJob { completions: 1, max_concurrent: None };
        let restart = RestartPolicy { condition: RestartCondition::OnFailure, ..RestartPolicy::default() };
        let spec = Arc::new(ServiceSpec { mode, restart, ..ServiceSpec::default() });
        let job = Service { id: "s".into(), spec, job_run: NonZeroU64::new(4), ..Service::default() };
        let tasks = || vec![of_run("a", 1), of_run("aa", 2), of_run("aaa", 3), of_run("aaaa", 4)];
        assert_eq!(removed_with_limit(1, Some(job.clone()), tasks()), ["a", "aa", "aaa"]);
        assert_eq!(removed_with_limit(3, Some(job), tasks()), ["a"]);
    }

    #[test]
    fn the_last_task_of_a_slot_that_was_preempted_stays_so_that_users_see_why_it_ended() {
        let preempted = |id| {
            let (desired_state, preempted_by) = (DesiredState::Shutdown, Some("web.1".into()));
            Task { desired_state, preempted_by, ..task(id, TaskState::Shutdown) }
        };
        let tasks = vec![preempted("a"), preempted("aa"), task("aaa", TaskState::Failed)];
        let newest = Task { node_id: None, ..task("aaaa", TaskState::Pending) };
        assert_eq!(removed(tasks.into_iter().chain([newest]).collect()), ["a"]);
    }

    #[test]
    fn the_tasks_of_a_run_stay_with_it_and_go_with_it() {
        use TaskState::{Complete, Failed, Running};
        let run = |number, state| CronRun {
            number: NonZeroU64::new(number).expect("a number from 1"),
            scheduled_at: Timestamp(1),
            began_at: Timestamp(1),
            ended_at: None,
            state,
            spec_version: 0,
            completions: 1,
        };
        let cron =
            CronStatus { runs: vec![run(2, RunState::Complete), run(3, RunState::Running)], ..Default::default() };
        let of_run = |id, run, state| Task { run: NonZeroU64::new(run), ..task(id, state) };
        let tasks = vec![
            of_run("a", 1, Complete),
            of_run("aa", 1, Running),
            of_run("b", 2, Failed),
            of_run("bb", 2, Complete),
            of_run("c", 3, Failed),
            of_run("cc", 3, Failed),
            of_run("ccc", 3, Running),
        ];
        let schedule = Schedule::parse("@hourly", "UTC").expect("a schedule");
        let mode = ServiceMode::named(ModeName::Cron, Some(schedule)).expect("it has a schedule");
        let spec = Arc::new(ServiceSpec { mode, ..ServiceSpec::default() });
        let service = Service { id: "s".into(), spec, cron, ..Service::default() };
        assert_eq!(
            removed_of(Some(service), tasks),
            ["a", "c"],
            "run 1 is forgotten, and one task of it has to end yet"
        );
    }

    #[test]
    fn what_is_history_depends_on_what_has_made_it_so() {
        use TaskState::{Complete, Failed};
        let mut view = Tables::default();
        let spec = Arc::new(ServiceSpec::default());
        view.put(Service { id: "s".into(), spec, ..Service::default() }.into_object());
        view.put(Node { id: "n".into(), ..Node::default() }.into_object());
        let limit = NonZeroU64::new(1);
        view.put(Cluster { id: "c".into(), task_history_limit: limit, ..Cluster::default() }.into_object());
        let expected = |tasks: &[Task]| {
            let mut view = view.clone();
            tasks.iter().for_each(|task| view.put(task.clone().into_object()));
            let plan = Reaper.plan(&Key::of("s"), &view, &mut PlanContext::at(Timestamp::default()));
            plan.expects.iter().map(|(kind, id)| format!("{kind} {id}")).collect::<Vec<_>>().join(", ")
        };
        let newest = task("aaaa", TaskState::Pending);
        assert_eq!(expected(&[task("a", Complete), newest.clone()]), "task aaaa, service s");
        assert_eq!(expected(&[task("a", Failed), task("aa", Failed), newest.clone()]), "task aaaa");
        assert_eq!(expected(&[newest]), "");
    }

    #[test]
    fn a_task_that_is_to_go_goes_once_it_has_ended_or_never_began() {
        let pending = Task { node_id: None, ..task("a", TaskState::Pending) };
        let cancelled = Task { desired_state: DesiredState::Shutdown, ..pending.clone() };
        let lost = Task { node_id: Some("gone".into()), ..task("a", TaskState::Running) };
        let none: [&str; 0] = [];
        assert_eq!(removed(vec![unwanted(task("a", TaskState::Running))]), none, "its node has yet to stop it");
        assert_eq!(removed(vec![unwanted(task("a", TaskState::Complete))]), ["a"]);
        assert_eq!(removed(vec![pending.clone()]), none);
        assert_eq!(removed(vec![unwanted(pending)]), ["a"]);
        assert_eq!(removed(vec![cancelled]), ["a"]);
        assert_eq!(removed(vec![lost]), ["a"], "its node was removed");
    }
}
