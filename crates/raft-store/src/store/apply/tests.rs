use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::WriteTx;
use crate::store::Store;
use crate::transaction::Expectation;
use flota_api::model::{Service, ServiceSpec, Stack, StackSpec};
use flota_api::state::TaskState;

fn service(id: &str, name: &str) -> Service {
    let spec = Arc::new(ServiceSpec { name: name.into(), ..ServiceSpec::default() });
    Service { id: id.into(), spec, spec_version: 1, ..Service::default() }
}

fn apply(store: &Store, index: u64, tx: Transaction) -> Outcome {
    let entry = Entry { at: Timestamp(index * 1000), transactions: vec![tx], ..Entry::default() };
    store.apply(index, entry).pop().expect("one outcome for one transaction")
}

fn create(store: &Store, index: u64, object: impl StoreObject) -> Outcome {
    let mut tx = WriteTx::new(store.view(), None);
    tx.create(object);
    apply(store, index, tx.finish())
}

#[test]
fn a_stale_version_fails_and_leaves_nothing() {
    let store = Store::default();
    assert_eq!(create(&store, 1, service("s", "web")), Ok(1));
    let mut stale = WriteTx::new(store.view(), None);
    stale.create(service("t", "other"));
    stale.update(service("s", "renamed"));
    let mut first = WriteTx::new(store.view(), None);
    first.update(service("s", "web"));
    assert_eq!(apply(&store, 2, first.finish()), Ok(2));
    let conflict = apply(&store, 3, stale.finish()).expect_err("version 1 is gone");
    assert_eq!(conflict.to_string(), "service `s` has changed meanwhile");
    assert!(store.view().service("t").is_none(), "nothing of a refused transaction stays");
}

#[test]
fn names_are_unique_and_free_again_after_removal() {
    let store = Store::default();
    create(&store, 1, service("s", "web")).expect("the first of its name");
    let conflict = create(&store, 2, service("t", "web")).expect_err("the name is taken");
    assert_eq!(conflict.to_string(), "service `web` exists already");
    let mut tx = WriteTx::new(store.view(), None);
    tx.remove(Kind::Service, "s");
    apply(&store, 3, tx.finish()).expect("it is there");
    create(&store, 4, service("t", "web")).expect("the name is free");
    assert_eq!(store.view().service_by_name("web").map(|it| it.id.to_string()), Some("t".into()));
}

#[test]
fn a_request_is_done_once_until_its_answer_is_forgotten() {
    let store = Store::default();
    let tx = |id: &str| {
        let mut tx = WriteTx::new(Store::default().view(), Some("request"));
        tx.create(service(id, id));
        tx.finish()
    };
    assert_eq!(apply(&store, 1, tx("a")), Ok(1));
    assert_eq!(apply(&store, 2, tx("b")), Ok(1), "the answer of the first");
    assert!(store.view().service("b").is_none());
    let much_later = Entry { at: Timestamp(u64::MAX), ..Entry::default() };
    store.apply(3, much_later);
    assert_eq!(apply(&store, 4, tx("b")), Ok(1), "no clock decides how long an answer is kept");
    store.apply(5, Entry { forget_answers: Some(1), ..Entry::default() });
    assert_eq!(apply(&store, 6, tx("b")), Ok(6));
    store.apply(7, Entry { forget_answers: Some(5), ..Entry::default() });
    assert_eq!(apply(&store, 8, tx("b")), Ok(6), "this answer is newer");
}

#[test]
fn the_oldest_answers_go_when_there_are_too_many() {
    let store = Store::default();
    let request = |number: usize| Transaction { request_id: Some(number.to_string()), ..Transaction::default() };
    // The ids sort differently from their numbers, so the oldest request is not the first key of the map.
    let first: Vec<_> = (0..ANSWERS_KEPT).rev().map(request).collect();
    let count = |store: &Store| store.view().answers.len();
    store.apply(1, Entry { transactions: first.split_at(1).0.to_vec(), ..Entry::default() });
    store.apply(2, Entry { transactions: first.split_at(1).1.to_vec(), ..Entry::default() });
    assert_eq!(count(&store), ANSWERS_KEPT);
    store.apply(3, Entry { transactions: vec![request(ANSWERS_KEPT)], ..Entry::default() });
    assert_eq!(count(&store), ANSWERS_KEPT);
    assert!(!store.view().answered(&(ANSWERS_KEPT - 1).to_string()), "the first to come is the first to go");
    assert!(store.view().answered("0"));
}

