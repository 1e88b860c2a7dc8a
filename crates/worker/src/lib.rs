//! The worker: keeps a session with the leader and carries out what it assigns.
//!
//! ```text
//!  leader ⇄ session.rs ⇄ agent.rs ─▶ task_pool.rs ─▶ task_runner.rs, one for each task
//!                           ▲   │                      │ step.rs, restart.rs and stop.rs decide, an Executor acts
//!                           │   ▼                      ▼
//!                           │ NodeServices          TaskRecords: what must outlive the daemon
//!                           └── reporter.rs ◀─ statuses ┘
//! ```
//!
//! `networks.rs` makes the node's networks match what the leader describes, on a thread of its own, and tells the session up
//! to which version that is done.
//!
//! `session.rs` converts between messages and domain types (`messages.rs`); no module behind it knows the wire format.
//! The preparation of a container is a list of steps, each with its undo; `executor/prepared.rs` explains
//! where to add one.
//!
//! A restart is local: an ended container is started again by its policy, without a manager. Containers outlive the
//! daemon, and the next daemon finds them again.
//!
//! This logic does not depend on containers, disks or the machine's clock. [`start_agent`] starts it over five traits:
//! [`Executor`] runs tasks, [`NodeServices`] holds images and opens streams, [`NodeNetworks`] makes networks,
//! [`TaskRecords`] and [`WorkerState`] keep what outlives the daemon. [`Worker`] provides the real implementations:
//! containers (`executor/container.rs`: image from `images.rs`, container from `translate.rs` and the runtime), and
//! files. The feature `fake` adds implementations in memory, for tests and a simulator: `FakeExecutor` on a
//! `FakeMachine`, `FakeServices`, `FakeNetworks`, `MemoryRecords`, `MemoryState`. Every future that the logic spawns
//! ends with its [`AgentHandle`].

mod agent;
mod agent_handle;
mod app_armor;
mod assignments;
mod cdi;
mod contact;
mod describe;
mod devices;
mod disk_thread;
mod executor;
#[cfg(test)]
mod fake_node;
mod gpus;
mod health;
mod images;
mod locks;
mod managers;
mod messages;
mod mount_point;
mod mounts;
mod networks;
mod offers;
mod order;
mod records;
mod registry;
mod reporter;
mod restart;
mod routes;
mod services;
mod session;
mod spawned;
mod starts;
mod step;
mod stop;
mod streams;
mod task_ids;
mod task_pool;
mod task_runner;
#[cfg(test)]
mod test_cluster;
mod translate;
mod usage;
mod variables;
mod volumes;
mod worker;
mod worker_state;

pub use agent_handle::{AgentHandle, AgentOptions, start_agent};
pub use describe::describe;
pub use executor::{
    Cause, CheckEnd, Control, Draft, Executor, ExecutorError, Found, PrepareStep, Running, TeardownError,
};
#[cfg(any(test, feature = "fake"))]
pub use executor::{
    FakeExecutor, FakeFailure, FakeHealth, FakeMachine, FakeProgram, MachineEvent, OnStop, RunningSlot, WhatHappened,
};
pub use health::HealthBoard;
pub use images::ImagesService;
pub use messages::OpenStream;
#[cfg(any(test, feature = "fake"))]
pub use networks::FakeNetworks;
pub use networks::{NetworkFacts, NodeNetworks, TaskNetwork};
pub use offers::{NodeOffers, bind_roots};
#[cfg(any(test, feature = "fake"))]
pub use records::MemoryRecords;
pub use records::{Record, TaskRecords};
pub use registry::{image_platforms, resolve};
#[cfg(any(test, feature = "fake"))]
pub use services::FakeServices;
pub use services::NodeServices;
pub use starts::StartStatistics;
pub use task_ids::OwnIds;
pub use variables::SecretVariables;
pub use worker::{StartError, Worker, WorkerOptions};
#[cfg(any(test, feature = "fake"))]
pub use worker_state::MemoryState;
pub use worker_state::WorkerState;
