//! What of Raft is on disk: log and vote (`db/`, sled), snapshots (`snap.*`). Every byte sealed.

mod flusher;
mod log;
mod snapshot_file;

use std::path::{Path, PathBuf};

pub(crate) use log::LogStore;
pub(crate) use snapshot_file::SnapshotFiles;

/// Why the store's folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The machine would not.
    #[error("failed to open the Raft log in `{path}`", path = path.display())]
    Io {
        /// Which folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something that was acknowledged is gone or changed. This manager must not vote under its old Raft id again.
    #[error("the Raft log in `{path}` is damaged: {what}", path = path.display())]
    Damaged {
        /// Which folder or file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
}

/// Makes the folder's own entries durable.
fn sync_dir(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}