#[test]
fn time_never_falls_and_creation_is_an_index() {
    let store = Store::default();
    let at = |index, at, id: &str| {
        let mut tx = WriteTx::new(store.view(), None);
        tx.create(service(id, id));
        let entry = Entry { at: Timestamp(at), transactions: vec![tx.finish()], ..Entry::default() };
        store.apply(index, entry);
    };
    at(1, 5_000, "ahead");
    at(2, 1_000, "right");
    let mut tx = WriteTx::new(store.view(), None);
    tx.update(service("ahead", "ahead"));
    apply(&store, 3, tx.finish()).expect("no other transaction changed it");
    let view = store.view();
    let meta = |id: &str| view.service(id).expect("it is there").meta.clone();
    let times = |meta: Meta| (meta.created_at.0, meta.updated_at.0);
    assert_eq!(times(meta("right")), (5_000, 5_000), "by a clock that is behind");
    assert_eq!(times(meta("ahead")), (5_000, 5_000));
    assert_eq!((meta("ahead").created, meta("ahead").version), (1, 3));
    assert_eq!(meta("right").created, 2);
    assert_eq!(view.time, Timestamp(5_000));
}

#[test]
fn a_report_of_the_same_rank_is_taken_whatever_the_workers_clock_says() {
    let store = Store::default();
    let task = Task { id: "t".into(), node_id: Some("n".into()), ..Task::default() };
    create(&store, 1, task).expect("new");
    let report = |index, at, message: &str| {
        let state = TaskState::Preparing;
        let status = TaskStatus { state, at: Timestamp(at), message: message.into(), ..TaskStatus::default() };
        apply(&store, index, Transaction::statuses(vec![("t".into(), "n".into(), status)])).expect("no conflict");
        store.view().task("t").map(|task| task.status.message.clone())
    };
    assert_eq!(report(2, 9_000, "10 %"), Some("10 %".into()));
    assert_eq!(report(3, 1_000, "90 %"), Some("90 %".into()), "the worker's clock stepped back");
}

#[test]
fn statuses_only_rise_and_only_from_the_tasks_own_node() {
    let store = Store::default();
    let task = Task { id: "t".into(), node_id: Some("n".into()), service_id: "s".into(), ..Task::default() };
    create(&store, 1, task).expect("new");
    let status = |attempt, state| TaskStatus { attempt, state, ..TaskStatus::default() };
    let cases = [
        ("n", status(1, TaskState::Running), (1, TaskState::Running)),
        ("other", status(2, TaskState::Running), (1, TaskState::Running)),
        ("n", status(1, TaskState::Starting), (1, TaskState::Running)),
        ("n", status(2, TaskState::Ready), (2, TaskState::Ready)),
        ("n", status(2, TaskState::Failed), (2, TaskState::Failed)),
        ("n", status(3, TaskState::Running), (2, TaskState::Failed)),
    ];
    for (index, (node, status, expected)) in (2..).zip(cases) {
        let tx = Transaction::statuses(vec![("t".into(), node.into(), status)]);
        apply(&store, index, tx).expect("statuses are never in conflict");
        assert_eq!(store.view().task("t").map(|task| task.status.rank()), Some(expected));
    }
}

#[test]
fn an_update_planned_before_a_report_does_not_put_the_report_back() {
    let store = Store::default();
    let task = Task { id: "t".into(), node_id: Some("n".into()), ..Task::default() };
    create(&store, 1, task.clone()).expect("new");
    let update = |task: Task| Transaction {
        expectations: vec![Expectation { kind: Kind::Task, id: "t".into(), version: Some(task.meta.version.max(1)) }],
        actions: vec![Action::Update(Task { paused: true, ..task }.into_object())],
        ..Transaction::default()
    };
    let running = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
    let report = |status: &TaskStatus| Transaction::statuses(vec![("t".into(), "n".into(), status.clone())]);
    apply(&store, 2, report(&running)).expect("taken");
    apply(&store, 3, update(task)).expect("a status raises no version that an update names");
    let known = || store.view().task("t").expect("still there").as_ref().clone();
    assert!(known().paused && known().status.state == TaskState::Running);
    let planned_on = known();
    let slow = TaskStatus { message: "it does not answer".into(), ..running };
    apply(&store, 4, report(&slow)).expect("taken");
    apply(&store, 5, update(planned_on)).expect("a status raises no version that an update names");
    assert_eq!(known().status, slow, "nor what is said of the same state");
}

#[test]
fn a_spec_is_kept_until_its_last_task_is_gone() {
    let store = Store::default();
    create(&store, 1, service("s", "web")).expect("new");
    let task = Task { id: "t".into(), service_id: "s".into(), spec_version: 1, ..Task::default() };
    create(&store, 2, task).expect("new");
    let mut tx = WriteTx::new(store.view(), None);
    tx.update(Service { spec_version: 2, ..service("s", "web") });
    apply(&store, 3, tx.finish()).expect("no other transaction changed it");
    let versions = || store.view().specs.keys().map(|(_, version)| *version).collect::<Vec<_>>();
    assert_eq!(versions(), [1, 2]);
    let mut tx = WriteTx::new(store.view(), None);
    tx.remove(Kind::Task, "t");
    apply(&store, 4, tx.finish()).expect("it is there");
    assert_eq!(versions(), [2]);
    let mut tx = WriteTx::new(store.view(), None);
    tx.remove(Kind::Service, "s");
    apply(&store, 5, tx.finish()).expect("it is there");
    assert_eq!(versions(), [0; 0]);
}

