//! Tests of the sled database: damage, crashes, and the import of an earlier version.

use super::*;
use flota_api::model::Assignment;

fn sealer() -> Sealer {
    Sealer::new(&[7; 32])
}

fn open(dir: &Path) -> SledRecords {
    SledRecords::open(&dir.join("task-db"), sealer()).expect("it opens")
}

/// Returns a record of this length with distinct content.
fn record(task: &str, length: usize) -> Record {
    let assignment = Assignment { task_id: task.into(), service_name: "x".repeat(length), ..Assignment::default() };
    Record { boot_id: "boot".into(), assignment }
}

/// Overwrites the middle of every file of the database.
fn damage(dir: &Path) {
    let file = dir.join("task-db").join(DATABASE).join("db");
    let mut bytes = std::fs::read(&file).expect("it is there");
    let middle = bytes.len() / 4..bytes.len() * 3 / 4;
    bytes[middle].fill(0xa5);
    bytes.iter_mut().take(4_096).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&file, bytes).expect("written");
}

fn aside(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).expect("a folder").flatten().map(|it| it.file_name());
    let mut names: Vec<_> =
        names.map(|it| it.to_string_lossy().into_owned()).filter(|it| it.contains("damaged")).collect();
    names.sort();
    names
}

#[test]
fn records_of_all_lengths_survive_and_nothing_is_in_clear_text() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let lengths = [0, 1, 4_000, 4_095, 4_096, 4_097, 8_192, 30_000, 128 << 10, 300 << 10];
    let mut wanted: Vec<_> =
        lengths.iter().enumerate().map(|(number, length)| record(&format!("task{number}"), *length)).collect();
    open(dir.path()).save(&wanted).expect("saved");
    let records = open(dir.path());
    assert_eq!(records.load(), wanted);
    let database = dir.path().join("task-db").join(DATABASE);
    let bytes = std::fs::read(database.join("db")).expect("it is there");
    assert!(!bytes.windows(64).any(|it| it.iter().all(|byte| *byte == b'x')));
    assert_eq!(std::fs::read_dir(database.join("blobs")).expect("a folder").count(), 0, "no page is too large");
    records.remove(&["task3".into()]).expect("removed");
    wanted.remove(3);
    drop(records);
    assert_eq!(open(dir.path()).load(), wanted);
}

#[test]
fn what_is_saved_is_with_the_kernel_before_the_call_returns() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    records.save(&[record("a", 10), record("b", 9_000)]).expect("saved");
    records.save(&[record("b", 20_000)]).expect("saved");
    records.remove(&["a".into()]).expect("removed");
    // This copy holds the files as a daemon that is killed now leaves them.
    let copy = tempfile::tempdir().expect("a temporary folder");
    let (from, to) = (dir.path().join("task-db/sled"), copy.path().join("task-db/sled"));
    std::fs::create_dir_all(to.join("blobs")).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten().filter(|it| it.path().is_file()) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
    assert_eq!(open(copy.path()).load(), [record("b", 20_000)]);
}

#[test]
fn a_record_that_shrinks_leaves_no_part_and_touches_no_other() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    let (long, neighbour) = (record("a", 100_000), record("a.b", 5_000));
    records.save(&[long, neighbour.clone()]).expect("saved");
    records.save(&[record("a", 10)]).expect("saved");
    assert_eq!(records.load(), [record("a", 10), neighbour]);
    let Open::Yes(tree) = &*records.lock() else { panic!("it is open") };
    assert_eq!(tree.len(), 4, "the mark, one part, and two of the other");
}

#[test]
fn a_damaged_record_is_dropped_and_the_others_stay() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    records.save(&[record("a", 10), record("b", 10), record("c", 9_000)]).expect("saved");
    {
        let Open::Yes(tree) = &*records.lock() else { panic!("it is open") };
        // One record is moved to another task's key, and another one lacks a part.
        let moved = tree.get(key("a", 0)).expect("read").expect("it is there");
        tree.insert(key("b", 0), moved).expect("written");
        tree.remove(key("c", 1)).expect("removed");
    }
    assert_eq!(records.load(), [record("a", 10)]);
    drop(records);
    assert_eq!(open(dir.path()).load(), [record("a", 10)]);
}

