//! Begins anew from what one manager has on disk: [`replay_folder`] brings the tables up to the end of its log, without the
//! other managers, and [`write_folder`] writes the folder of a manager that is alone with such tables. Both work on a folder
//! that no running manager uses; the caller decides what becomes of the tables in between.
//!
//! The whole log counts, also behind the last entry that this manager knows to be committed: what was acknowledged to a user
//! may stand there. An entry that was never acknowledged may stand there, too, and then takes effect, as it could have if
//! this manager had been elected.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use futures::TryStreamExt;
use openraft::entry::RaftEntry as _;
use openraft::storage::RaftLogStorage;
use openraft::vote::RaftLeaderId as _;
use openraft::{BasicNode, EntryPayload, RaftLogReader};

use super::folder::Folder;
use super::options::RaftOptions;
use crate::raft::digests::Digests;
use crate::raft::disk::Disk;
use crate::raft::storage::{LogBounds, LogStore, OpenError, SnapshotFiles};
use crate::raft::threads::Threads;
use crate::raft::type_config::{LeaderId, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::store::View;
use crate::transaction::Entry;
use flota_api::seal::Sealer;

/// The end of a manager's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Index of its last entry.
    pub index: u64,
    /// The latest term that the manager knows.
    pub term: u64,
}

/// Brings the tables in `options.store` up to the last entry in the folder.
///
/// # Errors
/// Acknowledged data is missing or changed, or an I/O error.
pub async fn replay_folder(options: &RaftOptions) -> Result<LogEnd, OpenError> {
    let Folder { mut log, machine } = Folder::open(options, Digests::default()).await?;
    let io = |source| OpenError::Io { place: options.disk.place(), source };
    let mut last = machine.applied();
    let vote = log.read_vote().await.map_err(io)?;
    {
        let mut entries = pin!(log.entries_stream(last.map_or(0, |id| id.index + 1)..).await);
        while let Some(entry) = entries.try_next().await.map_err(io)? {
            let id = entry.log_id();
            if let EntryPayload::Normal(payload) = entry.payload {
                let entry = Entry::decode(&payload.0).map_err(|error| io(io::Error::other(error)))?;
                options.store.apply(id.index, entry);
            }
            last = Some(id);
        }
    }
    let term = last.map_or(0, |id| id.leader_id.term).max(vote.map_or(0, |vote| vote.leader_id.term));
    Ok(LogEnd { index: last.map_or(0, |id| id.index), term })
}

/// A folder for a manager that is the only one.
#[derive(Debug)]
pub struct NewFolder<'a> {
    /// The folder, which is empty.
    pub disk: Arc<dyn Disk>,
    /// Encrypts everything in it.
    pub sealer: Sealer,
    /// The Raft id of the manager, which no manager has had before.
    pub id: u64,
    /// Its `host:port`.
    pub address: &'a str,
    /// The term in which it begins.
    pub term: u64,
    /// Where disk work runs.
    pub threads: Threads,
}

/// Writes the folder: a snapshot with these tables, in which the manager is the only member, and a log that follows it. All
/// of it is on disk afterwards. The manager elects itself when it starts.
///
/// # Errors
/// The folder is not empty, or an I/O error.
pub async fn write_folder(folder: NewFolder<'_>, tables: &View) -> Result<(), OpenError> {
    let NewFolder { disk, sealer, id, address, term, threads } = folder;
    let place = disk.place();
    let io = |source| OpenError::Io { place: place.clone(), source };
    if !disk.list().map_err(io)?.is_empty() {
        return Err(io(io::Error::other("it is not empty")));
    }
    let last = LogId::new(LeaderId::new(term, id).to_committed(), tables.version);
    let members = BTreeMap::from([(id, BasicNode::new(address))]);
    let meta =
        SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::new(Some(last), members.into()) };
    let (files, view) = (SnapshotFiles::new(Arc::clone(&disk), sealer.clone()), Arc::clone(tables));
    threads.blocking(move || files.save(&meta, &view)).await.map_err(io)?;
    let mut log = LogStore::open(disk, sealer, false, threads, LogBounds::default())?;
    log.purge(last).await.map_err(io)?;
    // The vote is acknowledged when everything before it is on disk.
    log.save_vote(&Vote { leader_id: LeaderId::new(term, id), committed: false }).await.map_err(io)
}

#[cfg(test)]
mod tests;
