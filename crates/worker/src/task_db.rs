//! What was assigned, and the last status, on disk: sealed, one file for each task. Written by rename, not synced:
//! it must outlive the daemon, not the boot (after a boot nothing in it is acted on before the leader confirms it).

use std::io;
use std::path::{Path, PathBuf};

use prost::Message;

use flota_api::proto::dispatcher::TaskAssignment;
use flota_api::seal::Sealer;

/// A file that is longer is not ours.
const BOUND: u64 = 1 << 20;

/// The folder of records.
#[derive(Clone, Debug)]
pub(crate) struct TaskDb {
    dir: PathBuf,
    sealer: Sealer,
}

/// One task as it was last known, with the boot in which that was.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) boot_id: String,
    pub(crate) assignment: TaskAssignment,
}

impl TaskDb {
    pub(crate) fn open(dir: &Path, sealer: Sealer) -> io::Result<Self> {
        fs_err::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), sealer })
    }

    fn path(&self, task: &str) -> PathBuf {
        self.dir.join(task)
    }

    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        let task = &record.assignment.task_id;
        let mut plain = Vec::new();
        record.boot_id.encode_length_delimited_text(&mut plain);
        record.assignment.encode(&mut plain).map_err(io::Error::other)?;
        let temporary = self.path(&format!("{task}.new"));
        fs_err::write(&temporary, self.sealer.seal(what(task).as_bytes(), &plain))?;
        fs_err::rename(temporary, self.path(task))
    }

    pub(crate) fn remove(&self, task: &str) {
        let _ = std::fs::remove_file(self.path(task));
    }

    /// Every record that can be read; one that can't is dropped, and said: the leader sends it again.
    pub(crate) fn load(&self) -> Vec<Record> {
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

    fn read(&self, path: &Path, task: &str) -> io::Result<Record> {
        if fs_err::metadata(path)?.len() > BOUND {
            return Err(io::Error::other("it is too long"));
        }
        let plain = self.sealer.open(what(task).as_bytes(), &fs_err::read(path)?).map_err(io::Error::other)?;
        let short = || io::Error::other("it is cut off");
        let (length, rest) = plain.split_first().ok_or_else(short)?;
        let (boot_id, rest) = rest.split_at_checked(usize::from(*length)).ok_or_else(short)?;
        let boot_id = String::from_utf8(boot_id.to_vec()).map_err(io::Error::other)?;
        Ok(Record { boot_id, assignment: TaskAssignment::decode(rest).map_err(io::Error::other)? })
    }
}

fn what(task: &str) -> String {
    format!("task {task}")
}

trait ShortText {
    fn encode_length_delimited_text(&self, out: &mut Vec<u8>);
}

impl ShortText for String {
    /// A length byte and the text; boot ids are far shorter than 255.
    fn encode_length_delimited_text(&self, out: &mut Vec<u8>) {
        let text = &self.as_bytes()[..self.len().min(255)];
        out.push(u8::try_from(text.len()).expect("it was cut to fit"));
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_sealed_and_a_damaged_one_is_dropped() {
        let dir = std::env::temp_dir().join(format!("flota-task-db-{}", std::process::id()));
        let db = TaskDb::open(&dir, Sealer::new(&[7; 32])).expect("opened");
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
