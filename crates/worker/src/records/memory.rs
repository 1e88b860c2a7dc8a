//! Records in memory, for tests and the simulator. Clones share them, so that they outlive a simulated daemon.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use flota_api::id::TaskId;

use super::{Record, TaskRecords};

/// A task database in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryRecords(Arc<Mutex<BTreeMap<TaskId, Record>>>);

impl MemoryRecords {
    /// Removes every record, as on a machine whose disk was replaced.
    pub fn clear(&self) {
        self.0.lock().expect("no holder panics").clear();
    }
}

impl TaskRecords for MemoryRecords {
    fn save(&self, record: Record) -> BoxFuture<'static, io::Result<()>> {
        self.0.lock().expect("no holder panics").insert(record.assignment.task_id.clone(), record);
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove(&self, task: &TaskId) -> BoxFuture<'static, io::Result<()>> {
        self.0.lock().expect("no holder panics").remove(task);
        Box::pin(std::future::ready(Ok(())))
    }

    fn load(&self) -> Vec<Record> {
        self.0.lock().expect("no holder panics").values().cloned().collect()
    }

    fn close(&self) {}
}
