//! Events: streams of what changes in the cluster, for users who follow it.
//!
//! Every manager keeps the same last events ([`flota_raft_store::HistoryReader`]), so a stream that breaks goes on at any
//! other manager, after the place that the last message names. A reader that is so slow that events are dropped before it
//! has read them gets an error; nothing is left out silently, and nothing gathers for it.

mod filter;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use flota_api::event::{ClusterEvent, EventCursor};
use flota_raft_store::HistoryReader;

use super::error::ControlError;
use super::filter::Filter;
use super::progress::Watch;
use super::{Age, Control, Freshness, Member};
use filter::EventFilter;

/// Messages that may wait for a reader; with more, the stream waits.
const QUEUE: usize = 4;
/// Largest number of events that are looked at for one message.
const BATCH: usize = 256;
/// Number of events that may be left out by filters before the reader is told how far the stream has come, so that it does
/// not resume at a place whose events have been dropped.
const PROGRESS: usize = 1_000;

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

impl<M: Member> Control<M> {
    /// Returns a stream of the events after `since` that pass the filters. Without `since`, it begins with what changes
    /// after everything that was acknowledged before the call.
    ///
    /// A stream of [`Freshness::Stale`] sends what this manager learns, and goes on whoever leads. Any other ends with an
    /// error when this manager no longer leads, because it may then learn nothing more.
    pub(crate) async fn watch_events(
        &self,
        freshness: Freshness,
        filters: &[Filter],
        since: Option<EventCursor>,
        until: Option<Until>,
    ) -> Result<Watch<EventPage>, ControlError> {
        let filter = EventFilter::new(filters)?;
        let scope = match freshness {
            Freshness::Stale => None,
            Freshness::Linearizable => {
                let scope = self.leading.borrow().clone();
                Some(scope.ok_or(ControlError::LeadershipMoved)?)
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
        let mut reader = self.store.events_after(since);
        // Reads nothing, but fails if the first events are gone.
        reader.read(0).map_err(|gone| ControlError::EventsGone { since, oldest: gone.oldest })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(EventStream { reader, filter, until, sender, scope }.run(age));
        Ok(receiver)
    }
}

/// One stream, until it ends or its reader is gone.
struct EventStream {
    reader: HistoryReader,
    filter: EventFilter,
    until: Option<EventCursor>,
    sender: mpsc::Sender<Result<EventPage, ControlError>>,
    /// Cancelled when the stream has to end; `None` if it never has to.
    scope: Option<CancellationToken>,
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
        loop {
            if self.scope.as_ref().is_some_and(CancellationToken::is_cancelled) {
                return Err(ControlError::LeadershipMoved);
            }
            let reached = self.reader.cursor();
            let read = self.reader.read(BATCH);
            let batch = read.map_err(|gone| ControlError::ReaderTooSlow { reached, oldest: gone.oldest })?;
            let looked_at = batch.events.len();
            let is_wanted = |event: &Arc<ClusterEvent>| {
                self.until.is_none_or(|until| event.cursor <= until) && self.filter.passes(event)
            };
            let events: Vec<_> = batch.events.into_iter().filter(is_wanted).collect();
            let is_last = self.until.is_some_and(|until| batch.through >= until);
            skipped = if events.is_empty() { skipped + looked_at } else { 0 };
            if !events.is_empty() || is_last || age.is_some() || skipped >= PROGRESS {
                let (through, until) = (batch.through, self.until);
                let page = EventPage { age: age.take(), events, through, until, is_last };
                if self.sender.send(Ok(page)).await.is_err() || is_last {
                    return Ok(());
                }
                skipped = 0;
            }
            if looked_at == 0 && !self.wait().await {
                return Ok(());
            }
        }
    }

    /// Waits for another entry or for the end of the scope. Returns false if the receiver was dropped.
    async fn wait(&mut self) -> bool {
        let scope = self.scope.clone();
        let ends = async {
            match &scope {
                Some(scope) => scope.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.sender.closed() => false,
            () = ends => true,
            () = self.reader.changed() => true,
        }
    }
}

#[cfg(test)]
mod tests;
