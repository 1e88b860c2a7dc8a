//! What a supervisor is asked, and what it says.

use serde::{Deserialize, Serialize};

use super::order::ExecSpec;
use crate::error::RunError;
use crate::state::ExitStatus;

/// What goes over a supervisor's socket, each as a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// To the supervisor: send the container's init this signal.
    Kill(i32),
    /// To the supervisor: start this process, with the descriptors that come along.
    Exec(ExecSpec),
    /// To the supervisor: copy the output from now on to the descriptor that comes along, and what comes at a second
    /// one to the container's terminal.
    Attach,
    /// To the supervisor: the container's terminal has this size now.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// From it: the output is copied.
    Attached,
    /// From it: the process runs.
    ExecStarted,
    /// From it: the process ended with this code.
    ExecExited(i32),
    /// From it: it could not be done.
    Failed(RunError),
    /// From it, to everyone: the container has ended.
    Exited(ExitStatus),
}
