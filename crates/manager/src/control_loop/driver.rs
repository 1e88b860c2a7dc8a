//! Runs the control loops while this manager leads: it watches, queues, batches, proposes and retries.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use flota_api::version::Timestamp;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{ACTIONS_BOUND, Event, ProposeError, Proposer, Store, Tables, Transaction, View, Watch};

use super::pass::{self, Work};
use super::statistics::LoopCounters;
use super::timers::Timers;
use super::{ControlLoop, Key};
use crate::plan::PlanContext;
use crate::term_clock::TermClock;
use crate::usage::Usage;

/// Bounds of one entry, in actions and bytes; a larger group gets an entry of its own.
const ENTRY_ACTIONS: usize = 1_000;
const ENTRY_BYTES: usize = 1 << 20;
/// Delay after a proposal that failed.
const RETRY: Duration = Duration::from_millis(100);

/// With the fault `LostWakeup`, one in this many batches of events is ignored.
const LOST_ONE_OF: u64 = 7;

/// The driver of one term of leadership.
pub(crate) struct Driver {
    store: Store,
    proposer: Arc<dyn Proposer>,
    clock: TermClock,
    /// When it was created, which is when this manager began to lead.
    led_since: Timestamp,
    rng: StdRng,
    loops: Vec<Box<dyn ControlLoop>>,
    /// The dirty keys of each loop.
    dirty: Vec<BTreeSet<Key>>,
    /// Most changes of one loop in a pass. It falls while passes are too large to commit.
    share: usize,
    timers: Timers,
    counters: LoopCounters,
    /// What the nodes use.
    usage: Usage,
    /// Number of batches of events that were taken.
    batches: u64,
}

impl Driver {
    /// Creates a driver that runs `loops` in this order. Plans and timers use `clock`; new ids are drawn from the
    /// generator.
    pub(crate) fn new(
        store: Store,
        proposer: Arc<dyn Proposer>,
        (clock, rng): (TermClock, StdRng),
        loops: Vec<Box<dyn ControlLoop>>,
    ) -> Self {
        let dirty = vec![BTreeSet::new(); loops.len()];
        let share = largest_share(&loops);
        let (led_since, timers) = (clock.now(), Timers::default());
        Self {
            store,
            proposer,
            clock,
            led_since,
            rng,
            loops,
            dirty,
            share,
            timers,
            counters: LoopCounters::default(),
            usage: Usage::default(),
            batches: 0,
        }
    }

    /// Lets these counters count what it does.
    pub(crate) fn counted_by(self, counters: LoopCounters) -> Self {
        Self { counters, ..self }
    }

    /// Lets the planners know what the nodes use.
    pub(crate) fn with_usage(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }

