//! The manager: replicates the cluster's store together with the other managers, and makes decisions while it leads.
//!
//! ```text
//!  users ─▶ control/ ──────────────┐                        ┌── control_loop/ runs the control loops, among them:
//!  nodes ─▶ ca.rs ─────────────────┤ transactions   events  │    orchestrator/  services → tasks
//!  workers ─▶ dispatcher/ ─────────┼──▶ raft-store ─────────┤    allocator/     networks, services, tasks → addresses
//!     ▲        (sessions, liveness)│        ▲               │    scheduler/     tasks → nodes
//!     │                            │        │               │    images.rs      images → nodes that hold them
//!     └── assignments ◀────────────┴────────┴── plans ◀─────┘
//! ```
//!
//! The other loops rebalance tasks (`scheduler/`), give up the tasks of lost nodes and delete old tasks (`orchestrator/`), remove
//! volumes (volumes.rs) and the secrets and configs of removed stacks (stack_values.rs), and end the replacement of the CA
//! (ca_rotation.rs). `leader::pipeline` lists all of them in the order in which a pass runs them. The autoscaler and the loop
//! that changes roles (roles.rs) act beside them.
//!
//! The planning parts never call each other: each reads the store and proposes to it. All parts use the replica
//! (replica.rs: store, Raft, leadership, proved reads and writes); manager.rs assembles them. Everything that plans or
//! keeps sessions runs in one scope that ends with leadership ([`leader`]). This crate reads neither the system's clock
//! nor its random source: both are given to [`Manager::start`].

mod admission;
mod affinity;
mod allocator;
mod autoscaler;
mod bootstrap;
mod ca;
mod ca_rotation;
mod caller;
mod control;
mod control_loop;
mod departure;
mod dependencies;
mod dispatcher;
pub mod forward;
mod home;
mod images;
mod leader;
mod level;
mod manager;
#[cfg(feature = "measure")]
mod measure;
mod orchestrator;
mod pin;
mod plan;
mod promotion;
mod raft_dial;
mod recovery;
mod replica;
mod resolver;
mod revisions;
mod rights;
mod roles;
mod scheduler;
mod stack_values;
mod streams;
mod term_clock;
mod trust;
mod usage;
mod values;
mod volumes;
mod wanted;
mod write;

pub use admission::Admission;
pub use bootstrap::{FirstNode, address_pools, first_entry};
pub use ca::CaService;
pub use control::{ControlService, check_certificate_life};
pub use control_loop::LoopStatistics;
pub use dispatcher::DispatcherService;
pub use manager::{Manager, ManagerOptions};
#[cfg(feature = "measure")]
pub use measure::Loops;
pub use raft_dial::RaftDial;
pub use recovery::{LostManager, NewBeginning, OnlyManager, RecoveryError, RecoverySurvey, begin_anew, survey};
pub use resolver::{DigestLookup, Resolved};
pub use streams::StreamsService;
pub use term_clock::TermClock;
pub use trust::{intermediates as ca_intermediates, trusted as trusted_cas};
