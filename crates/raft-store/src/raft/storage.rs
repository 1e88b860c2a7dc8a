//! What of Raft is on disk: the log with its vote and marks (`log.*`), snapshots (`snap.*`). Every byte sealed.
//!
//! ```text
//! LogStore (log.rs) ── the library's view: entries by index, the newest in memory
//!     │ commands, in order
//! Writer (writer.rs) ── one thread: encodes, seals, writes, one sync for all that wait
//!     │
//! Wal (wal.rs) ── records in segments
//! ```

mod index;
mod log;
mod snapshot_file;
mod sled_format;
mod wal;
mod writer;

pub use log::LogStatistics;
pub(crate) use log::LogStore;
pub(crate) use snapshot_file::SnapshotFiles;

/// Why the store's folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An I/O error.
    #[error("failed to open the Raft log in `{place}`")]
    Io {
        /// Which folder.
        place: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something that was acknowledged is gone or changed. This manager must not vote under its old Raft id again.
    #[error("the Raft log in `{place}` is damaged: {what}")]
    Damaged {
        /// Which folder.
        place: String,
        /// What was found.
        what: String,
    },
}
