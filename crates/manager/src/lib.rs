//! The manager: replicates the cluster's store together with the other managers, and makes decisions while it leads.
//!
//! ```text
//!  users ─▶ control/ ──────────────┐                        ┌── control_loop/ runs, in pipeline order:
//!  nodes ─▶ ca.rs ─────────────────┤ transactions   events  │    orchestrator/  services → tasks
//!  workers ─▶ dispatcher/ ─────────┼──▶ raft-store ─────────┤    images.rs      images → nodes that hold them
//!     ▲        (sessions, liveness)│        ▲               │    scheduler/     tasks → nodes
//!     └── assignments ◀────────────┴────────┴── plans ◀─────┘
//! ```
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
