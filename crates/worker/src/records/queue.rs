//! Records that are written on the disk's thread. What arrives while the disk is busy is written together afterwards,
//! because one write costs as much as many.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use flota_api::id::TaskId;

use super::{FileRecords, Record, TaskRecords};
use crate::disk_thread::DiskThread;

/// A task database whose writes are queued.
#[derive(Debug)]
pub(crate) struct QueuedRecords {
    store: Arc<FileRecords>,
    disk: Arc<DiskThread>,
    pending: Arc<Mutex<Pending>>,
}

/// Changes that are not written yet, at most one for each task.
type Pending = BTreeMap<TaskId, Change>;

#[derive(Debug)]
struct Change {
    /// The new record; `None` if the record is to be removed.
    record: Option<Record>,
    waiting: Vec<oneshot::Sender<io::Result<()>>>,
}

impl QueuedRecords {
    pub(crate) fn new(store: FileRecords, disk: Arc<DiskThread>) -> Self {
        Self { store: Arc::new(store), disk, pending: Arc::default() }
    }

    fn put(&self, task: TaskId, record: Option<Record>) -> BoxFuture<'static, io::Result<()>> {
        let (sender, written) = oneshot::channel();
        let mut pending = self.pending.lock().expect("no holder panics");
        let is_first = pending.is_empty();
        let change = pending.entry(task).or_insert_with(|| Change { record: None, waiting: Vec::new() });
        change.record = record;
        change.waiting.push(sender);
        if is_first {
            let (store, pending) = (Arc::clone(&self.store), Arc::clone(&self.pending));
            self.disk.run(move || write(&store, &pending));
        }
        Box::pin(async { written.await.map_err(io::Error::other)? })
    }
}

/// Writes all pending changes. One that fails does not keep the others from the disk.
fn write(store: &FileRecords, pending: &Mutex<Pending>) {
    let changes = std::mem::take(&mut *pending.lock().expect("no holder panics"));
    for (task, Change { record, waiting }) in changes {
        let written = match record {
            Some(record) => store.save(&record),
            None => store.remove(&task),
        };
        for sender in waiting {
            let copy = written.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string()));
            // A worker that was killed waits for nothing.
            let _ = sender.send(copy);
        }
    }
}

impl TaskRecords for QueuedRecords {
    fn save(&self, record: Record) -> BoxFuture<'static, io::Result<()>> {
        self.put(record.assignment.task_id.clone(), Some(record))
    }

    fn remove(&self, task: &TaskId) -> BoxFuture<'static, io::Result<()>> {
        self.put(task.clone(), None)
    }

    fn load(&self) -> Vec<Record> {
        self.store.load()
    }

    fn close(&self) {
        self.disk.drain();
        self.store.close();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use flota_api::model::Assignment;
    use flota_api::seal::Sealer;

    fn record(task: &str, slot: u64) -> Record {
        let assignment = Assignment { task_id: task.into(), slot, ..Assignment::default() };
        Record { boot_id: "b".into(), assignment }
    }

    #[tokio::test]
    async fn what_waits_for_a_busy_disk_blocks_nobody_and_is_written_together() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileRecords::open(dir.path(), Sealer::new(&[7; 32])).unwrap();
        let disk = Arc::new(DiskThread::start().unwrap());
        let records = QueuedRecords::new(store, Arc::clone(&disk));
        let (free, busy) = std::sync::mpsc::channel::<()>();
        disk.run(move || {
            let _ = busy.recv();
        });
        let mut saves: Vec<_> = (0..1_000).map(|slot| records.save(record(&format!("t{slot}"), slot))).collect();
        saves.push(records.save(record("t7", 777)));
        saves.push(records.remove(&"t8".into()));
        assert!(saves.iter_mut().all(|save| save.now_or_never().is_none()), "the disk is busy");
        assert_eq!(records.pending.lock().unwrap().len(), 1_000, "one change for each task");
        drop(free);
        for save in saves {
            save.await.unwrap();
        }
        let found: BTreeMap<_, _> =
            records.load().into_iter().map(|it| (it.assignment.task_id.to_string(), it)).collect();
        assert_eq!((found.len(), found["t7"].assignment.slot), (999, 777));
        records.close();
        assert!(records.save(record("t", 1)).await.is_err(), "it is closed");
    }

    #[tokio::test]
    async fn a_change_that_fails_keeps_no_other_from_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileRecords::open(dir.path(), Sealer::new(&[7; 32])).unwrap();
        let disk = Arc::new(DiskThread::start().unwrap());
        let records = QueuedRecords::new(store, Arc::clone(&disk));
        records.save(record("t3", 3)).await.unwrap();
        let (free, busy) = std::sync::mpsc::channel::<()>();
        disk.run(move || {
            let _ = busy.recv();
        });
        // A folder in its place is what a file can't replace.
        std::fs::create_dir(dir.path().join("t1")).unwrap();
        let [bad, good] = ["t1", "t2"].map(|task| records.save(record(task, 1)));
        let removed = records.remove(&"t3".into());
        drop(free);
        assert!(bad.await.is_err());
        good.await.unwrap();
        removed.await.unwrap();
        let found = records.load();
        assert_eq!(found.iter().map(|it| it.assignment.task_id.as_str()).collect::<Vec<_>>(), ["t2"]);
        records.close();
    }

    #[tokio::test]
    async fn a_job_that_panics_stops_no_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileRecords::open(dir.path(), Sealer::new(&[7; 32])).unwrap();
        let disk = Arc::new(DiskThread::start().unwrap());
        let records = QueuedRecords::new(store, Arc::clone(&disk));
        disk.run(|| panic!("on purpose"));
        records.save(record("t", 1)).await.unwrap();
        assert_eq!(records.load().len(), 1);
        records.close();
    }
}
