use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use flota_api::model::Stack;
use flota_api::object::Kind;
use flota_raft_store::{Action, Entry, LocalProposer, WriteTx};

/// A manager that is behind. A read barrier applies the entries that others have committed, if it succeeds.
struct Behind {
    store: Store,
    missed: Mutex<Vec<Transaction>>,
    leads: bool,
    barriers: AtomicUsize,
    proposals: AtomicUsize,
}

impl Behind {
    fn new(missed: impl IntoIterator<Item = Transaction>, leads: bool) -> Self {
        Self {
            store: Store::default(),
            missed: Mutex::new(missed.into_iter().collect()),
            leads,
            barriers: AtomicUsize::default(),
            proposals: AtomicUsize::default(),
        }
    }

    fn catch_up(&self) -> Result<(), ProposeError> {
        if !self.leads {
            return Err(ProposeError::NotLeader);
        }
        for transaction in self.missed.lock().expect("no holder panics").drain(..) {
            let index = self.store.view().version + 1;
            self.store.apply(index, Entry { transactions: vec![transaction], ..Entry::default() });
        }
        Ok(())
    }
}

impl Consensus for Behind {
    async fn propose(&self, transaction: Transaction) -> Result<(), ProposeError> {
        self.proposals.fetch_add(1, Ordering::Relaxed);
        self.catch_up()?;
        let index = self.store.view().version + 1;
        let entry = Entry { transactions: vec![transaction], ..Entry::default() };
        self.store.apply(index, entry).pop().expect("one outcome").map(drop).map_err(ProposeError::Conflict)
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.barriers.fetch_add(1, Ordering::Relaxed);
        self.catch_up()
    }
}

fn created(id: &str, request: Option<&str>) -> Transaction {
    let mut tx = WriteTx::new(Store::default().view(), request);
    tx.create(Stack { id: id.into(), ..Stack::default() });
    tx.finish()
}

/// The removal of that stack by the request `r`, as another manager committed it.
fn removed() -> Transaction {
    let actions = vec![Action::Remove(Kind::Stack, "k".into())];
    Transaction { request_id: Some("r".into()), actions, ..Transaction::default() }
}

#[derive(Debug, PartialEq)]
enum Failed {
    NotFound,
    Unproven,
    Other,
}

impl From<ProposeError> for Failed {
    fn from(error: ProposeError) -> Self {
        if matches!(error, ProposeError::Unproven) { Self::Unproven } else { Self::Other }
    }
}

fn removal(view: View, request: Option<&str>) -> Result<(Transaction, ()), Failed> {
    view.stack("k").ok_or(Failed::NotFound)?;
    let mut tx = WriteTx::new(view, request);
    tx.remove(Kind::Stack, "k");
    Ok((tx.finish(), ()))
}

#[tokio::test]
async fn a_leader_that_is_behind_finds_what_it_did_not_know_of_before_it_refuses() {
    let behind = Behind::new([created("k", None)], true);
    assert_eq!(write(&behind.store, &behind, |view| removal(view, None)).await, Ok(()));
    assert!(behind.store.view().stack("k").is_none(), "it was removed");
}

