//! Consensus: the only place that knows the Raft library.
//!
//! ```text
//!  RaftNode (node.rs) ── propose, read barrier, leadership; membership.rs: the set of managers
//!      │ openraft core, on a runtime with threads of its own
//!      ├── storage/   log and vote in sled, synced by one flusher thread; snapshots as files; all of it sealed
//!      ├── state_machine.rs   committed entry ─▶ Store::apply ─▶ outcome to the proposer
//!      └── transport/  gRPC to the other managers; who may connect is decided by the given `Dial`
//! ```

mod membership;
mod node;
mod state_machine;
mod storage;
mod transport;
mod type_config;

pub use membership::{Member, MembershipError};
pub use node::{Leadership, RaftNode, RaftOptions, StartError, Timing};
pub use storage::OpenError;
pub use transport::{Dial, TransportService};

/// Largest encoded transaction.
pub const ENTRY_BOUND: usize = 8 << 20;
