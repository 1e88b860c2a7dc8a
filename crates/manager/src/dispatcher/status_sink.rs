//! Statuses of all workers into the store: what comes in during one proposal goes into the next one together.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use flota_api::id::{NodeId, TaskId};
use flota_api::model::TaskStatus;
use flota_raft_store::{ProposeError, Proposer, Transaction};

/// Statuses in one entry.
const BATCH: usize = 1_000;
/// Batches that may wait; a worker that sends more waits for its acknowledgement anyway.
const QUEUE: usize = 256;

type Reports = Vec<(TaskId, NodeId, TaskStatus)>;
type Batch = (Reports, oneshot::Sender<Result<(), ProposeError>>);

/// Takes statuses. Cloned handles share one queue.
#[derive(Clone, Debug)]
pub(crate) struct StatusSink(mpsc::Sender<Batch>);

impl StatusSink {
    /// Starts it; it ends with its last handle.
    pub(crate) fn start(proposer: Arc<dyn Proposer>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Batch>(QUEUE);
        tokio::spawn(async move {
            while let Some((mut reports, waiting)) = receiver.recv().await {
                let mut waiting = vec![waiting];
                while reports.len() < BATCH
                    && let Ok((more, another)) = receiver.try_recv()
                {
                    reports.extend(more);
                    waiting.push(another);
                }
                let result = proposer.propose(Transaction::statuses(reports)).await.map(|_| ());
                waiting.into_iter().for_each(|it| drop(it.send(result.clone())));
            }
        });
        Self(sender)
    }

    /// Waits until these are in the store.
    ///
    /// # Errors
    /// This manager leads no more, or has no quorum: the worker keeps them and sends them again.
    pub(crate) async fn put(&self, reports: Reports) -> Result<(), ProposeError> {
        let (sender, receiver) = oneshot::channel();
        self.0.send((reports, sender)).await.map_err(|_| ProposeError::NotLeader)?;
        receiver.await.map_err(|_| ProposeError::NotLeader)?
    }
}
