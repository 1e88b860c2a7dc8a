//! The assignments of this node and the last status of each task, which must outlive the daemon. The pool reads all of
//! them at its start, and each runner saves its own record. After a boot no record is acted on before the leader
//! confirms it, so records need not survive a power failure. Only [`Record`] knows how a record is encoded.

use std::fmt;
use std::io;

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::Assignment;

mod files;
#[cfg(any(test, feature = "fake"))]
mod memory;
mod queue;
mod sled_format;

pub(crate) use files::FileRecords;
#[cfg(any(test, feature = "fake"))]
pub use memory::MemoryRecords;
pub(crate) use queue::QueuedRecords;

/// The last known assignment and status of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The boot of the machine in which the leader has named the task last, unless its service does not require that.
    pub boot_id: String,
    /// The assignment, which contains the task's last status.
    pub assignment: Assignment,
}

/// Keeps one record for each task.
pub trait TaskRecords: fmt::Debug + Send + Sync {
    /// Replaces the record of its task. The record outlives the daemon once the future resolves. Changes of one task
    /// are made in the order of the calls.
    ///
    /// # Errors
    /// An I/O error. The task then has either this record or its previous one.
    fn save(&self, record: Record) -> BoxFuture<'static, io::Result<()>>;

    /// Removes the task's record, if there is one.
    ///
    /// # Errors
    /// An I/O error. The record may still exist.
    fn remove(&self, task: &TaskId) -> BoxFuture<'static, io::Result<()>>;

    /// Returns every readable record. A damaged one is removed and logged; the leader sends its task again.
    fn load(&self) -> Vec<Record>;

    /// Closes the files, so that another worker of this process can open them. Later saves have no effect.
    fn close(&self);
}

impl Record {
    /// Encodes the record as a length byte, the boot id, and the assignment as on the wire. Boot ids are far shorter
    /// than 255 bytes.
    fn encode(&self) -> Vec<u8> {
        let boot_id = &self.boot_id.as_bytes()[..self.boot_id.len().min(255)];
        let mut plain = vec![u8::try_from(boot_id.len()).expect("it was cut to fit")];
        plain.extend_from_slice(boot_id);
        plain.extend_from_slice(&self.assignment.encode());
        plain
    }

    fn decode(plain: &[u8]) -> io::Result<Self> {
        let short = || io::Error::other("it is cut off");
        let (length, rest) = plain.split_first().ok_or_else(short)?;
        let (boot_id, rest) = rest.split_at_checked(usize::from(*length)).ok_or_else(short)?;
        let boot_id = String::from_utf8(boot_id.to_vec()).map_err(io::Error::other)?;
        Ok(Self { boot_id, assignment: Assignment::decode(rest).map_err(io::Error::other)? })
    }
}

/// Returns the associated data that binds a record's seal to its task, so that it can't be moved to another one.
fn sealed_as(task: &str) -> Vec<u8> {
    format!("task {task}").into_bytes()
}
