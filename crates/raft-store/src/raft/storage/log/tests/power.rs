//! Checks what a power failure leaves of a log that the real program wrote to a real folder. Killing the process is not
//! enough, because the kernel keeps unsynced writes. Instead, strace records every write and sync of the log's files;
//! at each acknowledgement, the test rebuilds the files from the synced writes alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::*;

const CHILD: &str = "FLOTA_SYNC_TEST_DIR";
const NAME: &str = "raft::storage::log::tests::power::what_was_acknowledged_is_there_when_only_synced_bytes_survive";
const ENTRIES: u64 = 60;

/// Entries of all sizes, including the largest legal one.
fn size(index: u64) -> usize {
    match index {
        31 => crate::raft::ENTRY_BOUND,
        _ if index % 7 == 3 => 1 << 20,
        _ => 200,
    }
}

/// Appends, votes and purges, and prints each acknowledgement. Runs under strace.
fn child(dir: &Path) -> ! {
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir).expect("opened"));
    run(async {
        let mut store = open(&disk, false).expect("new");
        let mut out = std::io::stdout();
        for index in 0..ENTRIES {
            if index.is_multiple_of(10) {
                store.save_vote(&vote(index + 1)).await.expect("saved");
            }
            if index % 20 == 15 {
                store.purge(log_id(1, index - 10)).await.expect("purged");
            }
            append(&mut store, vec![entry(1, index, size(index))]).await;
            out.write_all(format!("ack {index}\n").as_bytes()).and_then(|()| out.flush()).expect("a pipe");
        }
    });
    // End without any cleanup, as on a power failure.
    std::process::abort()
}

#[test]
fn what_was_acknowledged_is_there_when_only_synced_bytes_survive() {
    if let Some(dir) = std::env::var_os(CHILD) {
        child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (store, trace) = (dir.path().join("store"), dir.path().join("trace"));
    let calls = "trace=pwrite64,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat";
    let status = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "20000000", "-e", calls, "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
        .env(CHILD, &store)
        .output()
        .expect("strace is installed by `make test-tools`");
    let text = std::fs::read_to_string(&trace).unwrap_or_else(|_| panic!("no trace: {status:?}"));
    let mut disk = RecordedDisk::default();
    let mut acknowledged = 0;
    for line in text.lines() {
        if let Some(index) = disk.read(line) {
            acknowledged += 1;
            let survived = dir.path().join("survived");
            disk.make(&survived);
            check(&survived, index);
            std::fs::remove_dir_all(&survived).expect("its own folder");
        }
    }
    assert_eq!(acknowledged, ENTRIES, "every acknowledgement was seen");
}

fn check(dir: &Path, index: u64) {
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir).expect("opened"));
    let mut store = open(&disk, true).unwrap_or_else(|error| panic!("after ack {index}: {error:?}"));
    run(async {
        let purged = store.purged().map_or(0, |purged| purged + 1);
        let entries = store.try_get_log_entries(..=index).await.expect("read");
        let expected: Vec<_> = (purged..=index).map(|index| entry(1, index, size(index))).collect();
        assert!(entries == expected, "after ack {index}: {} of {} entries", entries.len(), expected.len());
        assert_eq!(store.read_vote().await.expect("read"), Some(vote(index / 10 * 10 + 1)), "after ack {index}");
    });
}

/// The log's files as a disk sees them: everything written, and the part of it that a sync has covered.
#[derive(Default)]
struct RecordedDisk {
    written: BTreeMap<String, Vec<u8>>,
    synced: BTreeMap<String, Vec<u8>>,
    /// By thread: the file that is being synced, and its content when the sync began.
    syncing: BTreeMap<String, (String, Vec<u8>)>,
}

impl RecordedDisk {
    /// Reads one line of the trace. Returns the number in it if it is an acknowledgement.
    fn read(&mut self, line: &str) -> Option<u64> {
        let (thread, rest) = line.split_once(char::is_whitespace)?;
        let rest = rest.trim_start();
        match rest.split('(').next()? {
            "pwrite64" => self.write(rest),
            "fsync" | "fdatasync" => {
                let name = name(&path(rest)?)?;
                let content = self.written.get(&name).cloned().unwrap_or_default();
                if rest.contains("= 0") {
                    self.synced.insert(name, content);
                } else {
                    self.syncing.insert(thread.to_owned(), (name, content));
                }
                None
            }
            "rename" | "renameat" | "renameat2" => self.rename(rest),
            "unlink" | "unlinkat" => {
                let name = quoted(rest).find_map(|path| name(&path))?;
                self.written.remove(&name);
                self.synced.remove(&name);
                None
            }
            "write" if rest.starts_with("write(1<") => {
                let text = String::from_utf8(unhex(rest.split('"').nth(1)?)).ok()?;
                text.strip_prefix("ack ")?.trim().parse().ok()
            }
            _ => {
                if let Some((name, content)) = rest.contains("sync resumed>").then(|| self.syncing.remove(thread))? {
                    self.synced.insert(name, content);
                }
                None
            }
        }
    }

    /// Treats the new name as durable at once; the model disk covers the loss of names.
    fn rename(&mut self, rest: &str) -> Option<u64> {
        let mut names = quoted(rest).filter_map(|path| name(&path));
        let (from, to) = (names.next()?, names.next()?);
        for files in [&mut self.written, &mut self.synced] {
            if let Some(content) = files.remove(&from) {
                files.insert(to.clone(), content);
            }
        }
        None
    }

    fn write(&mut self, rest: &str) -> Option<u64> {
        let name = name(&path(rest)?)?;
        // The line has the bytes where the call begins. If the call ends later, more data is treated as unsynced, never
        // less.
        let bytes = unhex(rest.split('"').nth(1)?);
        let numbers = rest.rsplit_once('"')?.1;
        let mut numbers = numbers.split([',', ')']).filter_map(|it| it.trim().split(' ').next()?.parse::<usize>().ok());
        let offset = numbers.nth(1)?;
        let file = self.written.entry(name).or_default();
        file.resize(file.len().max(offset + bytes.len()), 0);
        file[offset..offset + bytes.len()].copy_from_slice(&bytes);
        None
    }

    /// Creates the folder as it is after a power failure.
    fn make(&self, survived: &Path) {
        std::fs::create_dir_all(survived).expect("a folder");
        for (name, content) in &self.synced {
            std::fs::write(survived.join(name), content).expect("written");
        }
    }
}

/// Returns the path of the file in a call's first argument.
fn path(rest: &str) -> Option<String> {
    String::from_utf8(unhex(rest.split(['<', '>']).nth(1)?)).ok()
}

fn quoted(rest: &str) -> impl Iterator<Item = String> + '_ {
    rest.split('"').skip(1).step_by(2).filter_map(|it| String::from_utf8(unhex(it)).ok())
}

/// Returns the name of a log file; `None` for other files.
fn name(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    (name.starts_with("log.") || name.starts_with("spare.") || name == "acknowledged").then(|| name.to_owned())
}

fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|it| u8::from_str_radix(it.get(..2)?, 16).ok()).collect()
}
