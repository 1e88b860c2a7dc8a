//! Events: streams of what changes in the cluster, for users who follow it.
//!
//! Every manager keeps the same last events ([`flota_raft_store::HistoryReader`]), so a stream that breaks goes on at any
//! other manager, after the place that the last message names. A reader that is so slow that events are dropped before it
//! has read them gets an error; nothing is left out silently, and nothing gathers for it.

mod filter;
mod sight;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use flota_api::event::{ClusterEvent, EventCursor};
use flota_api::id::NodeId;
use flota_api::model::Audit;
use flota_raft_store::{HistoryReader, Store, Tables, audit_event};

use super::error::ControlError;
use super::filter::Filter;
use super::progress::Watch;
use super::{Age, Control, Freshness, Member};
use crate::caller::Caller;
use filter::EventFilter;

/// Largest number of streams that one manager sends at once.
const STREAMS_BOUND: usize = 256;
/// Messages that may wait for a reader; with more, the stream waits.
const QUEUE: usize = 1;
/// Largest number of events that are looked at for one message.
const BATCH: usize = 256;
/// Number of events that may be left out by filters before the reader is told how far the stream has come, so that it does
/// not resume at a place whose events have been dropped.
const PROGRESS: usize = 1_000;
/// Time after the last message in which the reader is told how far the stream has come, if it has come further.
const PROGRESS_AFTER: Duration = Duration::from_secs(5);

/// Where a stream of events ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// After all events that there are when it begins.
    Now,
    /// After the event at this place, or the last one before it.
    Cursor(EventCursor),
}

/// A message of a stream of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventPage {
    /// In the first message, how old the answer is.
    pub(crate) age: Option<Age>,
    /// The events that pass the filters.
    pub(crate) events: Vec<Arc<ClusterEvent>>,
    /// The place up to which nothing is left to send.
    pub(crate) through: EventCursor,
    /// The place at which the stream ends, if it does.
    pub(crate) until: Option<EventCursor>,
    /// Whether this is the last message.
    pub(crate) is_last: bool,
}

/// Returns the permits of as many streams as there may be.
pub(super) fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(STREAMS_BOUND))
}

impl<M: Member> Control<M> {
    /// Returns a stream of the events after `since` that pass the filters, to a node or to a user of this one. Without
    /// `since`, it begins with what changes after everything that was acknowledged before the call.
    ///
    /// A stream of [`Freshness::Stale`] sends what this manager learns, and goes on until the manager stops, whoever leads.
    /// Any other ends with an error when this manager no longer leads, because it may then learn nothing more. Each ends
    /// when the certificate of the node that reads it is revoked.
    pub(crate) async fn watch_events(
        &self,
        to: Option<NodeId>,
        freshness: Freshness,
        filters: &[Filter],
        since: Option<EventCursor>,
        until: Option<Until>,
    ) -> Result<Watch<EventPage>, ControlError> {
        let filter = EventFilter::new(filters)?;
        let permit = Arc::clone(&self.event_streams).try_acquire_owned().map_err(|_| ControlError::TooManyStreams)?;
        let bound = match freshness {
            Freshness::Stale => Bound::Serving(self.leading.clone()),
            Freshness::Linearizable => {
                let scope = self.leading.borrow().clone();
                Bound::Leading(scope.ok_or(ControlError::LeadershipMoved)?)
            }
        };
        let (view, age) = self.view(freshness).await?;
        let now = EventCursor::end_of(view.version);
        if let Some(since) = since.filter(|since| age == Age::Current && *since > now) {
            return Err(ControlError::invalid(
                "since",
                format!("{since} is after {now}, the cluster's newest version"),
            ));
        }
        let since = since.unwrap_or(now);
        let until = until.map(|until| match until {
            Until::Now => now,
            Until::Cursor(cursor) => cursor,
        });
        // The records of changes are in the store, which keeps more of them than the history does.
        let (backlog, since) = match filter.is_for_audit() {
            true => (audited(&view, since), now.max(since)),
            false => (Vec::new(), since),
        };
        let mut reader = self.store.events_after(since);
        // Reads nothing, but fails if the first events are gone.
        reader.read(0).map_err(|gone| ControlError::EventsGone { since, oldest: gone.oldest })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (store, caller) = (self.store.clone(), self.caller.clone());
        let stream = EventStream { store, to, caller, backlog, reader, filter, until, sender, bound, _permit: permit };
        tokio::spawn(stream.run(age));
        Ok(receiver)
    }
}

/// Returns the records of changes after this place that the store has, as the events with which they came.
fn audited(view: &Tables, since: EventCursor) -> Vec<Arc<ClusterEvent>> {
    let events = view.all::<Audit>().map(|audit| audit_event(audit));
    events.filter(|event| event.cursor > since).map(Arc::new).collect()
}

/// What a stream ends with.
enum Bound {
    /// The leadership of this manager.
    Leading(CancellationToken),
    /// This manager, which drops the sender when it stops.
    Serving(watch::Receiver<Option<CancellationToken>>),
}

