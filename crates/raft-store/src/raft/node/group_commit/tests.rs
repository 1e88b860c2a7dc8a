use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::transaction::Action;
use flota_api::id::Id;
use flota_api::object::Kind;

/// An entry that the test is to answer.
struct Written {
    /// The request ids of its transactions, in their order, with a space between two.
    requests: String,
    answer: oneshot::Sender<Outcomes>,
}

/// A log whose entries the test answers.
#[derive(Clone)]
struct FakeLog(mpsc::UnboundedSender<Written>);

impl WriteEntry for FakeLog {
    async fn write(&self, transactions: Vec<Transaction>, within: Duration) -> Outcomes {
        let requests: Vec<_> = transactions.iter().filter_map(|it| it.request_id.clone()).collect();
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send(Written { requests: requests.join(" "), answer });
        let answered = tokio::time::timeout(within, answered).await;
        answered.unwrap_or(Ok(Err(ProposeError::Unknown))).unwrap_or(Err(ProposeError::Unknown))
    }

    fn runtime(&self) -> Handle {
        Handle::current()
    }
}

/// Proposals, and the entries that come of them.
struct Trial {
    proposals: GroupCommit,
    log: FakeLog,
    written: mpsc::UnboundedReceiver<Written>,
}

impl Trial {
    fn new() -> Self {
        let (log, written) = mpsc::unbounded_channel();
        Self { proposals: GroupCommit::default(), log: FakeLog(log), written }
    }

    /// Proposes a transaction for each of these requests. It is in the queue, or on its way, when this returns.
    async fn propose(&self, requests: &str) -> JoinHandle<Outcomes> {
        let transaction = |id: &str| Transaction { request_id: Some(id.to_owned()), ..Transaction::default() };
        let transactions = requests.split(' ').map(transaction).collect();
        let (proposals, log) = (self.proposals.clone(), self.log.clone());
        let proposed = tokio::spawn(async move { proposals.commit(&log, transactions).await });
        tokio::task::yield_now().await;
        proposed
    }

    async fn next(&mut self) -> Written {
        self.written.recv().await.expect("an entry is written")
    }
}

/// As many outcomes as an entry has transactions: `first` and the following numbers.
fn outcomes(first: u64, count: u64) -> Outcomes {
    Ok((first..first + count).map(Ok).collect())
}

fn versions(outcomes: Outcomes) -> Vec<u64> {
    outcomes.expect("it is written").into_iter().map(|it| it.expect("no conflict")).collect()
}

#[tokio::test]
async fn proposals_wait_while_two_entries_are_on_their_way_and_then_share_the_next() {
    let mut trial = Trial::new();
    let first = [trial.propose("a").await, trial.propose("b").await];
    let later = [trial.propose("c d").await, trial.propose("e").await];
    let (one, two) = (trial.next().await, trial.next().await);
    assert_eq!((one.requests.as_str(), two.requests.as_str()), ("a", "b"), "nobody waits for the others");
    assert!(trial.written.try_recv().is_err(), "the others wait");
    let _ = one.answer.send(outcomes(1, 1));
    let group = trial.next().await;
    assert_eq!(group.requests, "c d e");
    let another = trial.propose("f").await;
    let _ = two.answer.send(outcomes(2, 1));
    assert_eq!(trial.next().await.requests, "f", "it follows the second");
    let _ = group.answer.send(outcomes(10, 3));
    let mut answers = Vec::new();
    for proposed in first.into_iter().chain(later) {
        answers.push(versions(proposed.await.expect("it ends")));
    }
    assert_eq!(answers, [vec![1], vec![2], vec![10, 11], vec![12]], "each gets its own outcomes");
    assert!(matches!(another.await.expect("it ends"), Err(ProposeError::Unknown)), "its entry was given up");
    assert_eq!(trial.proposals.0.lock().expect("no holder panics").writing, 0);
}

/// Number of the transactions in an entry.
fn size(written: &Written) -> u64 {
    written.requests.split(' ').count() as u64
}

