//! Group commit: proposals that come while others are being written wait, and are then written together, as one entry. An
//! entry costs every manager much more than a transaction in it, so this is what many writers at once gain from.
//!
//! A proposal is written at once if fewer than [`AT_ONCE`] entries are on their way, so one writer alone never waits. A
//! proposal whose outcome is unknown is not written later: its entry has been given up by then.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::QUORUM_WAIT;
use crate::proposer::ProposeError;
use crate::transaction::{Outcome, Transaction};

/// Number of entries that may be on their way at once: with two, the next entry is being synced while the one before it
/// is being applied.
const AT_ONCE: usize = 2;
/// Largest number of proposals in one entry.
const GROUP: usize = 64;
/// Number of actions from which on no further proposal joins an entry.
const ACTIONS: usize = 512;

/// The outcomes of a proposal's transactions, in order.
type Outcomes = Result<Vec<Outcome>, ProposeError>;

/// Writes an entry, and waits until it is applied.
pub(super) trait WriteEntry: Clone + Send + Sync + 'static {
    /// Writes one entry. Dropping the future gives it up: it is not written later.
    fn write(&self, transactions: Vec<Transaction>, within: Duration) -> impl Future<Output = Outcomes> + Send;

    /// The runtime on which groups are written.
    fn runtime(&self) -> Handle;
}

/// A proposal that waits.
struct Proposal {
    transactions: Vec<Transaction>,
    since: Instant,
    answer: oneshot::Sender<Outcomes>,
}

#[derive(Default)]
struct Queue {
    /// Number of entries that are on their way.
    writing: usize,
    /// One for each proposer that waits for its answer, so proposers bound it, and none is here for longer than
    /// [`QUORUM_WAIT`].
    waiting: VecDeque<Proposal>,
}

impl Queue {
    /// Takes the proposals of the next entry, oldest first; none if nothing waits. Those whose proposers have gone, or whose
    /// time is over, are left out.
    fn next_group(&mut self, now: Instant) -> Vec<Proposal> {
        let (mut group, mut actions) = (Vec::new(), 0);
        while group.len() < GROUP && actions < ACTIONS {
            let Some(next) = self.waiting.pop_front() else { break };
            if next.answer.is_closed() || now >= next.since + QUORUM_WAIT {
                continue;
            }
            actions += next.transactions.iter().map(|it| it.actions.len()).sum::<usize>();
            group.push(next);
        }
        group
    }
}

/// The proposals of one manager. Clones share them.
#[derive(Clone, Default)]
pub(super) struct GroupCommit(Arc<Mutex<Queue>>);

impl GroupCommit {
    /// Writes these transactions, next to each other, in an entry of their own or together with others.
    pub(super) async fn commit<W: WriteEntry>(&self, writer: &W, transactions: Vec<Transaction>) -> Outcomes {
        match self.enter(transactions) {
            Entered::First(transactions) => {
                let turn = Turn { queue: self.clone(), writer: writer.clone() };
                turn.writer.write(transactions, QUORUM_WAIT).await
            }
            // Whoever writes is bounded in time, and answers or drops those that wait.
            Entered::Waits(answer) => answer.await.unwrap_or(Err(ProposeError::Unknown)),
        }
    }

    fn enter(&self, transactions: Vec<Transaction>) -> Entered {
        let mut queue = self.0.lock().expect("no holder panics");
        if queue.writing < AT_ONCE && queue.waiting.is_empty() {
            queue.writing += 1;
            return Entered::First(transactions);
        }
        let (answer, answered) = oneshot::channel();
        queue.waiting.push_back(Proposal { transactions, since: Instant::now(), answer });
        Entered::Waits(answered)
    }
}

/// What becomes of a new proposal.
enum Entered {
    /// It is to be written at once.
    First(Vec<Transaction>),
    /// It waits, and gets its answer here.
    Waits(oneshot::Receiver<Outcomes>),
}

/// One of the entries that are on their way. When it ends, in whatever way, the next group follows.
struct Turn<W: WriteEntry> {
    queue: GroupCommit,
    writer: W,
}

impl<W: WriteEntry> Drop for Turn<W> {
    fn drop(&mut self) {
        let group = {
            let mut queue = self.queue.0.lock().expect("no holder panics");
            let group = queue.next_group(Instant::now());
            if group.is_empty() {
                queue.writing -= 1;
            }
            group
        };
        if group.is_empty() {
            return;
        }
        let turn = Self { queue: self.queue.clone(), writer: self.writer.clone() };
        // A runtime that has ended drops the group at once, and with it the next.
        self.writer.runtime().spawn(async move { write_group(&turn.writer, group).await });
    }
}

/// Writes a group, and tells each proposer its outcomes.
async fn write_group<W: WriteEntry>(writer: &W, group: Vec<Proposal>) {
    // The first has waited for longest, and is to be answered in time.
    let waited = group.first().map(|it| it.since.elapsed()).unwrap_or_default();
    let within = QUORUM_WAIT.saturating_sub(waited);
    let transactions = group.iter().flat_map(|it| it.transactions.clone()).collect();
    match writer.write(transactions, within).await {
        Ok(outcomes) => {
            let mut outcomes = outcomes.into_iter();
            for Proposal { transactions, answer, .. } in group {
                // It fails if the proposer has gone.
                let _ = answer.send(Ok(outcomes.by_ref().take(transactions.len()).collect()));
            }
        }
        // Nothing was written. One that is small enough alone is not refused for the others.
        Err(ProposeError::TooLarge { .. }) if group.len() > 1 => {
            for Proposal { transactions, since, answer } in group {
                let within = QUORUM_WAIT.saturating_sub(since.elapsed());
                let _ = answer.send(writer.write(transactions, within).await);
            }
        }
        Err(error) => group.into_iter().for_each(|it| {
            let _ = it.answer.send(Err(error.clone()));
        }),
    }
}

#[cfg(test)]
mod tests;
