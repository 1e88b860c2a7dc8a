//! What changed, to everyone who wants to know. Bounded: a slow reader is told that it lagged, and the store
//! never waits for it.

use std::sync::Arc;

use flota_api::object::Object;
use flota_api::version::Version;
use tokio::sync::broadcast;

/// Entries that a reader may be behind.
const BACKLOG: usize = 4_096;

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A new object.
    Created(Object),
    /// An object changed.
    Updated {
        /// As it was.
        old: Object,
        /// As it is.
        new: Object,
    },
    /// An object is gone.
    Removed(Object),
    /// Everything of the entry with this index has been told.
    Committed(Version),
    /// A snapshot replaced everything: look at all of it again.
    Reset,
}

/// The reader was too slow; it missed something and must look at everything again.
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
        // Fails when nobody watches, which is fine.
        let _ = self.0.send(Arc::new(changes));
    }

    pub(super) fn reset(&self, version: Version) {
        let _ = self.0.send(Arc::new(vec![Event::Reset, Event::Committed(version)]));
    }
}

/// A subscription that began at a view.
#[derive(Debug)]
pub struct Watch(broadcast::Receiver<Arc<Vec<Event>>>);

impl Watch {
    /// The events of the next entry. Never ends while the store lives; waits for ever when nothing happens.
    ///
    /// # Errors
    /// The reader lagged: take a new view and look at everything.
    pub async fn next(&mut self) -> Result<Arc<Vec<Event>>, Lagged> {
        match self.0.recv().await {
            Ok(events) => Ok(events),
            Err(broadcast::error::RecvError::Lagged(_)) => Err(Lagged),
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    /// The next entry's events, if they are there already.
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
