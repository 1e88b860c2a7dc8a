//! Applies committed entries to the store and returns their outcomes to the proposers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use tokio::sync::watch;

use flota_api::seal::Sealer;
use flota_api::version::Version;

use super::digests::Digests;
use super::disk::Disk;
use super::storage::{LogBounds, SnapshotFiles};
use super::threads::Threads;
use super::type_config::{Applied, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::store::{Store, View};
use crate::transaction::Entry;

/// Pause before a snapshot for which the disk has no room is written again.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(10);
/// Estimated size of an entry beside its payload, in bytes.
const ENTRY_OVERHEAD: u64 = 128;

/// How far entries are applied. It changes with each entry, so only code that waits for an entry should wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Index of the last entry that is in the store.
    pub(super) applied: u64,
    /// Version of the oldest answer to a request that is kept; `None` if none is.
    pub(super) oldest_answer: Option<Version>,
}

/// State that the duties wait for. It changes rarely, so entries do not wake them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Milestones {
    /// Whether the log has become long enough for the next snapshot.
    pub(super) wants_snapshot: bool,
    /// Index of the newest snapshot that was written since start.
    pub(super) snapshot: Option<u64>,
    /// Index of the last applied entry, divided by 1,000.
    pub(super) thousands: u64,
}

/// Connects the library to the store.
#[derive(Clone, Debug)]
pub(crate) struct StateMachine {
    store: Store,
    files: SnapshotFiles,
    threads: Threads,
    digests: Digests,
    bounds: LogBounds,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// The snapshot that followers receive, if one has asked for it since the last was made. A view keeps every object
    /// that has changed since, so it is dropped when it is not needed.
    offered: Option<(SnapshotMeta, View)>,
    /// Size of the entries since the last snapshot, and of that snapshot, in bytes.
    log_bytes: u64,
    snapshot_bytes: Arc<AtomicU64>,
    progress: Arc<watch::Sender<Progress>>,
    milestones: Arc<watch::Sender<Milestones>>,
}

impl StateMachine {
    /// Restores the newest snapshot of `disk` into `store`.
    pub(crate) fn open(
        store: Store,
        disk: Arc<dyn Disk>,
        sealer: Sealer,
        threads: Threads,
        digests: Digests,
        bounds: LogBounds,
    ) -> Result<Self, super::OpenError> {
        let mut machine = Self {
            store,
            files: SnapshotFiles::new(disk, sealer),
            threads,
            digests,
            bounds,
            applied: None,
            membership: StoredMembership::default(),
            offered: None,
            log_bytes: 0,
            snapshot_bytes: Arc::default(),
            progress: Arc::new(watch::Sender::new(Progress::default())),
            milestones: Arc::new(watch::Sender::new(Milestones::default())),
        };
        match machine.files.load()? {
            Some(loaded) => {
                machine.snapshot_bytes.store(loaded.bytes, Ordering::Relaxed);
                machine.take(&loaded.meta, loaded.tables.into());
            }
            // The store may still hold the tables of a folder that was refused.
            None => machine.store.restore(View::default()),
        }
        Ok(machine)
    }

    /// Id of the last applied entry.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// Returns a receiver of the current progress and of each change.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Returns a receiver of the current milestones and of each change.
    pub(super) fn milestones(&self) -> watch::Receiver<Milestones> {
        self.milestones.subscribe()
    }

    fn take(&mut self, meta: &SnapshotMeta, view: View) {
        self.store.restore(view);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.offered = None;
        self.digests.forget();
        self.applied_one(0);
    }

