//! The result of a planner, and its inputs besides the view: the time, a random source and the room for changes.

use std::sync::Arc;

use rand::rngs::StdRng;

use flota_api::id::Id;
use flota_api::model::Task;
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::state::DesiredState;
use flota_api::version::Timestamp;

use crate::usage::Usage;

/// A planned change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// Create or replace this object.
    Put(Object),
    /// Remove this object.
    Remove(Kind, Id),
}

/// The changes that bring one key to its desired state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Changes in an order in which any first part of them is right by itself, because the driver may take only a part.
    /// Changes that belong together are made together or not at all.
    pub(crate) changes: Vec<Change>,
    /// Objects that the plan depends on: it fails if they have changed when it is applied.
    pub(crate) expects: Vec<(Kind, Id)>,
    /// Objects that get another version and stay as they are, so that what was planned of them before meets a conflict.
    pub(crate) touches: Vec<Object>,
    /// When to plan the key again if no event makes it dirty earlier.
    pub(crate) retry_at: Option<Timestamp>,
}

impl Plan {
    /// Creates or replaces an object.
    pub(crate) fn put(&mut self, object: impl StoreObject) {
        self.changes.push(Change::Put(object.into_object()));
    }

    /// Removes an object.
    pub(crate) fn remove(&mut self, kind: Kind, id: impl Into<Id>) {
        self.changes.push(Change::Remove(kind, id.into()));
    }

    /// Makes the plan depend on an object that it does not change.
    pub(crate) fn expect(&mut self, kind: Kind, id: impl Into<Id>) {
        self.expects.push((kind, id.into()));
    }

    /// Gives an object another version.
    pub(crate) fn touch(&mut self, object: impl StoreObject) {
        self.touches.push(object.into_object());
    }

    /// Raises the desired state of a task; does nothing if it is that high already.
    pub(crate) fn set_desired(&mut self, task: &Arc<Task>, desired_state: DesiredState) {
        if task.desired_state < desired_state {
            self.put(Task { desired_state, ..task.as_ref().clone() });
        }
    }

    /// Plans the key again at `at`, or earlier if an earlier time is set.
    pub(crate) fn retry_at(&mut self, at: Timestamp) {
        self.retry_at = Some(self.retry_at.map_or(at, |known| known.min(at)));
    }

    /// Whether the driver takes this many further changes together. If the plan has none yet, they are always taken, however
    /// many they are, because a later pass has no more room for them.
    pub(crate) fn has_room_for(&self, changes: usize, cx: &PlanContext) -> bool {
        self.changes.is_empty() || self.changes.len() + changes <= cx.room
    }

    /// Whether the driver takes no further change of this plan. The planner may stop: its key is planned again in the
    /// next pass.
    pub(crate) fn is_full(&self, cx: &PlanContext) -> bool {
        self.changes.len() >= cx.room
    }
}

/// The inputs of a planner besides the view.
#[derive(Debug)]
pub(crate) struct PlanContext {
    /// The current time, which never goes back.
    pub(crate) now: Timestamp,
    /// What the wall clock shows, for times that people have set. It may be wrong, and may step forwards and backwards.
    pub(crate) wall: Timestamp,
    /// Since when this manager leads. What needed a leader to notice it, such as a deadline, can't have been noticed
    /// earlier.
    pub(crate) led_since: Timestamp,
    /// Source of new ids; seeded, so that a run can be replayed.
    pub(crate) rng: StdRng,
    /// What the nodes say that is in use.
    pub(crate) usage: Usage,
    /// Number of changes that the driver takes of the plan.
    pub(crate) room: usize,
}

#[cfg(test)]
impl PlanContext {
    /// A context with room for any plan.
    pub(crate) fn at(now: Timestamp) -> Self {
        Self {
            now,
            wall: now,
            led_since: Timestamp::default(),
            rng: rand::SeedableRng::seed_from_u64(1),
            usage: Usage::default(),
            room: usize::MAX,
        }
    }
}
