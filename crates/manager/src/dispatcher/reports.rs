//! Writes the reports of one session to the store, batch by batch, in the order in which the worker sent them.
//!
//! A report that can't be taken is skipped, because a worker repeats a batch until it is acknowledged: the report would
//! otherwise block those behind it for ever. A batch that can't be written yet, because no quorum answers, is tried again
//! for as long as the session lasts.

use std::time::Duration;

use tokio::sync::mpsc;

use flota_api::defaults::{HEALTH_RESULTS, RESTARTS_TIMED};
use flota_api::id::{NodeId, TaskId};
use flota_api::image_ref::is_digest;
use flota_api::model::{Health, TaskStatus};
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::proto::dispatcher::{StatusAck, StatusBatch, TaskReport};
use flota_api::state::TaskState;
use flota_api::text::printable_within;
use flota_raft_store::{ProposeError, Tables};

use super::image_report;
use super::sessions::{SessionOutbox, outgoing};
use super::status_sink::StatusSink;
use super::volume_report;
use crate::replica::Replica;

/// Largest number of reports in a batch, together with the results of health checks in them; workers split their batches
/// accordingly.
pub(super) const BATCH_BOUND: usize = 2_000;
/// Batches of a session that may wait. A worker has one in flight; with more, its messages wait in the connection.
pub(super) const QUEUE: usize = 2;
/// A batch of a session. It is in a box, because a queue allocates the places of many at once.
pub(super) type ReportBatch = Box<StatusBatch>;
/// Bytes of each text of a status that are kept.
pub(super) const TEXT_BOUND: usize = 1_000;
/// Pause before a batch is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Writes batches and acknowledges them, until the worker has gone or the sender is dropped.
pub(super) async fn write_batches(
    replica: &Replica,
    sink: &StatusSink,
    node_id: &NodeId,
    mut batches: mpsc::Receiver<ReportBatch>,
    outbox: &SessionOutbox,
) {
    while let Some(batch) = batches.recv().await {
        let statuses = accepted(&replica.store.view(), node_id, batch.reports);
        if !statuses.is_empty() {
            until_written(node_id, || sink.put(statuses.clone())).await;
        }
        for report in image_report::of_use(&replica.store.view(), node_id, &batch.images) {
            until_written(node_id, || Box::pin(image_report::write(replica, node_id, report))).await;
        }
        for id in volume_report::of_use(&replica.store.view(), node_id, &batch.dropped_volumes) {
            until_written(node_id, || Box::pin(volume_report::write(replica, node_id, id))).await;
        }
        let ack = Message::StatusAck(StatusAck { sequence: batch.sequence });
        if outbox.send(outgoing(ack)).await.is_err() {
            return;
        }
    }
}

