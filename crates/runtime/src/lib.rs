//! Containers: namespaces, cgroups, a root file system, and a small process for each that outlives whoever asked.
//!
//! ```text
//!  daemon ── spawns ──▶ flota-runtime supervise DIR ── clone3 ──▶ init of the container ── exec ──▶ program
//!     ▲                    │  writes DIR/state.json, DIR/log, DIR/exit.json
//!     └── DIR/sock ◀───────┘  kill, exec, wait
//! ```
//!
//! The supervisor is single-threaded and without an async runtime. It sits outside of the container's limits,
//! keeps the output and the exit code, and does not end with the daemon, which finds its containers again by
//! their folders. If the supervisor dies, the kernel kills the container: nothing runs that nobody watches.
//!
//! Knows no cluster words. Everything that is unsafe is in `process/clone.rs` and a few marked calls.

pub mod cgroup;
pub mod client;
mod error;
mod log;
pub mod process;
mod rootfs;
mod security;
pub mod spec;
pub mod state;
pub mod supervisor;

pub use client::{ContainerClient, ExecProcess, Message, start};
pub use error::{RunError, StepError};
pub use log::{LogLine, LogReader};
pub use spec::{ContainerSpec, ExecSpec, Limits, Root};
pub use state::{ExitStatus, State};
