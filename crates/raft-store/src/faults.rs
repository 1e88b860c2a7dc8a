//! Faults that tests inject to check that they are detected. Without the feature `faults`, none can be on.
//!
//! A fault is on for the current thread only. A simulated cluster runs in one thread, so clusters in other threads are
//! not affected.

/// A guarantee that is broken while its fault is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A restarted leader continues in its old term without an election.
    LeaderRestore,
    /// An entry is acknowledged before it is synced.
    EarlyAcknowledgement,
    /// A new leader serves reads before an entry of its own term is applied.
    EarlyRead,
    /// A control loop misses a change.
    LostWakeup,
    /// The orchestrator sometimes creates a second task in a slot and does not stop it.
    DoublePlacement,
    /// The allocator gives a task the address that it has given last.
    DoubleAddress,
    /// The dispatcher sometimes does not tell a node of a change of its networks.
    LostNews,
    /// The dispatcher tells nodes nothing of their networks after the beginning of a session.
    NoNews,
    /// A leader refuses requests from its view without a proof that it still leads.
    RefusalWithoutProof,
    /// The age of a manager's data counts from the last answer of the leader, complete or not.
    AgeOfContact,
    /// The orchestrator starts services before those on which they depend.
    EarlyStart,
    /// Entries have the times of their leaders' wall clocks, and the tasks of a slot are ordered by them.
    OrderByClock,
    /// A time of a schedule counts as not done with although its run has begun.
    RunAgain,
    /// The scheduler does not see where the data of volumes is.
    LostPlaces,
    /// An update goes on before the slots that it has begun with are done.
    OverlappingUpdate,
    /// The old task of a slot is stopped before the new one serves, in an update that starts the new one first.
    EarlyStop,
    /// The new task of a slot runs before the old one has ended, in an update that stops the old one first.
    EarlySuccessor,
    /// The scheduler does not count the tasks of a service on a node.
    CrowdedNode,
    /// A service that loses a task to a user keeps that one and stops another.
    WrongShrink,
    /// A job does again what it has done.
    JobAgain,
    /// A job begins with more slots than may work at once.
    CrowdedJob,
    /// Tasks of which nothing is known count as idle, so that there are soon fewer.
    SilentTasks,
    /// The control loops of a leader go on after its leadership has ended.
    LingeringLoops,
    /// An update goes on although it is paused.
    DeafPause,
    /// An update goes on however many of its new tasks have failed.
    LenientUpdate,
    /// An update takes a new task for one that serves before its health check has succeeded.
    BlindUpdate,
    /// Workers take tasks for healthy without a check.
    BlindWorker,
    /// Each change of a service replaces its tasks, whatever has changed.
    LabelUpdate,
    /// A node breaks the constraints of a service as soon as it has a label that they do not name.
    JumpyMoves,
    /// A removed volume is forgotten while nodes have data of it.
    EarlyForget,
    /// Nodes are told to drop the data of volumes that nobody has removed.
    EagerDrop,
    /// A manager may go although those that stay have no majority that answers.
    CarelessDeparture,
    /// The former CA counts for nothing while a node has not confirmed the new one.
    EarlyCa,
}

#[cfg(feature = "faults")]
mod switch {
    use super::Fault;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// Sets the fault that is on in this thread; `None` turns it off.
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

    /// Always false: the feature `faults` is off.
    pub const fn is_on(_: Fault) -> bool {
        false
    }
}

pub use switch::is_on;
#[cfg(feature = "faults")]
pub use switch::set;
