//! The messages between daemon, launcher and supervisor: one type for each direction. A launcher sends none.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::order::ExecSpec;
use crate::error::RunError;
use crate::state::ExitStatus;

/// From a daemon to its launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToLauncher {
    /// Fork a supervisor for this folder. One descriptor comes along: the supervisor's end of a connection, where it
    /// sends [`FromSupervisor::Started`] or [`FromSupervisor::Failed`] and then, as after [`ToSupervisor::Watch`], its
    /// events.
    Supervise(PathBuf),
}

/// From a client to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// Send this connection the container's events from now on. Not answered.
    Watch,
    /// Send the container's init this signal. Not answered.
    Kill(i32),
    /// Start this process, with the descriptors that come along. Answered with `Started` or `Failed`; later
    /// [`FromSupervisor::ExecExited`]. The process is killed when the connection ends.
    Exec(ExecSpec),
    /// Copy the output from now on to the first descriptor that comes along, and write to the container's terminal what
    /// can be read from the second, if there is one. Answered with `Started` or `Failed`.
    Attach,
    /// Give the container's terminal this size. Not answered.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// From a supervisor to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromSupervisor {
    /// The answer: the program runs, or the output is copied.
    Started,
    /// The answer: it could not be done, and why.
    Failed(RunError),
    /// The process of this connection ended with this code.
    ExecExited(i32),
    /// Something happened to the container. Only for connections that watch it.
    Event(ContainerEvent),
}

/// What happens to a container while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerEvent {
    /// Its memory ran out, and the kernel kills a process of it.
    OutOfMemory,
    /// It has ended. Always the last event.
    Exited(ExitStatus),
}