#[test]
fn a_damaged_database_is_put_aside_and_at_most_three_are_kept() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for round in 1..=5 {
        let records = open(dir.path());
        let many: Vec<_> = (0..50).map(|number| record(&format!("task{number}"), 3_000 * (number % 5))).collect();
        records.save(&many).expect("saved");
        drop(records);
        damage(dir.path());
        let records = open(dir.path());
        assert_eq!(records.load(), [], "it begins anew");
        records.save(&[record("a", round)]).expect("saved");
        drop(records);
        assert_eq!(open(dir.path()).load(), [record("a", round)]);
    }
    assert_eq!(aside(dir.path()), ["task-db.damaged.3", "task-db.damaged.4", "task-db.damaged.5"]);
}

#[test]
fn a_database_that_another_daemon_holds_is_not_taken_for_damaged() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    records.save(&[record("a", 1)]).expect("saved");
    SledRecords::open(&dir.path().join("task-db"), sealer()).expect_err("it is in use");
    assert!(aside(dir.path()).is_empty());
    records.close();
    assert!(records.save(&[record("b", 1)]).is_err(), "closed for good");
    assert_eq!(open(dir.path()).load(), [record("a", 1)]);
}

/// Writes one file for each record, as an earlier version did.
fn write_files(dir: &Path, records: &[Record]) {
    std::fs::create_dir_all(dir.join("task-db")).expect("a folder");
    for record in records {
        let task = record.assignment.task_id.as_str();
        let sealed = sealer().seal(&sealed_as(task), &record.encode());
        std::fs::write(dir.join("task-db").join(task), sealed).expect("written");
    }
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("task-db")).expect("a folder").flatten().filter(|it| it.path().is_file()).count()
}

#[test]
fn the_files_of_an_earlier_version_are_taken_over() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let old: Vec<_> = (0..300).map(|number| record(&format!("task{number:03}"), 100 * number)).collect();
    write_files(dir.path(), &old);
    std::fs::write(dir.path().join("task-db/broken"), "nonsense").expect("written");
    std::fs::write(dir.path().join("task-db/task001.new"), "half").expect("written");
    assert_eq!(open(dir.path()).load(), old);
    assert_eq!(files(dir.path()), 0);
    assert_eq!(open(dir.path()).load(), old, "nor is anything lost at the next start");
}

#[test]
fn a_crash_in_the_middle_of_the_conversion_loses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let old: Vec<_> = (0..5).map(|number| record(&format!("task{number}"), 1_000 * number)).collect();
    // Some records are in the tree, and some files are already removed.
    open(dir.path()).save(&old[..4]).expect("saved");
    write_files(dir.path(), &old[2..]);
    assert_eq!(open(dir.path()).load(), old);
    // A database that the crash damaged loses nothing either, because the files still exist.
    write_files(dir.path(), &old);
    damage(dir.path());
    assert_eq!(open(dir.path()).load(), old);
    assert_eq!((files(dir.path()), aside(dir.path()).len()), (0, 1));
}

#[test]
fn a_database_that_failed_is_opened_again_at_the_next_save() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    records.save(&[record("a", 1)]).expect("saved");
    let failed = std::sync::atomic::AtomicBool::new(false);
    let fail_once = |tree: &sled::Tree| {
        assert!(failed.swap(true, std::sync::atomic::Ordering::SeqCst), "as sled panics over damage");
        tree.insert("b", "").map(drop)
    };
    records.write(fail_once).expect("the second time");
    let always = |_: &sled::Tree| Err(sled::Error::Io(io::Error::other("no space left")));
    records.write(always).expect_err("it does not get better");
    records.save(&[record("a", 2)]).expect("saved");
    assert_eq!(records.load(), [record("a", 2)]);
}

#[test]
fn a_record_that_is_saved_often_takes_little_space() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    for round in 0..5_000 {
        records.save(&[record(&format!("task{}", round % 50), 2_000)]).expect("saved");
    }
    let length = std::fs::metadata(dir.path().join("task-db/sled/db")).expect("it is there").len();
    assert!(length < 32 << 20, "{length} bytes for 50 records of 2 kB");
}
