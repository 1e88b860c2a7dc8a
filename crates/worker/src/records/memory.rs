//! Records in memory, for tests and the simulator. Clones share them, so that they outlive a simulated daemon.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

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
    fn save(&self, records: &[Record]) -> io::Result<()> {
        let new = records.iter().map(|record| (record.assignment.task_id.clone(), record.clone()));
        self.0.lock().expect("no holder panics").extend(new);
        Ok(())
    }

    fn remove(&self, task: &TaskId) {
        self.0.lock().expect("no holder panics").remove(task);
    }

    fn load(&self) -> Vec<Record> {
        self.0.lock().expect("no holder panics").values().cloned().collect()
    }

    fn close(&self) {}
}
