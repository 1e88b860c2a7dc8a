//! The task database of an earlier version, in a sled tree, which is only read, to be imported (docs/store.md says why).
//!
//! A record was sealed as a whole and stored in parts. The key consists of the task's id, a zero byte, and the part's number in
//! big endian.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::path::Path;

/// Name of the database's folder within the folder of records.
const DATABASE: &str = "sled";
/// Size of sled's page cache in bytes.
const CACHE: u64 = 4 << 20;
/// The key of an entry that every database contains. It sorts before the keys of tasks.
const MARK: &[u8] = &[0];

/// Passes the sealed record of each task to `save`, if there is a database in this folder, and removes the database. One that is
/// damaged is only removed: the leader sends everything again.
///
/// # Errors
/// An I/O error. It is imported again at the next start.
pub(super) fn import(dir: &Path, save: impl FnOnce(BTreeMap<String, Vec<u8>>) -> io::Result<()>) -> io::Result<()> {
    let path = dir.join(DATABASE);
    if !path.exists() {
        return Ok(());
    }
    match guarded(|| read(&path)) {
        Ok(found) => {
            tracing::info!(tasks = found.len(), "importing records of tasks from an earlier version");
            save(found)?;
        }
        // sled detects a truncated file by reading past its end.
        Err(sled::Error::Io(error))
            if !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
        {
            return Err(error);
        }
        Err(why) => tracing::error!(%why, "the task database of an earlier version is damaged and is dropped"),
    }
    fs_err::remove_dir_all(&path)
}

fn read(path: &Path) -> sled::Result<BTreeMap<String, Vec<u8>>> {
    let config = sled::Config::new().path(path).mode(sled::Mode::LowSpace).cache_capacity(CACHE);
    let tree = config.flush_every_ms(None).open()?;
    // sled takes some damaged databases for empty ones; the missing mark reveals them.
    if !tree.contains_key(MARK)? {
        return Err(sled::Error::ReportableBug("what was in it is gone".into()));
    }
    let mut found = BTreeMap::<String, Vec<u8>>::new();
    for entry in tree.range::<&[u8], _>((Bound::Excluded(MARK), Bound::Unbounded)) {
        let (key, part) = entry?;
        let task = key.split(|byte| *byte == 0).next().unwrap_or_default();
        found.entry(String::from_utf8_lossy(task).into_owned()).or_default().extend_from_slice(&part);
    }
    Ok(found)
}

/// Runs sled code that may panic when the database is damaged.
fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> sled::Result<T> {
    let done = std::panic::catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked".into())))
}