#[tokio::test]
async fn a_refusal_is_final_after_a_barrier_and_proposes_nothing() {
    let leader = Behind::new([], true);
    assert_eq!(write(&leader.store, &leader, |view| removal(view, None)).await, Err(Failed::NotFound));
    assert_eq!(leader.barriers.load(Ordering::Relaxed), 1);
    assert_eq!(leader.proposals.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_deposed_leader_says_that_it_can_not_prove_that_it_leads_and_never_that_something_is_missing() {
    let deposed = Behind::new([created("k", None)], false);
    assert_eq!(write(&deposed.store, &deposed, |view| removal(view, None)).await, Err(Failed::Unproven));
    let look = |view: &View| view.stack("k").cloned().ok_or(Failed::NotFound);
    assert_eq!(read(&deposed.store, &deposed, look).await, Err(Failed::Unproven));
}

#[tokio::test]
async fn a_read_that_finds_nothing_looks_again_after_a_barrier() {
    let behind = Behind::new([created("k", None)], true);
    let look = |view: &View| view.stack("k").map(|stack| stack.id.to_string()).ok_or(Failed::NotFound);
    assert_eq!(read(&behind.store, &behind, look).await, Ok("k".into()));
    assert_eq!(read(&behind.store, &behind, look).await, Ok("k".into()));
    assert_eq!(behind.barriers.load(Ordering::Relaxed), 1, "what is found needs no proof");
}

#[tokio::test]
async fn a_retry_of_a_request_that_an_earlier_leader_did_is_not_judged_by_what_that_changed() {
    let behind = Behind::new([created("k", None), removed()], true);
    let retried = write_once(&behind.store, &behind, Some("r"), |view| removal(view, Some("r"))).await;
    assert_eq!(retried, Ok(None), "it was done, and is not `not found`");
    assert_eq!(behind.proposals.load(Ordering::Relaxed), 0);
    let new = write_once(&behind.store, &behind, Some("s"), |view| removal(view, Some("s"))).await;
    assert_eq!(new, Err(Failed::NotFound), "another request is refused");
}

#[tokio::test]
async fn a_try_that_comes_after_another_was_refused_is_not_carried_out() {
    let leader = Behind::new([], true);
    let ask = async |request: Option<&'static str>| {
        write_once(&leader.store, &leader, request, |view| removal(view, request)).await
    };
    assert_eq!(ask(Some("r")).await, Err(Failed::NotFound));
    leader.propose(created("k", None)).await.expect("nothing is in the way");
    assert_eq!(ask(Some("r")).await, Err(Failed::Other), "the user was told that it is refused");
    assert!(leader.store.view().stack("k").is_some(), "nothing was removed");
    assert_eq!(ask(Some("s")).await, Ok(Some(())), "another request is");
}

#[tokio::test]
async fn a_try_that_is_carried_out_while_another_is_judged_wins() {
    let leader = Behind::new([created("k", None)], true);
    leader.catch_up().expect("it leads");
    let mut first = true;
    let judged = write_once(&leader.store, &leader, Some("r"), |_: View| -> Result<(Transaction, ()), Failed> {
        if !std::mem::take(&mut first) {
            leader.missed.lock().expect("no holder panics").push(removed());
        }
        Err(Failed::NotFound)
    });
    assert_eq!(judged.await, Ok(None), "the other try of `r` was committed before the refusal");
}

#[tokio::test]
async fn a_plan_that_met_a_change_is_made_again() {
    let store = Store::default();
    let local = LocalProposer::new(store.clone());
    Proposer::propose(&local, created("k", None)).await.expect("nothing is in the way");
    let behind = Behind { store, ..Behind::new([removed()], true) };
    let result = write(&behind.store, &behind, |view| removal(view, None)).await;
    assert_eq!(result, Err(Failed::NotFound), "it was removed between the plan and its entry");
    assert_eq!(behind.proposals.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_change_is_needless_only_after_a_barrier() {
    let removal = |view: View| removal(view, None).ok();
    let behind = Behind::new([created("k", None)], true);
    let written = write_if_needed(&behind.store, &behind, removal).await;
    assert!(matches!(written, Ok(Some(()))), "the stack shows behind the barrier: {written:?}");
    let written = write_if_needed(&behind.store, &behind, removal).await;
    assert!(matches!(written, Ok(None)), "it is removed by now: {written:?}");
    assert_eq!(behind.proposals.load(Ordering::Relaxed), 1);
    let deposed = Behind::new([created("k", None)], false);
    let written = write_if_needed(&deposed.store, &deposed, removal).await;
    assert!(matches!(written, Err(ProposeError::Unproven)), "a deposed leader does not know: {written:?}");
}
