//! Committed entries go into the store here, and their outcomes to whoever proposed them.

use std::io;
use std::path::PathBuf;

use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};

use super::storage::SnapshotFiles;
use super::type_config::{Applied, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::store::{Store, View};
use crate::transaction::Entry;
use flota_api::seal::Sealer;

/// The library's handle to the store.
#[derive(Clone, Debug)]
pub(crate) struct StateMachine {
    store: Store,
    files: SnapshotFiles,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// The newest snapshot; its tables share nearly everything with the store's.
    snapshot: Option<(SnapshotMeta, View)>,
}

impl StateMachine {
    /// Puts the newest readable snapshot of `dir` into `store`.
    pub(crate) fn open(store: Store, dir: PathBuf, sealer: Sealer) -> Result<Self, super::OpenError> {
        let files = SnapshotFiles::new(dir, sealer);
        let mut machine = Self { store, files, applied: None, membership: StoredMembership::default(), snapshot: None };
        if let Some((meta, tables)) = machine.files.load()? {
            machine.store.restore(tables);
            machine.take_meta(&meta);
            machine.snapshot = Some((meta, machine.store.view()));
        }
        Ok(machine)
    }

    /// Index of the last entry that is in the store.
    pub(crate) fn applied_index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index)
    }

    fn take_meta(&mut self, meta: &SnapshotMeta) {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = View;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let log_id = entry.log_id();
            self.applied = Some(log_id);
            let outcomes = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership);
                    Vec::new()
                }
                EntryPayload::Normal(bytes) => {
                    // An entry that can't be read would make this manager differ from the others: it stops instead.
                    let entry = Entry::decode(&bytes.0).map_err(io::Error::other)?;
                    self.store.apply(log_id.index, entry)
                }
            };
            if let Some(responder) = responder {
                responder.send(Applied(outcomes));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        let builder = Builder { meta, view: self.store.view(), files: self.files.clone() };
        self.snapshot = Some((builder.meta.clone(), builder.view.clone()));
        builder
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, view: View) -> Result<(), io::Error> {
        let (files, to_write, tables) = (self.files.clone(), meta.clone(), view.clone());
        tokio::task::spawn_blocking(move || files.save(&to_write, &tables)).await??;
        self.store.restore(view.as_ref().clone());
        self.take_meta(meta);
        self.snapshot = Some((meta.clone(), view));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshot.clone().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes one snapshot to disk while the store goes on changing.
#[derive(Debug)]
pub(crate) struct Builder {
    meta: SnapshotMeta,
    view: View,
    files: SnapshotFiles,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = View;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (files, meta, view) = (self.files.clone(), self.meta.clone(), self.view.clone());
        tokio::task::spawn_blocking(move || files.save(&meta, &view)).await??;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: self.view.clone() })
    }
}
