//! Raft's state on disk: the log with the vote and its marks (`log.*`), and snapshots (`snap.*`). All of it is
//! encrypted.
//!
//! ```text
//! LogStore (log.rs) ── the library's view: entries by index, recent ones in memory
//!     │ commands, in order
//! Writer (writer.rs) ── one thread: encodes, seals, writes, syncs once for all that wait
//!     │
//! Wal (wal.rs) ── records in segments
//! ```

mod bounds;
mod index;
mod log;
mod sled_format;
mod snapshot_file;
mod wal;
mod writer;

use crate::level::NewerLevel;

pub use bounds::LogBounds;
pub use log::LogStatistics;
pub(crate) use log::LogStore;
pub(crate) use snapshot_file::SnapshotFiles;

/// Why the store's folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An I/O error.
    #[error("failed to open the Raft log in `{place}`")]
    Io {
        /// The folder.
        place: String,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// Acknowledged data is missing or changed. This manager must not vote under its old Raft id again.
    #[error("the Raft log in `{place}` is damaged: {what}")]
    Damaged {
        /// The folder.
        place: String,
        /// The part that is missing or has changed.
        what: String,
    },
    /// A newer build has written it in a format that this one does not know. Nothing is wrong with it.
    #[error(
        "failed to read the {what} in `{place}`: it has the format {found}, and this build knows formats up to {known}"
    )]
    NewerFormat {
        /// The folder.
        place: String,
        /// What has the format.
        what: &'static str,
        /// Its format.
        found: u8,
        /// The newest format that this build reads.
        known: u8,
    },
    /// A newer build has written what this one does not know. Nothing is wrong with it.
    #[error("failed to use the Raft log in `{place}`")]
    Newer {
        /// The folder.
        place: String,
        /// What this build lacks.
        #[source]
        source: NewerLevel,
    },
}
