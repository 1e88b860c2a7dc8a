//! What a planner wants changed, and what it may use to decide: the clock's reading and a source of ids.

use std::sync::Arc;

use rand::rngs::StdRng;

use flota_api::model::Task;
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::state::DesiredState;
use flota_api::version::Timestamp;

/// One wanted change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// This object, new or in place of its former self.
    Put(Object),
    /// No such object.
    Remove(Kind, String),
}

/// The changes that bring one key to where it shall be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Together or not at all.
    pub(crate) changes: Vec<Change>,
    /// Objects that were read for it and must be unchanged when it is applied.
    pub(crate) expects: Vec<(Kind, String)>,
    /// When to look at the key again, if nothing happens before.
    pub(crate) retry_at: Option<Timestamp>,
}

impl Plan {
    /// Wants this object.
    pub(crate) fn put(&mut self, object: impl StoreObject) {
        self.changes.push(Change::Put(object.into_object()));
    }

    /// Wants this object gone.
    pub(crate) fn remove(&mut self, kind: Kind, id: impl Into<String>) {
        self.changes.push(Change::Remove(kind, id.into()));
    }

    /// Decided on the strength of this object.
    pub(crate) fn expect(&mut self, kind: Kind, id: impl Into<String>) {
        self.expects.push((kind, id.into()));
    }

    /// Wants this task stopped (or gone), unless that is wanted already.
    pub(crate) fn set_desired(&mut self, task: &Arc<Task>, desired_state: DesiredState) {
        if task.desired_state < desired_state {
            self.put(Task { desired_state, ..task.as_ref().clone() });
        }
    }

    /// Looks again at `at`, or sooner.
    pub(crate) fn retry_at(&mut self, at: Timestamp) {
        self.retry_at = Some(self.retry_at.map_or(at, |known| known.min(at)));
    }
}

/// What a planner may use beside the view.
#[derive(Debug)]
pub(crate) struct PlanContext {
    /// The clock's reading.
    pub(crate) now: Timestamp,
    /// For new ids; seeded, so that a run can be replayed.
    pub(crate) rng: StdRng,
}
