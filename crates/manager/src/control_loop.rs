//! The shape of every planning job of the leader, and the one driver that runs them all.
//!
//! A pass: the dirty keys of each loop, in pipeline order, over one overlay in which each sees what the ones before
//! it want. All that is wanted of one object is folded into one action; plans that build on each other are one
//! group; a group is one transaction. The next pass is planned when this one is applied. A conflict, a lost
//! proposal or a lag only means: look again.

mod driver;
mod pass;

pub(crate) use driver::Driver;

use flota_raft_store::{Event, Tables};

use crate::plan::{Plan, PlanContext};

/// Keeps one kind of thing as its spec says. Runs on the leader only. Pure: no I/O, no clock, no chance but what
/// it is given. Keys are object ids.
pub(crate) trait ControlLoop: Send {
    /// In logs.
    fn name(&self) -> &'static str;
    /// Every key there is: for the first pass, and after the watch lagged.
    fn all(&self, view: &Tables) -> Vec<String>;
    /// Which keys this event makes dirty. Cheap; no decisions here.
    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<String>;
    /// What must change so that `key` is as it should be; empty when it is.
    fn plan(&mut self, key: &str, view: &Tables, cx: &mut PlanContext) -> Plan;
}

/// Keys of `T` objects: all of them, and the one that an event is about.
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
