//! The seam between what Raft keeps and the machine's disk: one folder of files.
//!
//! Log and snapshots use nothing else, so that the same code runs on a real folder ([`DirDisk`]) and on a model that
//! forgets what was not synced, tears writes, fills up and fails ([`ModelDisk`]).

mod dir;
mod model;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use dir::DirDisk;
pub use model::{DiskFaults, ModelDisk};

/// One folder. Names have no slashes.
pub trait Disk: Debug + Send + Sync + 'static {
    /// The names of all files, in order.
    ///
    /// # Errors
    /// An I/O error.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file that exists.
    ///
    /// # Errors
    /// There is no such file, or an I/O error.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes an empty file, in place of one that has this name.
    ///
    /// # Errors
    /// An I/O error.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, in place of one that has it.
    ///
    /// # Errors
    /// There is no such file, or an I/O error.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// There is no such file, or an I/O error.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all names durable: files that were made, renamed and removed.
    ///
    /// # Errors
    /// An I/O error.
    fn sync_names(&self) -> io::Result<()>;

    /// How long a sync takes on a disk that only simulates it.
    fn delay(&self) -> Duration {
        Duration::ZERO
    }

    /// The folder on this machine, if it is one.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Where this is, for error messages.
    fn place(&self) -> String {
        self.folder().map_or_else(|| "a simulated disk".to_owned(), |folder| folder.display().to_string())
    }
}

/// An open file. Its handle stays good when the file gets another name.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// The length in bytes.
    ///
    /// # Errors
    /// An I/O error.
    fn length(&self) -> io::Result<u64>;

    /// Makes the file `length` bytes long, with blocks of its own, so that later writes only overwrite.
    ///
    /// # Errors
    /// The disk is full, or an I/O error.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The file ends before, or an I/O error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The disk is full, or an I/O error.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything that was written durable (fdatasync(2)).
    ///
    /// # Errors
    /// An I/O error; what was written may be lost then, also when a later sync succeeds.
    fn sync(&self) -> io::Result<()>;
}

/// The whole content of a file.
///
/// # Errors
/// There is no such file, or an I/O error.
pub(super) fn read(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}
