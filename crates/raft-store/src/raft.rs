//! Consensus. No other module uses the Raft library.
//!
//! ```text
//!  RaftNode (node.rs) ── propose, read barrier, leadership, age; membership.rs: the set of managers;
//!      │                 followers.rs: who follows, and who leads next
//!      │ openraft core, on a runtime with threads of its own (runtime.rs, threads.rs)
//!      ├── storage/   the log (a write-ahead log) and snapshots, all encrypted
//!      │     └── disk/   one folder: a real one, or a model that fails
//!      ├── state_machine.rs   committed entry ─▶ Store::apply ─▶ outcome to the proposer
//!      │     └── digests.rs   do all managers have the same tables?
//!      └── transport/  messages to and from the other managers, over gRPC or another transport
//! ```

mod digests;
mod disk;
mod followers;
mod membership;
mod node;
mod runtime;
mod state_machine;
mod storage;
mod threads;
mod transport;
mod type_config;

pub use disk::{DirDisk, Disk, DiskFaults, DiskFile, ModelDisk};
pub use membership::{Member, MembershipError};
pub use node::{Leadership, LogEnd, NewFolder, RaftNode, RaftOptions, StartError, Timing, replay_folder, write_folder};
pub use storage::{LogBounds, LogStatistics, OpenError};
pub use threads::Threads;
pub use transport::{AppendAnswers, CallAnswer, Dial, GrpcTransport, Method, Transport, TransportService};
#[cfg(feature = "faults")]
pub use transport::{SentEntry, sent_entries};

/// The library's Raft, with this crate's types and state machine.
type Raft = openraft::Raft<type_config::TypeConfig, state_machine::StateMachine>;

/// Largest encoded transaction, in bytes.
pub const ENTRY_BOUND: usize = 8 << 20;
