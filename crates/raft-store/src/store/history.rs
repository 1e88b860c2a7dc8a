//! The last events of the cluster, which users follow. Every entry adds its events when it is applied, so all managers
//! have the same events with the same cursors; how far back they reach differs, because a snapshot brings none.
//!
//! The history is bounded in number and in bytes: the oldest events are dropped. A reader names the place after which it
//! reads, and learns when events after it have been dropped. The store never waits for a reader.

mod describe;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use flota_api::event::{ClusterEvent, EventCursor};
use flota_api::version::Version;
use tokio::sync::watch;

pub use describe::audit_event;
pub(super) use describe::{describe, name_of};

/// Largest number of events that are kept: several times as many as an entry can bring changes.
const EVENTS_KEPT: usize = 50_000;
/// Largest size of all events that are kept, in bytes.
const BYTES_KEPT: usize = 16 << 20;

/// Events that a reader has not read were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventsGone {
    /// The place after which the history has every event.
    pub oldest: EventCursor,
}

/// The next events of a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventBatch {
    /// The events, in order.
    pub events: Vec<Arc<ClusterEvent>>,
    /// The place up to which nothing is left to read.
    pub through: EventCursor,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Arc<ClusterEvent>>,
    /// Size of `events` in bytes.
    bytes: usize,
    /// The place after which every event is in `events`.
    oldest: EventCursor,
    /// Index of the newest entry.
    version: Version,
}

impl Kept {
    /// Returns the events that were dropped for it.
    fn add(&mut self, version: Version, events: Vec<ClusterEvent>) -> Vec<Arc<ClusterEvent>> {
        let mut dropped = Vec::new();
        self.version = version;
        for event in events {
            self.bytes += event.size();
            self.events.push_back(Arc::new(event));
        }
        while self.events.len() > EVENTS_KEPT || self.bytes > BYTES_KEPT {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.size();
            self.oldest = oldest.cursor;
            dropped.push(oldest);
        }
        // A place is that of a whole change.
        while let Some(oldest) = self.events.pop_front_if(|event| event.cursor == self.oldest) {
            self.bytes -= oldest.size();
            dropped.push(oldest);
        }
        dropped
    }

    fn after(&self, cursor: EventCursor, most: usize) -> Result<EventBatch, EventsGone> {
        if cursor < self.oldest {
            return Err(EventsGone { oldest: self.oldest });
        }
        let begin = self.events.partition_point(|event| event.cursor <= cursor);
        let mut rest = self.events.iter().skip(begin);
        let mut events: Vec<_> = rest.by_ref().take(most).cloned().collect();
        // All events of a change come together.
        if let Some(last) = events.last().map(|event| event.cursor) {
            events.extend(rest.take_while(|event| event.cursor == last).cloned());
        }
        let through = if begin + events.len() < self.events.len() {
            events.last().map_or(cursor, |last| last.cursor)
        } else {
            // A reader may be ahead of this manager.
            EventCursor::end_of(self.version).max(cursor)
        };
        Ok(EventBatch { events, through })
    }
}

/// The events of one store. Clones are the same history.
#[derive(Clone, Debug)]
pub(super) struct History {
    kept: Arc<Mutex<Kept>>,
    /// Index of the newest entry, for readers that wait for the next one.
    version: watch::Sender<Version>,
}

impl History {
    pub(super) fn new() -> Self {
        let oldest = EventCursor::end_of(0);
        let kept = Kept { events: VecDeque::new(), bytes: 0, oldest, version: 0 };
        Self { kept: Arc::new(Mutex::new(kept)), version: watch::Sender::new(0) }
    }

    /// Adds the events of the entry with this index. Returns what is dropped for them: freeing it takes time. Readers that
    /// wait learn of the new events by [`Self::announce`].
    pub(super) fn add(&self, version: Version, events: Vec<ClusterEvent>) -> Vec<Arc<ClusterEvent>> {
        self.kept.lock().expect("no holder panics").add(version, events)
    }

    /// Drops all events, and returns them: the tables have been replaced by those that the entry with this index has left.
    pub(super) fn reset(&self, version: Version) -> VecDeque<Arc<ClusterEvent>> {
        let oldest = EventCursor::end_of(version);
        let empty = Kept { events: VecDeque::new(), bytes: 0, oldest, version };
        std::mem::replace(&mut *self.kept.lock().expect("no holder panics"), empty).events
    }

    /// Wakes the readers that wait for what the entry with this index has brought.
    pub(super) fn announce(&self, version: Version) {
        self.version.send_replace(version);
    }

    pub(super) fn reader(&self, cursor: EventCursor) -> HistoryReader {
        HistoryReader { kept: Arc::clone(&self.kept), version: self.version.subscribe(), cursor }
    }
}

/// Reads the events of a store in order, from a place on.
#[derive(Debug)]
pub struct HistoryReader {
    kept: Arc<Mutex<Kept>>,
    version: watch::Receiver<Version>,
    cursor: EventCursor,
}

impl HistoryReader {
    /// Returns the next events, about `most` at most, as a change may have several; none if no other entry has been applied.
    ///
    /// # Errors
    /// Some of them were dropped. The reader stays where it is.
    pub fn read(&mut self, most: usize) -> Result<EventBatch, EventsGone> {
        // What is applied after this line wakes `changed`, even if the events are read here.
        self.version.mark_unchanged();
        let batch = self.kept.lock().expect("no holder panics").after(self.cursor, most)?;
        self.cursor = batch.through;
        Ok(batch)
    }

    /// Waits until an entry has been applied after the last call of [`HistoryReader::read`].
    pub async fn changed(&mut self) {
        if self.version.changed().await.is_err() {
            // The store is gone, and nothing will change.
            std::future::pending().await
        }
    }

    /// The place up to which the reader has read.
    pub fn cursor(&self) -> EventCursor {
        self.cursor
    }
}

#[cfg(test)]
mod tests;
