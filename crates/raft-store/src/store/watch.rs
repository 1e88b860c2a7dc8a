//! The events of the store, for any number of readers. The backlog is bounded: a slow reader learns that it lagged, and
//! the store never waits for it.

use std::sync::Arc;

use flota_api::object::Object;
use flota_api::version::Version;
use tokio::sync::broadcast;

/// Number of entries that a reader may be behind.
const BACKLOG: usize = 4_096;

/// A change of the tables.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object was created.
    Created(Object),
    /// An object was replaced.
    Updated {
        /// The object as it was.
        old: Object,
        /// The object as it is now.
        new: Object,
    },
    /// An object was removed.
    Removed(Object),
    /// All events of the entry with this index have been sent.
    Committed(Version),
    /// A snapshot replaced the tables: readers must start again from a new view.
    Reset,
}

/// The reader was too slow and missed events: it must start again from a new view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged;

#[derive(Clone, Debug)]
pub(super) struct Events(broadcast::Sender<Arc<Vec<Event>>>);

impl Events {
    pub(super) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(super) fn subscribe(&self) -> Watch {
        Watch(self.0.subscribe())
    }

    pub(super) fn send(&self, index: Version, mut changes: Vec<Event>) {
        changes.push(Event::Committed(index));
        // It fails if there are no watchers, which is fine.
        let _ = self.0.send(Arc::new(changes));
    }

    pub(super) fn reset(&self, version: Version) {
        let _ = self.0.send(Arc::new(vec![Event::Reset, Event::Committed(version)]));
    }
}

/// A subscription to the events after a view.
#[derive(Debug)]
pub struct Watch(broadcast::Receiver<Arc<Vec<Event>>>);

impl Watch {
    /// Waits for the events of the next entry.
    ///
    /// # Errors
    /// The reader lagged and must start again from a new view.
    pub async fn next(&mut self) -> Result<Arc<Vec<Event>>, Lagged> {
        match self.0.recv().await {
            Ok(events) => Ok(events),
            Err(broadcast::error::RecvError::Lagged(_)) => Err(Lagged),
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    /// The events of the next entry if it has been applied already.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Option<Arc<Vec<Event>>>, Lagged> {
        match self.0.try_recv() {
            Ok(events) => Ok(Some(events)),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Err(Lagged),
            Err(_) => Ok(None),
        }
    }
}
