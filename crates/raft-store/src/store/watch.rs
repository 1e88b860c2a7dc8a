//! The events of the store, for any number of readers. The backlog is bounded: a slow reader learns that it lagged, and
//! the store never waits for it.

use std::sync::Arc;

use flota_api::object::{Kind, Object};
use flota_api::version::Version;
use tokio::sync::{broadcast, watch};

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
pub(super) struct Events {
    all: broadcast::Sender<Arc<Vec<Event>>>,
    /// For each kind, at its place in [`Kind::ALL`], the last entry that has changed an object of it.
    kinds: Arc<[watch::Sender<Version>; Kind::ALL.len()]>,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { all: broadcast::channel(BACKLOG).0, kinds: Arc::default() }
    }

    pub(super) fn subscribe(&self) -> Watch {
        Watch(self.all.subscribe())
    }

    pub(super) fn subscribe_to(&self, kinds: &[Kind]) -> KindWatch {
        KindWatch(kinds.iter().map(|kind| self.kinds[*kind as usize].subscribe()).collect())
    }

    pub(super) fn send(&self, index: Version, mut changes: Vec<Event>) {
        let mut changed = [false; Kind::ALL.len()];
        changes.iter().filter_map(Event::kind).for_each(|kind| changed[kind as usize] = true);
        for (kind, _) in self.kinds.iter().zip(changed).filter(|(_, is_changed)| *is_changed) {
            kind.send_replace(index);
        }
        changes.push(Event::Committed(index));
        // It fails if there are no watchers, which is fine.
        let _ = self.all.send(Arc::new(changes));
    }

    pub(super) fn reset(&self, version: Version) {
        for kind in self.kinds.iter() {
            kind.send_replace(version);
        }
        let _ = self.all.send(Arc::new(vec![Event::Reset, Event::Committed(version)]));
    }
}

impl Event {
    /// Kind of the object that it is about.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Created(object) | Self::Updated { new: object, .. } | Self::Removed(object) => Some(object.kind()),
            Self::Committed(_) | Self::Reset => None,
        }
    }
}

/// Tells whether objects of some kinds have changed. Unlike a [`Watch`] it wakes nobody for any other entry.
#[derive(Debug)]
pub struct KindWatch(Vec<watch::Receiver<Version>>);

impl KindWatch {
    /// Waits until an object of one of the kinds has changed since the last call, or since the subscription.
    pub async fn next(&mut self) {
        let changes = self.0.iter_mut().map(|kind| Box::pin(kind.changed()));
        match futures::future::select_all(changes).await {
            (Ok(()), ..) => {}
            // The store is gone.
            (Err(_), ..) => std::future::pending().await,
        }
        self.0.iter_mut().for_each(watch::Receiver::mark_unchanged);
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
