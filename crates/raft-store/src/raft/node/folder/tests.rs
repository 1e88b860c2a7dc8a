//! Cuts the power at each disk operation of mixed runs over the log and the snapshots together.

use std::collections::BTreeMap;
use std::io;

use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId as _;
use openraft::{EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use rand::Rng;

use super::*;
use crate::digest::Digest;
use crate::raft::ENTRY_BOUND;
use crate::raft::disk::{Disk, ModelDisk};
use crate::raft::node::Timing;
use crate::raft::storage::LogBounds;
use crate::raft::threads::Threads;
use crate::raft::transport::FakeTransport;
use crate::raft::type_config::{EntryBytes, LeaderId, LogId, RaftEntry, SnapshotMeta, TypeConfig, Vote};
use crate::store::Store;
use crate::transaction::{Action, Entry, Transaction};
use flota_api::clock::{Clock, Random};
use flota_api::model::{Service, ServiceSpec};
use flota_api::object::{Kind, StoreObject};
use flota_api::seal::Sealer;
use flota_api::version::Timestamp;

/// What a manager must find again: its vote, the snapshot that it starts from, and the entries behind that.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    voted: Option<u64>,
    snapshot: Option<LogId>,
    entries: Vec<LogId>,
}

impl State {
    fn last(&self) -> Option<LogId> {
        self.entries.last().copied().or(self.snapshot)
    }
}

/// One step of a run.
#[derive(Clone, Debug)]
enum Step {
    /// Appends entries of these sizes, which are synced together.
    Append(Vec<usize>),
    Vote,
    /// Truncates so many entries.
    Truncate(usize),
    /// Applies all entries but so many, and builds a snapshot.
    Snapshot(usize),
    /// Purges the log up to so many entries before the snapshot.
    Purge(u64),
    /// Installs the snapshot of a leader, and purges the log up to it.
    Install(Newer),
}

/// How the snapshot that a leader sends relates to the log.
#[derive(Clone, Copy, Debug)]
enum Newer {
    /// It ends behind the log.
    Behind,
    /// It ends with an entry of the log, and those that follow remain.
    Within,
    /// It contradicts the log, whose entries are truncated first.
    Against,
}

struct Run {
    disk: ModelDisk,
    folder: Folder,
    store: Store,
    term: u64,
    /// What was acknowledged.
    now: State,
    /// The states that the step that is under way may leave behind.
    possible: Vec<State>,
    written: BTreeMap<LogId, RaftEntry>,
    /// The digest of the tables in each snapshot.
    digests: BTreeMap<LogId, Digest>,
}

/// The payload of an entry, of this size or the smallest that is larger. It replaces one of five services.
fn payload(index: u64, size: usize) -> EntryPayload<EntryBytes, u64, openraft::BasicNode> {
    let id = format!("s{}", index % 5);
    let encode = |padding: usize| {
        let spec = ServiceSpec { name: id.clone(), env: vec!["x".repeat(padding)], ..ServiceSpec::default() };
        let service = Service { id: id.as_str().into(), spec: spec.into(), spec_version: 1, ..Service::default() };
        let actions = [Action::Remove(Kind::Service, id.as_str().into()), Action::Create(service.into_object())];
        let transactions = actions.map(|it| Transaction { actions: vec![it], ..Transaction::default() });
        Entry { at: Timestamp(index), transactions: transactions.into(), ..Entry::default() }.encode()
    };
    let bytes = match size {
        0 => return EntryPayload::Blank,
        1 => Entry::default().encode(),
        // The lengths inside of the entry take some bytes, too.
        _ => encode(size.saturating_sub(encode(size).len() - size)),
    };
    EntryPayload::Normal(EntryBytes(bytes.into()))
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1).to_committed(), index)
}

async fn open(disk: &ModelDisk, was_here: bool) -> Result<(Folder, Store), OpenError> {
    let store = Store::default();
    let options = RaftOptions {
        id: 1,
        disk: Arc::new(disk.clone()),
        was_here,
        sealer: Sealer::new(&[3; 32]),
        transport: Arc::new(FakeTransport::silent()),
        store: store.clone(),
        timing: Timing::default(),
        bounds: LogBounds::default(),
        clock: Clock::new(Timestamp::default),
        random: Random::seeded(1),
        threads: Threads::Current,
    };
    Ok((Folder::open(&options, Digests::default()).await?, store))
}

impl Run {
    async fn begin(disk: ModelDisk) -> Self {
        let (folder, store) = open(&disk, false).await.expect("an empty disk");
        let (now, possible) = (State::default(), Vec::new());
        Self { disk, folder, store, term: 1, now, possible, written: BTreeMap::new(), digests: BTreeMap::new() }
    }