impl Bound {
    /// Returns why the stream ends, when it does.
    async fn reached(&self) -> ControlError {
        match self {
            Self::Leading(scope) => {
                scope.cancelled().await;
                ControlError::LeadershipMoved
            }
            Self::Serving(leading) => {
                let mut leading = leading.clone();
                while leading.changed().await.is_ok() {}
                ControlError::ManagerStopped
            }
        }
    }
}

/// One stream, until it ends or its reader is gone.
struct EventStream {
    store: Store,
    /// The node that reads; `None` for a user of this machine.
    to: Option<NodeId>,
    /// Whoever reads, and what they see.
    caller: Caller,
    /// Events that come before those of the reader.
    backlog: Vec<Arc<ClusterEvent>>,
    reader: HistoryReader,
    filter: EventFilter,
    until: Option<EventCursor>,
    sender: mpsc::Sender<Result<EventPage, ControlError>>,
    bound: Bound,
    _permit: OwnedSemaphorePermit,
}

impl EventStream {
    async fn run(mut self, age: Age) {
        if let Err(error) = self.send_all(age).await {
            // It fails only if the receiver was dropped.
            let _ = self.sender.send(Err(error)).await;
        }
    }

    /// Sends pages until the last one is sent or the receiver is dropped.
    async fn send_all(&mut self, age: Age) -> Result<(), ControlError> {
        let (mut age, mut skipped) = (Some(age), 0);
        let backlog = std::mem::take(&mut self.backlog);
        let backlog: Vec<_> = backlog.iter().filter_map(|event| self.wanted(event)).collect();
        for events in backlog.chunks(BATCH) {
            let through = events.last().map_or_else(|| self.reader.cursor(), |last| last.cursor);
            let page =
                EventPage { age: age.take(), events: events.to_vec(), through, until: self.until, is_last: false };
            if !self.send(page).await? {
                return Ok(());
            }
        }
        let (mut told, mut told_at) = (self.reader.cursor(), Instant::now());
        loop {
            self.may_go_on()?;
            let reached = self.reader.cursor();
            let read = self.reader.read(BATCH);
            let batch = read.map_err(|gone| ControlError::ReaderTooSlow { reached, oldest: gone.oldest })?;
            let looked_at = batch.events.len();
            let events: Vec<_> = batch.events.iter().filter_map(|event| self.wanted(event)).collect();
            let is_last = self.until.is_some_and(|until| batch.through >= until);
            // Nothing after `until` was sent.
            let through = self.until.map_or(batch.through, |until| batch.through.min(until)).max(reached);
            skipped = if events.is_empty() { skipped + looked_at } else { 0 };
            let is_due = through > told && told_at.elapsed() >= PROGRESS_AFTER;
            if !events.is_empty() || is_last || age.is_some() || skipped >= PROGRESS || is_due {
                let page = EventPage { age: age.take(), events, through, until: self.until, is_last };
                if !self.send(page).await? || is_last {
                    return Ok(());
                }
                (skipped, told, told_at) = (0, through, Instant::now());
            }
            let patience = (through > told).then_some(told_at + PROGRESS_AFTER);
            if looked_at == 0 && !self.wait(patience).await {
                return Ok(());
            }
        }
    }

    /// Returns the event as the reader sees it, if it is one to send.
    fn wanted(&self, event: &Arc<ClusterEvent>) -> Option<Arc<ClusterEvent>> {
        let seen = sight::seen(&self.caller, event)?;
        (self.until.is_none_or(|until| seen.cursor <= until) && self.filter.passes(&seen)).then_some(seen)
    }

    /// Checks that the stream may go on.
    ///
    /// # Errors
    /// It has to end: the node that reads was removed, or this manager does not lead any more or stops.
    fn may_go_on(&self) -> Result<(), ControlError> {
        let is_revoked = |to: &NodeId| {
            self.store.view().cluster().is_some_and(|cluster| cluster.revoked.iter().any(|it| it.node_id == *to))
        };
        if self.to.as_ref().is_some_and(is_revoked) {
            return Err(ControlError::Revoked);
        }
        self.bound.reached().now_or_never().map_or(Ok(()), Err)
    }

    /// Sends a page when there is room for it. Returns false if the receiver was dropped.
    ///
    /// # Errors
    /// The stream has to end, for the reasons of `may_go_on`.
    async fn send(&self, page: EventPage) -> Result<bool, ControlError> {
        tokio::select! {
            biased;
            sent = self.sender.send(Ok(page)) => Ok(sent.is_ok()),
            why = self.bound.reached() => Err(why),
        }
    }

    /// Waits for another entry, for the end of the stream, or until this time. Returns false if the receiver was dropped.
    async fn wait(&mut self, until: Option<Instant>) -> bool {
        tokio::select! {
            biased;
            () = self.sender.closed() => false,
            _ = self.bound.reached() => true,
            () = self.reader.changed() => true,
            () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => true,
        }
    }
}

#[cfg(test)]
mod tests;
