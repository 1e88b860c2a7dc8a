//! All control loops together, pass after pass, over a store whose tasks are reported by hand: preemption from the pass that
//! decides it to the one in which everybody has a place again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flota_api::FEATURE_LEVEL;
use flota_api::model::{
    Cluster, Node, NodeState, Service, ServiceMode, ServiceSpec, Task, TaskStatus, UpdatePhase, UpdatePolicy,
    UpdateStatus,
};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::resources::Resources;
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::Timestamp;
use flota_raft_store::{Action, Entry, Store, Transaction, View, Watch};

use super::pipeline;
use crate::control_loop::{ControlLoop, Key, run};
use crate::plan::PlanContext;

const GIB: u64 = 1 << 30;

/// A leader without Raft: what it plans is applied at once.
struct Leader {
    store: Store,
    watch: Watch,
    loops: Vec<Box<dyn ControlLoop>>,
    dirty: Vec<BTreeSet<Key>>,
    now: Timestamp,
}

impl Leader {
    /// Leads a cluster with nodes of 4 GiB.
    fn of(nodes: &[&str]) -> Self {
        let store = Store::default();
        let (_, watch) = store.view_and_watch();
        let loops = pipeline();
        let dirty = vec![BTreeSet::new(); loops.len()];
        let mut it = Self { store, watch, loops, dirty, now: Timestamp(1_000_000) };
        it.apply(vec![Action::Create(Cluster { id: "cluster".into(), ..Cluster::default() }.into_object())]);
        for id in nodes {
            let mut node = Node { id: (*id).into(), state: NodeState::Ready, ..Node::default() };
            node.description.resources = Resources { nano_cpus: 8_000_000_000, memory_bytes: 4 * GIB };
            node.description.feature_level = FEATURE_LEVEL;
            node.description.hostname = (*id).into();
            it.apply(vec![Action::Create(node.into_object())]);
        }
        it
    }

    fn view(&self) -> View {
        self.store.view()
    }

    fn apply(&mut self, actions: Vec<Action>) {
        let index = self.view().version + 1;
        let transactions = vec![Transaction { actions, ..Transaction::default() }];
        let outcomes = self.store.apply(index, Entry { at: self.now, transactions, ..Entry::default() });
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        let view = self.view();
        while let Some(events) = self.watch.try_next().expect("it is read in time") {
            for event in events.iter() {
                for (each, dirty) in self.loops.iter().zip(&mut self.dirty) {
                    dirty.extend(each.dirtied_by(event, &view));
                }
            }
        }
    }

    /// Plans until nothing is left to do.
    fn plan(&mut self) {
        for _ in 0..50 {
            if self.dirty.iter().all(BTreeSet::is_empty) {
                return;
            }
            let mut cx = PlanContext { room: 1_000, ..PlanContext::at(self.now) };
            cx.rng = rand::SeedableRng::seed_from_u64(self.view().version);
            let view = self.view();
            let planned = run(&mut self.loops, &mut self.dirty, &view, &mut cx);
            for (transaction, _) in planned.groups {
                self.apply(transaction.actions);
            }
        }
        panic!("the loops plan on and on");
    }

    /// Another manager leads: it has nothing but the store.
    fn change(&mut self) {
        self.loops = pipeline();
        let view = self.view();
        self.dirty = self.loops.iter().map(|each| each.all(&view).into_iter().collect()).collect();
        self.plan();
    }

    fn set(&mut self, id: &str, change: impl FnOnce(&mut ServiceSpec)) {
        let old = self.view().service(id).cloned();
        let mut spec = old.as_ref().map(|it| it.spec.as_ref().clone()).unwrap_or_default();
        (spec.name, spec.image) = (id.into(), "app".into());
        change(&mut spec);
        let spec = Arc::new(spec);
        let service = match old {
            Some(old) => Action::Update(Service { spec, ..old.as_ref().clone() }.into_object()),
            None => {
                let new = Service { id: id.into(), spec, spec_version: 1, ..Service::default() };
                Action::Create(Service { spec_set_at: Some(self.now), ..new }.into_object())
            }
        };
        self.apply(vec![service]);
        self.plan();
    }

