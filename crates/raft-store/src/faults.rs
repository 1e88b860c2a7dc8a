//! Faults that tests put in on purpose, to see that they are found. Without the feature `faults` none can be on.
//!
//! A fault is on for the current thread: a simulated cluster runs in one thread, and others beside it stay whole.

/// One promise that is broken while its fault is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A restarted leader leads again in its old term, without an election.
    LeaderRestore,
    /// An entry is acknowledged before it is synced.
    EarlyAcknowledgement,
    /// A new leader serves reads before an entry of its own term is applied.
    EarlyRead,
    /// A control loop misses that something changed.
    LostWakeup,
    /// The orchestrator makes a second task in a slot now and then, and does not stop it.
    DoublePlacement,
}

#[cfg(feature = "faults")]
mod switch {
    use super::Fault;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// Puts a fault in on this thread, or takes it out.
    pub fn set(fault: Option<Fault>) {
        ON.set(fault);
    }

    /// Whether this fault is on.
    pub fn is_on(fault: Fault) -> bool {
        ON.get() == Some(fault)
    }
}

#[cfg(not(feature = "faults"))]
mod switch {
    use super::Fault;

    /// Never: the feature `faults` is off.
    pub const fn is_on(_: Fault) -> bool {
        false
    }
}

pub use switch::is_on;
#[cfg(feature = "faults")]
pub use switch::set;
