//! The trait of the leader's control loops, and the driver that runs all of them.
//!
//! A pass plans the dirty keys of each loop in pipeline order, over one overlay in which each loop sees the changes of
//! the earlier ones. All changes of one object are folded into one action. Plans that depend on each other form a group,
//! and a group is one transaction. The next pass is planned once this one has been applied. After a conflict, a lost
//! proposal or a lag the keys are planned again.

mod driver;
mod pass;

pub(crate) use driver::Driver;

use flota_raft_store::{Event, Tables};

use crate::plan::{Plan, PlanContext};

/// Brings objects to their desired state. It runs on the leader only and is pure: it does no I/O, and has no clock and no
/// random source but those of its context. Keys are ids of objects.
pub(crate) trait ControlLoop: Send {
    /// The name of the loop in logs.
    fn name(&self) -> &'static str;
    /// Every key, for the first pass and after the watch lagged.
    fn all(&self, view: &Tables) -> Vec<String>;
    /// The keys that this event makes dirty. It is cheap and decides nothing.
    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<String>;
    /// The changes that bring `key` to its desired state; empty if it is there.
    fn plan(&mut self, key: &str, view: &Tables, cx: &mut PlanContext) -> Plan;
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
