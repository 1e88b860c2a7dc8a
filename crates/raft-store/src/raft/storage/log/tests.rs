use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;

use openraft::EntryPayload;
use openraft::type_config::TypeConfigExt;

use super::*;
use crate::raft::type_config::EntryBytes;

const CHILD: &str = "FLOTA_SYNC_TEST_DIR";
const ENTRIES: u64 = 40;

fn sealer() -> Sealer {
    Sealer::new(&[3; 32])
}

fn log_id(index: u64) -> LogId {
    LogId::new(openraft::impls::leader_id_adv::LeaderId { term: 1, node_id: 1 }, index)
}

/// Some are larger than one of sled's pages.
fn entry(index: u64) -> RaftEntry {
    let size = if index % 7 == 3 { 100 << 10 } else { 200 };
    let bytes = vec![u8::try_from(index % 251).expect("it is below 251"); size];
    RaftEntry { log_id: log_id(index), payload: EntryPayload::Normal(EntryBytes(bytes)) }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

async fn append(store: &mut LogStore, index: u64) {
    let (sender, receiver) = TypeConfig::oneshot();
    store.append([entry(index)], IOFlushed::signal(sender)).await.expect("written");
    receiver.await.expect("the flusher answers").expect("synced");
}

fn vote(term: u64) -> Vote {
    Vote::new(term, 1)
}

#[test]
fn a_log_is_read_back_purged_and_truncated() {
    let dir = tempfile::tempdir().expect("a folder");
    run(async {
        let mut store = LogStore::open(dir.path(), sealer(), false).expect("new");
        for index in 0..30 {
            append(&mut store, index).await;
        }
        store.save_vote(&vote(5)).await.expect("saved");
        store.truncate_after(Some(log_id(24))).await.expect("truncated");
        store.purge(log_id(9)).await.expect("purged");
    });
    let mut store = reopen(dir.path()).expect("whole");
    run(async {
        let state = store.get_log_state().await.expect("read");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(9)), Some(log_id(24))));
        let entries = store.try_get_log_entries(10..).await.expect("read");
        assert_eq!(entries, (10..25).map(entry).collect::<Vec<_>>());
        assert_eq!(store.read_vote().await.expect("read"), Some(vote(5)));
    });
}

/// sled's lock is let go a moment after its last handle: the flusher holds one.
fn reopen(dir: &Path) -> Result<LogStore, OpenError> {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match LogStore::open(dir, sealer(), true) {
            Err(OpenError::Io { .. }) if std::time::Instant::now() < until => std::thread::yield_now(),
            other => return other,
        }
    }
}

#[test]
fn a_hole_a_foreign_record_and_a_lost_vote_are_damage() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = run(async {
        let mut store = LogStore::open(dir.path(), sealer(), false).expect("new");
        for index in 0..10 {
            append(&mut store, index).await;
        }
        store
    });
    let damaged = |what: &str| match store.verify(dir.path()) {
        Err(OpenError::Damaged { what: found, .. }) => assert!(found.contains(what), "{found}"),
        other => panic!("{what}: {other:?}"),
    };
    store.verify(dir.path()).expect("whole");
    let part = store.log.get(key(6, 0)).expect("read").expect("there");
    store.log.remove(key(5, 0)).expect("removed");
    damaged("entry 5 is missing");
    store.log.insert(key(5, 0), part).expect("put");
    damaged("entry 5: the checksum is wrong");
    store.log.remove(key(5, 0)).expect("removed");
    (5..10).for_each(|index| drop(store.log.remove(key(index, 0)).expect("removed")));
    damaged("it ends before entry 5, but entry 9 was acknowledged");
    drop(store);
    let missing = LogStore::open(&dir.path().join("new"), sealer(), true).err().expect("it has voted before");
    assert!(missing.to_string().contains("the vote of this manager is gone"), "{missing}");
}

/// Appends, and says after each acknowledgement what was acknowledged. Runs under strace.
fn child(dir: &Path) {
    run(async {
        let mut store = LogStore::open(dir, sealer(), false).expect("new");
        let mut out = std::io::stdout();
        for index in 0..ENTRIES {
            if index % 10 == 0 {
                store.save_vote(&vote(index + 1)).await.expect("saved");
            }
            append(&mut store, index).await;
            out.write_all(format!("ack {index}\n").as_bytes()).and_then(|()| out.flush()).expect("a pipe");
        }
    });
    // As a power failure: nothing is tidied up.
    die();
}

fn die() -> ! {
    std::process::abort()
}

