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

use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard};

pub use history::{EventBatch, EventsGone, HistoryReader, audit_event};
pub use indices::Load;
pub use runs::{Runs, address_of, number_of, numbers_of};
pub use snapshot::SnapshotError;
pub use tables::{Tables, View};
pub use watch::{Event, KindWatch, Lagged, Watch};
pub use write::WriteTx;

use crate::digest::Digest;
use crate::transaction::{Action, Entry, Outcome};
use flota_api::event::{ClusterEvent, EventCursor};
use flota_api::object::Kind;
use flota_api::version::{Timestamp, Version};

/// Largest number of actions in an entry for which readers wait until it is applied.
const IN_PLACE: usize = 128;

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

/// What an entry has led to.
struct Effects {
    outcomes: Vec<Outcome>,
    changes: Vec<Event>,
    described: Vec<ClusterEvent>,
}

impl Effects {
    /// Applies the entry to these tables. `before` are the tables before it, which an entry needs that removes objects.
    fn new(tables: &mut Tables, before: Option<&Tables>, index: Version, entry: Entry) -> Self {
        let entry_at = entry.at;
        let (outcomes, changes) = tables.apply(index, entry);
        // Entries of the old format do not set the time of the tables.
        let at = if tables.time == Timestamp::default() { entry_at } else { tables.time };
        let described = history::describe(index, at, &changes, before.unwrap_or(tables), tables);
        Self { outcomes, changes, described }
    }
}

impl Store {
    /// The current tables. The view is cheap and does not change.
    pub fn view(&self) -> View {
        Arc::clone(&self.tables.read().expect("no writer panics"))
    }

    /// Version of the oldest answer to a request that is kept.
    pub fn oldest_answer(&self) -> Option<Version> {
        self.tables.read().expect("no writer panics").oldest_answer()
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

    /// Tells of changes to objects of these kinds from now on. A view that is taken afterwards has those before.
    ///
    /// # Panics
    /// There are no kinds.
    pub fn watch_kinds(&self, kinds: &[Kind]) -> KindWatch {
        assert!(!kinds.is_empty(), "a watch is for some kinds");
        self.events.subscribe_to(kinds)
    }

    /// Returns a reader of the events after this place. Nothing is checked before it reads.
    pub fn events_after(&self, cursor: EventCursor) -> HistoryReader {
        self.history.reader(cursor)
    }

    /// Applies a committed entry at `index`. Returns one outcome for each of its transactions, in order.
    pub fn apply(&self, index: Version, entry: Entry) -> Vec<Outcome> {
        let _writer = self.writer.lock().expect("no writer panics");
        let is_quick =
            entry.actions().count() <= IN_PLACE && entry.actions().all(|it| !matches!(it, Action::Remove(..)));
        if is_quick {
            let mut current = self.tables.write().expect("no writer panics");
            // A change to a persistent map that a view shares copies a path of the map, which costs more than the change.
            if let Some(tables) = Arc::get_mut(&mut current) {
                let effects = Effects::new(tables, None, index, entry);
                return self.publish(current, index, effects);
            }
        }
        // Readers wait only while the new tables replace the old ones.
        let before = self.view();
        let mut next = before.as_ref().clone();
        let effects = Effects::new(&mut next, Some(&before), index, entry);
        drop(before);
        let mut current = self.tables.write().expect("no writer panics");
        let old = std::mem::replace(&mut *current, Arc::new(next));
        let outcomes = self.publish(current, index, effects);
        drop(old);
        outcomes
    }

    /// Ends the writing of the tables, which are those after the entry at `index` now. Returns the outcomes of the entry.
    fn publish(&self, tables: RwLockWriteGuard<'_, View>, index: Version, effects: Effects) -> Vec<Outcome> {
        self.events.send(index, effects.changes);
        // Before anybody can see the new tables: who has seen an entry finds its events.
        let dropped = self.history.add(index, effects.described);
        drop(tables);
        self.history.announce(index);
        drop(dropped);
        effects.outcomes
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