    /// Sets a service of this priority, each of whose tasks reserves so much.
    fn serve(&mut self, id: &str, priority: i32, replicas: u64, memory_bytes: u64) {
        self.set(id, |spec| {
            spec.mode = ServiceMode::Replicated { replicas };
            (spec.priority, spec.reservations.memory_bytes) = (priority, memory_bytes);
        });
        self.run();
    }

    fn put(&mut self, tasks: Vec<Task>) {
        self.apply(tasks.into_iter().map(|task| Action::Update(task.into_object())).collect());
        self.plan();
    }

    fn tasks(&self, choice: impl Fn(&Task) -> bool) -> Vec<Task> {
        self.view().tasks().filter(|task| choice(task)).map(|task| task.as_ref().clone()).collect()
    }

    fn report(&mut self, tasks: Vec<Task>, state: TaskState) {
        let status = |task: &Task| TaskStatus { state, at: self.now, ..task.status.clone() };
        let report = |task: Task| {
            let mut new = Task { status: status(&task), ..task };
            new.record_progress(self.now);
            new
        };
        let tasks = tasks.into_iter().map(report).collect();
        self.put(tasks);
    }

    /// Lets all tasks that have a node, and should run, run.
    fn run(&mut self) {
        let begins = |task: &Task| task.node_id.is_some() && task.is_live() && task.status.state < TaskState::Running;
        for state in [TaskState::Ready, TaskState::Running] {
            let tasks = self.tasks(|task| {
                begins(task) && (state == TaskState::Ready || task.desired_state == DesiredState::Running)
            });
            if !tasks.is_empty() {
                self.report(tasks, state);
            }
        }
    }

    /// Lets at most so many of the tasks that were told to stop end, the first by id.
    fn end(&mut self, most: usize) {
        let stops = |task: &Task| task.desired_state.is_stopping() && task.holds_resources();
        let mut tasks = self.tasks(stops);
        tasks.truncate(most);
        self.report(tasks, TaskState::Shutdown);
        self.run();
    }

    /// Lets everything that was told to stop end, until nothing changes.
    fn settle(&mut self) {
        for _ in 0..20 {
            let before = self.view().version;
            self.end(usize::MAX);
            if self.tasks(|task| task.desired_state.is_stopping() && task.holds_resources()).is_empty()
                && self.view().version == before + 1
            {
                return;
            }
        }
    }

    fn remove(&mut self, service: &str) {
        self.apply(vec![Action::Remove(Kind::Service, service.into())]);
        self.plan();
    }

    /// For each service how many of its tasks run, stop, and wait, and of the latter how many wait for room that is made.
    fn standing(&self) -> BTreeMap<String, (usize, usize, usize, usize)> {
        let mut standing: BTreeMap<String, (usize, usize, usize, usize)> = BTreeMap::new();
        for task in self.view().tasks() {
            let it = standing.entry(task.service_id.to_string()).or_default();
            it.0 += usize::from(task.is_serving());
            it.1 += usize::from(task.desired_state.is_stopping() && task.holds_resources());
            it.2 += usize::from(task.is_waiting());
            it.3 += usize::from(task.claim().is_some());
        }
        standing
    }

    fn of_service(&self, service: &str) -> (usize, usize, usize, usize) {
        self.standing().get(service).copied().unwrap_or_default()
    }

    /// Gives the service a second spec with other tasks.
    fn update(&mut self, service: &str) {
        let service = self.view().service(service).expect("it is there").as_ref().clone();
        let spec = Arc::new(ServiceSpec { env: vec!["A=1".into()], ..service.spec.as_ref().clone() });
        let (spec_set_at, update) = (Some(self.now), UpdateStatus::begun(1));
        let updated = Service { spec, spec_version: 2, spec_set_at, update, ..service };
        self.apply(vec![Action::Update(updated.into_object())]);
        self.plan();
    }

    fn phase(&self, service: &str) -> UpdatePhase {
        self.view().service(service).expect("it is there").update.phase
    }

    fn preempted(&self) -> Vec<String> {
        self.tasks(|task| task.preempted_by.is_some())
            .into_iter()
            .map(|task| format!("{} by {}", task.service_id, task.preempted_by.unwrap_or_default()))
            .collect()
    }
}