    /// Runs until `cancel` is cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let _running = self.counters.begin();
        let (view, mut watch) = self.store.view_and_watch();
        self.look_at_everything(&view);
        // A view that is held keeps all replaced objects in memory.
        drop(view);
        loop {
            self.take_due();
            if self.dirty.iter().any(|keys| !keys.is_empty()) {
                let held = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    held = self.pass() => held,
                };
                if !held {
                    tokio::time::sleep(RETRY).await;
                }
                self.take_events(&mut watch);
                continue;
            }
            let next = self.timers.next().map(|at| self.clock.now().until(at));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                events = watch.next() => match events {
                    Ok(events) => {
                        let view = self.store.view();
                        self.mark_all(&events, &view);
                        self.take_events(&mut watch);
                    }
                    Err(_) => self.resync(&mut watch),
                },
                () = tokio::time::sleep(next.unwrap_or(Duration::from_secs(3600))) => {}
            }
        }
    }

    fn look_at_everything(&mut self, view: &Tables) {
        for (each, dirty) in self.loops.iter().zip(&mut self.dirty) {
            dirty.extend(each.all(view));
        }
    }

    fn mark_all(&mut self, events: &[Event], view: &Tables) {
        self.batches += 1;
        if faults::is_on(Fault::LostWakeup) && self.batches.is_multiple_of(LOST_ONE_OF) {
            return;
        }
        events.iter().for_each(|event| self.mark(event, view));
    }

    fn mark(&mut self, event: &Event, view: &Tables) {
        if matches!(event, Event::Reset) {
            self.look_at_everything(view);
        }
        for (each, dirty) in self.loops.iter().zip(&mut self.dirty) {
            dirty.extend(each.dirtied_by(event, view));
        }
    }

    fn take_events(&mut self, watch: &mut Watch) {
        loop {
            match watch.try_next() {
                Ok(Some(events)) => {
                    let view: View = self.store.view();
                    self.mark_all(&events, &view);
                }
                Ok(None) => return,
                Err(_) => return self.resync(watch),
            }
        }
    }

    fn resync(&mut self, watch: &mut Watch) {
        tracing::warn!("the control loops lagged behind the store and look at everything again");
        let (view, fresh) = self.store.view_and_watch();
        *watch = fresh;
        self.look_at_everything(&view);
    }

    fn take_due(&mut self) {
        let now = self.clock.now();
        while let Some(due) = self.timers.take_due(now) {
            self.mark_again([due]);
        }
    }

    /// Marks work as dirty that was planned already.
    fn mark_again(&mut self, work: impl IntoIterator<Item = Work>) {
        for (index, key) in work {
            self.dirty[index].insert(key);
        }
    }

    /// Runs one pass. Returns whether everything that was proposed was committed.
    async fn pass(&mut self) -> bool {
        let view = self.store.view();
        let mut cx = PlanContext {
            now: self.clock.now(),
            wall: self.clock.wall().now(),
            led_since: self.led_since,
            rng: StdRng::from_rng(&mut self.rng),
            usage: self.usage.clone(),
            room: self.share,
        };
        let planned = pass::run(&mut self.loops, &mut self.dirty, &view, &mut cx);
        planned.timers.into_iter().for_each(|(at, work)| self.timers.set(at, work));
        self.counters.passed();
        let (mut held, mut too_large, mut has_failed) = (true, false, false);
        for entry in entries(planned.groups) {
            let (transactions, work): (Vec<Transaction>, Vec<Vec<Work>>) = entry.into_iter().unzip();
            self.counters.proposed(transactions.len());
            match self.proposer.propose_entry(transactions).await {
                Ok(outcomes) => {
                    self.counters.met(outcomes.iter().filter(|outcome| outcome.is_err()).count());
                    for (outcome, work) in outcomes.into_iter().zip(work) {
                        if let Err(conflict) = outcome {
                            tracing::debug!(%conflict, "a plan met a change and is made again");
                            self.mark_again(work);
                            has_failed = true;
                        }
                    }
                }
                Err(error) => {
                    has_failed = true;
                    self.mark_again(work.into_iter().flatten());
                    match error {
                        ProposeError::TooLarge { .. } if self.share > 1 => too_large = true,
                        ProposeError::NotLeader => held = false,
                        _ => {
                            tracing::warn!(%error, "a plan was not taken and is made again");
                            held = false;
                        }
                    }
                    if matches!(error, ProposeError::Unknown) {
                        settle(self.proposer.as_ref()).await;
                    }
                }
            }
        }
        if has_failed {
            self.mark_again(planned.idle);
        }
        self.share = if too_large { self.share / 2 } else { (self.share * 2).min(largest_share(&self.loops)) };
        held
    }
}

/// With this share for each loop, the changes of a pass fit into one transaction, unless they have too many bytes.
pub(crate) fn largest_share(loops: &[Box<dyn ControlLoop>]) -> usize {
    ACTIONS_BOUND / loops.len().max(1)
}

/// Called after a proposal that may still commit: proposes an empty entry, and when that is applied, the earlier one
/// either is applied or never will be. Planning before that could create the same tasks twice. Ends with leadership.
async fn settle(proposer: &dyn Proposer) {
    while let Err(ProposeError::Unknown) = proposer.propose_entry(Vec::new()).await {
        tokio::time::sleep(RETRY).await;
    }
}

type FoldedGroup = (Transaction, Vec<Work>);

/// Packs whole groups into entries, as many in each as its bounds allow.
fn entries(groups: Vec<FoldedGroup>) -> Vec<Vec<FoldedGroup>> {
    let mut entries: Vec<Vec<FoldedGroup>> = Vec::new();
    let (mut room, mut bytes_left) = (0, 0);
    for group in groups {
        let (actions, bytes) = (group.0.actions.len(), group.0.size());
        if actions > room || bytes > bytes_left {
            entries.push(Vec::new());
            (room, bytes_left) = (ENTRY_ACTIONS, ENTRY_BYTES);
        }
        room = room.saturating_sub(actions);
        bytes_left = bytes_left.saturating_sub(bytes);
        entries.last_mut().expect("one was pushed where there was none").push(group);
    }
    entries
}

#[cfg(test)]
mod tests;
