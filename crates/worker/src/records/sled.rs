//! Records in one sled tree, encrypted. sled writes without fsync: a saved record outlives the daemon, but not a power
//! failure.
//!
//! A record is sealed as a whole and stored in parts: a leaf of sled holds up to 17 values before it splits, and a
//! page over 128 KiB would go to a file of its own. The key consists of the task's id, a zero byte, and the part's
//! number in big endian.
//!
//! sled panics on some kinds of damage, and refuses every operation after an I/O error. Both are handled here: an
//! unreadable database is moved aside when it is opened, and one that has failed is opened again at the next save.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::time::Instant;

use flota_api::id::TaskId;
use flota_api::seal::Sealer;

use super::folder::FolderRecords;
use super::{Record, sealed_as};

/// Size of a stored part in bytes.
const PART: usize = 4 << 10;
/// Size of sled's page cache in bytes.
const CACHE: u64 = 4 << 20;
/// Number of records in one batch.
const BATCH: usize = 256;
/// Number of damaged databases that are kept for inspection.
const DAMAGED_KEPT: usize = 3;
/// The key of an entry that every database contains. It sorts before the keys of tasks.
const MARK: &[u8] = &[0];
/// Longest time for which sled may hold the lock of a closed database.
const UNLOCK_WAIT: Duration = Duration::from_secs(2);
/// Name of the database's folder within the folder of records, which may also hold files of an earlier version.
const DATABASE: &str = "sled";

/// A task database on disk.
#[derive(Debug)]
pub(crate) struct SledRecords {
    /// The database's folder.
    path: PathBuf,
    sealer: Sealer,
    open: Mutex<Open>,
}

#[derive(Debug)]
enum Open {
    /// Its default tree holds the records.
    Yes(sled::Db),
    /// An operation failed: the database is opened again at the next one.
    Failed,
    /// The worker has closed it permanently.
    Closed,
}

/// Why a database can't be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("failed to read the task database: {0}")]
    Io(io::Error),
    #[error("the task database is damaged: {0}")]
    Damaged(String),
}

impl SledRecords {
    /// Opens or creates the database in this folder, and imports the files of an earlier version.
    ///
    /// # Errors
    /// An I/O error. Damage is not an error: a damaged database is moved aside and a new one created, because the
    /// leader sends everything again.
    pub(crate) fn open(dir: &Path, sealer: Sealer) -> io::Result<Self> {
        fs_err::create_dir_all(dir)?;
        let path = dir.join(DATABASE);
        let db = match open_and_verify(&path) {
            Err(OpenError::Damaged(why)) => {
                let aside = put_aside(dir, &path)?;
                tracing::error!(why, aside = %aside.display(), "the task database is damaged and was put aside; a new one is created");
                open_and_verify(&path)
            }
            other => other,
        }
        .map_err(io::Error::other)?;
        let records = Self { path, sealer: sealer.clone(), open: Mutex::new(Open::Yes(db)) };
        records.convert(&FolderRecords::new(dir, sealer))?;
        Ok(records)
    }

    /// Imports the records of an earlier version. Its files are removed last: after a crash in between they are
    /// imported again, before any task continues.
    fn convert(&self, old: &FolderRecords) -> io::Result<()> {
        let found = old.load();
        if !found.is_empty() {
            self.save(&found)?;
            tracing::info!(tasks = found.len(), "imported records of tasks from an earlier version");
        }
        old.clear()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("panics under the lock are caught")
    }

    /// Runs `work` on the tree and waits until the kernel has the result. sled refuses every operation after a
    /// failure, so in that case the database is opened again and the work is repeated once.
    fn write(&self, work: impl Fn(&sled::Tree) -> sled::Result<()>) -> io::Result<()> {
        let mut open = self.lock();
        if let Open::Yes(db) = &*open {
            let Err(error) = guarded(|| work(db).and_then(|()| db.flush().map(drop))) else { return Ok(()) };
            tracing::warn!(%error, "the task database failed and is opened again");
            close(std::mem::replace(&mut *open, Open::Failed), &self.path);
        }
        if matches!(*open, Open::Closed) {
            return Err(io::Error::other("the task database is closed"));
        }
        let db = open_database(&self.path).map_err(io::Error::other)?;
        let done = guarded(|| work(&db).and_then(|()| db.flush().map(drop)));
        match done {
            Ok(()) => *open = Open::Yes(db),
            Err(_) => close(Open::Yes(db), &self.path),
        }
        done.map_err(io::Error::other)
    }

    fn add(&self, tree: &sled::Tree, batch: &mut sled::Batch, record: &Record) -> sled::Result<()> {
        let task = record.assignment.task_id.as_str();
        let sealed = self.sealer.seal(&sealed_as(task), &record.encode());
        let mut count = 0;
        for part in sealed.chunks(PART) {
            batch.insert(key(task, count), part);
            count += 1;
        }
        for left in tree.range(key(task, count)..=key(task, u32::MAX)).keys() {
            batch.remove(left?);
        }
        Ok(())
    }
}

impl SledRecords {
    /// Replaces the records of these tasks, of which each is named once. The records outlive the daemon once this
    /// returns.
    ///
    /// # Errors
    /// An I/O error. Each task then has either this record or its previous one.
    pub(super) fn save(&self, records: &[Record]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.write(|tree| {
            for records in records.chunks(BATCH) {
                let mut batch = sled::Batch::default();
                for record in records {
                    self.add(tree, &mut batch, record)?;
                }
                tree.apply_batch(batch)?;
            }
            Ok(())
        })
    }

