//! The store: the tables as they are now, views of them, and the stream of what changed.
//!
//! One writer (the Raft state machine) calls [`Store::apply`] and [`Store::restore`]; everyone else reads.

mod apply;
mod snapshot;
mod tables;
mod watch;
mod write;

use std::sync::{Arc, Mutex, RwLock};

pub use snapshot::SnapshotError;
pub use tables::{Tables, View};
pub use watch::{Event, Lagged, Watch};
pub use write::WriteTx;

use flota_api::version::Version;

use crate::digest::Digest;
use crate::transaction::{Entry, Outcome};

/// A handle to the store of this manager.
#[derive(Clone, Debug)]
pub struct Store {
    tables: Arc<RwLock<Tables>>,
    writer: Arc<Mutex<()>>,
    events: watch::Events,
}

impl Default for Store {
    fn default() -> Self {
        Self { tables: Arc::default(), writer: Arc::default(), events: watch::Events::new() }
    }
}

impl Store {
    /// The tables as they are now. Cheap; never changes under its holder.
    pub fn view(&self) -> View {
        Arc::new(self.tables.read().expect("no writer panics").clone())
    }

    /// What the tables digest to as they are now.
    pub fn digest(&self) -> Digest {
        self.tables.read().expect("no writer panics").digest()
    }

    /// A view, and everything that changes after it.
    pub fn view_and_watch(&self) -> (View, Watch) {
        // Under the lock: no entry can come between the view and the subscription.
        let tables = self.tables.read().expect("no writer panics");
        (Arc::new(tables.clone()), self.events.subscribe())
    }

    /// Applies a committed entry at `index`; one outcome for each of its transactions, in order.
    pub fn apply(&self, index: Version, entry: Entry) -> Vec<Outcome> {
        // One writer at a time; readers wait only while the new tables take the place of the old ones.
        let _writer = self.writer.lock().expect("no writer panics");
        let mut next = self.tables.read().expect("no writer panics").clone();
        let (outcomes, changes) = next.apply(index, entry);
        let mut tables = self.tables.write().expect("no writer panics");
        let old = std::mem::replace(&mut *tables, next);
        self.events.send(index, changes);
        drop(tables);
        drop(old);
        outcomes
    }

    /// Replaces everything by what a snapshot held. Watchers are told to look at everything again.
    pub fn restore(&self, tables: Tables) {
        let _writer = self.writer.lock().expect("no writer panics");
        let version = tables.version;
        let mut current = self.tables.write().expect("no writer panics");
        let old = std::mem::replace(&mut *current, tables);
        self.events.reset(version);
        drop(current);
        drop(old);
    }
}
