//! Writes the statuses of all workers to the store, in batches: statuses that arrive during one proposal are in the
//! next.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use flota_api::id::{NodeId, TaskId};
use flota_api::model::TaskStatus;
use flota_raft_store::{ProposeError, Proposer, Transaction};

/// Weight of the statuses ([`TaskStatus::weight`]) from which an entry takes no further batch. A test in `reports.rs` shows
/// that every entry fits.
pub(super) const BATCH: usize = 1_000;
/// Number of batches that may wait. When the queue is full, senders wait.
const QUEUE: usize = 256;

type Reports = Vec<(TaskId, NodeId, TaskStatus)>;
type Batch = (Reports, oneshot::Sender<Result<(), ProposeError>>);

fn weight(reports: &Reports) -> usize {
    reports.iter().map(|(_, _, status)| status.weight()).sum()
}

/// Accepts statuses. Clones share one queue.
#[derive(Clone, Debug)]
pub(super) struct StatusSink(mpsc::Sender<Batch>);

impl StatusSink {
    /// Starts the task that proposes; it ends when the last clone is dropped.
    pub(super) fn start(proposer: Arc<dyn Proposer>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Batch>(QUEUE);
        tokio::spawn(async move {
            while let Some((mut reports, waiting)) = receiver.recv().await {
                let (mut waiting, mut size) = (vec![waiting], weight(&reports));
                while size < BATCH
                    && let Ok((more, another)) = receiver.try_recv()
                {
                    size += weight(&more);
                    reports.extend(more);
                    waiting.push(another);
                }
                let result = proposer.propose(Transaction::statuses(reports)).await.map(|_| ());
                waiting.into_iter().for_each(|it| drop(it.send(result.clone())));
            }
        });
        Self(sender)
    }

    /// Waits until these reports are in the store.
    ///
    /// # Errors
    /// This manager no longer leads or has no quorum. The worker keeps the reports and sends them again.
    pub(super) async fn put(&self, reports: Reports) -> Result<(), ProposeError> {
        let (sender, receiver) = oneshot::channel();
        self.0.send((reports, sender)).await.map_err(|_| ProposeError::NotLeader)?;
        receiver.await.map_err(|_| ProposeError::NotLeader)?
    }
}
