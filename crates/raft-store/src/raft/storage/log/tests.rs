use std::time::Duration;

use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId as _;
use openraft::{EntryPayload, RaftLogReader, StorageError};

use super::*;
use crate::raft::digests::Digests;
use crate::raft::disk::{DirDisk, DiskFaults, ModelDisk};
use crate::raft::state_machine::StateMachine;
use crate::raft::type_config::{EntryBytes, LeaderId};
use crate::store::Store;
use flota_api::clock::Random;

pub(super) fn sealer() -> Sealer {
    Sealer::new(&[3; 32])
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1).to_committed(), index)
}

pub(super) fn entry(term: u64, index: u64, size: usize) -> RaftEntry {
    let bytes = vec![u8::try_from(index % 251).expect("it is below 251"); size];
    RaftEntry::new(log_id(term, index), EntryPayload::Normal(EntryBytes(bytes.into())))
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

pub(super) async fn append(store: &mut LogStore, entries: Vec<RaftEntry>) {
    let (sender, receiver) = TypeConfig::oneshot();
    store.append(entries, IOFlushed::signal(sender)).await.expect("written");
    receiver.await.expect("the writer answers").expect("synced");
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId::new(term, 1), committed: false }
}

fn open(disk: &Arc<dyn Disk>, was_here: bool) -> Result<LogStore, OpenError> {
    LogStore::open(Arc::clone(disk), sealer(), was_here, Threads::Own, LogBounds::default())
}

fn model() -> Arc<dyn Disk> {
    Arc::new(ModelDisk::new(Random::seeded(1)))
}

#[test]
fn a_log_is_read_back_purged_and_truncated() {
    let dir = tempfile::tempdir().expect("a folder");
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir.path()).expect("opened"));
    run(async {
        let mut store = open(&disk, false).expect("new");
        // The entries exceed both the entry cache and a segment.
        let sizes = |index| if index % 7 == 3 { 5 << 20 } else { 200 };
        for index in 0..30 {
            append(&mut store, vec![entry(1, index, sizes(index))]).await;
        }
        store.save_vote(&vote(5)).await.expect("saved");
        store.truncate_after(Some(log_id(1, 24))).await.expect("truncated");
        store.purge(log_id(1, 9)).await.expect("purged");
        append(&mut store, vec![entry(2, 25, 1)]).await;
        let all: Vec<_> = (10..25).map(|index| entry(1, index, sizes(index))).chain([entry(2, 25, 1)]).collect();
        assert_eq!(store.try_get_log_entries(10..).await.expect("read"), all);
        drop(store);
        let mut store = open(&disk, true).expect("whole");
        let state = store.get_log_state().await.expect("read");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 9)), Some(log_id(2, 25))));
        assert_eq!(store.try_get_log_entries(10..).await.expect("read"), all);
        assert_eq!(store.read_vote().await.expect("read"), Some(vote(5)));
        let first = store.limited_get_log_entries(10, 26).await.expect("read");
        assert_eq!(first.last().map(|it| it.log_id()), Some(log_id(1, 16)), "two of 5 MiB are too much together");
        // Replication would send entry 10 as the one that follows entry 7.
        assert_eq!(store.limited_get_log_entries(8, 12).await.expect("read"), []);
    });
}

#[test]
fn entries_must_follow_each_other() {
    run(async {
        let mut store = open(&model(), false).expect("new");
        append(&mut store, vec![entry(1, 0, 10)]).await;
        let (sender, _receiver) = TypeConfig::oneshot();
        assert!(store.append(vec![entry(1, 2, 10)], IOFlushed::signal(sender)).await.is_err());
    });
}

