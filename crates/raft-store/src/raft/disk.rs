//! The interface between Raft's storage and the disk: one folder of files.
//!
//! Log and snapshots access the disk only through it, so that the same code runs on a real folder ([`DirDisk`]) and on
//! a model that loses unsynced data, tears writes, fills up and fails ([`ModelDisk`]).

mod dir;
mod model;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use dir::DirDisk;
pub use model::{DiskFaults, ModelDisk};

/// One folder. File names contain no slashes.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Returns the names of all files, sorted.
    ///
    /// # Errors
    /// An I/O error.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens an existing file.
    ///
    /// # Errors
    /// There is no such file, or an I/O error.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates an empty file. It replaces a file that has this name.
    ///
    /// # Errors
    /// An I/O error.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file. It replaces a file that has the new name.
    ///
    /// # Errors
    /// There is no such file, or an I/O error.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// There is no such file, or an I/O error.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all created, renamed and removed names durable.
    ///
    /// # Errors
    /// An I/O error.
    fn sync_names(&self) -> io::Result<()>;

    /// Extra time that a sync takes on a simulated disk; zero on a real one.
    fn delay(&self) -> Duration {
        Duration::ZERO
    }

    /// Path of the folder; `None` if the disk is simulated.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Describes the location in error messages.
    fn place(&self) -> String {
        self.folder().map_or_else(|| "a simulated disk".to_owned(), |folder| folder.display().to_string())
    }
}

/// An open file. Its handle stays valid when the file is renamed.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// The length in bytes.
    ///
    /// # Errors
    /// An I/O error.
    fn length(&self) -> io::Result<u64>;

    /// Sets the length of the file and allocates its blocks, so that later writes only overwrite.
    ///
    /// # Errors
    /// The disk is full, or an I/O error.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The file ends before the buffer is full, or an I/O error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The disk is full, or an I/O error.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything that was written so far durable (fdatasync(2)).
    ///
    /// # Errors
    /// An I/O error. Earlier writes may then be lost, even if a later sync succeeds.
    fn sync(&self) -> io::Result<()>;
}

/// Reads a whole file.
///
/// # Errors
/// There is no such file, or an I/O error.
pub(super) fn read(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}
