//! Conversion of the restarts of a slot.

use crate::model::RestartHistory;
use crate::proto::types as pt;
use crate::version::Timestamp;

impl From<&RestartHistory> for pt::RestartHistory {
    fn from(it: &RestartHistory) -> Self {
        Self { in_a_row: it.in_a_row, count: it.count, times: it.times.iter().map(|at| at.0).collect() }
    }
}

impl From<pt::RestartHistory> for RestartHistory {
    fn from(it: pt::RestartHistory) -> Self {
        Self { in_a_row: it.in_a_row, count: it.count, times: it.times.into_iter().map(Timestamp).collect() }
    }
}

/// Returns the history of a slot of which an older build has only counted the restarts.
pub(super) fn untimed(count: u64) -> RestartHistory {
    RestartHistory { in_a_row: count, count, times: Vec::new() }
}
