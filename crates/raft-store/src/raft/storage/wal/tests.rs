//! Tests the log on a disk that loses data, tears writes and fails, at every write and sync of a long mixed run.

use std::sync::Arc;

use openraft::EntryPayload;
use openraft::vote::RaftLeaderId as _;
use rand::Rng;

use super::*;
use crate::raft::disk::{DiskFaults, ModelDisk};
use crate::raft::storage::OpenError;
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

fn open(disk: &ModelDisk) -> Result<(Wal, Expected), OpenError> {
    Wal::open(Arc::new(disk.clone()), sealer(), false).map(found)
}

fn begin(disk: ModelDisk) -> Run {
    let (wal, now) = open(&disk).expect("an empty disk");
    Run { wal, disk, term: 1, now }
}

/// Whether `found` is a state that the step from `before` to `after` may leave if it is cut: a prefix of its records.
fn is_between(found: &Expected, before: &Expected, after: &Expected) -> bool {
    if found == before || found == after {
        return true;
    }
    // An append may be cut between entries; a purge or a truncation happens completely or not at all.
    let same = found.vote == before.vote && found.purged == before.purged;
    same && found.entries.starts_with(&before.entries) && after.entries.starts_with(&found.entries)
}

/// The power fails at a disk operation, at each third one of a run and at others in each of the three runs. Everything that was acknowledged is there, and nothing that was
/// never written. Afterwards, the log is usable and survives another failure.
#[test]
fn a_power_failure_at_any_write_or_sync_loses_nothing_that_was_acknowledged() {
    for seed in 0..3 {
        let steps = steps(seed, 60);
        let operations = {
            let mut run = begin(ModelDisk::new(Random::seeded(seed)));
            steps.iter().for_each(|step| run.step(step).expect("the disk is whole"));
            run.disk.operations()
        };
        assert!(operations > 100, "it was a long run");
        for stop_at in (6 + seed..operations).step_by(3) {
            let disk = ModelDisk::new(Random::seeded(seed * 1_000 + stop_at));
            let mut run = begin(disk);
            run.disk.stop_at(stop_at);
            let mut before = run.now.clone();
            let failed = steps.iter().any(|step| {
                before = run.now.clone();
                run.step(step).is_err()
            });
            assert!(failed, "operation {stop_at} of {operations} is one of a step");
            let disk = run.disk.crash();
            let opened = open(&disk).unwrap_or_else(|error| panic!("seed {seed}, operation {stop_at}: {error:?}"));
            let (wal, now) = opened;
            assert!(
                is_between(&now, &before, &run.now),
                "seed {seed}, operation {stop_at}: {now:?}\nis not between {before:?}\nand {:?}",
                run.now
            );
            let term = run.term + 1;
            let mut run = Run { wal, disk, term, now };
            run.step(&Step::Append(vec![10, 4_000, 7])).expect("the disk works again");
            let (disk, now) = (run.disk.crash(), run.now);
            assert_eq!(open(&disk).expect("whole").1, now, "seed {seed}, operation {stop_at}");
        }
    }
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

/// Changes every byte of an acknowledged record in turn: the log is refused and never treated as a shorter one.
#[test]
fn damage_to_what_was_acknowledged_is_never_taken_for_a_torn_tail() {
    let build = || {
        let mut run = begin(ModelDisk::new(Random::seeded(1)));
        for step in [Step::Vote, Step::Append(vec![100, 300]), Step::Append(vec![50]), Step::Vote] {
            run.step(&step).expect("the disk is whole");
        }
        run
    };
    let end = build().wal.current.end;
    for offset in 0..end {
        // After a kill, the note proves the acknowledgement; after a power failure, the mark after the last record
        // does.
        for power_fails in [false, true] {
            let mut run = build();
            let disk = if power_fails {
                run.wal.settle().expect("the disk is whole");
                run.disk.crash()
            } else {
                run.disk.restart()
            };
            disk.flip_bit(&segment_name(1), offset, u8::try_from(offset % 8).expect("it is below 8"));
            match open(&disk) {
                Err(OpenError::Damaged { .. }) => {}
                // A change in the padding between records has no effect.
                Ok((_, now)) => assert_eq!(now, run.now, "offset {offset}"),
                Err(error) => panic!("offset {offset}: {error}"),
            }
        }
    }
}

/// A power failure may lose the note. Later records still prove everything that was acknowledged before the last sync.
#[test]
fn records_prove_that_those_before_them_were_acknowledged() {
    let mut run = begin(ModelDisk::new(Random::seeded(1)));
    run.step(&Step::Append(vec![100])).expect("the disk is whole");
    let end = run.wal.current.end;
    run.step(&Step::Append(vec![100])).expect("the disk is whole");
    run.step(&Step::Append(vec![100])).expect("the disk is whole");
    let disk = run.disk.crash();
    disk.remove(NOTE).expect("removed");
    disk.flip_bit(&segment_name(1), end + 60, 1);
    assert!(matches!(open(&disk), Err(OpenError::Damaged { what, .. }) if what.contains("acknowledged")));
}

#[test]
fn a_segment_that_is_missing_or_ends_early_is_damage() {
    let build = || {
        let mut run = begin(ModelDisk::new(Random::seeded(1)));
        for _ in 0..8 {
            run.step(&Step::Append(vec![2 << 20])).expect("the disk is whole");
        }
        run.disk.restart()
    };
    let damaged = |disk: &ModelDisk, what: &str| match open(disk) {
        Err(OpenError::Damaged { what: found, .. }) => assert!(found.contains(what), "{found}"),
        other => panic!("{what}: {:?}", other.map(|it| it.1)),
    };
    let disk = build();
    disk.remove(&segment_name(2)).expect("there");
    damaged(&disk, "segment 2 is missing");
    let disk = build();
    disk.remove(&segment_name(1)).expect("there");
    damaged(&disk, "are missing");
    let disk = build();
    disk.flip_bit(&segment_name(1), 2_000_000, 0);
    damaged(&disk, "can't be read");
    let disk = build();
    let names = disk.list().expect("listed");
    names.iter().filter(|name| name.starts_with("log.")).for_each(|name| disk.remove(name).expect("there"));
    damaged(&disk, "ends before what was acknowledged");
    disk.remove(NOTE).expect("there");
    let gone = Wal::open(Arc::new(disk), sealer(), true).expect_err("it was here");
    assert!(gone.to_string().contains("is damaged"), "{gone}");
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