    /// Removes the records of these tasks.
    ///
    /// # Errors
    /// An I/O error.
    pub(super) fn remove(&self, tasks: &[TaskId]) -> io::Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        self.write(|tree| {
            let mut batch = sled::Batch::default();
            for task in tasks {
                for part in tree.range(key(task.as_str(), 0)..=key(task.as_str(), u32::MAX)).keys() {
                    batch.remove(part?);
                }
            }
            tree.apply_batch(batch)
        })
    }

    /// Returns every readable record. An unreadable one is removed and logged.
    pub(super) fn load(&self) -> Vec<Record> {
        let parts = match &*self.lock() {
            Open::Yes(db) => guarded(|| read_parts(db)).unwrap_or_else(|error| {
                tracing::error!(%error, "failed to read the task database");
                BTreeMap::new()
            }),
            Open::Failed | Open::Closed => return Vec::new(),
        };
        let mut found = Vec::new();
        for (task, sealed) in parts {
            let plain = self.sealer.open(&sealed_as(&task), &sealed).map_err(io::Error::other);
            match plain.and_then(|plain| Record::decode(&plain)) {
                Ok(record) => found.push(record),
                Err(error) => {
                    tracing::warn!(task.id = task, %error, "dropping a task's damaged record");
                    if let Err(error) = self.remove(&[task.into()]) {
                        tracing::warn!(%error, "failed to remove a damaged record");
                    }
                }
            }
        }
        found
    }

    /// Closes the database. Later writes fail.
    pub(super) fn close(&self) {
        close(std::mem::replace(&mut *self.lock(), Open::Closed), &self.path);
    }
}

impl Drop for SledRecords {
    fn drop(&mut self) {
        self.close();
    }
}

/// Closes the database, if it is open, and waits until its lock is free: sled's own threads may hold it for a moment.
fn close(open: Open, path: &Path) {
    let Open::Yes(db) = open else { return };
    // sled writes when the last handle is dropped, and panics if that fails.
    let closed = guarded(move || {
        drop(db);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "failed to close the task database");
    }
    let begin = Instant::now();
    while is_locked(&path.join("db")) && begin.elapsed() < UNLOCK_WAIT {
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Returns whether any process holds the file's lock.
fn is_locked(file: &Path) -> bool {
    let locked = std::fs::File::open(file).map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock));
    matches!(locked, Ok(Err(_)))
}

fn key(task: &str, part: u32) -> Vec<u8> {
    [task.as_bytes(), &[0], &part.to_be_bytes()].concat()
}

/// Returns the encrypted record of each task. A record that lacks a part fails to decrypt.
fn read_parts(tree: &sled::Tree) -> sled::Result<BTreeMap<String, Vec<u8>>> {
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
    // A database that panicked is closed, so that no code uses its inconsistent state.
    let done = std::panic::catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked".into())))
}

fn open_database(path: &Path) -> sled::Result<sled::Db> {
    let config = sled::Config::new().path(path).mode(sled::Mode::LowSpace).cache_capacity(CACHE);
    guarded(|| config.flush_every_ms(None).open())
}

/// Opens the database and reads all of it, so that damage is detected now and not when a task is saved.
fn open_and_verify(path: &Path) -> Result<sled::Db, OpenError> {
    let is_new = !path.join("db").exists();
    let opened = open_database(path).and_then(|db| match guarded(|| verify(&db, is_new)) {
        Ok(()) => Ok(db),
        Err(error) => {
            close(Open::Yes(db), path);
            Err(error)
        }
    });
    opened.map_err(|error| match error {
        // sled detects a truncated file by reading past its end.
        sled::Error::Io(error)
            if !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
        {
            OpenError::Io(error)
        }
        other => OpenError::Damaged(other.to_string()),
    })
}

/// Reads everything. sled takes some damaged databases for empty ones; the missing mark reveals them.
fn verify(tree: &sled::Tree, is_new: bool) -> sled::Result<()> {
    if is_new {
        tree.insert(MARK, &[])?;
        return tree.flush().map(drop);
    }
    if !tree.contains_key(MARK)? {
        return Err(sled::Error::ReportableBug("what was in it is gone".into()));
    }
    read_parts(tree).map(drop)
}

/// Moves the database aside, and removes the oldest of those that were moved before.
fn put_aside(dir: &Path, database: &Path) -> io::Result<PathBuf> {
    let name = |number: u64| {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".damaged.{number}"));
        dir.with_file_name(name)
    };
    let prefix = name(0).file_name().unwrap_or_default().to_string_lossy().trim_end_matches('0').to_owned();
    let mut numbers = Vec::new();
    for entry in fs_err::read_dir(dir.parent().unwrap_or(dir))? {
        let entry = entry?.file_name();
        numbers.extend(entry.to_string_lossy().strip_prefix(&prefix).and_then(|it| it.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    let aside = name(numbers.last().map_or(1, |last| last + 1));
    fs_err::rename(database, &aside)?;
    let surplus = (numbers.len() + 1).saturating_sub(DAMAGED_KEPT);
    for number in numbers.into_iter().take(surplus) {
        fs_err::remove_dir_all(name(number))?;
    }
    Ok(aside)
}

#[cfg(test)]
mod tests;
