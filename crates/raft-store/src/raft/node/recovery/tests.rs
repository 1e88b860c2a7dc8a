//! A cluster of three loses two of its managers, and the third begins anew with everything in its log.

use openraft::storage::IOFlushed;
use openraft::type_config::TypeConfigExt;

use super::*;
use crate::proposer::Proposer;
use crate::raft::disk::{DirDisk, ModelDisk};
use crate::raft::node::{RaftNode, Timing};
use crate::raft::transport::FakeTransport;
use crate::raft::type_config::{EntryBytes, RaftEntry, TypeConfig};
use crate::store::{Store, WriteTx};
use flota_api::clock::{Clock, Random};
use flota_api::model::{Cluster, Service, ServiceSpec};

fn options(id: u64, disk: Arc<dyn Disk>, was_here: bool) -> RaftOptions {
    RaftOptions {
        id,
        disk,
        was_here,
        sealer: Sealer::new(&[3; 32]),
        transport: Arc::new(FakeTransport::silent()),
        store: Store::default(),
        timing: Timing::default(),
        bounds: LogBounds::default(),
        clock: Clock::system(),
        random: Random::seeded(1),
        threads: Threads::Current,
    }
}

fn new_folder(disk: Arc<dyn Disk>, term: u64) -> NewFolder<'static> {
    NewFolder { disk, sealer: Sealer::new(&[3; 32]), id: 77, address: "m1:1", term, threads: Threads::Current }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 2).to_committed(), index)
}

fn service(name: &str) -> Service {
    let spec = ServiceSpec { name: name.into(), ..ServiceSpec::default() };
    Service { id: name.into(), spec: spec.into(), spec_version: 1, ..Service::default() }
}

/// Returns an entry that creates a service named for its index.
fn entry(term: u64, index: u64) -> RaftEntry {
    let mut tx = WriteTx::new(Store::default().view(), None);
    if index == 1 {
        tx.create(Cluster { id: "c".into(), ..Cluster::default() });
    }
    tx.create(service(&format!("s{index}")));
    let entry = Entry { transactions: vec![tx.finish()], ..Entry::default() };
    RaftEntry::new(id(term, index), EntryPayload::Normal(EntryBytes(entry.encode().into())))
}

/// Writes the folder of the manager 1 of three. It has a vote of term 5, and entries up to `last`, of which `committed` are
/// known to be committed. The first `in_snapshot` of them are in a snapshot.
async fn follower(disk: Arc<dyn Disk>, last: u64, committed: u64, in_snapshot: u64) {
    let mut folder = Folder::open(&options(1, disk, false), Digests::default()).await.expect("an empty disk");
    let members: BTreeMap<_, _> = (1..=3).map(|id| (id, BasicNode::new(format!("m{id}:1")))).collect();
    let mut entries = vec![RaftEntry::new(id(1, 0), EntryPayload::Membership(members.into()))];
    entries.extend((1..=last).map(|index| entry(4, index)));
    for entry in &entries {
        let (sender, receiver) = TypeConfig::oneshot();
        folder.log.append([entry.clone()], IOFlushed::signal(sender)).await.expect("written");
        receiver.await.expect("answered").expect("synced");
    }
    if in_snapshot > 0 {
        use openraft::RaftSnapshotBuilder;
        use openraft::storage::RaftStateMachine;
        let applied = entries.iter().filter(|entry| entry.log_id().index <= in_snapshot);
        let applied: Vec<_> = applied.map(|entry| Ok((entry.clone(), None))).collect();
        folder.machine.apply(futures::stream::iter(applied)).await.expect("applied");
        folder.machine.get_snapshot_builder().await.build_snapshot().await.expect("written");
        folder.log.purge(id(4, in_snapshot)).await.expect("purged");
    }
    folder.log.save_committed(Some(id(4, committed))).await.expect("written");
    folder.log.save_vote(&Vote { leader_id: LeaderId::new(5, 3), committed: false }).await.expect("synced");
}