/// Repeats `write` until it succeeds or can never succeed.
pub(super) async fn until_written<F>(node_id: &NodeId, write: impl Fn() -> F)
where
    F: Future<Output = Result<(), ProposeError>>,
{
    let mut waits = false;
    loop {
        match write().await {
            Ok(()) => return,
            Err(error @ ProposeError::TooLarge { .. }) => {
                tracing::warn!(node.id = %node_id, %error, "a report was skipped");
                return;
            }
            Err(error) => {
                if !std::mem::replace(&mut waits, true) {
                    tracing::warn!(node.id = %node_id, %error, "reports can't be written yet");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Returns the statuses that a node may report: those of its own tasks, in states that a worker observes.
fn accepted(view: &Tables, node_id: &NodeId, reports: Vec<TaskReport>) -> Vec<(TaskId, NodeId, TaskStatus)> {
    let is_own = |id: &str| view.task(id).is_some_and(|task| task.is_on(node_id));
    let mut room = BATCH_BOUND.saturating_sub(reports.len());
    let own = reports.into_iter().filter(|report| is_own(&report.task_id));
    let status = |report: TaskReport| {
        let status: TaskStatus = report.status.try_into().ok()?;
        let observed = (TaskState::Accepted..=TaskState::Rejected).contains(&status.state);
        let (message, error) =
            (printable_within(&status.message, TEXT_BOUND), printable_within(&status.error, TEXT_BOUND));
        let image_digest = status.image_digest.filter(|digest| is_digest(digest));
        let health = status.health.map(|health| Box::new(bounded_health(*health, room)));
        room -= health.as_ref().map_or(0, |health| health.log.len());
        let mut restarts = status.restarts;
        restarts.iter_mut().for_each(|it| it.forget_oldest(RESTARTS_TIMED));
        let status = TaskStatus { message, error, image_digest, health, restarts, ..status };
        observed.then(|| (report.task_id.into(), node_id.clone(), status))
    };
    own.filter_map(status).collect()
}

/// Returns the newest results of health checks, `most` at most, with short texts.
pub(crate) fn bounded_health(mut health: Health, most: usize) -> Health {
    let surplus = health.log.len().saturating_sub(HEALTH_RESULTS.min(most));
    health.log.drain(..surplus);
    health.log.iter_mut().for_each(|it| it.output = printable_within(&it.output, TEXT_BOUND));
    health
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use flota_api::model::Task;
    use flota_api::object::StoreObject;
    use flota_api::proto::types as pt;
    use flota_raft_store::{Conflict, Entry, Transaction};

    fn view() -> Tables {
        let mut view = Tables::default();
        for (id, node) in [("own", "n"), ("other", "m")] {
            view.put(Task { id: id.into(), node_id: Some(node.into()), ..Task::default() }.into_object());
        }
        view
    }

    fn report(task: &str, state: i32) -> TaskReport {
        let status = pt::TaskStatus { attempt: 1, state, ..pt::TaskStatus::default() };
        TaskReport { task_id: task.into(), status: Some(status) }
    }

    fn taken(reports: Vec<TaskReport>) -> Vec<(String, TaskState)> {
        let taken = accepted(&view(), &"n".into(), reports);
        taken.into_iter().map(|(task, _, status)| (task.to_string(), status.state)).collect()
    }

    #[test]
    fn a_node_reports_what_a_worker_observes_of_its_own_tasks() {
        let state = |state: pt::TaskState| i32::from(state);
        let none = TaskReport { task_id: "own".into(), status: None };
        let bad = [
            none,
            report("own", 7),
            report("own", state(pt::TaskState::Assigned)),
            report("own", state(pt::TaskState::Orphaned)),
            report("other", state(pt::TaskState::Failed)),
            report("unknown", state(pt::TaskState::Failed)),
        ];
        for bad in bad {
            let good = report("own", state(pt::TaskState::Running));
            assert_eq!(taken(vec![bad.clone(), good]), [("own".to_owned(), TaskState::Running)], "{bad:?}");
        }
        for (wire, known) in
            [(pt::TaskState::Accepted, TaskState::Accepted), (pt::TaskState::Rejected, TaskState::Rejected)]
        {
            assert_eq!(taken(vec![report("own", state(wire))]), [("own".to_owned(), known)]);
        }
    }

    #[test]
    fn texts_are_short_and_printable_and_the_largest_batches_fit_into_an_entry() {
        let mut long = report("own", pt::TaskState::Failed.into());
        let status = long.status.as_mut().expect("just made");
        (status.error, status.message) = ("\u{1b}".repeat(10_000), "ä".repeat(10_000));
        let (_, _, status) = accepted(&view(), &"n".into(), vec![long]).remove(0);
        assert!(status.error.len() <= TEXT_BOUND && status.error.starts_with("\\u001b"), "{}", status.error);
        // The sink joins batches until it has this many statuses, and the last may be a whole batch.
        let most = super::super::status_sink::BATCH - 1 + BATCH_BOUND;
        let task = TaskId::from("x".repeat(64));
        let statuses = vec![(task, NodeId::from("x".repeat(64)), status); most];
        let entry = Entry { transactions: vec![Transaction::statuses(statuses)], ..Entry::default() };
        assert!(entry.encode().len() <= flota_raft_store::raft::ENTRY_BOUND, "{}", entry.encode().len());
        assert!(most <= flota_raft_store::ACTIONS_BOUND);
    }

    #[test]
    fn results_of_health_checks_are_few_and_short_and_take_the_place_of_reports() {
        let with_results = |count: usize| {
            let result = pt::HealthResult { output: "\u{1b}".repeat(10_000), ..pt::HealthResult::default() };
            let mut report = report("own", pt::TaskState::Running.into());
            let health = pt::Health { log: vec![result; count], ..pt::Health::default() };
            report.status.as_mut().expect("just made").health = Some(health);
            report
        };
        let few = accepted(&view(), &"n".into(), vec![with_results(100)]);
        let log = |status: &TaskStatus| status.health.clone().expect("it has a check").log;
        let results = log(&few[0].2);
        assert_eq!((results.len(), few[0].2.weight()), (5, 6));
        assert!(results.iter().all(|it| it.output.len() <= TEXT_BOUND));
        let many = accepted(&view(), &"n".into(), vec![with_results(5); 1_000]);
        let weight: usize = many.iter().map(|(_, _, status)| status.weight()).sum();
        assert_eq!((many.len(), weight), (1_000, BATCH_BOUND));
        // A result is not larger than a report, so the bound of an entry holds for both.
        let statuses = |count| vec![(TaskId::from("t"), NodeId::from("n"), few[0].2.clone()); count];
        let most = super::super::status_sink::BATCH - 1 + BATCH_BOUND;
        let entry = Entry { transactions: vec![Transaction::statuses(statuses(most / 6))], ..Entry::default() };
        assert!(entry.encode().len() <= flota_raft_store::raft::ENTRY_BOUND, "{}", entry.encode().len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_succeed_is_tried_again_and_what_never_will_is_skipped() {
        let tries = Cell::new(0);
        let write = || {
            tries.set(tries.get() + 1);
            let result = match tries.get() {
                1 => Err(ProposeError::Unknown),
                2 => Err(ProposeError::Unproven),
                // Other reports of the same image were faster, time and again.
                3 => Err(ProposeError::Conflict(Conflict::NameTaken { kind: "image".into(), name: "web".into() })),
                _ => Ok(()),
            };
            std::future::ready(result)
        };
        until_written(&"n".into(), write).await;
        assert_eq!(tries.get(), 4);
        let too_large = || std::future::ready(Err(ProposeError::TooLarge { actions: 1, bytes: 2 }));
        until_written(&"n".into(), too_large).await;
    }
}
