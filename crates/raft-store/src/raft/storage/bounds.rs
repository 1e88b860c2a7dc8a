//! How much of the log is kept, and when a snapshot takes its place. Simulations use small bounds, so that snapshots and
//! purges happen within seconds.

/// Bounds of the log of one manager.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    /// Least bytes of entries between two snapshots. They are also more than the size of the last snapshot, so that
    /// snapshots cost no more than the log.
    pub between_snapshots: u64,
    /// Number of entries that are kept although a snapshot contains them, for followers that are slightly behind.
    pub kept_entries: usize,
    /// Bytes of entries that are kept for them.
    pub kept_bytes: usize,
    /// Bytes of entries in memory. Followers and the state machine nearly always read recent entries.
    pub cached_bytes: usize,
    /// Bytes in a segment on disk. A larger record gets a segment of its own length.
    pub segment_bytes: u64,
}

impl Default for LogBounds {
    fn default() -> Self {
        Self {
            between_snapshots: 8 << 20,
            kept_entries: 1_000,
            kept_bytes: 8 << 20,
            cached_bytes: 8 << 20,
            segment_bytes: 4 << 20,
        }
    }
}
