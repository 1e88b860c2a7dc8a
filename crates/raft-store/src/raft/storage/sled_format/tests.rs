use openraft::RaftLogReader;
use openraft::entry::RaftEntry as _;
use openraft::storage::RaftLogStorage;

use super::*;
use crate::raft::disk::DirDisk;
use crate::raft::storage::LogStore;
use crate::raft::threads::Threads;

fn sealer() -> Sealer {
    Sealer::new(&[3; 32])
}

fn old_id(term: u64, node_id: u64, index: u64) -> OldLogId {
    OldLogId::new(OldLeader { term, node_id }, index)
}

fn payload(index: u64) -> Payload {
    // Environments of 90 KB produced such sizes, which are far over the limit up to which sled stores values in its own
    // file.
    let size = if index.is_multiple_of(3) { 100 << 10 } else { 200 };
    EntryPayload::Normal(EntryBytes(vec![u8::try_from(index).expect("it is small"); size].into()))
}

/// Writes a folder in the previous format: entries 10 to 59 after a snapshot up to 9.
fn old_folder(dir: &Path) {
    let db = sled::Config::new().path(dir.join("db")).mode(sled::Mode::LowSpace).flush_every_ms(None).open();
    let db = db.expect("a new database");
    let (log, meta) = (db.open_tree("log").expect("made"), db.open_tree("meta").expect("made"));
    let put = |name: &str, plain: Vec<u8>| {
        meta.insert(name, sealer().seal(name.as_bytes(), &plain)).expect("put");
    };
    put("vote", postcard::to_stdvec(&OldVote::new_committed(4, 2)).expect("encoded"));
    put("purged", postcard::to_stdvec(&old_id(1, 1, 9)).expect("encoded"));
    put("committed", postcard::to_stdvec(&old_id(4, 2, 58)).expect("encoded"));
    for index in 10..60u64 {
        let id = if index < 30 { old_id(1, 1, index) } else { old_id(4, 2, index) };
        let plain = postcard::to_stdvec(&OldEntry { log_id: id, payload: payload(index) }).expect("encoded");
        let mut what = *b"log........";
        what[3..].copy_from_slice(&index.to_be_bytes());
        for (part, bytes) in (0u16..).zip(sealer().seal(&what, &plain).chunks(30 << 10)) {
            let key: Vec<u8> = index.to_be_bytes().into_iter().chain(part.to_be_bytes()).collect();
            log.insert(key, bytes).expect("put");
        }
    }
    db.flush().expect("flushed");
    let index = 59u64.to_be_bytes();
    let note: Vec<u8> = index.into_iter().chain(crc32fast::hash(&index).to_be_bytes()).collect();
    std::fs::write(dir.join("acknowledged"), note).expect("written");
}

fn open(dir: &Path) -> Result<LogStore, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir).expect("opened"));
    // sled releases its lock shortly after its last handle is dropped.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match LogStore::open(Arc::clone(&disk), sealer(), true, Threads::Own) {
            Err(OpenError::Damaged { what, .. }) if what.contains("lock") && tokio::time::Instant::now() < until => {
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

fn check(dir: &Path) {
    let mut log = open(dir).expect("whole");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let entries = log.try_get_log_entries(0..).await.expect("read");
        assert_eq!(entries.len(), 50);
        for (entry, index) in entries.iter().zip(10..) {
            assert_eq!((entry.index(), &entry.payload), (index, &payload(index)));
        }
        let terms: Vec<u64> = entries.iter().map(|entry| entry.log_id.leader_id.term).collect();
        assert!(terms.is_sorted() && terms[0] != terms[49], "what was newer is newer");
        let vote = log.read_vote().await.expect("read").expect("a vote");
        assert_eq!((vote.leader_id.term, vote.leader_id.voted_for, vote.committed), (terms[49], 2, true));
        assert_eq!(log.get_log_state().await.expect("read").last_purged_log_id.map(|id| id.index), Some(9));
        assert_eq!(log.read_committed().await.expect("read").map(|id| id.index), Some(58));
    });
}

#[test]
fn a_folder_of_the_format_before_is_taken_over_with_its_blobs() {
    let dir = tempfile::tempdir().expect("a folder");
    old_folder(dir.path());
    let blobs = std::fs::read_dir(dir.path().join("db/blobs")).map_or(0, Iterator::count);
    assert!(blobs > 0, "some of it lies in files that were not synced");
    check(dir.path());
    assert!(!dir.path().join("db").exists());
    check(dir.path());
}

#[test]
fn a_conversion_that_was_cut_begins_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    old_folder(dir.path());
    let copy = dir.path().join("copy");
    assert!(std::process::Command::new("cp").arg("-a").arg(dir.path().join("db")).arg(&copy).status().is_ok());
    check(dir.path());
    // As if the machine had stopped before the old folder was removed, with half of a new log beside it.
    std::fs::rename(&copy, dir.path().join("db")).expect("renamed");
    let log = std::fs::read_dir(dir.path())
        .expect("read")
        .flatten()
        .find(|it| it.file_name().to_string_lossy().starts_with("log."));
    std::fs::write(log.expect("a segment").path(), vec![7; 4096]).expect("written");
    check(dir.path());
}

#[test]
fn an_old_log_with_a_hole_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    old_folder(dir.path());
    {
        let db = sled::open(dir.path().join("db")).expect("opened");
        let key: Vec<u8> = 33u64.to_be_bytes().into_iter().chain([0, 1]).collect();
        db.open_tree("log").expect("opened").remove(key).expect("removed").expect("it was there");
        db.flush().expect("flushed");
    }
    let refused = open(dir.path()).err().expect("a part is missing");
    assert!(refused.to_string().contains("entry 33"), "{refused}");
    assert!(dir.path().join("db").exists());
}
