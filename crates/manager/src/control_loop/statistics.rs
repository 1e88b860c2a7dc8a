//! Counts of what the control loops have done while this manager led.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the manager started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopStatistics {
    /// Number of passes over the dirty keys.
    pub passes: u64,
    /// Number of transactions that were proposed.
    pub proposals: u64,
    /// Number of those that met another change, so that their keys are planned again.
    pub conflicts: u64,
}

/// Counts what the control loops do, in all terms of a manager. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoopCounters(Arc<[AtomicU64; 4]>);

/// A driver that runs until this is dropped.
#[derive(Debug)]
pub(super) struct RunningDriver(LoopCounters);

impl Drop for RunningDriver {
    fn drop(&mut self) {
        self.0.0[3].fetch_sub(1, Ordering::Relaxed);
    }
}

impl LoopCounters {
    pub(super) fn begin(&self) -> RunningDriver {
        self.0[3].fetch_add(1, Ordering::Relaxed);
        RunningDriver(self.clone())
    }

    pub(super) fn passed(&self) {
        self.0[0].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn proposed(&self, transactions: usize) {
        self.0[1].fetch_add(transactions as u64, Ordering::Relaxed);
    }

    pub(super) fn met(&self, conflicts: usize) {
        self.0[2].fetch_add(conflicts as u64, Ordering::Relaxed);
    }

    /// Returns the number of drivers that run: one while this manager leads, else none.
    pub(crate) fn running(&self) -> u64 {
        self.0[3].load(Ordering::Relaxed)
    }

    /// Returns the counts.
    pub(crate) fn read(&self) -> LoopStatistics {
        let [passes, proposals, conflicts] = [0, 1, 2].map(|index: usize| self.0[index].load(Ordering::Relaxed));
        LoopStatistics { passes, proposals, conflicts }
    }
}