#[tokio::test(start_paused = true)]
async fn many_proposers_share_one_entry_after_the_other_and_wait_for_each_other_as_long_as_an_entry_takes() {
    const TOOK: Duration = Duration::from_millis(3);
    let mut trial = Trial::new();
    for number in 0..16 {
        drop(trial.propose(&number.to_string()).await);
    }
    let (one, two) = (trial.next().await, trial.next().await);
    tokio::time::sleep(TOOK).await;
    let _ = (one.answer.send(outcomes(1, 1)), two.answer.send(outcomes(1, 1)));
    tokio::task::yield_now().await;
    assert!(trial.written.try_recv().is_err(), "the first two may come back");
    drop(trial.propose("a").await);
    let all = trial.next().await;
    assert_eq!(size(&all), 15, "as many as there were when the last entry ended");
    drop(trial.propose("b").await);
    tokio::time::sleep(TOOK).await;
    assert!(trial.written.try_recv().is_err(), "one entry at a time");
    let begun = Instant::now();
    let _ = all.answer.send(outcomes(1, 15));
    drop(trial.propose("c").await);
    let both = trial.next().await;
    assert_eq!((both.requests.as_str(), begun.elapsed()), ("b c", TOOK), "no others have come");
    let _ = both.answer.send(outcomes(1, 2));
    tokio::task::yield_now().await;
    let begun = Instant::now();
    for request in ["e", "f", "g"] {
        drop(trial.propose(request).await);
        let alone = trial.next().await;
        assert_eq!((alone.requests.as_str(), begun.elapsed()), (request, Duration::ZERO), "few wait for nobody");
        let _ = alone.answer.send(outcomes(1, 1));
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_proposal_that_comes_later_than_an_entry_takes_waits_for_nobody() {
    let mut trial = Trial::new();
    for number in 0..MANY + 3 {
        drop(trial.propose(&number.to_string()).await);
    }
    let (one, two) = (trial.next().await, trial.next().await);
    let _ = (one.answer.send(outcomes(1, 1)), two.answer.send(outcomes(1, 1)));
    let many = trial.next().await;
    let count = size(&many);
    assert_eq!(count, MANY as u64 + 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _ = many.answer.send(outcomes(1, count));
    tokio::time::sleep(LONGEST_GATHERING).await;
    let begun = Instant::now();
    drop(trial.propose("a").await);
    assert_eq!((trial.next().await.requests.as_str(), begun.elapsed()), ("a", Duration::ZERO));
}

#[tokio::test]
async fn what_is_given_up_while_it_waits_is_not_written_and_what_is_given_up_on_its_way_holds_nobody_up() {
    let mut trial = Trial::new();
    let first = [trial.propose("a").await, trial.propose("b").await];
    let gone = trial.propose("c").await;
    let stays = trial.propose("d").await;
    gone.abort();
    assert!(gone.await.is_err_and(|error| error.is_cancelled()));
    let _ = (trial.next().await, trial.next().await);
    first.iter().for_each(JoinHandle::abort);
    let next = trial.next().await;
    assert_eq!(next.requests, "d");
    let _ = next.answer.send(outcomes(3, 1));
    assert_eq!(versions(stays.await.expect("it ends")), [3]);
}

#[tokio::test]
async fn an_error_is_that_of_all_and_a_group_that_is_too_large_is_written_one_by_one() {
    let mut trial = Trial::new();
    let first = [trial.propose("a").await, trial.propose("b").await];
    let later = [trial.propose("c").await, trial.propose("d").await];
    let (one, two) = (trial.next().await, trial.next().await);
    let too_large = || Err(ProposeError::TooLarge { actions: 1, bytes: 9 << 20 });
    let _ = one.answer.send(too_large());
    let _ = trial.next().await.answer.send(too_large());
    for (requests, answer) in [("c", too_large()), ("d", outcomes(4, 1))] {
        let alone = trial.next().await;
        assert_eq!(alone.requests, requests);
        let _ = alone.answer.send(answer);
    }
    let last = [trial.propose("e").await, trial.propose("f").await, trial.propose("g").await];
    let _ = two.answer.send(outcomes(2, 1));
    let [c, d] = later;
    assert!(matches!(c.await.expect("it ends"), Err(ProposeError::TooLarge { .. })));
    assert_eq!(versions(d.await.expect("it ends")), [4]);
    for _ in 0..2 {
        let _ = trial.next().await.answer.send(Err(ProposeError::NotLeader));
    }
    for proposed in last {
        assert!(matches!(proposed.await.expect("it ends"), Err(ProposeError::NotLeader)));
    }
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_each_proposal_ends_in_its_time_and_none_is_written_later() {
    let mut trial = Trial::new();
    let begun = Instant::now();
    let mut proposed = vec![trial.propose("a").await, trial.propose("b").await];
    tokio::time::sleep(Duration::from_secs(1)).await;
    proposed.push(trial.propose("c").await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    proposed.push(trial.propose("d").await);
    let mut ended = Vec::new();
    for proposed in proposed {
        assert!(matches!(proposed.await.expect("it ends"), Err(ProposeError::Unknown)));
        ended.push(begun.elapsed().as_secs());
    }
    assert_eq!(ended, [4, 4, 5, 5], "one that shares an entry with an older one ends with it");
    let written: Vec<String> = std::iter::from_fn(|| trial.written.try_recv().ok()).map(|it| it.requests).collect();
    assert_eq!(written, ["a", "b", "c d"]);
    assert_eq!(trial.proposals.0.lock().expect("no holder panics").writing, 0);
}

#[tokio::test]
async fn an_entry_has_so_many_proposals_at_most_and_none_joins_a_large_one() {
    let mut queue = Queue::default();
    let mut receivers = Vec::new();
    let mut wait = |actions: usize| {
        let actions = vec![Action::Remove(Kind::Task, Id::default()); actions];
        let (answer, answered) = oneshot::channel();
        receivers.push(answered);
        let transactions = vec![Transaction { actions, ..Transaction::default() }];
        Proposal { transactions, bytes: 1, since: Instant::now(), answer }
    };
    queue.waiting.extend((0..GROUP + 36).map(|_| wait(1)));
    queue.waiting.extend([wait(ACTIONS), wait(1)]);
    let mut sizes = Vec::new();
    while !queue.waiting.is_empty() {
        sizes.push(queue.next_group(Instant::now()).len());
    }
    assert_eq!(sizes, [GROUP, 37, 1]);
}

#[tokio::test]
async fn a_group_is_soon_encoded_and_a_large_proposal_has_an_entry_of_its_own() {
    let mut queue = Queue::default();
    let wait = |bytes| {
        let answer = oneshot::channel().0;
        Proposal { transactions: vec![Transaction::default()], bytes, since: Instant::now(), answer }
    };
    let mut keep = Vec::new();
    queue.waiting.extend([BYTES / 2, BYTES / 2, 1, 8 * BYTES, 1, 1].map(|bytes| {
        let (answer, kept) = oneshot::channel();
        keep.push(kept);
        Proposal { answer, ..wait(bytes) }
    }));
    let mut sizes = Vec::new();
    while !queue.waiting.is_empty() {
        sizes.push(queue.next_group(Instant::now()).iter().map(|it| it.bytes).collect::<Vec<_>>());
    }
    assert_eq!(sizes, [vec![BYTES / 2, BYTES / 2], vec![1], vec![8 * BYTES], vec![1, 1]]);
}
