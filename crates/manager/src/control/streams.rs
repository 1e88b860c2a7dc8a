//! Exec, logs and forwarded connections: chooses the tasks, opens streams to their workers, and relays frames between
//! these and the user.

mod targets;

use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;

use flota_api::model::{LogLine, LogRange, Program, StreamKind, Task, TaskFrame, TaskPort, UserFrame};
use flota_raft_store::View;

use super::error::ControlError;
use super::reference::resolve_running;
use super::{Control, Member};
use crate::streams::{BrokenStream, QUEUE, StreamBroker, WorkerStream, with_run};

pub(crate) use targets::LogSource;

/// The frames that a user is sent. After an error no frame follows.
pub(crate) type TaskFrames = mpsc::Receiver<Result<TaskFrame, ControlError>>;

type ToUser = mpsc::Sender<Result<TaskFrame, ControlError>>;

/// The frames that a user sends. They end when the user disconnects; an error is a frame that can't be used.
pub(crate) trait UserFrames: Stream<Item = Result<UserFrame, ControlError>> + Send + Unpin + 'static {}

impl<S: Stream<Item = Result<UserFrame, ControlError>> + Send + Unpin + 'static> UserFrames for S {}

impl<M: Member> Control<M> {
    /// Runs a program in the container of the task that `reference` identifies, where a service stands for its first
    /// running task.
    pub(crate) async fn exec(
        &self,
        reference: &str,
        program: Program,
        user: impl UserFrames,
    ) -> Result<TaskFrames, ControlError> {
        let view = self.proven_view().await?;
        let task = resolve_running(&view, reference)?;
        let worker = self.streams.open(task, &view, StreamKind::Exec(program)).await?;
        Ok(relay(user, worker))
    }

    /// Returns the logs of the tasks that `source` selects. What can't be read of one task is named by a
    /// [`TaskFrame::Error`], and the others' logs go on.
    pub(crate) async fn logs(&self, source: &LogSource, range: LogRange) -> Result<TaskFrames, ControlError> {
        let view = self.proven_view().await?;
        let (to_user, frames) = mpsc::channel(QUEUE);
        for task in targets::logged(&view, source)? {
            let logs = Logs { broker: self.streams.clone(), view: view.clone(), task: Arc::clone(task), range };
            tokio::spawn(logs.relay(to_user.clone()));
        }
        Ok(frames)
    }

    /// Connects to a port of the task that `reference` identifies. A service stands for its running tasks: each `turn`
    /// begins with the next one, and a task that does not accept the connection is followed by another.
    pub(crate) async fn forward(
        &self,
        reference: &str,
        port: TaskPort,
        turn: u64,
        user: impl UserFrames,
    ) -> Result<TaskFrames, ControlError> {
        let view = self.proven_view().await?;
        let mut failed = None;
        let mut tasks = targets::connected(&view, reference, turn)?;
        // A session that has not begun yet is waited for only where no other task accepts the connection.
        tasks.sort_by_key(|task| !self.streams.reaches(task));
        for task in tasks {
            match self.streams.connect(task, &view, port).await {
                Ok(worker) => return Ok(relay(user, worker)),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.expect("there is at least one task to try").into())
    }

    /// Checks that a connection to `reference` has a task to go to.
    pub(crate) async fn check_forward(&self, reference: &str) -> Result<(), ControlError> {
        let view = self.proven_view().await?;
        targets::connected(&view, reference, 0).map(drop)
    }
}

/// Relays frames in both directions until the worker's side ends or the user disconnects.
fn relay(user: impl UserFrames, worker: WorkerStream) -> TaskFrames {
    let (to_user, frames) = mpsc::channel(QUEUE);
    let WorkerStream { inbox, outbox } = worker;
    tokio::spawn(async move {
        // The worker's side comes first, so that all that it has sent arrives.
        let refused = tokio::select! {
            biased;
            () = relay_back(inbox, &to_user) => None,
            refused = relay_there(user, outbox) => refused,
        };
        if let Some(error) = refused {
            // If the user has disconnected, no answer is needed.
            let _ = to_user.send(Err(error)).await;
        }
    });
    frames
}

/// Sends the user's frames to the worker. Returns the error of a frame that can't be used.
async fn relay_there(mut user: impl UserFrames, to_worker: mpsc::Sender<UserFrame>) -> Option<ControlError> {
    while let Some(frame) = user.next().await {
        match frame {
            Ok(frame) => to_worker.send(frame).await.ok()?,
            Err(error) => return Some(error),
        }
    }
    None
}

async fn relay_back(mut inbox: impl Stream<Item = Result<TaskFrame, BrokenStream>> + Unpin, to_user: &ToUser) {
    while let Some(frame) = inbox.next().await {
        let is_last = frame.is_err();
        if to_user.send(frame.map_err(ControlError::from)).await.is_err() || is_last {
            return;
        }
    }
}

/// The logs of one task, which share the user's stream with those of others.
struct Logs {
    broker: StreamBroker,
    view: View,
    task: Arc<Task>,
    range: LogRange,
}

impl Logs {
    async fn relay(self, to_user: ToUser) {
        let mut worker = match self.broker.open(&self.task, &self.view, StreamKind::Logs(self.range)).await {
            Ok(worker) => worker,
            Err(error) => {
                let _ = to_user.send(Ok(TaskFrame::Error(error.to_string()))).await;
                return;
            }
        };
        loop {
            let frame = tokio::select! {
                biased;
                frame = worker.inbox.next() => frame,
                // The user has disconnected. Without this branch, the stream of a task that logs nothing stays open.
                () = to_user.closed() => return,
            };
            let frame = match frame {
                // The worker knows nothing of runs.
                Some(Ok(TaskFrame::Log(line))) => {
                    TaskFrame::Log(LogLine { task_name: with_run(line.task_name, &self.task), ..line })
                }
                Some(Ok(frame)) => frame,
                Some(Err(broken)) => TaskFrame::Error(format!("the logs of task {} end early: {broken}", self.task.id)),
                None => return,
            };
            let is_last = matches!(frame, TaskFrame::Error(_));
            if to_user.send(Ok(frame)).await.is_err() || is_last {
                return;
            }
        }
    }
}
