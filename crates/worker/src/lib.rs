//! The worker: keeps a session with the leader, and carries out what it assigns.
//!
//! ```text
//!  leader ⇄ agent.rs (session) ─▶ task_pool.rs ─▶ task_runner.rs, one for each task
//!               ▲      │                            │ restart.rs decides, an Executor acts
//!               │      ▼                            ▼
//!               │   NodeServices                 TaskRecords: what must outlive the daemon
//!               └── reporter.rs ◀── statuses ◀──────┘
//! ```
//!
//! A restart is local: a container that ended is started again by its policy, without a manager. Containers do not
//! end with the daemon; the next one finds them again.
//!
//! That logic knows no container, no disk and no clock of the machine. [`start_agent`] starts it over four traits:
//! [`Executor`] runs tasks, [`NodeServices`] holds images and opens streams, [`TaskRecords`] and [`WorkerState`] keep
//! what outlives the daemon. [`Worker`] is the one with real means: containers (`executor/container.rs`: image from
//! `images.rs`, container from `translate.rs` and the runtime), and files. With the feature `fake` there are others
//! in memory, for tests and a simulator: `FakeExecutor` on a `FakeMachine`, `FakeServices`, `MemoryRecords`,
//! `MemoryState`. Every future that the logic spawns ends with its [`AgentHandle`].

mod agent;
mod agent_handle;
mod assignments;
mod describe;
mod devices;
mod executor;
mod gpus;
mod images;
mod managers;
mod offers;
mod order;
mod records;
mod reporter;
mod restart;
mod services;
mod spawned;
mod streams;
mod task_pool;
mod task_runner;
mod translate;
mod worker;
mod worker_state;

pub use agent_handle::{AgentHandle, AgentOptions, start_agent};
pub use describe::describe;
pub use executor::{Executor, ExecutorError, Prepared, Running};
#[cfg(any(test, feature = "fake"))]
pub use executor::{FakeExecutor, FakeMachine, FakeProgram, MachineEvent, OnStop, RunningSlot, WhatHappened};
pub use images::ImagesService;
pub use offers::NodeOffers;
#[cfg(any(test, feature = "fake"))]
pub use records::MemoryRecords;
pub use records::{Record, TaskRecords};
#[cfg(any(test, feature = "fake"))]
pub use services::FakeServices;
pub use services::{NodeServices, UsedImages};
pub use worker::{StartError, Worker, WorkerOptions};
#[cfg(any(test, feature = "fake"))]
pub use worker_state::MemoryState;
pub use worker_state::WorkerState;