    /// The state after the changes that were made so far, whether they are acknowledged or not.
    fn next(&self) -> State {
        self.possible.last().unwrap_or(&self.now).clone()
    }

    /// Performs a step, and waits until it is acknowledged.
    async fn step(&mut self, step: &Step) -> io::Result<()> {
        self.possible = vec![self.now.clone()];
        match step {
            Step::Append(sizes) => self.append(sizes).await?,
            Step::Vote => {
                self.term += 1;
                self.possible.push(State { voted: Some(self.term), ..self.now.clone() });
                let vote = Vote { leader_id: LeaderId::new(self.term, 1), committed: false };
                self.folder.log.save_vote(&vote).await?;
            }
            Step::Truncate(count) => {
                let kept = self.now.entries.len().saturating_sub(*count);
                self.truncate(kept).await?;
            }
            Step::Snapshot(kept) => self.snapshot(*kept).await?,
            Step::Purge(kept) => {
                let upto = self.now.snapshot.map_or(0, |id| id.index.saturating_sub(*kept));
                let found = self.folder.log.try_get_log_entries(upto..=upto).await?;
                if let Some(entry) = found.first() {
                    self.folder.log.purge(entry.log_id()).await?;
                }
            }
            Step::Install(newer) => self.install(*newer).await?,
        }
        self.now = self.next();
        Ok(())
    }

    async fn append(&mut self, sizes: &[usize]) -> io::Result<()> {
        let mut flushed = Vec::new();
        for size in sizes {
            let mut next = self.next();
            let id = log_id(self.term, next.last().map_or(0, |last| last.index + 1));
            next.entries.push(id);
            self.possible.push(next);
            let entry = RaftEntry::new(id, payload(id.index, *size));
            self.written.insert(id, entry.clone());
            let (sender, receiver) = TypeConfig::oneshot();
            self.folder.log.append([entry], IOFlushed::signal(sender)).await?;
            flushed.push(receiver);
        }
        for receiver in flushed {
            receiver.await.map_err(io::Error::other)??;
        }
        Ok(())
    }

    async fn truncate(&mut self, kept: usize) -> io::Result<()> {
        let mut next = self.now.clone();
        next.entries.truncate(kept);
        self.possible.push(next.clone());
        self.term += 1;
        self.folder.log.truncate_after(next.last()).await
    }

    async fn snapshot(&mut self, kept: usize) -> io::Result<()> {
        let applied = self.now.entries.len().saturating_sub(kept);
        let (entries, rest) = self.now.entries.split_at(applied);
        let Some(last) = entries.last().copied() else { return Ok(()) };
        let entries: Vec<_> = entries.iter().map(|id| Ok((self.written[id].clone(), None))).collect();
        self.possible.push(State { snapshot: Some(last), entries: rest.to_vec(), ..self.now.clone() });
        let machine = &mut self.folder.machine;
        machine.apply(futures::stream::iter(entries)).await?;
        self.digests.insert(last, self.store.digest());
        self.folder.log.save_committed(Some(last)).await?;
        machine.get_snapshot_builder().await.build_snapshot().await.map(drop)
    }

    /// Does what the library does with a snapshot of a leader, in its order.
    async fn install(&mut self, newer: Newer) -> io::Result<()> {
        let middle = self.now.entries.len() / 2;
        let last = self.now.last().map_or(0, |id| id.index);
        let (id, rest) = match (newer, self.now.entries.get(middle)) {
            (Newer::Behind, _) | (_, None) => (log_id(self.term, last + 2), Vec::new()),
            (Newer::Within, Some(id)) => (*id, self.now.entries[middle + 1..].to_vec()),
            (Newer::Against, Some(id)) => {
                let index = id.index;
                self.truncate(0).await?;
                (log_id(self.term, index), Vec::new())
            }
        };
        let store = Store::default();
        let EntryPayload::Normal(bytes) = payload(id.index, 3_000) else { panic!("it is not blank") };
        store.apply(id.index, Entry::decode(&bytes.0).expect("it was encoded just now"));
        self.digests.insert(id, store.digest());
        self.possible.push(State { snapshot: Some(id), entries: rest, ..self.now.clone() });
        let meta = SnapshotMeta { last_log_id: Some(id), ..SnapshotMeta::default() };
        self.folder.machine.install_snapshot(&meta, store.view()).await?;
        self.folder.log.purge(id).await
    }

