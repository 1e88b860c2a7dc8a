//! A manager's folder: the log and the newest snapshot. They are written separately, so a crash may leave one of them
//! ahead of the other; [`Folder::open`] brings them in line, or finds that acknowledged entries are missing.

use std::sync::Arc;

use super::duties;
use super::options::RaftOptions;
use crate::raft::digests::Digests;
use crate::raft::state_machine::StateMachine;
use crate::raft::storage::{LogStore, OpenError};

/// The log, and the state machine as the newest snapshot describes it.
pub(super) struct Folder {
    pub(super) log: LogStore,
    pub(super) machine: StateMachine,
}

impl Folder {
    /// Opens or creates the folder, and restores the newest snapshot into the store.
    ///
    /// # Errors
    /// Acknowledged data is missing or changed, or an I/O error.
    pub(super) async fn open(options: &RaftOptions, digests: Digests) -> Result<Self, OpenError> {
        let RaftOptions { disk, was_here, sealer, store, threads, bounds, .. } = options;
        duties::check_mark(disk.as_ref())?;
        let mut log = LogStore::open(Arc::clone(disk), sealer.clone(), *was_here, *threads, *bounds)?;
        let machine = StateMachine::open(store.clone(), Arc::clone(disk), sealer.clone(), *threads, digests, *bounds)?;
        if log.purged() > machine.applied().map(|id| id.index) {
            let last = log.purged().unwrap_or_default();
            let what = format!("entries up to {last} stand only in a snapshot, which is gone");
            return Err(OpenError::Damaged { place: disk.place(), what });
        }
        if let Some(snapshot) = machine.applied() {
            let followed = log.follow_snapshot(snapshot).await;
            followed.map_err(|source| OpenError::Io { place: disk.place(), source })?;
        }
        Ok(Self { log, machine })
    }
}

#[cfg(test)]
mod tests;
