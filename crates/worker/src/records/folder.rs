//! Records as one sealed file for each task.

use std::io;
use std::path::{Path, PathBuf};

use flota_api::seal::Sealer;

use super::{Record, TaskRecords, sealed_as};

/// A file that is longer is not ours.
const BOUND: u64 = 1 << 20;

/// The folder of records.
#[derive(Clone, Debug)]
pub(crate) struct FolderRecords {
    dir: PathBuf,
    sealer: Sealer,
}

impl FolderRecords {
    pub(crate) fn open(dir: &Path, sealer: Sealer) -> io::Result<Self> {
        fs_err::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), sealer })
    }

    fn path(&self, task: &str) -> PathBuf {
        self.dir.join(task)
    }

    fn read(&self, path: &Path, task: &str) -> io::Result<Record> {
        if fs_err::metadata(path)?.len() > BOUND {
            return Err(io::Error::other("it is too long"));
        }
        let plain = self.sealer.open(&sealed_as(task), &fs_err::read(path)?).map_err(io::Error::other)?;
        Record::decode(&plain)
    }
}

impl TaskRecords for FolderRecords {
    fn save(&self, record: &Record) -> io::Result<()> {
        let task = &record.assignment.task_id;
        let temporary = self.path(&format!("{task}.new"));
        fs_err::write(&temporary, self.sealer.seal(&sealed_as(task), &record.encode()))?;
        fs_err::rename(temporary, self.path(task))
    }

    fn remove(&self, task: &str) {
        let _ = std::fs::remove_file(self.path(task));
    }

    fn load(&self) -> Vec<Record> {
        let Ok(entries) = fs_err::read_dir(&self.dir) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".new") {
                continue;
            }
            match self.read(&entry.path(), &name) {
                Ok(record) => found.push(record),
                Err(error) => {
                    tracing::warn!(task.id = name, %error, "a task's record is damaged and dropped");
                    self.remove(&name);
                }
            }
        }
        found
    }

    fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::proto::dispatcher::TaskAssignment;

    #[test]
    fn records_survive_sealed_and_a_damaged_one_is_dropped() {
        let dir = std::env::temp_dir().join(format!("flota-task-db-{}", std::process::id()));
        let db = FolderRecords::open(&dir, Sealer::new(&[7; 32])).expect("opened");
        let record = |id: &str| Record {
            boot_id: "boot".into(),
            assignment: TaskAssignment { task_id: id.into(), service_name: "secret-name".into(), ..Default::default() },
        };
        db.save(&record("a")).expect("written");
        db.save(&record("b")).expect("written");
        let bytes = std::fs::read(dir.join("a")).expect("it is there");
        assert!(!bytes.windows(11).any(|it| it == b"secret-name"), "nothing is on disk in clear text");
        // A record that was moved to another task's place is damaged too.
        std::fs::write(dir.join("b"), bytes).expect("written");
        assert_eq!(db.load(), [record("a")]);
        assert!(!dir.join("b").exists());
        std::fs::remove_dir_all(dir).expect("its own folder");
    }
}
