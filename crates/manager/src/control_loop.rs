//! The trait of the leader's control loops, and the driver that runs all of them.
//!
//! A pass plans the dirty keys of each loop in pipeline order, over one overlay in which each loop sees the changes of
//! the earlier ones. All changes of one object are folded into one action. Plans that depend on each other form a group,
//! also if one was only made because of the changes of another, and a group is one transaction. The next pass is planned once this one has been applied. After a conflict, a lost
//! proposal or a lag the keys are planned again.
//!
//! The changes of a pass always fit into one transaction, however much there is to do: what is left over stays dirty.

mod driver;
mod pass;
mod statistics;
mod timers;

pub(crate) use driver::Driver;
#[cfg(feature = "measure")]
pub(crate) use driver::largest_share;
#[cfg(any(test, feature = "measure"))]
pub(crate) use pass::run;
pub(crate) use statistics::LoopCounters;
pub use statistics::LoopStatistics;

use std::collections::BTreeSet;
use std::fmt;

use flota_api::id::Id;
use flota_api::model::Task;
use flota_raft_store::{Event, Tables};

use crate::plan::{Plan, PlanContext};

/// The unit of a loop's planning: an object, or one slot of a service. A service comes before its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Id of the object.
    pub(crate) id: Id,
    /// The slot of the service, unless all of it is planned.
    pub(crate) slot: Option<u64>,
}

impl Key {
    /// The object with this id.
    pub(crate) fn of(id: impl Into<Id>) -> Self {
        Self { id: id.into(), slot: None }
    }

    /// The slot of a task.
    pub(crate) fn slot_of(task: &Task) -> Self {
        Self { id: (&task.service_id).into(), slot: Some(task.slot) }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            Some(slot) => write!(f, "{}.{slot}", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// Brings objects to their desired state. It runs on the leader only and is pure: it does no I/O, and has no clock and no
/// random source but those of its context.
pub(crate) trait ControlLoop: Send {
    /// The name of the loop in logs.
    fn name(&self) -> &'static str;
    /// Every key, for the first pass and after the watch lagged.
    fn all(&self, view: &Tables) -> Vec<Key>;
    /// The keys that this event makes dirty. It is cheap and decides nothing. `view` has the event, and may have later ones.
    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key>;
    /// The order in which the dirty keys are planned in a pass; `None` for that of the keys.
    fn order(&self, _dirty: &BTreeSet<Key>, _view: &Tables) -> Option<Vec<Key>> {
        None
    }
    /// The changes that bring `key` to its desired state; empty if it is there.
    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan;
}

/// Maps an event about an object to keys, by the kind of the object.
macro_rules! keyed_by {
    ($event:expr, $($kind:ident $object:ident => $keys:expr),* $(,)?) => {
        match $event {
            $(flota_raft_store::Event::Created(flota_api::object::Object::$kind($object))
            | flota_raft_store::Event::Updated { new: flota_api::object::Object::$kind($object), .. }
            | flota_raft_store::Event::Removed(flota_api::object::Object::$kind($object)) => $keys,)*
            _ => Vec::new(),
        }
    };
}
pub(crate) use keyed_by;
