//! Exec, logs and forwarded connections: relays frames between a user and the workers of the selected tasks.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use flota_api::model::Task;
use flota_api::proto::streams::frame::Frame as Content;
use flota_api::proto::streams::{ForwardRequest, Frame, LogLine, LogsRequest};
use flota_api::text::printable_within;
use flota_raft_store::View;
use flota_raft_store::raft::RaftNode;

use super::super::Control;
use super::super::error::ControlError;
use super::super::tasks::LogSource;
use crate::streams::{Outbox, QUEUE, StreamBroker, TEXT_BOUND, WorkerStream};

/// Carries out the request in the user's first frame. The receiver yields the answers of the task's worker.
pub(super) fn open(
    control: Control<RaftNode>,
    broker: StreamBroker,
    user: Streaming<Frame>,
) -> mpsc::Receiver<Result<Frame, Status>> {
    let (to_user, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(status) = serve(&control, broker, user, &to_user).await {
            // If the user has disconnected, no answer is needed.
            let _ = to_user.send(Err(status)).await;
        }
    });
    receiver
}

/// Makes what the worker itself says fit for a terminal. What its tasks write is the user's own.
fn shown(frame: Frame) -> Frame {
    let content = frame.frame.map(|content| match content {
        Content::Error(text) => Content::Error(printable_within(&text, TEXT_BOUND)),
        Content::Log(line) => Content::Log(LogLine {
            task_name: printable_within(&line.task_name, TEXT_BOUND),
            node_name: printable_within(&line.node_name, TEXT_BOUND),
            ..line
        }),
        other => other,
    });
    Frame { frame: content }
}

async fn serve(
    control: &Control<RaftNode>,
    broker: StreamBroker,
    mut user: Streaming<Frame>,
    to_user: &Outbox,
) -> Result<(), Status> {
    match user.message().await?.and_then(|frame| frame.frame) {
        Some(Content::Exec(mut request)) => {
            let (view, task) = control.get_running_task(&request.task).await?;
            request.task = task.id.to_string();
            let worker = broker.open(&task, &view, Content::Exec(request)).await.map_err(ControlError::from)?;
            relay(user, worker, to_user.clone()).await;
            Ok(())
        }
        Some(Content::Logs(mut request)) => {
            let (task, service) = (std::mem::take(&mut request.task), std::mem::take(&mut request.service));
            let source = if service.is_empty() { LogSource::Task(task) } else { LogSource::Service(service) };
            let (view, tasks) = control.list_logged_tasks(&source).await?;
            for task in tasks {
                let request = LogsRequest { task: task.id.to_string(), ..request.clone() };
                tokio::spawn(relay_logs(broker.clone(), view.clone(), task, request, to_user.clone()));
            }
            Ok(())
        }
        Some(Content::Forward(request)) => {
            let worker = connect(control, &broker, &request).await?;
            relay(user, worker, to_user.clone()).await;
            Ok(())
        }
        _ => Err(ControlError::invalid("frame", "a stream begins with `exec`, `logs` or `forward`").into()),
    }
}

/// Connects to the first of the request's tasks that accepts the connection.
async fn connect(
    control: &Control<RaftNode>,
    broker: &StreamBroker,
    request: &ForwardRequest,
) -> Result<WorkerStream, ControlError> {
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| ControlError::invalid("port", "it is 1 to 65535"))?;
    let (view, tasks) = control.list_forward_targets(&request.task, request.turn).await?;
    let mut failed = None;
    for task in tasks {
        match broker.connect(&task, &view, port).await {
            Ok(worker) => return Ok(worker),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.expect("there is at least one task to try").into())
}

/// Relays frames in both directions until the worker's side ends or the user disconnects.
async fn relay(mut user: Streaming<Frame>, worker: WorkerStream, to_user: Outbox) {
    let WorkerStream { mut inbox, outbox: to_worker } = worker;
    let there = async move {
        while let Ok(Some(frame)) = user.message().await {
            if to_worker.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    };
    let back = async move {
        loop {
            match inbox.message().await {
                Ok(Some(frame)) => {
                    if to_user.send(Ok(shown(frame))).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(status) => {
                    let text = format!("the node went away: {}", status.message());
                    let _ = to_user.send(Err(Status::unavailable(text))).await;
                    return;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = back => {}
        () = there => {}
    }
}

/// Sends one task's logs to the user. An error is sent as a frame, because the logs of other tasks share the stream.
async fn relay_logs(broker: StreamBroker, view: View, task: Arc<Task>, request: LogsRequest, to_user: Outbox) {
    let mut worker = match broker.open(&task, &view, Content::Logs(request)).await {
        Ok(worker) => worker,
        Err(error) => {
            let _ = to_user.send(Ok(Frame { frame: Some(Content::Error(error.to_string())) })).await;
            return;
        }
    };
    loop {
        let frame = tokio::select! {
            biased;
            frame = worker.inbox.message() => frame,
            // The user has disconnected. Without this branch, the stream of a task that logs nothing stays open.
            () = to_user.closed() => return,
        };
        let frame = match frame {
            Ok(Some(frame)) => shown(frame),
            Ok(None) => return,
            Err(status) => {
                let text = format!("the logs of task {} end early: {}", task.id, status.message());
                Frame { frame: Some(Content::Error(text)) }
            }
        };
        let broken = matches!(frame.frame, Some(Content::Error(_)));
        if to_user.send(Ok(frame)).await.is_err() || broken {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_writes_no_escape_sequences_to_a_users_terminal() {
        let shown = |content| shown(Frame { frame: Some(content) }).frame.expect("it stays");
        assert_eq!(shown(Content::Error("\u{1b}c".into())), Content::Error("\\u001bc".into()));
        let line = |name: &str| LogLine { node_name: name.into(), line: "\u{1b}[1m".into(), ..LogLine::default() };
        assert_eq!(shown(Content::Log(line("\u{1b}c"))), Content::Log(line("\\u001bc")), "the line is the task's");
        assert_eq!(shown(Content::Stdout("\u{1b}c".into())), Content::Stdout("\u{1b}c".into()));
    }
}
