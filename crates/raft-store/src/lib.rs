//! The replicated store: typed objects in tables, changed only by committed Raft entries.
//!
//! ```text
//!   WriteTx ──▶ Transaction ──▶ Proposer ──▶ Raft (raft/) ──▶ store::apply ──▶ Tables
//!                                                                  │
//!             View (an O(1) clone of the tables) ◀── Store ◀───────┤
//!                                             Events ◀─ watch ◀────┘
//! ```
//!
//! Concurrency is optimistic: a [`Transaction`] names the versions that it was planned on, and `apply` applies all of
//! it or nothing, with the same result on every manager. No lock is held across consensus. A [`View`] never changes. A
//! [`Watch`] is bounded; a reader that is too slow must start again from a new view. Users follow the history of events
//! instead ([`HistoryReader`]), which they can resume.
//!
//! Types of the Raft library are not visible outside `raft/`.

mod answer_ages;
mod backup;
mod digest;
pub mod faults;
mod level;
mod proposer;
pub mod raft;
pub mod store;
mod transaction;

pub use answer_ages::{ANSWERS_KEPT_FOR, AnswerAges};
pub use backup::{Backup, BackupError, read_backup, write_backup};
pub use digest::Digest;
pub use level::NewerLevel;
pub use proposer::{LocalProposer, ProposeError, Proposer};
pub use store::{
    Event, EventBatch, EventsGone, HistoryReader, KindWatch, Load, Store, Tables, View, Watch, WriteTx, audit_event,
};
pub use transaction::{Action, Conflict, Entry, EntryError, Expectation, Origin, Outcome, Rules, Transaction};

/// Largest number of actions in one transaction.
pub const ACTIONS_BOUND: usize = 10_000;