#[test]
fn an_old_entry_is_applied_as_the_build_that_wrote_it_did() {
    let store = Store::default();
    let old = |index, at, tx| {
        let entry = Entry { at: Timestamp(at), transactions: vec![tx], rules: Rules::ByClock, ..Entry::default() };
        store.apply(index, entry);
    };
    let new_task = |id: &str, request: Option<&str>| {
        let mut tx = WriteTx::new(Store::default().view(), request);
        tx.create(Task { id: id.into(), node_id: Some("n".into()), ..Task::default() });
        tx.finish()
    };
    old(1, 9_000, new_task("t", Some("r")));
    let report = |at, message: &str| {
        let status = TaskStatus { at: Timestamp(at), message: message.into(), ..TaskStatus::default() };
        Transaction::statuses(vec![("t".into(), "n".into(), status)])
    };
    old(2, 8_000, report(5, "later"));
    old(3, 8_000, report(4, "earlier, by the worker's clock"));
    let known = || store.view().task("t").expect("still there").as_ref().clone();
    assert_eq!(known().status.message, "later");
    let meta = known().meta;
    assert_eq!((meta.created, meta.created_at.0, meta.updated_at.0), (0, 9_000, 8_000));
    assert_eq!(store.view().time, Timestamp::default());
    assert!(store.view().answered("r") && !store.view().refused("r"));
    old(4, 9_000 + 15 * 60 * 1_000 + 1, Transaction::default());
    assert!(!store.view().answered("r"), "it was kept by the clock");
    // The first new entry continues from the time that the old entries left in the tables.
    let entry = Entry { at: Timestamp(1_000), transactions: vec![new_task("u", None)], ..Entry::default() };
    store.apply(5, entry);
    assert_eq!(store.view().time, Timestamp(8_000));
    let view = store.view();
    let new = &view.task("u").expect("just made").meta;
    assert_eq!((new.created, new.created_at.0), (5, 8_000));
    assert!(new.order() > view.task("t").expect("still there").meta.order());
}

#[test]
fn an_entry_of_before_updates_had_policies_notes_no_progress() {
    let noted = |rules| {
        let store = Store::default();
        let apply = |index, at, tx| {
            store.apply(index, Entry { at: Timestamp(at), transactions: vec![tx], rules, ..Entry::default() });
        };
        let mut tx = WriteTx::new(Store::default().view(), None);
        tx.create(service("s", "web"));
        tx.create(Task { id: "t".into(), node_id: Some("n".into()), ..Task::default() });
        apply(1, 100, tx.finish());
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        apply(2, 200, Transaction::statuses(vec![("t".into(), "n".into(), status)]));
        let mut tx = WriteTx::new(store.view(), None);
        tx.update(Service { spec_version: 2, ..service("s", "web") });
        apply(3, 300, tx.finish());
        let view = store.view();
        let (service, task) = (view.service("s").expect("it is there"), view.task("t").expect("it is there"));
        (service.spec_set_at.map(|at| at.0), service.update.started_at.0, task.served_at.map(|at| at.0))
    };
    assert_eq!(noted(Rules::ByIndex), (None, 0, None), "as the build that wrote it did");
    assert_eq!(noted(Rules::WithProgress), (Some(300), 300, Some(200)));
}

/// A transaction of a few actions on a few stacks, which share a few names.
fn drawn(rng: &mut StdRng) -> Vec<Action> {
    let count = rng.random_range(1..=3);
    let mut action = || {
        let id = format!("s{}", rng.random_range(0..8));
        let name = format!("name{}", rng.random_range(0..12));
        let stack =
            Stack { id: id.as_str().into(), spec: StackSpec { name, ..StackSpec::default() }, ..Stack::default() };
        match rng.random_range(0..3) {
            0 => Action::Create(stack.into_object()),
            1 => Action::Update(stack.into_object()),
            _ => Action::Remove(Kind::Stack, id.as_str().into()),
        }
    };
    (0..count).map(|_| action()).collect()
}

#[test]
fn actions_of_which_it_is_certain_beforehand_succeed_and_what_fails_leaves_nothing() {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut tables, mut certain, mut failed) = (Tables::default(), 0, 0);
    for index in 1..20_000 {
        let actions = drawn(&mut rng);
        let (is_certain, before) = (tables.will_succeed(&actions), tables.clone());
        let tx = Transaction { actions, ..Transaction::default() };
        let entry = Entry { at: Timestamp(index), transactions: vec![tx], ..Entry::default() };
        let (outcomes, events) = tables.apply(index, entry);
        certain += u32::from(is_certain);
        if outcomes[0].is_err() {
            failed += 1;
            assert!(!is_certain && events.is_empty(), "{events:?}");
            assert_eq!(tables.objects().collect::<Vec<_>>(), before.objects().collect::<Vec<_>>());
            assert_eq!((tables.digest, tables.count(Kind::Stack)), (before.digest, before.count(Kind::Stack)));
        }
    }
    assert!(certain > 3_000 && failed > 3_000, "{certain} were certain, and {failed} failed");
}
