//! The messages between daemon, launcher and supervisor, with one type for each direction. A launcher sends none.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::order::ExecSpec;
use crate::error::RunError;
use crate::state::ExitStatus;

/// A message from a daemon to its launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToLauncher {
    /// Fork a supervisor for this folder. The first descriptor of the message is the supervisor's end of a connection,
    /// where it sends [`FromSupervisor::Started`] or [`FromSupervisor::Failed`] and then, as after
    /// [`ToSupervisor::Watch`], its events. The supervisor keeps the others open until its container has ended.
    Supervise(PathBuf),
}

/// A message from a client to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// Send this connection the container's events from now on. Not answered.
    Watch,
    /// Send this signal to the container's init. Not answered.
    Kill(i32),
    /// Start this process with the attached descriptors. Answered with `Started` or `Failed`; later
    /// [`FromSupervisor::ExecExited`] follows. The process is killed when the connection ends.
    Exec(ExecSpec),
    /// Copy the output from now on to the first attached descriptor, and write the data from the second one, if there
    /// is one, to the container's terminal. Answered with `Started` or `Failed`.
    Attach,
    /// Set the size of the container's terminal. Not answered.
    Resize {
        /// Number of lines.
        rows: u16,
        /// Number of columns.
        columns: u16,
    },
    /// Send copies of the descriptors that the supervisor keeps. Answered with [`FromSupervisor::Kept`].
    Kept,
}

/// A message from a supervisor to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromSupervisor {
    /// Answer: the program runs, or the output is copied.
    Started,
    /// Answer: the request failed for this reason.
    Failed(RunError),
    /// Answer: copies of the kept descriptors, in the order in which they were given, are attached.
    Kept,
    /// The process of this connection ended with this exit code.
    ExecExited(i32),
    /// An event of the container. Only sent to connections that watch it.
    Event(ContainerEvent),
}

/// An event of a running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerEvent {
    /// Memory ran out, and the kernel kills one of its processes.
    OutOfMemory,
    /// It has ended. This is always the last event.
    Exited(ExitStatus),
}
