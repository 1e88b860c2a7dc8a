//! Streams between a user and a task, and from a task's node to the leader: what a stream is opened for, and the frames
//! that travel on it.

use std::num::NonZeroU16;

use bytes::Bytes;

use super::check::{NetworkCheck, NetworkReport};
use super::health::Health;
use crate::id::TaskId;
use crate::version::Timestamp;

/// A stream that a task's node is to open.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRequest {
    /// The task.
    pub task: TaskId,
    /// What the stream carries.
    pub kind: StreamKind,
}

/// What a stream carries.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamKind {
    /// The input and output of a program that runs in the task's container.
    Exec(Program),
    /// The task's output.
    Logs(LogRange),
    /// A connection to a port of the task.
    Forward(TaskPort),
    /// One report of the task's node on one of the task's networks.
    Check(NetworkCheck),
    /// The health of the task's container, as its node knows it now.
    Health,
}

/// A program to run in a task's container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables, each as `NAME=VALUE`, in addition to those of the container.
    pub env: Vec<String>,
    /// Its working directory; empty for the container's.
    pub working_dir: String,
    /// Its user; empty for the container's.
    pub user: String,
    /// Whether the user has standard input to send.
    pub stdin: bool,
    /// The size of its terminal, if it has one.
    pub terminal: Option<TerminalSize>,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Its height.
    pub rows: u32,
    /// Its width.
    pub columns: u32,
}

/// The part of a task's output that a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogRange {
    /// Whether to wait for more output at the end.
    pub follow: bool,
    /// Number of last lines to begin with; `None` for all.
    pub tail: Option<u64>,
}

/// A port of a task: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskPort(pub NonZeroU16);

/// A frame from the user.
#[derive(Clone, Debug, PartialEq)]
pub enum UserFrame {
    /// Input of the program.
    Stdin(Bytes),
    /// The program's input has ended.
    StdinClosed,
    /// The size of the user's terminal has changed.
    Resize(TerminalSize),
    /// Data of a forwarded connection.
    Data(Bytes),
    /// The user's side of a forwarded connection has ended in order.
    DataEnd,
}

/// A frame from the task's node.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskFrame {
    /// The program's standard output.
    Stdout(Bytes),
    /// The program's standard error.
    Stderr(Bytes),
    /// The program's exit code. After [`TaskFrame::Error`] it is the one with which a shell reports that it can't run a
    /// command.
    ExitCode(i32),
    /// A line of the task's output.
    Log(LogLine),
    /// Why the stream ends, or (for logs) which task can't be read.
    Error(String),
    /// The node has connected to the task's port.
    Connected,
    /// Data of a forwarded connection.
    Data(Bytes),
    /// The task's side of a forwarded connection has ended in order.
    DataEnd,
    /// The node's report on a network.
    Checked(NetworkReport),
    /// The health of the task's container.
    Health(Health),
}

/// A line of a task's output.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// The task.
    pub task: TaskId,
    /// Its name, such as `web.1`.
    pub task_name: String,
    /// The name of its node.
    pub node_name: String,
    /// When the task wrote it.
    pub at: Timestamp,
    /// Where the task wrote it.
    pub output: Output,
    /// The line without its end.
    pub line: Bytes,
    /// Counts the lines of the task's log from 0. Lines between two numbers were dropped before they were read.
    pub number: u64,
}

/// The standard streams to which a program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
