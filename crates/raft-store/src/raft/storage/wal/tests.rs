//! Tests the log on a disk that loses data and fails. node/folder/tests.rs cuts the power at each operation of the log and
//! the snapshots together.

use std::sync::Arc;

use openraft::EntryPayload;
use openraft::vote::RaftLeaderId as _;
use rand::Rng;

use super::*;
use crate::raft::disk::{DiskFaults, ModelDisk};
use crate::raft::storage::{LogBounds, OpenError};
use crate::raft::type_config::{EntryBytes, LeaderId};
use flota_api::clock::Random;

fn sealer() -> Sealer {
    Sealer::new(&[3; 32])
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1).to_committed(), index)
}

/// State that the log must have after a crash: everything that was acknowledged, and nothing that was never written.
#[derive(Clone, Debug, Default, PartialEq)]
struct Expected {
    vote: Option<u64>,
    purged: Option<u64>,
    /// Index, term and size of each entry after `purged`.
    entries: Vec<(u64, u64, usize)>,
}

/// One step of a run.
#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Truncate(usize),
    Purge(usize),
    Vote,
}

struct Run {
    wal: Wal,
    disk: ModelDisk,
    term: u64,
    now: Expected,
}

impl Run {
    fn last(&self) -> Option<LogId> {
        self.now.entries.last().map(|(term, index, _)| log_id(*term, *index)).or(self.wal.head().purged)
    }

    /// Performs a step and syncs it. Returns an error if the disk failed in between.
    fn step(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Append(sizes) => {
                for size in sizes {
                    let index = self.last().map_or(0, |id| id.index + 1);
                    let bytes = vec![u8::try_from(index % 251).expect("it is below 251"); *size];
                    let payload = EntryPayload::Normal(EntryBytes(bytes.into()));
                    let entry = RaftEntry { log_id: log_id(self.term, index), payload };
                    self.now.entries.push((self.term, index, *size));
                    self.wal.append_entry(entry.log_id, &postcard::to_stdvec(&entry).map_err(io::Error::other)?)?;
                }
            }
            Step::Truncate(count) => {
                let kept = self.now.entries.len().saturating_sub(*count);
                self.now.entries.truncate(kept);
                self.wal.append_truncation(self.last())?;
                self.term += 1;
            }
            Step::Purge(count) => {
                let count = (*count).min(self.now.entries.len());
                if let Some((term, index, _)) = self.now.entries.drain(..count).next_back() {
                    self.now.purged = Some(index);
                    self.wal.append_purge(log_id(term, index))?;
                    self.wal.sync()?;
                    return self.wal.recycle();
                }
            }
            Step::Vote => {
                self.term += 1;
                self.now.vote = Some(self.term);
                self.wal.append_vote(Vote { leader_id: LeaderId::new(self.term, 1), committed: false })?;
            }
        }
        self.wal.sync()
    }
}

fn steps(seed: u64, count: usize) -> Vec<Step> {
    let random = Random::seeded(seed);
    random.draw(|rng| {
        let mut step = |number: usize| match rng.random_range(0..20) {
            0..=12 => {
                let count = rng.random_range(1..6);
                // Sometimes the largest legal entry, or a large one of up to 2 MB.
                let size = |rng: &mut rand::rngs::StdRng| match rng.random_range(0..40) {
                    0 => crate::raft::ENTRY_BOUND,
                    1..=4 => rng.random_range(100_000..2_000_000),
                    _ => rng.random_range(0..2_000),
                };
                Step::Append((0..if number % 9 == 8 { 1 } else { count }).map(|_| size(rng)).collect())
            }
            13..=14 => Step::Truncate(rng.random_range(0..6)),
            15..=17 => Step::Purge(rng.random_range(0..30)),
            _ => Step::Vote,
        };
        (0..count).map(&mut step).collect()
    })
}