/// Two nodes that a service of the lowest priority has filled, and a more important one, for whose first task two of the
/// others stop.
fn begun() -> Leader {
    let mut it = Leader::of(&["a", "b"]);
    it.serve("low", 0, 4, 2 * GIB);
    assert_eq!(it.of_service("low"), (4, 0, 0, 0));
    it.serve("high", 9, 1, 4 * GIB);
    assert_eq!((it.of_service("low"), it.of_service("high")), ((2, 2, 0, 0), (0, 0, 1, 1)));
    it
}

#[test]
fn a_preempting_task_gets_what_all_its_victims_leave_and_their_successors_wait() {
    let mut it = begun();
    it.end(1);
    assert_eq!(
        (it.of_service("low"), it.of_service("high")),
        ((2, 1, 1, 0), (0, 0, 1, 1)),
        "the other one still stops"
    );
    // A task that comes in between gets nothing of it, and neither stops another.
    it.serve("late", 0, 1, GIB);
    assert_eq!(it.of_service("late"), (0, 0, 1, 0));
    it.end(1);
    assert_eq!((it.of_service("low"), it.of_service("high")), ((2, 0, 2, 0), (1, 0, 0, 0)));
    assert_eq!(it.of_service("late"), (0, 0, 1, 0));
    assert_eq!(it.preempted(), ["low by high.1", "low by high.1"], "users still see why");
}

#[test]
fn a_new_leader_goes_on_where_the_last_one_was_and_stops_nobody_again() {
    let mut it = begun();
    for _ in 0..2 {
        let before = it.view().version;
        it.change();
        assert_eq!(it.view().version, before, "nothing is left to decide");
        it.end(1);
        it.change();
    }
    assert_eq!((it.of_service("low"), it.of_service("high")), ((2, 0, 2, 0), (1, 0, 0, 0)));
    assert_eq!(it.preempted().len(), 2);
}

#[test]
fn the_place_goes_back_if_the_preempting_task_is_not_wanted_any_more() {
    for ended_before in [0, 1] {
        let mut it = begun();
        it.end(ended_before);
        it.remove("high");
        it.settle();
        assert_eq!(it.of_service("low"), (4, 0, 0, 0), "{ended_before} had ended before");
        assert_eq!(it.of_service("high"), (0, 0, 0, 0));
    }
    let mut it = begun();
    it.settle();
    it.remove("high");
    it.settle();
    assert_eq!(it.of_service("low"), (4, 0, 0, 0), "the important task had run");
}

#[test]
fn room_on_another_node_ends_the_wait_and_a_more_important_task_comes_first() {
    let mut it = begun();
    let mut node = it.view().node("a").expect("it is there").as_ref().clone();
    (node.id, node.description.hostname) = ("c".into(), "c".into());
    it.apply(vec![Action::Create(node.into_object())]);
    it.plan();
    assert_eq!(it.of_service("high"), (0, 0, 0, 0), "it has a node");
    it.settle();
    assert_eq!((it.of_service("low"), it.of_service("high")), ((4, 0, 0, 0), (1, 0, 0, 0)));

    let mut it = begun();
    it.serve("top", 10, 1, 4 * GIB);
    it.settle();
    let all = (it.of_service("low"), it.of_service("high"), it.of_service("top"));
    assert_eq!(all, ((0, 0, 4, 0), (1, 0, 0, 0), (1, 0, 0, 0)), "each has a node");
    assert_eq!(it.preempted().iter().filter(|by| by.starts_with("low")).count(), 4);
}

#[test]
fn a_chain_of_priorities_comes_to_rest() {
    let mut it = Leader::of(&["a", "b"]);
    it.serve("low", 0, 4, 2 * GIB);
    it.serve("mid", 5, 3, 2 * GIB);
    it.settle();
    it.serve("high", 9, 2, 3 * GIB);
    it.settle();
    let (low, mid, high) = (it.of_service("low"), it.of_service("mid"), it.of_service("high"));
    assert_eq!((low.0, mid.0, high.0), (0, 0, 2));
    assert_eq!((low.2, mid.2), (4, 3), "every slot has a task that waits, and only one");
    it.remove("high");
    it.settle();
    assert_eq!((it.of_service("low").0, it.of_service("mid").0), (1, 3), "the more important ones come first");
    let before = it.view().version;
    it.change();
    assert_eq!(it.view().version, before);
}

