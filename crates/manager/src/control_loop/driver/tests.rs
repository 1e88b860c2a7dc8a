use std::collections::VecDeque;
use std::sync::Mutex;

use futures::future::BoxFuture;

use super::*;
use flota_api::clock::Clock;
use flota_api::model::{Node, NodeState, Service, ServiceMode, ServiceSpec, Task, TaskStatus};
use flota_api::object::StoreObject;
use flota_api::resources::Resources;
use flota_api::state::TaskState;
use flota_raft_store::{Action, Entry, Outcome, Transaction};

/// A proposer that fails as the script says and commits everything afterwards.
struct Moody {
    store: Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    script: VecDeque<Mood>,
    index: u64,
    /// Entries that were reported as lost and are still to be committed.
    late: Vec<Vec<Transaction>>,
    proposals: usize,
    /// Most bytes of an entry; zero if there is no bound.
    most_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Mood {
    /// The entry is lost.
    Lost,
    /// No answer in time; the entry is committed before the next one.
    Late,
    /// Another manager leads.
    NotLeader,
}

impl Moody {
    fn new(store: &Store, script: &[Mood]) -> Arc<Self> {
        let state = State { script: script.iter().copied().collect(), ..State::default() };
        Arc::new(Self { store: store.clone(), state: Mutex::new(state) })
    }

