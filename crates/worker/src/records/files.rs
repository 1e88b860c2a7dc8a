//! Records in an encrypted file for each task. They are written without fsync: a saved record outlives the daemon, but not a
//! power failure. A new record takes the place of the one before by a rename (rename(2)), so that a daemon which is killed
//! leaves one or the other.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use flota_api::id::TaskId;
use flota_api::seal::Sealer;

use super::{Record, sealed_as, sled_format};

/// Size in bytes beyond which a file is not a record.
const BOUND: u64 = 4 << 20;
/// Ending of a file that is being written.
const UNFINISHED: &str = ".new";

/// A task database on disk.
#[derive(Debug)]
pub(crate) struct FileRecords {
    dir: PathBuf,
    sealer: Sealer,
    is_closed: AtomicBool,
}

impl FileRecords {
    /// Opens or creates the database in this folder, and imports the records of an earlier version.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) fn open(dir: &Path, sealer: Sealer) -> io::Result<Self> {
        fs_err::create_dir_all(dir)?;
        let records = Self { dir: dir.to_owned(), sealer, is_closed: AtomicBool::new(false) };
        for (path, name) in records.files()? {
            if name.ends_with(UNFINISHED) {
                fs_err::remove_file(path)?;
            }
        }
        // No task goes on before that is complete, so after a crash it may be done again.
        sled_format::import(dir, |sealed| {
            // A damaged key must not keep the daemon from its start.
            let sound = sealed.into_iter().filter(|(task, _)| is_id(task));
            sound.into_iter().try_for_each(|(task, it)| records.put(&task, &it))
        })?;
        Ok(records)
    }

    /// Replaces the record of a task.
    ///
    /// # Errors
    /// An I/O error. The task then has either this record or its previous one.
    pub(super) fn save(&self, record: &Record) -> io::Result<()> {
        let task = record.assignment.task_id.as_str();
        self.put(task, &self.sealer.seal(&sealed_as(task), &record.encode()))
    }

    /// Removes the record of a task, if it has one.
    ///
    /// # Errors
    /// An I/O error.
    pub(super) fn remove(&self, task: &TaskId) -> io::Result<()> {
        match fs_err::remove_file(self.file(task.as_str())?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns every readable record. A damaged one is removed and logged; one that can't be read now is only logged.
    pub(super) fn load(&self) -> Vec<Record> {
        let files = self.files().unwrap_or_else(|error| {
            tracing::error!(%error, "failed to read the task database");
            Vec::new()
        });
        let mut found = Vec::new();
        for (path, task) in files {
            let bytes = match read(&path) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::error!(task.id = task, %error, "failed to read a task's record");
                    continue;
                }
            };
            match self.open_record(&task, &bytes) {
                Ok(record) => found.push(record),
                Err(error) => {
                    tracing::warn!(task.id = task, %error, "dropping a task's damaged record");
                    if let Err(error) = fs_err::remove_file(&path) {
                        tracing::warn!(%error, "failed to remove a damaged record");
                    }
                }
            }
        }
        found
    }

    /// Closes the database. Later writes fail.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    fn put(&self, task: &str, sealed: &[u8]) -> io::Result<()> {
        let file = self.file(task)?;
        let unfinished = self.dir.join(format!("{task}{UNFINISHED}"));
        let written = fs_err::write(&unfinished, sealed).and_then(|()| fs_err::rename(&unfinished, file));
        if written.is_err() {
            // What is left of it would only take room, which may be what is short.
            let _ = std::fs::remove_file(&unfinished);
        }
        written
    }

    /// Returns the file of a task.
    fn file(&self, task: &str) -> io::Result<PathBuf> {
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(io::Error::other("the task database is closed"));
        }
        // A leader gives no other ids, and none may lead out of the folder.
        let is_id = is_id(task);
        is_id.then(|| self.dir.join(task)).ok_or_else(|| io::Error::other(format!("`{task}` is not the id of a task")))
    }

    fn files(&self) -> io::Result<Vec<(PathBuf, String)>> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
            }
        }
        found.sort();
        Ok(found)
    }

    fn open_record(&self, task: &str, sealed: &[u8]) -> io::Result<Record> {
        let plain = self.sealer.open(&sealed_as(task), sealed).map_err(io::Error::other)?;
        Record::decode(&plain)
    }
}

fn is_id(task: &str) -> bool {
    !task.is_empty() && task.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Returns what is in a file; of one that is too long for a record, a beginning that can't be opened.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(BOUND).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
