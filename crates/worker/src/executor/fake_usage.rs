//! How much of a machine in memory is in use.

use tokio::time::Instant;

use flota_api::model::NodeUsage;

use super::NodeCounters;

/// A machine that uses a share of itself, and what it has used so far.
#[derive(Debug, Default)]
pub(super) struct FakeUsage {
    usage: NodeUsage,
    counters: NodeCounters,
    counted: Option<Instant>,
}

impl FakeUsage {
    /// Lets the machine use this share from now on.
    pub(super) fn set(&mut self, usage: NodeUsage) {
        self.count();
        self.usage = usage;
    }

    /// Returns what it has used, in microseconds of one processor.
    pub(super) fn counters(&mut self) -> NodeCounters {
        self.count();
        NodeCounters { memory: self.usage.memory, ..self.counters }
    }

    fn count(&mut self) {
        let now = Instant::now();
        let since = self.counted.replace(now).unwrap_or(now);
        let micros = u64::try_from((now - since).as_micros()).unwrap_or(u64::MAX);
        self.counters.all += micros;
        self.counters.busy += micros * u64::from(self.usage.cpu) / 1_000;
    }
}