#[test]
fn a_preempted_task_counts_neither_as_a_failure_of_an_update_nor_against_the_budget_of_its_slot() {
    let mut it = Leader::of(&["a"]);
    let update = UpdatePolicy { monitor: Duration::from_secs(60), ..UpdatePolicy::default() };
    it.set("low", |spec| {
        spec.update = update;
        spec.restart.max_attempts = std::num::NonZeroU64::new(1);
        spec.mode = ServiceMode::Replicated { replicas: 1 };
        spec.reservations.memory_bytes = 4 * GIB;
    });
    it.run();
    it.update("low");
    it.settle();
    assert_eq!(
        (it.of_service("low"), it.phase("low")),
        ((1, 0, 0, 0), UpdatePhase::Updating),
        "its new task is watched"
    );
    it.serve("high", 9, 1, 4 * GIB);
    it.settle();
    assert_eq!((it.of_service("low"), it.of_service("high")), ((0, 0, 1, 0), (1, 0, 0, 0)));
    it.now = it.now + Duration::from_secs(600);
    it.change();
    assert_eq!(it.phase("low"), UpdatePhase::Updating, "the time in which it has no room does not count");
    it.remove("high");
    it.settle();
    let [task] = &it.tasks(|task| task.service_id.as_str() == "low" && task.is_live())[..] else { panic!("one task") };
    assert_eq!((it.of_service("low").0, task.restarts(), task.not_before), (1, 0, None));
    assert_eq!(it.phase("low"), UpdatePhase::Updating, "and now it is watched");
    it.now = it.now + Duration::from_secs(61);
    it.change();
    assert_eq!(it.phase("low"), UpdatePhase::Completed);
}

#[test]
fn an_update_that_comes_while_a_slot_waits_for_room_does_not_fail_for_the_lack_of_it() {
    let mut it = Leader::of(&["a"]);
    it.serve("low", 0, 1, 4 * GIB);
    it.serve("high", 9, 1, 4 * GIB);
    it.settle();
    assert_eq!((it.of_service("low"), it.of_service("high")), ((0, 0, 1, 0), (1, 0, 0, 0)));
    it.update("low");
    it.now = it.now + Duration::from_secs(600);
    it.change();
    assert_eq!((it.of_service("low").0, it.phase("low")), (0, UpdatePhase::Updating));
    it.remove("high");
    it.settle();
    it.now = it.now + Duration::from_secs(600);
    it.change();
    assert_eq!((it.of_service("low"), it.phase("low")), ((1, 0, 0, 0), UpdatePhase::Completed));
}

#[test]
fn the_task_of_a_job_that_was_preempted_runs_again() {
    let mut it = Leader::of(&["a"]);
    it.set("job", |spec| {
        *spec = ServiceSpec { name: "job".into(), image: "app".into(), ..ServiceSpec::of_mode(job()) };
        spec.reservations.memory_bytes = 4 * GIB;
    });
    it.run();
    assert_eq!(it.of_service("job").0, 1);
    it.serve("high", 9, 1, GIB);
    it.settle();
    assert_eq!((it.of_service("job"), it.of_service("high")), ((0, 0, 1, 0), (1, 0, 0, 0)));
    it.remove("high");
    it.settle();
    assert_eq!(it.of_service("job"), (1, 0, 0, 0));
}

fn job() -> ServiceMode {
    ServiceMode::ReplicatedJob { completions: 1, max_concurrent: None }
}

#[test]
fn objects_are_planned_as_before_if_nobody_has_set_a_priority() {
    let mut it = Leader::of(&["a"]);
    it.serve("first", 0, 2, 2 * GIB);
    it.serve("second", 0, 1, 2 * GIB);
    assert_eq!(it.of_service("second"), (0, 0, 1, 0));
    it.settle();
    assert_eq!((it.of_service("first"), it.preempted().len()), ((2, 0, 0, 0), 0));
    let view = it.view();
    assert!(view.objects().all(|object| !matches!(&object, Object::Task(task) if task.claim().is_some())));
}
