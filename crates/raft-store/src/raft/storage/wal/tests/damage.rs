//! Kinds of damage to what was acknowledged. Each is noticed when the log is opened, and none passes for a torn write.

use super::*;
use crate::raft::disk;

/// Changes every byte of an acknowledged record in turn: the log is refused and never treated as a shorter one.
#[test]
fn damage_to_what_was_acknowledged_is_never_taken_for_a_torn_tail() {
    // Thousands of logs are opened, and each costs what its segment is long.
    let segment_bytes = 64 << 10;
    let build = || {
        let mut run = begin_with(ModelDisk::new(Random::seeded(1)), segment_bytes);
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
            match open_with(&disk, segment_bytes) {
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

/// Writes a log of several segments, damages it after its process was killed, and returns why it is refused.
fn refusal(damage: impl Fn(&ModelDisk)) -> String {
    let disk = several_segments(sealer());
    damage(&disk);
    match open(&disk) {
        Err(OpenError::Damaged { what, .. }) => what,
        other => panic!("{:?}", other.map(|it| it.1)),
    }
}

/// The disk of a killed process whose log has eight entries of 2 MiB, one or two in each segment.
fn several_segments(sealer: Sealer) -> ModelDisk {
    let disk = ModelDisk::new(Random::seeded(1));
    let (wal, now) = Wal::open(Arc::new(disk.clone()), sealer, false, LogBounds::default().segment_bytes)
        .map(found)
        .expect("an empty disk");
    let mut run = Run { wal, disk, term: 1, now };
    for _ in 0..8 {
        run.step(&Step::Append(vec![2 << 20])).expect("the disk is whole");
    }
    run.disk.restart()
}

fn segments(disk: &ModelDisk) -> Vec<String> {
    let names = disk.list().expect("listed");
    names.into_iter().filter(|name| name.starts_with("log.")).collect()
}

fn content(disk: &ModelDisk, name: &str) -> Vec<u8> {
    disk::read(disk.open(name).expect("there").as_ref()).expect("read")
}

fn replace(disk: &ModelDisk, name: &str, content: &[u8]) {
    disk.create(name).and_then(|file| file.write_at(0, content)).expect("written");
}

#[test]
fn segment_that_is_missing_is_noticed() {
    assert_eq!(refusal(|disk| disk.remove(&segment_name(2)).expect("there")), "segment 2 is missing");
    let first = refusal(|disk| disk.remove(&segment_name(1)).expect("there"));
    assert!(first.contains("are missing"), "{first}");
    let last = refusal(|disk| disk.remove(segments(disk).last().expect("one")).expect("there"));
    assert_eq!(last, "it ends before what was acknowledged");
}

#[test]
fn log_that_is_missing_as_a_whole_is_noticed() {
    let remove = |disk: &ModelDisk| segments(disk).iter().for_each(|name| disk.remove(name).expect("there"));
    assert_eq!(refusal(remove), "it ends before what was acknowledged");
    let disk = several_segments(sealer());
    remove(&disk);
    disk.remove(NOTE).expect("there");
    let gone = Wal::open(Arc::new(disk), sealer(), true, LogBounds::default().segment_bytes)
        .expect_err("the manager was here");
    assert!(gone.to_string().contains("the log of this manager is gone"), "{gone}");
}

#[test]
fn segments_that_changed_places_are_noticed() {
    let swapped = refusal(|disk| {
        let (one, two) = (content(disk, &segment_name(1)), content(disk, &segment_name(2)));
        replace(disk, &segment_name(1), &two);
        replace(disk, &segment_name(2), &one);
    });
    assert_eq!(swapped, "segment 1 has no head, but a later segment is there");
}

#[test]
fn segment_that_is_there_twice_is_noticed() {
    let twice = refusal(|disk| replace(disk, "log.2", &content(disk, &segment_name(2))));
    assert_eq!(twice, "log.2 is not how a segment is named; that is log.00000000000000000002");
}

#[test]
fn segment_of_another_cluster_is_noticed() {
    let other = several_segments(Sealer::new(&[4; 32]));
    let foreign = refusal(|disk| replace(disk, &segment_name(2), &content(&other, &segment_name(2))));
    assert_eq!(foreign, "segment 2 has no head, but a later segment is there");
    let last = refusal(|disk| {
        let name = segments(disk).pop().expect("one");
        replace(disk, &name, &content(&other, &name));
    });
    assert_eq!(last, "it ends before what was acknowledged");
}

#[test]
fn segment_that_is_cut_off_is_noticed() {
    for length in [0, 1_000, 1 << 20] {
        let middle = refusal(|disk| replace(disk, &segment_name(2), &content(disk, &segment_name(2))[..length]));
        assert!(middle.contains("segment 2"), "{middle}");
        let last = refusal(|disk| {
            let name = segments(disk).pop().expect("one");
            replace(disk, &name, &content(disk, &name)[..length]);
        });
        assert_eq!(last, "it ends before what was acknowledged");
    }
}

#[test]
fn page_of_zeros_is_noticed() {
    for page in [0, 4_096, 1 << 20] {
        let zeroed = |disk: &ModelDisk, name: &str| {
            let file = disk.open(name).expect("there");
            file.write_at(page, &[0; 4_096]).expect("written");
        };
        let middle = refusal(|disk| zeroed(disk, &segment_name(2)));
        assert!(middle.contains("segment 2"), "{middle}");
        let last = refusal(|disk| zeroed(disk, segments(disk).last().expect("one")));
        assert_eq!(last, "it ends before what was acknowledged");
    }
}

#[test]
fn earlier_copy_of_the_current_segment_is_noticed() {
    let mut run = begin(ModelDisk::new(Random::seeded(1)));
    run.step(&Step::Append(vec![100])).expect("the disk is whole");
    let earlier = content(&run.disk, &segment_name(1));
    run.step(&Step::Append(vec![100])).expect("the disk is whole");
    let disk = run.disk.restart();
    replace(&disk, &segment_name(1), &earlier);
    assert!(matches!(open(&disk), Err(OpenError::Damaged { .. })));
}

#[test]
fn records_of_a_newer_format_are_no_damage() {
    let disk = several_segments(sealer());
    for name in segments(&disk) {
        let mut changed = content(&disk, &name);
        changed[0] = record::FORMAT + 1;
        replace(&disk, &name, &changed);
    }
    match open(&disk) {
        Err(error @ OpenError::NewerFormat { .. }) => {
            assert!(
                error.to_string().ends_with("it has the format 10, and this build knows formats up to 9"),
                "{error}"
            );
        }
        other => panic!("{:?}", other.map(|it| it.1)),
    }
}
