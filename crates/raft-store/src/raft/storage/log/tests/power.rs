//! The real program on a real folder, as a power failure would leave it: a kill keeps what the kernel has cached and
//! proves nothing. Every write and sync of the log's files is recorded with strace, and at each acknowledgement the
//! files are made again from what a sync had covered by then.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::*;

const CHILD: &str = "FLOTA_SYNC_TEST_DIR";
const NAME: &str = "raft::storage::log::tests::power::what_was_acknowledged_is_there_when_only_synced_bytes_survive";
const ENTRIES: u64 = 60;

/// Entries of all sizes, one of them the largest legal one.
fn size(index: u64) -> usize {
    match index {
        31 => crate::raft::ENTRY_BOUND,
        _ if index % 7 == 3 => 1 << 20,
        _ => 200,
    }
}

/// Appends, votes and purges, and says after each acknowledgement what was acknowledged. Runs under strace.
fn child(dir: &Path) -> ! {
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir).expect("opened"));
    run(async {
        let mut store = open(&disk, false).expect("new");
        let mut out = std::io::stdout();
        for index in 0..ENTRIES {
            if index % 10 == 0 {
                store.save_vote(&vote(index + 1)).await.expect("saved");
            }
            if index % 20 == 15 {
                store.purge(log_id(1, index - 10)).await.expect("purged");
            }
            append(&mut store, vec![entry(1, index, size(index))]).await;
            out.write_all(format!("ack {index}\n").as_bytes()).and_then(|()| out.flush()).expect("a pipe");
        }
    });
    // As a power failure: nothing is tidied up.
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

/// The log's files as a disk sees them: what was written, and what of it a sync has covered.
#[derive(Default)]
struct RecordedDisk {
    written: BTreeMap<String, Vec<u8>>,
    synced: BTreeMap<String, Vec<u8>>,
    /// A file as it was when a sync of it began, by thread.
    syncing: BTreeMap<String, (String, Vec<u8>)>,
}

impl RecordedDisk {
    /// Takes one line of the trace; `Some`: an acknowledgement.
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

    /// Names are taken for durable at once: losing them is what the model disk tries.
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
        // The bytes are in the line where the call begins; that it may end later only adds to what can be lost.
        let bytes = unhex(rest.split('"').nth(1)?);
        let numbers = rest.rsplit_once('"')?.1;
        let mut numbers = numbers.split([',', ')']).filter_map(|it| it.trim().split(' ').next()?.parse::<usize>().ok());
        let offset = numbers.nth(1)?;
        let file = self.written.entry(name).or_default();
        file.resize(file.len().max(offset + bytes.len()), 0);
        file[offset..offset + bytes.len()].copy_from_slice(&bytes);
        None
    }

    /// The folder after a power failure.
    fn make(&self, survived: &Path) {
        std::fs::create_dir_all(survived).expect("a folder");
        for (name, content) in &self.synced {
            std::fs::write(survived.join(name), content).expect("written");
        }
    }
}

/// The path of the file that a call's first argument stands for.
fn path(rest: &str) -> Option<String> {
    String::from_utf8(unhex(rest.split(['<', '>']).nth(1)?)).ok()
}

fn quoted(rest: &str) -> impl Iterator<Item = String> + '_ {
    rest.split('"').skip(1).step_by(2).filter_map(|it| String::from_utf8(unhex(it)).ok())
}

/// The name of a file of the log.
fn name(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    (name.starts_with("log.") || name.starts_with("spare.") || name == "acknowledged").then(|| name.to_owned())
}

fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|it| u8::from_str_radix(it.get(..2)?, 16).ok()).collect()
}
