//! Counts the containers that were started on this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The starts of containers since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartStatistics {
    /// Containers whose program was started.
    pub starts: u64,
    /// Starts that failed, whatever became of their tasks.
    pub failures: u64,
    /// Time that all of them took, in microseconds. Preparations, such as fetching an image, are not in it.
    pub micros: u64,
}

/// The counters. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct StartCounters(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    starts: AtomicU64,
    failures: AtomicU64,
    micros: AtomicU64,
}

impl StartCounters {
    /// Counts a start, and whether it has failed.
    pub(crate) fn count(&self, has_failed: bool, took: Duration) {
        let counter = if has_failed { &self.0.failures } else { &self.0.starts };
        counter.fetch_add(1, Ordering::Relaxed);
        self.0.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> StartStatistics {
        let [starts, failures, micros] =
            [&self.0.starts, &self.0.failures, &self.0.micros].map(|it| it.load(Ordering::Relaxed));
        StartStatistics { starts, failures, micros }
    }
}