#[tokio::test]
async fn everything_in_the_log_is_kept_whether_it_is_known_to_be_committed_or_not() {
    for (committed, in_snapshot) in [(9, 0), (3, 0), (0, 0), (6, 6), (9, 9), (7, 3)] {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = Arc::new(DirDisk::open(dir.path()).expect("it is writable"));
        follower(Arc::clone(&disk) as Arc<dyn Disk>, 9, committed, in_snapshot).await;
        let options = options(1, disk, true);
        let end = replay_folder(&options).await.expect("it is whole");
        assert_eq!(end, LogEnd { index: 9, term: 5 }, "{committed} {in_snapshot}");
        let view = options.store.view();
        assert_eq!((view.services().count(), view.version), (9, 9), "{committed} {in_snapshot}");
    }
}

#[tokio::test]
async fn a_log_that_is_damaged_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let disk = Arc::new(DirDisk::open(dir.path()).expect("it is writable"));
    follower(Arc::clone(&disk) as Arc<dyn Disk>, 9, 9, 0).await;
    let log = std::fs::read_dir(dir.path()).expect("listed").flatten().map(|it| it.path());
    let log = log.into_iter().find(|it| it.to_string_lossy().contains("log.")).expect("there is a log");
    let mut bytes = std::fs::read(&log).expect("read");
    bytes[700] ^= 1;
    std::fs::write(&log, bytes).expect("written");
    let error = replay_folder(&options(1, disk, true)).await.expect_err("it is damaged");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_manager_that_begins_anew_leads_alone_and_still_does_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let disk = |path: &std::path::Path| Arc::new(DirDisk::open(path).expect("it is writable")) as Arc<dyn Disk>;
    follower(disk(&old), 9, 4, 3).await;
    let before = options(1, disk(&old), true);
    let end = replay_folder(&before).await.expect("it is whole");
    write_folder(new_folder(disk(&new), end.term + 1), &before.store.view()).await.expect("it is empty");
    for (run, services) in [(1, 9), (2, 10)] {
        let options = options(77, disk(&new), true);
        let store = options.store.clone();
        let raft = RaftNode::start(options).await.expect("it is whole");
        let mut leadership = raft.leadership();
        let leads = leadership.wait_for(|it| it.is_self).await.expect("it runs").clone();
        assert!(leads.term > end.term, "run {run}: {leads:?}");
        let members: Vec<_> = raft.members().into_iter().map(|it| (it.id, it.address, it.votes)).collect();
        assert_eq!(members, [(77, "m1:1".to_owned(), true)], "run {run}");
        raft.read_barrier().await.expect("it is its own majority");
        assert_eq!(store.view().services().count(), services, "run {run}");
        let mut tx = WriteTx::new(store.view(), None);
        tx.create(service(&format!("run {run}")));
        raft.propose(tx.finish()).await.expect("it leads");
        raft.shutdown().await;
    }
}

#[tokio::test]
async fn a_folder_that_is_not_empty_is_left_alone() {
    let disk = Arc::new(ModelDisk::new(Random::seeded(1)));
    follower(Arc::clone(&disk) as Arc<dyn Disk>, 3, 3, 0).await;
    let before = disk.list().expect("listed");
    write_folder(new_folder(Arc::clone(&disk) as Arc<dyn Disk>, 6), &Store::default().view())
        .await
        .expect_err("refused");
    assert_eq!(disk.list().expect("listed"), before);
}

/// Cuts the power at each disk operation of the writing. A folder whose writing had ended is whole.
#[tokio::test(start_paused = true)]
async fn a_folder_that_was_written_survives_the_loss_of_power() {
    let tables = options(1, Arc::new(ModelDisk::new(Random::seeded(1))), false);
    let end = {
        let disk = Arc::new(ModelDisk::new(Random::seeded(2)));
        follower(Arc::clone(&disk) as Arc<dyn Disk>, 9, 4, 0).await;
        let options = RaftOptions { store: tables.store.clone(), ..options(1, disk, true) };
        replay_folder(&options).await.expect("it is whole")
    };
    for seed in 0..20 {
        let disk = ModelDisk::new(Random::seeded(seed));
        let written = new_folder(Arc::new(disk.clone()), end.term + 1);
        write_folder(written, &tables.store.view()).await.expect("it is empty");
        let again = options(77, Arc::new(disk.crash()), true);
        let found = replay_folder(&again).await.expect("it is whole");
        assert_eq!(found, LogEnd { index: 9, term: end.term + 1 }, "seed {seed}");
        assert_eq!(again.store.digest(), tables.store.digest(), "seed {seed}");
    }
}
