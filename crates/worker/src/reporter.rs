//! The latest status of each task, kept until the leader has acknowledged it. What changes while a batch is under
//! way goes into the next one, once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use flota_api::model::TaskStatus;
use flota_api::proto::dispatcher::{StatusBatch, TaskReport};

/// Reports in one batch.
const BATCH: usize = 1_000;

#[derive(Debug, Default)]
struct Pending {
    statuses: BTreeMap<String, TaskStatus>,
    /// What was sent and not acknowledged yet.
    sent: Option<(u64, Vec<(String, TaskStatus)>)>,
    sequence: u64,
}

/// Cloned handles share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reporter {
    pending: Arc<Mutex<Pending>>,
    changed: Arc<Notify>,
}

impl Reporter {
    /// Will be told to the leader.
    pub(crate) fn report(&self, task: &str, status: TaskStatus) {
        self.pending.lock().expect("no holder panics").statuses.insert(task.to_owned(), status);
        self.changed.notify_one();
    }

    /// A new session: what was sent in the last one may not have arrived.
    pub(crate) fn begin(&self) {
        self.pending.lock().expect("no holder panics").sent = None;
        self.changed.notify_one();
    }

    /// Waits for something to send while nothing is under way; the batch.
    pub(crate) async fn next(&self) -> StatusBatch {
        loop {
            if let Some(batch) = self.take() {
                return batch;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self) -> Option<StatusBatch> {
        let mut pending = self.pending.lock().expect("no holder panics");
        if pending.sent.is_some() || pending.statuses.is_empty() {
            return None;
        }
        pending.sequence += 1;
        let sequence = pending.sequence;
        let taken: Vec<_> =
            pending.statuses.iter().take(BATCH).map(|(id, status)| (id.clone(), status.clone())).collect();
        let report =
            |(id, status): &(String, TaskStatus)| TaskReport { task_id: id.clone(), status: Some(status.into()) };
        let reports = taken.iter().map(report).collect();
        pending.sent = Some((sequence, taken));
        Some(StatusBatch { sequence, reports })
    }

    /// The leader has it; what changed meanwhile stays to be sent.
    pub(crate) fn acknowledged(&self, sequence: u64) {
        let mut pending = self.pending.lock().expect("no holder panics");
        if pending.sent.as_ref().is_some_and(|(sent, _)| *sent == sequence) {
            for (id, status) in pending.sent.take().map(|(_, statuses)| statuses).unwrap_or_default() {
                if pending.statuses.get(&id) == Some(&status) {
                    pending.statuses.remove(&id);
                }
            }
            self.changed.notify_one();
        }
    }

    /// Waits until everything is acknowledged.
    pub(crate) async fn drained(&self) {
        while !self.pending.lock().expect("no holder panics").statuses.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::state::TaskState;

    #[test]
    fn only_the_newest_status_is_sent_and_none_is_lost_between_sessions() {
        let reporter = Reporter::default();
        let status = |state| TaskStatus { state, ..TaskStatus::default() };
        reporter.report("a", status(TaskState::Starting));
        reporter.report("a", status(TaskState::Running));
        let first = reporter.take().expect("something to send");
        assert_eq!(first.reports.len(), 1);
        reporter.report("a", status(TaskState::Failed));
        assert_eq!(reporter.take(), None, "one batch at a time");
        reporter.acknowledged(first.sequence);
        let second = reporter.take().expect("it changed meanwhile");
        reporter.begin();
        let again = reporter.take().expect("not acknowledged in the old session");
        assert_eq!(second.reports, again.reports);
        reporter.acknowledged(second.sequence);
        assert_eq!(reporter.take(), None, "an acknowledgement of an older batch counts for nothing");
        reporter.acknowledged(again.sequence);
        assert_eq!(reporter.take(), None);
    }
}
