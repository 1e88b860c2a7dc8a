//! Exec and logs for users: finds the task that is meant, and relays frames between the user and the task's worker.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use flota_api::model::{NodeState, Task};
use flota_api::proto::streams::frame::Frame as Content;
use flota_api::proto::streams::{Frame, LogsRequest};
use flota_raft_store::{Tables, View};

use super::find::{find_service, find_task};
use super::status::propose_status;
use crate::replica::Replica;
use crate::streams::{OpenError, Outbox, QUEUE, StreamBroker, WorkerStream};

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Self {
        Self::failed_precondition(error.to_string())
    }
}

/// Carries out what the user's first frame asks for. The receiver yields the answers, as the task's worker gives them.
pub(super) fn open(
    replica: Replica,
    broker: StreamBroker,
    user: Streaming<Frame>,
) -> mpsc::Receiver<Result<Frame, Status>> {
    let (to_user, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(status) = serve(&replica, broker, user, &to_user).await {
            let _ = to_user.send(Err(status)).await;
        }
    });
    receiver
}

async fn serve(
    replica: &Replica,
    broker: StreamBroker,
    mut user: Streaming<Frame>,
    to_user: &Outbox,
) -> Result<(), Status> {
    let first = user.message().await?.and_then(|frame| frame.frame);
    // A task or service that is missing from a proven view does not exist.
    let view = replica.proven_view().await.map_err(|error| propose_status(&error))?;
    match first {
        Some(Content::Exec(mut request)) => {
            let task = find_task(&view, &request.task)?;
            request.task = task.id.to_string();
            let worker = broker.open(task, &view, Content::Exec(request)).await?;
            relay(user, worker, to_user.clone()).await;
            Ok(())
        }
        Some(Content::Logs(request)) => {
            for task in logged_tasks(&view, &request)? {
                let request = LogsRequest { task: task.id.to_string(), service: String::new(), ..request.clone() };
                tokio::spawn(relay_logs(broker.clone(), view.clone(), task, request, to_user.clone()));
            }
            Ok(())
        }
        _ => Err(Status::invalid_argument("a stream begins with `exec` or `logs`")),
    }
}

/// Relays frames in both directions until the worker's side ends or the user goes away.
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
                    if to_user.send(Ok(frame)).await.is_err() {
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

/// Returns the task, or the tasks of the service, whose logs are asked for.
fn logged_tasks(view: &Tables, request: &LogsRequest) -> Result<Vec<Arc<Task>>, Status> {
    if request.service.is_empty() {
        return Ok(vec![find_task(view, &request.task)?.clone()]);
    }
    let service = find_service(view, &request.service)?;
    // A task that was replaced, on a node that is down, has no logs to offer: its node is not waited for.
    let down = |task: &Task| view.node(task.node_id.as_str()).is_none_or(|it| it.state == NodeState::Down);
    let there = |task: &&Arc<Task>| !task.node_id.is_empty() && (task.is_live() || !down(task));
    Ok(view.tasks_of_service(&service.id).filter(there).cloned().collect())
}

/// Sends one task's logs to the user. What goes wrong is sent as a frame, since other tasks' logs come beside it.
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
            // The user has gone: without this a quiet task's stream would stay open.
            () = to_user.closed() => return,
        };
        let frame = match frame {
            Ok(Some(frame)) => frame,
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
