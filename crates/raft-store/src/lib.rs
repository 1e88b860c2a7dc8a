//! The replicated store: typed objects in tables, changed only by committed Raft entries.
//!
//! ```text
//!   WriteTx ──▶ Transaction ──▶ Proposer ──▶ Raft (raft/) ──▶ store::apply ──▶ Tables
//!                                                                  │
//!             View (an O(1) clone of the tables) ◀── Store ◀───────┤
//!                                             Events ◀─ watch ◀────┘
//! ```
//!
//! Optimistic: a [`Transaction`] names the versions that it was planned on, and `apply` takes all of it or none,
//! the same on every manager. Nobody holds a lock across consensus. A [`View`] never changes; a [`Watch`] is
//! bounded, and a reader that is too slow is told to look at everything again.
//!
//! No type of the Raft library leaves `raft/`.

mod answer_ages;
mod digest;
pub mod faults;
mod proposer;
pub mod raft;
pub mod store;
mod transaction;

pub use answer_ages::{ANSWERS_KEPT_FOR, AnswerAges};
pub use digest::Digest;
pub use proposer::{LocalProposer, ProposeError, Proposer};
pub use store::{Event, Store, Tables, View, Watch, WriteTx};
pub use transaction::{Action, Conflict, Entry, Expectation, Outcome, Transaction};

/// Most actions in one transaction.
pub const ACTIONS_BOUND: usize = 10_000;
