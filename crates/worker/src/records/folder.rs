//! Records in the format of an earlier version: one encrypted file for each task. They are only read, to be imported.

use std::io;
use std::path::{Path, PathBuf};

use flota_api::seal::Sealer;

use super::{Record, sealed_as};

/// Size in bytes beyond which a file is not a record.
const BOUND: u64 = 1 << 20;

/// A folder of records.
#[derive(Debug)]
pub(super) struct FolderRecords {
    dir: PathBuf,
    sealer: Sealer,
}

impl FolderRecords {
    pub(super) fn new(dir: &Path, sealer: Sealer) -> Self {
        Self { dir: dir.to_owned(), sealer }
    }

    /// Returns every readable record and logs the others.
    pub(super) fn load(&self) -> Vec<Record> {
        let mut found = Vec::new();
        for (path, name) in self.files().unwrap_or_default() {
            // The daemon ended while it wrote this file; the previous record still exists.
            if name.ends_with(".new") {
                continue;
            }
            match self.read(&path, &name) {
                Ok(record) => found.push(record),
                Err(error) => tracing::warn!(task.id = name, %error, "dropping a task's damaged record"),
            }
        }
        found
    }

    /// Removes the files.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.files()?.into_iter().try_for_each(|(path, _)| fs_err::remove_file(path))
    }

    fn files(&self) -> io::Result<Vec<(PathBuf, String)>> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
            }
        }
        Ok(found)
    }

    fn read(&self, path: &Path, task: &str) -> io::Result<Record> {
        if fs_err::metadata(path)?.len() > BOUND {
            return Err(io::Error::other("it is too long"));
        }
        let plain = self.sealer.open(&sealed_as(task), &fs_err::read(path)?).map_err(io::Error::other)?;
        Record::decode(&plain)
    }
}