    /// Returns what a manager finds in this folder. Everything in it is as it was written.
    async fn found(&self, (folder, store): &mut (Folder, Store)) -> State {
        let snapshot = folder.machine.applied();
        let digest = snapshot.map_or_else(|| Store::default().digest(), |id| self.digests[&id]);
        assert_eq!(store.digest(), digest, "the tables of the snapshot at {snapshot:?}");
        let first = folder.log.purged().map_or(0, |index| index + 1);
        let entries = folder.log.try_get_log_entries(..).await.expect("read");
        for (entry, index) in entries.iter().zip(first..) {
            assert_eq!((entry.log_id().index, Some(entry)), (index, self.written.get(&entry.log_id())));
        }
        let ids = entries.iter().map(|entry| entry.log_id());
        let voted = folder.log.read_vote().await.expect("read").map(|vote| vote.leader_id.term);
        State { voted, snapshot, entries: ids.filter(|id| Some(id.index) > snapshot.map(|id| id.index)).collect() }
    }
}

fn steps(seed: u64, count: usize) -> Vec<Step> {
    let random = Random::seeded(seed);
    random.draw(|rng| {
        let size = |rng: &mut rand::rngs::StdRng| match rng.random_range(0..24) {
            0..=1 => 0,
            2..=3 => 1,
            4..=6 => rng.random_range(100_000..1_000_000),
            _ => rng.random_range(100..2_000),
        };
        let mut step = |number: usize| match rng.random_range(0..20) {
            // Late, because each cut behind it takes longer.
            _ if number == count * 3 / 4 => Step::Append(vec![ENTRY_BOUND]),
            0..=8 => Step::Append((0..rng.random_range(1..6)).map(|_| size(rng)).collect()),
            9 => Step::Vote,
            10..=11 => Step::Truncate(rng.random_range(0..4)),
            12..=13 => Step::Snapshot(rng.random_range(0..4)),
            14..=16 => Step::Purge(rng.random_range(0..3)),
            17 => Step::Install(Newer::Behind),
            18 => Step::Install(Newer::Within),
            _ => Step::Install(Newer::Against),
        };
        // A purge is acknowledged by the vote that follows.
        (0..count).map(&mut step).chain([Step::Vote]).collect()
    })
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work)
}

/// Returns the first disk operation of the steps and the first behind them.
async fn measure(seed: u64, steps: &[Step]) -> (u64, u64) {
    let mut run = Run::begin(ModelDisk::new(Random::seeded(seed))).await;
    let first = run.disk.operations() + 1;
    let mut is_reused = false;
    for step in steps {
        run.step(step).await.expect("the disk is whole");
        is_reused |= run.disk.list().expect("listed").iter().any(|name| name.starts_with("spare."));
    }
    assert!(is_reused, "segments are renamed, too");
    (first, run.disk.operations() + 1)
}

/// Cuts the power at this operation. Everything that was acknowledged must be there, and nothing that was never written.
/// Afterwards, the folder is usable and survives another failure.
async fn cut(seed: u64, steps: &[Step], operation: u64) {
    let mut run = Run::begin(ModelDisk::new(Random::seeded(seed * 100_000 + operation))).await;
    run.disk.stop_at(operation);
    let mut is_cut = false;
    for step in steps {
        is_cut = run.step(step).await.is_err();
        if is_cut {
            break;
        }
    }
    assert!(is_cut, "seed {seed}: operation {operation} is one of a step");
    run.disk = run.disk.crash();
    let opened = open(&run.disk, true).await;
    let mut opened = opened.unwrap_or_else(|error| panic!("seed {seed}, operation {operation}: {error:?}"));
    let found = run.found(&mut opened).await;
    let possible = &run.possible;
    assert!(possible.contains(&found), "seed {seed}, operation {operation}: {found:?}\nis none of {possible:?}");
    ((run.folder, run.store), run.now, run.term) = (opened, found, run.term + 1);
    run.step(&Step::Append(vec![1, 4_000, 700])).await.expect("the disk works again");
    let mut opened = open(&run.disk.crash(), true).await.expect("whole");
    assert_eq!(run.found(&mut opened).await, run.now, "seed {seed}, operation {operation}");
}

fn cut_at_each_operation(seed: u64, count: usize) {
    let steps = steps(seed, count);
    let (first, end) = run(measure(seed, &steps));
    for operation in first..end {
        run(cut(seed, &steps, operation));
    }
}

#[test]
fn power_failure_at_any_disk_operation_loses_nothing_that_was_acknowledged() {
    cut_at_each_operation(1, 30);
}

#[test]
#[ignore = "takes minutes; `make test-long` runs it"]
fn power_failure_at_any_disk_operation_of_long_runs_loses_nothing_that_was_acknowledged() {
    (2..6).for_each(|seed| cut_at_each_operation(seed, 90));
}

#[test]
fn largest_entry_of_the_runs_is_the_largest_legal_one() {
    let EntryPayload::Normal(bytes) = payload(3, ENTRY_BOUND) else { panic!("it is not blank") };
    assert_eq!(bytes.0.len(), ENTRY_BOUND);
}
