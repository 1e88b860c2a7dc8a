//! What was assigned to this node, and the last status of each task: what must outlive the daemon. The pool reads all
//! of it at its start, each runner saves its own record. After a boot nothing in it is acted on before the leader
//! confirms it, so it need not outlive a power failure. [`Record`] alone knows how a record is encoded.

use std::fmt;
use std::io;

use prost::Message;

use flota_api::id::TaskId;
use flota_api::model::Assignment;
use flota_api::proto::dispatcher::TaskAssignment;

mod folder;
#[cfg(any(test, feature = "fake"))]
mod memory;
mod sled;

pub(crate) use self::sled::SledRecords;
#[cfg(any(test, feature = "fake"))]
pub use memory::MemoryRecords;

/// One task as it was last known.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The boot of the machine in which that was.
    pub boot_id: String,
    /// The assignment, with the task's last status in it.
    pub assignment: Assignment,
}

/// Keeps one record for each task.
pub trait TaskRecords: fmt::Debug + Send + Sync {
    /// Replaces the records of these tasks. They outlive the daemon when this returns.
    ///
    /// # Errors
    /// An I/O error. Each task then has either this record or the one that it had before.
    fn save(&self, records: &[Record]) -> io::Result<()>;

    /// Removes the task's record, if there is one.
    fn remove(&self, task: &TaskId);

    /// Returns every record that can be read. One that can't is removed and logged: the leader sends it again.
    fn load(&self) -> Vec<Record>;

    /// Closes the files, so that another worker of this process can open them. Nothing is saved from now on.
    fn close(&self);
}

impl Record {
    /// A length byte, the boot id, and the assignment as on the wire. Boot ids are far shorter than 255 bytes.
    fn encode(&self) -> Vec<u8> {
        let boot_id = &self.boot_id.as_bytes()[..self.boot_id.len().min(255)];
        let mut plain = vec![u8::try_from(boot_id.len()).expect("it was cut to fit")];
        plain.extend_from_slice(boot_id);
        plain.extend_from_slice(&TaskAssignment::from(&self.assignment).encode_to_vec());
        plain
    }

    fn decode(plain: &[u8]) -> io::Result<Self> {
        let short = || io::Error::other("it is cut off");
        let (length, rest) = plain.split_first().ok_or_else(short)?;
        let (boot_id, rest) = rest.split_at_checked(usize::from(*length)).ok_or_else(short)?;
        let boot_id = String::from_utf8(boot_id.to_vec()).map_err(io::Error::other)?;
        let assignment = TaskAssignment::decode(rest).map_err(io::Error::other)?;
        Ok(Self { boot_id, assignment: assignment.try_into().map_err(io::Error::other)? })
    }
}

/// Binds a record's seal to its task, so that it can't be moved to another one.
fn sealed_as(task: &str) -> Vec<u8> {
    format!("task {task}").into_bytes()
}