/// A kill keeps what the kernel has cached and proves nothing. Here only what was synced survives: every write and
/// sync of the store's file is recorded, and at each acknowledgement the file is made again from the writes that a
/// sync had covered by then.
#[test]
fn what_was_acknowledged_is_there_when_only_synced_bytes_survive() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (store, trace) = (dir.path().join("store"), dir.path().join("trace"));
    let name = "raft::storage::log::tests::what_was_acknowledged_is_there_when_only_synced_bytes_survive";
    let status = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "10000000", "-e", "trace=pwrite64,write,fsync,fdatasync,ftruncate", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, &store)
        .output()
        .expect("strace is installed by `make tools`");
    let text = std::fs::read_to_string(&trace).unwrap_or_else(|_| panic!("no trace: {status:?}"));
    let mut disk = Disk::default();
    let mut acknowledged = 0;
    for line in text.lines() {
        if let Some(index) = disk.read(line) {
            acknowledged += 1;
            let survived = dir.path().join("survived");
            disk.make(&store, &survived);
            check(&survived, index);
            std::fs::remove_dir_all(&survived).expect("its own folder");
        }
    }
    assert_eq!(acknowledged, ENTRIES, "every acknowledgement was seen");
}

fn check(dir: &Path, index: u64) {
    let mut store = LogStore::open(dir, sealer(), true).unwrap_or_else(|error| panic!("after ack {index}: {error}"));
    run(async {
        let entries = store.try_get_log_entries(0..=index).await.expect("read");
        assert_eq!(entries, (0..=index).map(entry).collect::<Vec<_>>(), "after ack {index}");
        assert_eq!(store.read_vote().await.expect("read"), Some(vote(index / 10 * 10 + 1)), "after ack {index}");
    });
}

/// The store's file as a disk sees it: what was written, and what of it a sync has covered.
#[derive(Default)]
struct Disk {
    written: Vec<u8>,
    synced: Vec<u8>,
    /// The file as it was when a sync began, by thread.
    syncing: BTreeMap<String, Vec<u8>>,
}

impl Disk {
    /// Takes one line of the trace; `Some`: an acknowledgement.
    fn read(&mut self, line: &str) -> Option<u64> {
        let (thread, rest) = line.split_once(char::is_whitespace)?;
        let rest = rest.trim_start();
        let of_store = rest.contains(&hex("/db/db")) || rest.contains("/db/db>");
        if rest.starts_with("pwrite64(") && of_store {
            // The bytes are in the line where the call begins; that it may end later only adds to what can be lost.
            let bytes = unhex(rest.split('"').nth(1)?);
            let numbers = numbers(rest.rsplit_once('"')?.1);
            let offset = usize::try_from(*numbers.get(1)?).ok()?;
            let end = offset + bytes.len();
            self.written.resize(self.written.len().max(end), 0);
            self.written[offset..end].copy_from_slice(&bytes);
        } else if rest.starts_with("ftruncate(") && of_store {
            let size = usize::try_from(*numbers(rest.split_once('>')?.1).first()?).ok()?;
            self.written.resize(size, 0);
        } else if (rest.starts_with("fdatasync(") || rest.starts_with("fsync(")) && of_store {
            self.syncing.insert(thread.to_owned(), self.written.clone());
            if rest.contains("= 0") {
                self.synced = self.syncing.remove(thread)?;
            }
        } else if rest.starts_with("<... fdatasync resumed>") || rest.starts_with("<... fsync resumed>") {
            if let Some(covered) = self.syncing.remove(thread) {
                self.synced = covered;
            }
        } else if rest.starts_with("write(1<") {
            let text = String::from_utf8(unhex(rest.split('"').nth(1)?)).ok()?;
            return text.strip_prefix("ack ")?.trim().parse().ok();
        }
        None
    }

    /// The folder after a power failure: what sled synced by itself as it is, the file as it was synced.
    fn make(&self, store: &Path, survived: &Path) {
        let db = survived.join("db");
        std::fs::create_dir_all(db.join("blobs")).expect("a folder");
        std::fs::copy(store.join("db/conf"), db.join("conf")).expect("copied");
        std::fs::write(db.join("db"), &self.synced).expect("written");
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|it| u8::from_str_radix(it, 16).ok()).collect()
}

/// The numbers among arguments; the last may be followed by what strace says of the call.
fn numbers(arguments: &str) -> Vec<u64> {
    let number = |it: &str| it.trim().split(' ').next().and_then(|it| it.parse().ok());
    arguments.split([',', ')']).filter_map(number).collect()
}
