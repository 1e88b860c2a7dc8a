//! Tests of the files: damage, crashes, and the import of an earlier version.

use super::*;
use flota_api::model::Assignment;

fn sealer() -> Sealer {
    Sealer::new(&[7; 32])
}

fn open(dir: &Path) -> FileRecords {
    FileRecords::open(dir, sealer()).expect("it opens")
}

/// Returns a record of this length with distinct content.
fn record(task: &str, length: usize) -> Record {
    let assignment = Assignment { task_id: task.into(), service_name: "x".repeat(length), ..Assignment::default() };
    Record { boot_id: "boot".into(), assignment }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder").flatten();
    let mut names: Vec<_> = entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn records_of_all_lengths_survive_and_nothing_is_in_clear_text() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let lengths = [0, 1, 4_095, 4_096, 4_097, 128 << 10, 3 << 20];
    let mut wanted: Vec<_> =
        lengths.iter().enumerate().map(|(number, length)| record(&format!("task{number}"), *length)).collect();
    let records = open(dir.path());
    wanted.iter().for_each(|it| records.save(it).expect("saved"));
    let records = open(dir.path());
    assert_eq!(records.load(), wanted);
    let bytes = std::fs::read(dir.path().join("task6")).expect("it is there");
    assert!(bytes.len() > 3 << 20 && !bytes.windows(64).any(|it| it.iter().all(|byte| *byte == b'x')));
    Sealer::new(&[8; 32]).open(&sealed_as("task6"), &bytes).expect_err("it needs the node's key");
    ["task3", "unknown"].into_iter().for_each(|task| records.remove(&task.into()).expect("removed"));
    wanted.remove(3);
    assert_eq!(open(dir.path()).load(), wanted);
    records.close();
    assert!(records.save(&record("b", 1)).is_err(), "closed for good");
}

#[test]
fn a_record_takes_the_place_of_the_one_before_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    records.save(&record("a", 100)).expect("saved");
    records.save(&record("a", 10)).expect("saved");
    assert_eq!(names(dir.path()), ["a"]);
    // The daemon was killed while it wrote a record.
    std::fs::write(dir.path().join("a.new"), "half").expect("written");
    let records = open(dir.path());
    assert_eq!((records.load(), names(dir.path())), (vec![record("a", 10)], vec!["a".to_owned()]));
    // A folder is in the way of the unfinished file.
    std::fs::create_dir(dir.path().join("a.new")).expect("made");
    records.save(&record("a", 20)).expect_err("it can't be written");
    assert_eq!(records.load(), [record("a", 10)]);
}

#[test]
fn a_damaged_record_is_dropped_and_the_others_stay() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(dir.path());
    ["a", "b", "c", "d"].into_iter().for_each(|task| records.save(&record(task, 10)).expect("saved"));
    // One record is that of another task, one is cut off, and one is far too long.
    std::fs::copy(dir.path().join("a"), dir.path().join("b")).expect("copied");
    std::fs::write(dir.path().join("c"), "nonsense").expect("written");
    std::fs::File::options().write(true).open(dir.path().join("d")).and_then(|it| it.set_len(1 << 40)).expect("longer");
    assert_eq!(records.load(), [record("a", 10)]);
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn no_id_leads_out_of_the_folder() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let records = open(&dir.path().join("inner"));
    for task in ["../outer", "", ".", "a/b", "a.new"] {
        records.save(&record(task, 1)).expect_err(task);
        records.remove(&task.into()).expect_err(task);
    }
    assert_eq!(names(dir.path()), ["inner"]);
}

/// Writes a database as an earlier version did, with parts of 4 KiB.
fn write_sled(dir: &Path, records: &[Record]) {
    let db = sled::Config::new().path(dir.join("sled")).open().expect("it opens");
    db.insert([0], &[]).expect("written");
    db.insert(b"../odd\0\0\0\0\0", b"a damaged key").expect("written");
    for record in records {
        let task = record.assignment.task_id.as_str();
        let sealed = sealer().seal(&sealed_as(task), &record.encode());
        for (number, part) in (0_u32..).zip(sealed.chunks(4 << 10)) {
            let key = [task.as_bytes(), &[0], &number.to_be_bytes()].concat();
            db.insert(key, part).expect("written");
        }
    }
    db.flush().expect("flushed");
}

#[test]
fn the_database_of_an_earlier_version_is_taken_over() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let old: Vec<_> = (0..100).map(|number| record(&format!("task{number:03}"), 1_000 * number)).collect();
    write_sled(dir.path(), &old);
    // A crash has left some files of the import.
    let other = open(&dir.path().join("other"));
    old[..7].iter().for_each(|it| other.save(it).expect("saved"));
    for number in 0..7 {
        let name = format!("task{number:03}");
        std::fs::rename(dir.path().join("other").join(&name), dir.path().join(name)).expect("moved");
    }
    std::fs::remove_dir(dir.path().join("other")).expect("removed");
    assert_eq!(open(dir.path()).load(), old);
    assert_eq!(names(dir.path()).len(), 100, "the database is gone");
    assert_eq!(open(dir.path()).load(), old);
}

#[test]
fn a_damaged_database_of_an_earlier_version_is_dropped_and_files_stay() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    open(dir.path()).save(&record("a", 1)).expect("saved");
    write_sled(dir.path(), &(0..50).map(|number| record(&format!("task{number}"), 3_000)).collect::<Vec<_>>());
    let file = dir.path().join("sled/db");
    let mut bytes = std::fs::read(&file).expect("it is there");
    let middle = bytes.len() / 4..bytes.len() * 3 / 4;
    bytes[middle].fill(0xa5);
    bytes.iter_mut().take(4_096).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&file, bytes).expect("written");
    assert_eq!(open(dir.path()).load(), [record("a", 1)]);
    assert_eq!(names(dir.path()), ["a"]);
}