fn found(recovered: recover::Recovered) -> (Wal, Expected) {
    let head = recovered.wal.head().clone();
    let entry = |it: &RecoveredEntry| {
        let EntryPayload::Normal(bytes) = &it.entry.payload else { panic!("only such entries were written") };
        assert!(bytes.0.iter().all(|byte| u64::from(*byte) == it.id.index % 251), "the content is the entry's");
        (it.id.leader_id.term, it.id.index, bytes.0.len())
    };
    let expected = Expected {
        vote: head.vote.map(|vote| vote.leader_id.term),
        purged: head.purged.map(|id| id.index),
        entries: recovered.entries.iter().map(entry).collect(),
    };
    (recovered.wal, expected)
}

fn open_with(disk: &ModelDisk, segment_bytes: u64) -> Result<(Wal, Expected), OpenError> {
    Wal::open(Arc::new(disk.clone()), sealer(), false, segment_bytes).map(found)
}

fn open(disk: &ModelDisk) -> Result<(Wal, Expected), OpenError> {
    open_with(disk, LogBounds::default().segment_bytes)
}

fn begin_with(disk: ModelDisk, segment_bytes: u64) -> Run {
    let (wal, now) = open_with(&disk, segment_bytes).expect("an empty disk");
    Run { wal, disk, term: 1, now }
}

fn begin(disk: ModelDisk) -> Run {
    begin_with(disk, LogBounds::default().segment_bytes)
}

#[test]
fn a_process_that_is_killed_loses_nothing_that_it_wrote() {
    let mut run = begin(ModelDisk::new(Random::seeded(1)));
    steps(7, 40).iter().for_each(|step| run.step(step).expect("the disk is whole"));
    let disk = run.disk.restart();
    assert_eq!(open(&disk).expect("whole").1, run.now);
    let late = run.step(&Step::Append(vec![1]));
    assert!(late.is_err(), "a late write of the dead process reaches nothing");
}

/// The disk fails in a sync, and the process ends and starts again: what it then reads may be in memory alone.
#[test]
fn what_is_read_after_a_failed_sync_is_made_durable_before_it_counts() {
    let mut run = begin(ModelDisk::new(Random::seeded(1)));
    run.step(&Step::Append(vec![100])).expect("the disk is whole");
    run.disk.set_faults(DiskFaults { failing_syncs: true, ..DiskFaults::default() });
    assert!(run.step(&Step::Append(vec![200])).is_err());
    run.disk.set_faults(DiskFaults::default());
    let disk = run.disk.restart();
    let (_wal, found) = open(&disk).expect("whole");
    assert_eq!(found, run.now, "the write had succeeded");
    assert_eq!(open(&disk.crash()).expect("whole").1, found);
}

#[test]
fn a_full_or_failing_disk_is_an_error_and_what_was_acknowledged_stays() {
    let mut run = begin(ModelDisk::new(Random::seeded(1)));
    run.step(&Step::Append(vec![100])).expect("the disk is whole");
    let acknowledged = run.now.clone();
    run.disk.set_faults(DiskFaults { capacity: Some(5 << 20), ..DiskFaults::default() });
    let full = run.step(&Step::Append(vec![3 << 20, 3 << 20])).expect_err("there is no room for a second segment");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let disk = run.disk.crash();
    disk.set_faults(DiskFaults::default());
    let (_, now) = open(&disk).expect("whole");
    assert!(now.entries.starts_with(&acknowledged.entries));
}

/// Tests the tests: they detect a disk that does not sync.
#[test]
fn a_disk_that_lies_about_a_sync_loses_what_was_acknowledged() {
    let lost = (0..20).any(|seed| {
        let mut run = begin(ModelDisk::new(Random::seeded(seed)));
        run.step(&Step::Append(vec![100])).expect("the disk is whole");
        run.disk.set_faults(DiskFaults { lies: true, ..DiskFaults::default() });
        run.step(&Step::Append(vec![5_000])).expect("so it says");
        let disk = run.disk.crash();
        !matches!(open(&disk), Ok((_, now)) if now == run.now)
    });
    assert!(lost, "ten sectors that were never synced can't all survive every time");
}

mod damage;
