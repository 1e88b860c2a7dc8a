//! Records in memory, for tests and the simulator. Clones share them, so that they outlive a simulated daemon.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::state::TaskState;

use super::{Record, TaskRecords};

/// A task database in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryRecords(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    records: BTreeMap<TaskId, Record>,
    /// The highest (attempt, state) that was ever saved of each task.
    highest: BTreeMap<TaskId, (u32, TaskState)>,
}

impl MemoryRecords {
    /// Removes every record, as on a machine whose disk was replaced.
    pub fn clear(&self) {
        self.0.lock().expect("no holder panics").records.clear();
    }

    /// Returns the highest (attempt, state) that was ever saved of a task, also if its record is gone.
    pub fn highest(&self, task: &TaskId) -> Option<(u32, TaskState)> {
        self.0.lock().expect("no holder panics").highest.get(task).copied()
    }
}

impl TaskRecords for MemoryRecords {
    fn save(&self, record: Record) -> BoxFuture<'static, io::Result<()>> {
        let mut kept = self.0.lock().expect("no holder panics");
        let (task, rank) = (record.assignment.task_id.clone(), record.assignment.status.rank());
        let highest = kept.highest.entry(task.clone()).or_insert(rank);
        *highest = rank.max(*highest);
        kept.records.insert(task, record);
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove(&self, task: &TaskId) -> BoxFuture<'static, io::Result<()>> {
        self.0.lock().expect("no holder panics").records.remove(task);
        Box::pin(std::future::ready(Ok(())))
    }

    fn load(&self) -> Vec<Record> {
        self.0.lock().expect("no holder panics").records.values().cloned().collect()
    }

    fn close(&self) {}
}
