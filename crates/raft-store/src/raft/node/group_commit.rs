//! Group commit: proposals that come while others are being written wait, and are then written together, as one entry. An
//! entry costs every manager much more than a transaction in it, so this is what many writers at once gain from.
//!
//! A proposal is written at once if fewer than [`AT_ONCE`] entries are on their way, so one writer alone never waits. Where
//! there are [`MANY`], one entry at a time has the proposals of all: those whose answers have just gone out propose again,
//! one after the other, and the first waits for the others, because it would else have an entry to itself. Nobody waits for
//! longer after an entry than that entry took, give or take a tick of the timers.
//!
//! A proposal whose outcome is unknown is not written later: its entry has been given up by then.

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
const GROUP: usize = 128;
/// Number of actions from which on no further proposal joins an entry.
const ACTIONS: usize = 512;
/// Number of bytes from which on no further proposal joins an entry: it is encoded on Raft's own thread, which has heartbeats
/// to send.
const BYTES: usize = 1 << 20;

/// Number of proposers from which on an entry waits for the proposals of all of them.
const MANY: usize = 6;
/// Longest time after an entry for which proposals wait for others.
const LONGEST_GATHERING: Duration = Duration::from_millis(10);

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
    /// Its size when it is encoded.
    bytes: usize,
    since: Instant,
    answer: oneshot::Sender<Outcomes>,
}

struct Queue {
    /// Number of entries that are on their way.
    writing: usize,
    /// Number of proposals in these entries.
    proposals: usize,
    /// One for each proposer that waits for its answer, so proposers bound it, and none is here for longer than
    /// [`QUORUM_WAIT`].
    waiting: VecDeque<Proposal>,
    /// Number of proposals that the next entry waits for.
    wanted: usize,
    /// When it waits no longer.
    gathers_until: Instant,
}

impl Default for Queue {
    fn default() -> Self {
        Self { writing: 0, proposals: 0, waiting: VecDeque::new(), wanted: 1, gathers_until: Instant::now() }
    }
}

impl Queue {
    /// Notes that an entry with so many proposals has ended, which took this long. About as many proposers as there were
    /// are there again soon. Returns until when the next entry waits for them, if it does.
    fn ended(&mut self, proposals: usize, took: Duration, now: Instant) -> Option<Instant> {
        let proposers = self.proposals + self.waiting.len();
        self.wanted = if proposers < MANY { 1 } else { proposers.min(GROUP) };
        self.gathers_until = now + took.min(LONGEST_GATHERING);
        self.proposals -= proposals;
        self.writing -= 1;
        (self.wanted > 1).then_some(self.gathers_until)
    }

    /// Whether another entry may be on its way if so many proposals wait.
    fn has_turn(&self, waiting: usize, now: Instant) -> bool {
        let lanes = if self.wanted > 1 { 1 } else { AT_ONCE };
        self.writing < lanes && (waiting >= self.wanted || now >= self.gathers_until)
    }

    /// Takes the proposals of the next entry if it is its turn; none if nothing waits, or not enough yet.
    fn begin_group(&mut self, now: Instant) -> Vec<Proposal> {
        if !self.has_turn(self.waiting.len(), now) {
            return Vec::new();
        }
        let group = self.next_group(now);
        self.writing += usize::from(!group.is_empty());
        self.proposals += group.len();
        group
    }

    /// Takes the proposals of the next entry, oldest first; none if nothing waits. Those whose proposers have gone, or whose
    /// time is over, are left out.
    fn next_group(&mut self, now: Instant) -> Vec<Proposal> {
        let (mut group, mut actions, mut bytes) = (Vec::new(), 0, 0);
        while group.len() < GROUP && actions < ACTIONS {
            let has_room = |next: &mut Proposal| bytes == 0 || bytes + next.bytes <= BYTES;
            let Some(next) = self.waiting.pop_front_if(has_room) else { break };
            if next.answer.is_closed() || now >= next.since + QUORUM_WAIT {
                continue;
            }
            bytes += next.bytes;
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
                let turn = Turn { queue: self.clone(), writer: writer.clone(), proposals: 1, since: Instant::now() };
                turn.writer.write(transactions, QUORUM_WAIT).await
            }
            Entered::Waits(answer) => {
                self.write_next(writer);
                // Whoever writes is bounded in time, and answers or drops those that wait.
                answer.await.unwrap_or(Err(ProposeError::Unknown))
            }
        }
    }

    fn enter(&self, transactions: Vec<Transaction>) -> Entered {
        let bytes = transactions.iter().map(Transaction::size).sum();
        let (mut queue, now) = (self.0.lock().expect("no holder panics"), Instant::now());
        if queue.waiting.is_empty() && queue.has_turn(1, now) {
            queue.writing += 1;
            queue.proposals += 1;
            return Entered::First(transactions);
        }
        let (answer, answered) = oneshot::channel();
        queue.waiting.push_back(Proposal { transactions, bytes, since: now, answer });
        Entered::Waits(answered)
    }

    /// Begins to write what waits, if it is its turn.
    fn write_next<W: WriteEntry>(&self, writer: &W) {
        let group = self.0.lock().expect("no holder panics").begin_group(Instant::now());
        if group.is_empty() {
            return;
        }
        let turn = Turn { queue: self.clone(), writer: writer.clone(), proposals: group.len(), since: Instant::now() };
        // A runtime that has ended drops the group at once, and with it the next.
        writer.runtime().spawn(async move { write_group(&turn.writer, group).await });
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
    /// Number of its proposals.
    proposals: usize,
    since: Instant,
}

impl<W: WriteEntry> Drop for Turn<W> {
    fn drop(&mut self) {
        let (now, mut queue) = (Instant::now(), self.queue.0.lock().expect("no holder panics"));
        let gathers_until = queue.ended(self.proposals, now - self.since, now);
        drop(queue);
        self.queue.write_next(&self.writer);
        if let Some(until) = gathers_until {
            let (queue, writer) = (self.queue.clone(), self.writer.clone());
            self.writer.runtime().spawn(async move {
                tokio::time::sleep_until(until).await;
                queue.write_next(&writer);
            });
        }
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
            for Proposal { transactions, since, answer, .. } in group {
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
