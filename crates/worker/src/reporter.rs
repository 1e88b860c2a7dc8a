//! The latest status of each task and the reports on images and volumes, kept until the leader has acknowledged them.
//! Changes while a batch is in flight go into the next batch, once. Task runners and images report here, and the agent
//! sends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use flota_api::id::{TaskId, VolumeId};
use flota_api::model::TaskStatus;

use crate::messages::{ImageReport, StatusBatch, TaskReport};

/// Largest number of reports in one batch, and of results of health checks in them.
const BATCH: usize = 1_000;

#[derive(Debug, Default)]
struct PendingReports {
    statuses: BTreeMap<TaskId, TaskStatus>,
    /// The latest report on each image, in the order of their events.
    images: Vec<ImageReport>,
    dropped_volumes: BTreeSet<VolumeId>,
    /// The batch that was sent and is not acknowledged yet.
    sent: Option<StatusBatch>,
    sequence: u64,
}

/// Collects reports. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reporter {
    pending: Arc<Mutex<PendingReports>>,
    changed: Arc<Notify>,
    drained: Arc<Notify>,
}

impl Reporter {
    /// Replaces the pending status of the task.
    pub(crate) fn report(&self, task: &TaskId, status: TaskStatus) {
        self.pending.lock().expect("no holder panics").statuses.insert(task.clone(), status);
        self.changed.notify_one();
    }

    /// Adds a pending report on an image.
    pub(crate) fn report_image(&self, report: ImageReport) {
        let mut pending = self.pending.lock().expect("no holder panics");
        pending.images.retain(|it| it.digest != report.digest);
        pending.images.push(report);
        self.changed.notify_one();
    }

    /// Adds a pending report that this node has no data of a removed volume any more.
    pub(crate) fn report_dropped(&self, volume: VolumeId) {
        self.pending.lock().expect("no holder panics").dropped_volumes.insert(volume);
        self.changed.notify_one();
    }

    /// Returns whether a report on this image is not acknowledged yet.
    pub(crate) fn has_report_of(&self, digest: &str) -> bool {
        self.pending.lock().expect("no holder panics").images.iter().any(|it| it.digest == digest)
    }

    /// Starts a new session: what was sent in the last one may not have arrived, so it is sent again.
    pub(crate) fn begin(&self) {
        self.pending.lock().expect("no holder panics").sent = None;
        self.changed.notify_one();
    }

    /// Waits until there is something to send and no batch is in flight, and returns the batch.
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
        let is_empty = pending.statuses.is_empty() && pending.images.is_empty() && pending.dropped_volumes.is_empty();
        if pending.sent.is_some() || is_empty {
            return None;
        }
        pending.sequence += 1;
        let report = |(task, status): (&TaskId, &TaskStatus)| TaskReport { task: task.clone(), status: status.clone() };
        let mut room = BATCH;
        let mut fits = |status: &TaskStatus| {
            let fitting = room.checked_sub(status.weight());
            room = fitting.unwrap_or_default();
            fitting.is_some()
        };
        let batch = StatusBatch {
            sequence: pending.sequence,
            reports: pending.statuses.iter().take_while(|(_, status)| fits(status)).map(report).collect(),
            images: pending.images.iter().take(BATCH / 2).cloned().collect(),
            dropped_volumes: pending.dropped_volumes.iter().take(BATCH / 2).cloned().collect(),
        };
        pending.sent = Some(batch.clone());
        Some(batch)
    }

    /// Removes what the leader has stored. Later changes remain pending.
    pub(crate) fn acknowledged(&self, sequence: u64) {
        let mut pending = self.pending.lock().expect("no holder panics");
        if let Some(sent) = pending.sent.take_if(|sent| sent.sequence == sequence) {
            for TaskReport { task, status } in sent.reports {
                if pending.statuses.get(&task) == Some(&status) {
                    pending.statuses.remove(&task);
                }
            }
            pending.images.retain(|it| !sent.images.contains(it));
            pending.dropped_volumes.retain(|it| !sent.dropped_volumes.contains(it));
            if pending.statuses.is_empty() {
                self.drained.notify_waiters();
            }
            self.changed.notify_one();
        }
    }

    /// Waits until every status is acknowledged.
    pub(crate) async fn drained(&self) {
        loop {
            // This comes before the check, so that no acknowledgement in between is missed.
            let drained = self.drained.notified();
            if self.pending.lock().expect("no holder panics").statuses.is_empty() {
                return;
            }
            drained.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::state::TaskState;

    #[test]
    fn what_became_of_images_is_told_in_order_until_it_is_acknowledged() {
        let reporter = Reporter::default();
        let held = |digest: &str| ImageReport { digest: digest.into(), ..Default::default() };
        reporter.report_image(held("old"));
        reporter.report_image(held("new"));
        let first = reporter.take().expect("something to send");
        assert_eq!(first.images, [held("old"), held("new")]);
        reporter.begin();
        let again = reporter.take().expect("the old session may have lost it");
        assert_eq!(again.images, first.images);
        assert!(reporter.has_report_of("new"));
        reporter.acknowledged(again.sequence);
        assert!(!reporter.has_report_of("new") && reporter.take().is_none());
    }

    #[test]
    fn that_a_volume_was_dropped_is_told_until_it_is_acknowledged() {
        let reporter = Reporter::default();
        reporter.report_dropped("v".into());
        assert!(reporter.take().is_some_and(|batch| batch.dropped_volumes == ["v".into()]));
        reporter.begin();
        let again = reporter.take().expect("the old session may have lost it");
        assert_eq!(again.dropped_volumes, ["v".into()]);
        reporter.acknowledged(again.sequence);
        assert_eq!(reporter.take(), None);
    }

    #[test]
    fn only_the_newest_status_is_sent_and_none_is_lost_between_sessions() {
        let reporter = Reporter::default();
        let status = |state| TaskStatus { state, ..TaskStatus::default() };
        reporter.report(&"a".into(), status(TaskState::Starting));
        reporter.report(&"a".into(), status(TaskState::Running));
        let first = reporter.take().expect("something to send");
        assert_eq!(first.reports.len(), 1);
        reporter.report(&"a".into(), status(TaskState::Failed));
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