    /// Describes a snapshot of the present tables.
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    /// Publishes that the entry in `applied` is in the store; `bytes` is the size of its payload.
    fn applied_one(&mut self, bytes: u64) {
        let index = self.applied.map_or(0, |id| id.index);
        self.digests.record(index, self.store.digest());
        self.log_bytes += bytes + ENTRY_OVERHEAD;
        let enough = self.bounds.between_snapshots.max(self.snapshot_bytes.load(Ordering::Relaxed));
        let oldest_answer = self.store.oldest_answer();
        self.progress.send_replace(Progress { applied: index, oldest_answer });
        let (wants_snapshot, thousands) = (self.log_bytes > enough, index / 1_000);
        change(&self.milestones, |it| (it.wants_snapshot, it.thousands) = (wants_snapshot, thousands));
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
            let mut bytes = 0;
            let outcomes = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership);
                    Vec::new()
                }
                EntryPayload::Normal(payload) => {
                    bytes = u64::try_from(payload.0.len()).map_err(io::Error::other)?;
                    // Skipping an entry that can't be decoded would make this manager differ from the others, so it
                    // stops instead.
                    let entry = Entry::decode(&payload.0).map_err(io::Error::other)?;
                    if let Some((index, digest)) = entry.check {
                        self.digests.check(index, digest);
                    }
                    self.store.apply(log_id.index, entry)
                }
            };
            self.applied_one(bytes);
            if let Some(responder) = responder {
                responder.send(Applied(outcomes));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let (bytes, milestones) = (Arc::clone(&self.snapshot_bytes), Arc::clone(&self.milestones));
        let builder = Builder {
            meta: self.meta(),
            view: self.store.view(),
            files: self.files.clone(),
            threads: self.threads,
            bytes,
            milestones,
        };
        self.log_bytes = 0;
        change(&self.milestones, |it| it.wants_snapshot = false);
        self.offered = None;
        builder
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, view: View) -> Result<(), io::Error> {
        let bytes = save(&self.files, self.threads, meta, &view).await?;
        self.snapshot_bytes.store(bytes, Ordering::Relaxed);
        self.log_bytes = 0;
        self.take(meta, view);
        tracing::info!(entry = self.progress.borrow().applied, bytes, "installed the snapshot of another manager");
        change(&self.milestones, |it| it.snapshot = meta.last_log_id.map(|id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.applied.is_none() {
            return Ok(None);
        }
        // The same one again, so that an interrupted transfer can continue. It need not be on disk: it has only committed
        // entries, and no entry is purged before a snapshot on disk has it.
        let meta = self.meta();
        let (meta, snapshot) = self.offered.get_or_insert_with(|| (meta, self.store.view())).clone();
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// Writes one snapshot to disk while the store changes further.
#[derive(Debug)]
pub(crate) struct Builder {
    meta: SnapshotMeta,
    view: View,
    files: SnapshotFiles,
    threads: Threads,
    /// Receives the size of the snapshot.
    bytes: Arc<AtomicU64>,
    /// Receives the index of the snapshot when it is on disk.
    milestones: Arc<watch::Sender<Milestones>>,
}

/// Writes a snapshot to disk, and returns its size. Waits while the disk is full: the segments of the log have their room
/// already, so this manager can go on, and an error would end it.
async fn save(files: &SnapshotFiles, threads: Threads, meta: &SnapshotMeta, view: &View) -> io::Result<u64> {
    loop {
        let (files, meta, view) = (files.clone(), meta.clone(), Arc::clone(view));
        match threads.blocking(move || files.save(&meta, &view)).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                tracing::error!(%error, "there is no room for a snapshot; trying again in {NO_ROOM_PAUSE:?}");
                tokio::time::sleep(NO_ROOM_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Changes the milestones and wakes their receivers, but only if one differs.
fn change(milestones: &watch::Sender<Milestones>, change: impl FnOnce(&mut Milestones)) {
    milestones.send_if_modified(|now| {
        let before = *now;
        change(now);
        *now != before
    });
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = View;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let bytes = save(&self.files, self.threads, &self.meta, &self.view).await?;
        self.bytes.store(bytes, Ordering::Relaxed);
        let entry = self.meta.last_log_id.map(|id| id.index);
        tracing::info!(entry, bytes, "wrote a snapshot");
        change(&self.milestones, |it| it.snapshot = entry);
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Arc::clone(&self.view) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::disk::{DiskFaults, ModelDisk};
    use crate::raft::type_config::{EntryBytes, LeaderId, RaftEntry};
    use crate::store::{Tables, WriteTx};
    use flota_api::clock::Random;
    use flota_api::model::{Cluster, Service, ServiceSpec};
    use flota_api::object::StoreObject;
    use openraft::vote::RaftLeaderId as _;

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_waits_for_room_and_leaves_nothing_half_written() {
        let disk = ModelDisk::new(Random::seeded(1));
        let files = SnapshotFiles::new(Arc::new(disk.clone()), Sealer::new(&[3; 32]));
        let id = LogId::new(LeaderId::new(1, 1).to_committed(), 9);
        let meta = SnapshotMeta { last_log_id: Some(id), ..SnapshotMeta::default() };
        let mut tables = Tables::default();
        tables.put(Cluster { id: "c".into(), ..Cluster::default() }.into_object());
        let view = Arc::new(tables);
        disk.set_faults(DiskFaults { capacity: Some(10), ..DiskFaults::default() });
        let saved = save(&files, Threads::Current, &meta, &view);
        tokio::pin!(saved);
        assert!(tokio::time::timeout(NO_ROOM_PAUSE / 2, saved.as_mut()).await.is_err(), "it waits");
        assert_eq!(disk.list().expect("the disk works"), [] as [&str; 0]);
        disk.set_faults(DiskFaults::default());
        assert!(saved.await.expect("there is room") > 10);
        assert_eq!(files.load().expect("it is whole").map(|it| it.meta).as_ref(), Some(&meta));
    }

    /// Applies services of 1 MiB until the machine wants a snapshot. Returns how many.
    async fn apply_until_a_snapshot_is_wanted(machine: &mut StateMachine) -> u64 {
        let milestones = machine.milestones();
        for count in 1.. {
            let index = machine.applied().map_or(1, |id| id.index + 1);
            let mut tx = WriteTx::new(machine.store.view(), None);
            let name = format!("s{index}");
            let id = name.as_str().into();
            let spec = ServiceSpec { name, env: vec!["x".repeat(1 << 20)], ..ServiceSpec::default() };
            tx.create(Service { id, spec: Arc::new(spec), spec_version: 1, ..Service::default() });
            let payload = Entry { transactions: vec![tx.finish()], ..Entry::default() }.encode();
            let log_id = LogId::new(LeaderId::new(1, 1).to_committed(), index);
            let entry = RaftEntry::new(log_id, EntryPayload::Normal(EntryBytes(payload.into())));
            machine.apply(futures::stream::iter([Ok((entry, None))])).await.expect("it is an entry");
            if milestones.borrow().wants_snapshot {
                return count;
            }
        }
        unreachable!("the count has no end")
    }

    #[tokio::test]
    async fn a_snapshot_is_wanted_when_the_log_is_larger_than_the_last_one() {
        let disk = ModelDisk::new(Random::seeded(1));
        let (own, sealer) = (Arc::new(disk.clone()), Sealer::new(&[3; 32]));
        let machine = StateMachine::open(
            Store::default(),
            own,
            sealer,
            Threads::Current,
            Digests::default(),
            LogBounds::default(),
        );
        let mut machine = machine.expect("a new folder");
        let mut enough = 8 << 20;
        for _ in 0..3 {
            let count = apply_until_a_snapshot_is_wanted(&mut machine).await;
            let (least, most) = (count << 20, count * ((1 << 20) + 1_024));
            assert!(most > enough && least - (1 << 20) <= enough, "{count} MiB of log; {enough} bytes are enough");
            machine.get_snapshot_builder().await.build_snapshot().await.expect("written");
            assert!(!machine.milestones().borrow().wants_snapshot);
            let name = disk.list().expect("listed").pop().expect("the snapshot is there");
            enough = disk.open(&name).and_then(|file| file.length()).expect("read");
        }
        assert!(enough > 32 << 20, "the last one was far larger than the first");
    }
}
