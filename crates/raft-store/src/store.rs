//! The store: the current tables, views of them, the events of their changes, and the last of these as users read them.
//!
//! One writer, the Raft state machine, calls [`Store::apply`] and [`Store::restore`]; everyone else reads.

mod apply;
mod groups;
mod history;
mod indices;
mod networks;
mod runs;
mod snapshot;
mod table;
mod tables;
mod watch;
mod write;

use std::sync::{Arc, Mutex, RwLock};

pub use history::{EventBatch, EventsGone, HistoryReader, audit_event};
pub use indices::Load;
pub use runs::{Runs, address_of, number_of, numbers_of};
pub use snapshot::SnapshotError;
pub use tables::{Tables, View};
pub use watch::{Event, Lagged, Watch};
pub use write::WriteTx;

use crate::digest::Digest;
use crate::transaction::{Entry, Outcome};
use flota_api::event::EventCursor;
use flota_api::version::{Timestamp, Version};

/// A handle to the store of this manager.
#[derive(Clone, Debug)]
pub struct Store {
    tables: Arc<RwLock<View>>,
    writer: Arc<Mutex<()>>,
    events: watch::Events,
    history: history::History,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            tables: Arc::default(),
            writer: Arc::default(),
            events: watch::Events::new(),
            history: history::History::new(),
        }
    }
}

impl Store {
    /// The current tables. The view is cheap and does not change.
    pub fn view(&self) -> View {
        Arc::clone(&self.tables.read().expect("no writer panics"))
    }

    /// Digest of the current tables.
    pub fn digest(&self) -> Digest {
        self.tables.read().expect("no writer panics").digest()
    }

    /// A view, and the events of everything that changes after it.
    pub fn view_and_watch(&self) -> (View, Watch) {
        // The lock is held so that no entry comes between the view and the subscription.
        let tables = self.tables.read().expect("no writer panics");
        (Arc::clone(&tables), self.events.subscribe())
    }

    /// Returns a reader of the events after this place. Nothing is checked before it reads.
    pub fn events_after(&self, cursor: EventCursor) -> HistoryReader {
        self.history.reader(cursor)
    }

    /// Applies a committed entry at `index`. Returns one outcome for each of its transactions, in order.
    pub fn apply(&self, index: Version, entry: Entry) -> Vec<Outcome> {
        // One writer at a time. Readers wait only while the new tables replace the old ones.
        let _writer = self.writer.lock().expect("no writer panics");
        let before = self.view();
        let mut next = before.as_ref().clone();
        let entry_at = entry.at;
        let (outcomes, changes) = next.apply(index, entry);
        // Entries of the old format do not set the time of the tables.
        let at = if next.time == Timestamp::default() { entry_at } else { next.time };
        let described = history::describe(index, at, &changes, &before, &next);
        drop(before);
        let next = Arc::new(next);
        let mut tables = self.tables.write().expect("no writer panics");
        let old = std::mem::replace(&mut *tables, next);
        self.events.send(index, changes);
        // Before anybody can see the new tables: who has seen an entry finds its events.
        let dropped = self.history.add(index, described);
        drop(tables);
        self.history.announce(index);
        drop((old, dropped));
        outcomes
    }

    /// Replaces all tables by those of a snapshot. Watchers receive [`Event::Reset`].
    pub fn restore(&self, tables: View) {
        let _writer = self.writer.lock().expect("no writer panics");
        let version = tables.version;
        let mut current = self.tables.write().expect("no writer panics");
        let old = std::mem::replace(&mut *current, tables);
        self.events.reset(version);
        let dropped = self.history.reset(version);
        drop(current);
        self.history.announce(version);
        drop((old, dropped));
    }
}

#[cfg(test)]
mod tests;
