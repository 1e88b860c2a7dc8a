//! The store: the current tables, views of them, and the events of their changes.
//!
//! One writer, the Raft state machine, calls [`Store::apply`] and [`Store::restore`]; everyone else reads.

mod apply;
mod groups;
mod indices;
mod networks;
mod runs;
mod snapshot;
mod table;
mod tables;
mod watch;
mod write;

use std::sync::{Arc, Mutex, RwLock};

pub use indices::Load;
pub use runs::{Runs, address_of, number_of, numbers_of};
pub use snapshot::SnapshotError;
pub use tables::{Tables, View};
pub use watch::{Event, Lagged, Watch};
pub use write::WriteTx;

use crate::digest::Digest;
use crate::transaction::{Entry, Outcome};
use flota_api::version::Version;

/// A handle to the store of this manager.
#[derive(Clone, Debug)]
pub struct Store {
    tables: Arc<RwLock<View>>,
    writer: Arc<Mutex<()>>,
    events: watch::Events,
}

impl Default for Store {
    fn default() -> Self {
        Self { tables: Arc::default(), writer: Arc::default(), events: watch::Events::new() }
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

    /// Applies a committed entry at `index`. Returns one outcome for each of its transactions, in order.
    pub fn apply(&self, index: Version, entry: Entry) -> Vec<Outcome> {
        // One writer at a time. Readers wait only while the new tables replace the old ones.
        let _writer = self.writer.lock().expect("no writer panics");
        let mut next = self.view().as_ref().clone();
        let (outcomes, changes) = next.apply(index, entry);
        let next = Arc::new(next);
        let mut tables = self.tables.write().expect("no writer panics");
        let old = std::mem::replace(&mut *tables, next);
        self.events.send(index, changes);
        drop(tables);
        drop(old);
        outcomes
    }

    /// Replaces all tables by those of a snapshot. Watchers receive [`Event::Reset`].
    pub fn restore(&self, tables: View) {
        let _writer = self.writer.lock().expect("no writer panics");
        let version = tables.version;
        let mut current = self.tables.write().expect("no writer panics");
        let old = std::mem::replace(&mut *current, tables);
        self.events.reset(version);
        drop(current);
        drop(old);
    }
}

#[cfg(test)]
mod tests;
