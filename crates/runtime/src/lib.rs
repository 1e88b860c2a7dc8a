//! Containers: namespaces, cgroups, a root file system, and for each container a small supervisor that outlives its
//! client.
//!
//! This crate implements the whole OCI runtime specification on Linux, both as a library and as the command line
//! `flota-runtime`.
//!
//! ```text
//!  config.json ─ oci ─▶ container/create ─ clone3 ─▶ process/init ─ exec ─▶ program
//!                          │ cgroup, hooks              │ rootfs, security, process/…
//!                          ▼
//!                      container: ROOT/ID, and what can be done to it
//!
//!  daemon ── DIR, a connection ──▶ launcher ── forks ──▶ supervisor ── forks, or runs crun, runc, … ──▶ create, start
//!    ▲ ▲                                                   │ │  writes DIR/state.json, DIR/log, DIR/exit.json
//!    │ └── that connection: events out, signals in ◀───────┘ │
//!    └──── DIR/sock: exec, attach, resize, events ◀─────────┘
//! ```
//!
//! The supervisor is single-threaded and has no async runtime. It runs outside of the container's limits, keeps the
//! output and the exit code, and does not end with the daemon, which finds its containers again by their folders. If
//! the supervisor dies, the kernel kills the container, so that no container runs without supervision.
//!
//! This crate has no notion of clusters. All unsafe code is in `syscall/`, `process/{clone,namespaces}.rs`,
//! `security/` and `cgroup/` and, in the program, in its `main.rs`, `entry.rs` and `title.rs`.

pub mod cgroup;
pub mod client;
mod connection;
mod container;
mod error;
mod features;
mod ids;
mod log;
pub mod oci;
pub mod owned_namespaces;
pub mod process;
mod program;
mod protected_binary;
mod rootfs;
pub mod security;
pub mod state;
pub mod supervisor;
mod syscall;
mod validate;

pub use client::{ContainerClient, ContainerEvents, ExecProcess, start};
pub use container::{Container, Creation, Execution, GroupChoice, remove_remains};
pub use error::{NOT_EXECUTABLE, NOT_FOUND, RunError, StepError};
pub use features::features;
pub use ids::IdRange;
pub use log::{LogLine, LogReader};
pub use program::Program;
pub use protected_binary::protect as protect_binary;
pub use state::{ContainerState, ExitStatus, KILLED, OomVictim};
pub use supervisor::{ContainerEvent, ExecSpec, FileSystemMount, ImageFiles, ImageMount, Order, Part, RootSource};
pub use validate::{check_process, validate};