#[test]
fn a_log_that_a_crash_left_beside_a_newer_snapshot_follows_it() {
    // Entries of term 3 that were never committed; and those that a snapshot of term 2 ends with, or contradicts.
    for (own_term, snapshot, expected_last) in
        [(3, log_id(2, 9), log_id(2, 9)), (3, log_id(2, 3), log_id(2, 3)), (2, log_id(2, 3), log_id(2, 5))]
    {
        run(async {
            let disk = model();
            let mut store = open(&disk, false).expect("new");
            append(&mut store, (0..=5).map(|index| entry(own_term, index, 10)).collect()).await;
            store.follow_snapshot(snapshot).await.expect("written");
            let next = expected_last.index + 1;
            append(&mut store, vec![entry(4, next, 10)]).await;
            drop(store);
            let mut store = open(&disk, true).expect("whole");
            let found = store.try_get_log_entries(snapshot.index + 1..).await.expect("read");
            let ids: Vec<_> = found.iter().map(|it| it.log_id()).collect();
            let kept = (snapshot.index + 1..next).map(|index| log_id(own_term, index));
            assert_eq!(ids, kept.chain([log_id(4, next)]).collect::<Vec<_>>(), "{snapshot}");
            store.follow_snapshot(snapshot).await.expect("written");
            assert_eq!(store.get_log_state().await.expect("read").last_log_id, Some(log_id(4, next)), "once");
        });
    }
}

#[test]
fn segments_are_used_again_and_the_disk_stays_small() {
    let dir = tempfile::tempdir().expect("a folder");
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir.path()).expect("opened"));
    run(async {
        let mut store = open(&disk, false).expect("new");
        for index in 0..400 {
            append(&mut store, vec![entry(1, index, 200 << 10)]).await;
            if index % 20 == 19 {
                store.purge(log_id(1, index - 5)).await.expect("purged");
            }
        }
        let names = disk.list().expect("listed");
        let kept = names.iter().filter(|name| name.starts_with("log.") || name.starts_with("spare.")).count();
        assert!(kept <= 6, "80 MiB went through segments of 4 MiB: {names:?}");
        assert!(store.statistics().entries == 400 && store.statistics().syncs >= 400);
        let mut ended = store.failed.clone();
        drop(store);
        // Its thread may still be about to rename a segment. What it sends on is dropped with it.
        assert!(ended.wait_for(|failed| *failed).await.is_err());
        let mut store = open(&disk, true).expect("whole");
        assert_eq!(store.try_get_log_entries(395..).await.expect("read").len(), 5);
    });
}

/// While the disk syncs one entry, many more are appended.
#[test]
fn appends_that_wait_for_a_sync_share_the_next_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let disk = ModelDisk::new(Random::seeded(1));
        disk.set_faults(DiskFaults { delay: Duration::from_millis(10), ..DiskFaults::default() });
        let mut store =
            LogStore::open(Arc::new(disk), sealer(), false, Threads::Current, LogBounds::default()).expect("new");
        let before = store.statistics();
        let mut waiting = Vec::new();
        for index in 0..51 {
            let (sender, receiver) = TypeConfig::oneshot();
            store.append([entry(1, index, 10)], IOFlushed::signal(sender)).await.expect("taken");
            waiting.push(receiver);
            while index == 0 && store.statistics().bytes == before.bytes {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(store.statistics().syncs, before.syncs, "the sync of the first one is under way");
        for receiver in waiting {
            receiver.await.expect("the writer answers").expect("synced");
        }
        assert_eq!(store.statistics().syncs, before.syncs + 2, "one for the first, and one for fifty");
    });
}

struct Builder(fn() -> (Option<tempfile::TempDir>, Arc<dyn Disk>));

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Option<tempfile::TempDir>> for Builder {
    async fn build(&self) -> Result<(Option<tempfile::TempDir>, LogStore, StateMachine), StorageError<TypeConfig>> {
        let (guard, disk) = (self.0)();
        let log = open(&disk, false).expect("new");
        let machine = StateMachine::open(
            Store::default(),
            disk,
            sealer(),
            Threads::Own,
            Digests::default(),
            LogBounds::default(),
        )
        .expect("new");
        Ok((guard, log, machine))
    }
}

/// The library's own test suite for logs and state machines.
#[test]
fn the_librarys_suite_passes_on_a_real_folder() {
    let real = || {
        let dir = tempfile::tempdir().expect("a folder");
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir.path()).expect("opened"));
        (Some(dir), disk)
    };
    run(Suite::test_all(Builder(real))).expect("all of it");
}

#[test]
fn the_librarys_suite_passes_on_the_model() {
    run(Suite::test_all(Builder(|| (None, model())))).expect("all of it");
}

mod power;