    fn commit(&self, state: &mut State, transactions: Vec<Transaction>) -> Vec<Outcome> {
        state.index += 1;
        self.store.apply(state.index, Entry { at: Timestamp(state.index), transactions, ..Entry::default() })
    }
}

impl Proposer for Moody {
    fn propose_entry(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Result<Vec<Outcome>, ProposeError>> {
        Box::pin(async move {
            let mut state = self.state.lock().expect("no holder panics");
            state.proposals += 1;
            let actions = transactions.iter().map(|it| it.actions.len()).max().unwrap_or(0);
            let bytes = transactions.iter().map(Transaction::size).sum();
            if actions > ACTIONS_BOUND || (state.most_bytes > 0 && bytes > state.most_bytes) {
                return Err(ProposeError::TooLarge { actions, bytes });
            }
            match state.script.pop_front() {
                Some(Mood::Lost) => return Err(ProposeError::Unknown),
                Some(Mood::Late) => {
                    state.late.push(transactions);
                    return Err(ProposeError::Unknown);
                }
                Some(Mood::NotLeader) => return Err(ProposeError::NotLeader),
                None => {}
            }
            for late in std::mem::take(&mut state.late) {
                self.commit(&mut state, late);
            }
            Ok(self.commit(&mut state, transactions))
        })
    }
}

fn create(objects: impl IntoIterator<Item = flota_api::object::Object>) -> Vec<Transaction> {
    let actions = objects.into_iter().map(Action::Create).collect();
    vec![Transaction { actions, ..Transaction::default() }]
}

fn nodes() -> Vec<flota_api::object::Object> {
    let node = |id: &str| {
        let mut node = Node { id: id.into(), state: NodeState::Ready, ..Node::default() };
        node.description.resources = Resources { nano_cpus: 8_000_000_000, memory_bytes: 8 << 30 };
        node.into_object()
    };
    ["a", "b"].into_iter().map(node).collect()
}

fn service(id: &str, replicas: u64) -> flota_api::object::Object {
    let spec = ServiceSpec {
        name: id.into(),
        image: "web".into(),
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    Service { id: id.into(), spec: Arc::new(spec), spec_version: 1, ..Service::default() }.into_object()
}

/// Two days after everything in the store happened.
const NOW: Timestamp = Timestamp(48 * 3_600_000);

/// Runs the driver until `done`, which is checked after every entry.
async fn drive(store: &Store, proposer: Arc<Moody>, done: impl Fn(&Tables) -> bool) {
    let loops: Vec<Box<dyn ControlLoop>> = vec![
        Box::new(crate::orchestrator::service_tasks::ServiceTasks::default()),
        Box::new(crate::scheduler::Scheduler),
        Box::new(crate::orchestrator::orphan::Orphan),
        Box::new(crate::orchestrator::reaper::Reaper),
    ];
    let cancel = CancellationToken::new();
    let clock = TermClock::new(Clock::new(|| NOW));
    let driver = Driver::new(store.clone(), proposer, (clock, StdRng::seed_from_u64(1)), loops);
    let running = tokio::spawn(driver.run(cancel.clone()));
    let (mut view, mut watch) = store.view_and_watch();
    let reached = async {
        while !done(&view) {
            let _ = watch.next().await;
            (view, watch) = store.view_and_watch();
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), reached).await;
    cancel.cancel();
    running.await.expect("the driver does not panic");
    assert!(in_time.is_ok(), "it never came to it: {} tasks", store.view().tasks().count());
}

fn all_assigned(view: &Tables, count: usize) -> bool {
    view.tasks().count() >= count && view.tasks().all(|task| task.node_id.is_some())
}

/// Creates a store and a proposer whose script begins after the objects are created.
async fn with_six_tasks_to_make(script: &[Mood]) -> (Store, Arc<Moody>) {
    let store = Store::default();
    let proposer = Moody::new(&store, &[]);
    let objects = nodes().into_iter().chain([service("s", 6)]);
    proposer.propose_entry(create(objects)).await.expect("nothing is in the way");
    proposer.state.lock().expect("no holder panics").script = script.iter().copied().collect();
    (store, proposer)
}

#[tokio::test]
async fn plans_are_made_in_one_pass_and_again_after_every_kind_of_failure() {
    for script in [&[][..], &[Mood::Lost], &[Mood::NotLeader, Mood::Lost], &[Mood::Lost, Mood::Lost, Mood::Lost]] {
        let (store, proposer) = with_six_tasks_to_make(script).await;
        drive(&store, Arc::clone(&proposer), |view| all_assigned(view, 6)).await;
        assert_eq!(store.view().tasks().count(), 6, "{script:?}");
        if script.is_empty() {
            // The tasks are created with a node: one entry for all, besides the one that created the objects.
            assert_eq!(proposer.state.lock().expect("no holder panics").proposals, 2);
        }
    }
}

#[tokio::test]
async fn a_plan_that_is_committed_late_is_not_made_twice() {
    for script in [&[Mood::Late][..], &[Mood::Late, Mood::Lost], &[Mood::Late, Mood::Late]] {
        let (store, proposer) = with_six_tasks_to_make(script).await;
        drive(&store, Arc::clone(&proposer), |view| all_assigned(view, 6)).await;
        let live = store.view().tasks().filter(|task| task.is_live()).count();
        assert_eq!((store.view().tasks().count(), live), (6, 6), "{script:?}: not twelve");
    }
}

#[tokio::test]
async fn a_service_of_many_tasks_goes_in_parts_that_each_fit_into_an_entry() {
    let store = Store::default();
    let proposer = Moody::new(&store, &[]);
    proposer.propose_entry(create(nodes().into_iter().chain([service("s", 5_000)]))).await.expect("fits");
    drive(&store, Arc::clone(&proposer), |view| view.tasks().count() == 5_000).await;
    proposer
        .propose_entry(vec![Transaction {
            actions: vec![Action::Remove(flota_api::object::Kind::Service, "s".into())],
            ..Transaction::default()
        }])
        .await
        .expect("fits");
    let doomed = |view: &Tables| view.tasks().all(|task| task.desired_state == flota_api::state::DesiredState::Remove);
    drive(&store, proposer, doomed).await;
}

/// Creates a service of tasks that run on a node which has been down for two days.
async fn with_lost_tasks(service_is_there: bool, count: u64) -> (Store, Arc<Moody>) {
    let store = Store::default();
    let proposer = Moody::new(&store, &[]);
    let lost = Node { id: "lost".into(), state: NodeState::Down, ..Node::default() };
    let services = service_is_there.then(|| service("s", count));
    let objects = nodes().into_iter().chain([lost.into_object()]).chain(services);
    proposer.propose_entry(create(objects)).await.expect("fits");
    let tasks: Vec<_> = (1..=count)
        .map(|slot| {
            let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
            let (id, node_id) = (format!("t{slot}").as_str().into(), Some("lost".into()));
            let task = Task { id, service_id: "s".into(), spec_version: 1, slot, node_id, status, ..Task::default() };
            task.into_object()
        })
        .collect();
    for part in tasks.chunks(5_000) {
        proposer.propose_entry(create(part.to_vec())).await.expect("fits");
    }
    (store, proposer)
}

#[tokio::test]
async fn more_lost_slots_than_fit_into_a_transaction_are_filled_in_pieces() {
    let (store, proposer) = with_lost_tasks(true, 6_000).await;
    drive(&store, proposer, |view| {
        view.tasks().filter(|task| task.is_live() && !task.is_on(&"lost".into())).count() == 6_000
    })
    .await;
}

#[tokio::test]
async fn more_lost_tasks_than_fit_into_a_transaction_are_orphaned_in_pieces() {
    let (store, proposer) = with_lost_tasks(false, 12_000).await;
    drive(&store, proposer, |view| view.tasks().count() == 0).await;
}

#[tokio::test]
async fn a_plan_of_too_many_bytes_is_made_in_smaller_pieces() {
    let (store, proposer) = with_lost_tasks(true, 500).await;
    proposer.state.lock().expect("no holder panics").most_bytes = 8_000;
    drive(&store, proposer, |view| {
        view.tasks().filter(|task| task.is_live() && task.is_on(&"a".into())).count() == 250
    })
    .await;
}

/// Plans one key, records the time, and asks once to be planned again after two seconds.
struct Recalled(Arc<Mutex<Vec<tokio::time::Instant>>>);

impl ControlLoop for Recalled {
    fn name(&self) -> &'static str {
        "recalled"
    }

    fn all(&self, _: &Tables) -> Vec<Key> {
        vec![Key::of("key")]
    }

    fn dirtied_by(&self, _: &Event, _: &Tables) -> Vec<Key> {
        Vec::new()
    }

    fn plan(&mut self, _: &Key, _: &Tables, cx: &mut PlanContext) -> crate::plan::Plan {
        let mut plan = crate::plan::Plan::default();
        let mut calls = self.0.lock().expect("no holder panics");
        calls.push(tokio::time::Instant::now());
        if calls.len() == 1 {
            plan.retry_at(cx.now + Duration::from_secs(2));
        }
        plan
    }
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_as_long_as_it_was_meant_when_the_wall_clock_steps_meanwhile() {
    const HOUR: u64 = 3_600_000;
    for stepped in [9 * HOUR, 11 * HOUR] {
        let calls: Arc<Mutex<Vec<_>>> = Arc::default();
        let seen = Arc::clone(&calls);
        // The time differs from the first plan on.
        let shown = move || {
            let planned = !seen.lock().expect("no holder panics").is_empty();
            Timestamp(if planned { stepped } else { 10 * HOUR })
        };
        let (store, clock) = (Store::default(), TermClock::new(Clock::new(shown)));
        let loops: Vec<Box<dyn ControlLoop>> = vec![Box::new(Recalled(Arc::clone(&calls)))];
        let proposer = Moody::new(&store, &[]);
        let driver = Driver::new(store, proposer, (clock, StdRng::seed_from_u64(1)), loops);
        let ended = tokio::time::timeout(Duration::from_secs(10), driver.run(CancellationToken::new())).await;
        assert!(ended.is_err(), "it runs until it is cancelled");
        let calls = calls.lock().expect("no holder panics");
        let delay = calls.get(1).expect("it was called again").duration_since(calls[0]);
        assert!((2_000..2_100).contains(&delay.as_millis()), "{delay:?} after a step to {stepped}");
    }
}
