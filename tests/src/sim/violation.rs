//! Why a simulation fails. The kind tells which promise is broken, so that a test of an injected fault can require that
//! the right check has found it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Two managers lead in one term.
    TwoLeaders,
    /// A manager has gone although those that stay have no majority that works.
    NoMajority,
    /// The former CA counts for nothing before every node has confirmed the new one.
    CaTooEarly,
    /// The control loops run twice on a manager, or on one that does not lead.
    LoopsRunOn,
    /// Two entries of the same index and term differ.
    EntriesDiffer,
    /// The tables of two managers differ after the same entry.
    TablesDiffer,
    /// (attempt, state) of a task has fallen.
    TaskWentBack,
    /// A task has changed its node.
    TaskMoved,
    /// A task is on another node than the one to which it is pinned, or two of a global service are on one.
    WrongNode,
    /// A part of a task has changed that its writer can't have changed.
    WrongWriter,
    /// A task was stopped for one that is not more important.
    WrongVictim,
    /// Two tasks of one slot should run.
    SlotWantedTwice,
    /// Containers of two tasks of one slot run for too long.
    SlotRunsTwice,
    /// A service has tasks although another one, on which it depends, was not ready.
    StartedTooEarly,
    /// A time of a schedule has begun two runs, runs overlap that may not, or a run has other tasks than it asks for.
    WrongRun,
    /// More tasks of a service run at once than its policy allows.
    TooManyTasks,
    /// Fewer tasks of a service serve than its policy allows, by no fault.
    TooFewTasks,
    /// An update goes on although it is paused or too much has failed, or its policy does not say what has become of it.
    WrongUpdate,
    /// A task counts as running although its health check has not succeeded.
    FalseHealth,
    /// A task is replaced although nothing asks for that.
    NeedlessMove,
    /// A job does again what it has done, or more than it asks for.
    WorkedTwice,
    /// More slots of a job work at once than may.
    TooManyAtOnce,
    /// The number of tasks follows another load than that of the tasks.
    WrongScale,
    /// More slots of a service are on a node than may be.
    TooManyOnNode,
    /// Two tasks hold the same device.
    DeviceTwice,
    /// Two nodes have the data that a slot has in a volume, or a task is on another node than its data.
    VolumeTwice,
    /// A machine has data of a volume that the store does not know of.
    VolumeLeft,
    /// Data of a volume is gone although nobody has removed the volume.
    VolumeLost,
    /// The tasks of a node have reserved more than it has.
    Overcommitted,
    /// Two objects have the same address, or one has an address outside of its network.
    WrongAddress,
    /// Two services publish the same port.
    PortTwice,
    /// Two networks share addresses or an identifier.
    NetworksMeet,
    /// A node has confirmed a change of its networks that it has not made.
    FalseConfirmation,
    /// A node sends connections to a task that has ended.
    StaleConnections,
    /// Nobody could write for too long, although a majority of the managers could work.
    NoWrites,
    /// Users were answered what no order of their operations explains, or older data than the answer states.
    NotLinearizable,
    /// The cluster is not what users have asked for, although nothing goes wrong.
    NotConverged,
    /// Containers start or stop although nothing is left to do.
    Unrest,
    /// A manager has ended by itself.
    ManagerEnded,
    /// A manager or a user has logged what never happens.
    BadLog,
    /// A task of a process has panicked.
    Panicked,
    /// The cluster did not start, or a condition that a test waits for did not hold in time.
    NotInTime,
    /// The process of the simulation has ended without a result.
    BrokenOff,
}

/// A broken promise, with what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The promise.
    pub kind: Kind,
    /// What was seen.
    pub text: String,
}

impl Kind {
    /// Returns the violation of this promise that shows in `text`.
    pub fn because(self, text: impl Into<String>) -> Violation {
        Violation { kind: self, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

impl std::error::Error for Violation {}
