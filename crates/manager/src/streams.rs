//! Exec and logs: joins whoever asks with the connection that the task's worker opens for it. Managers never dial
//! workers: the worker is asked over its session.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::id::{NodeId, random};
use flota_api::model::{NodeState, Task};
use flota_api::naming::task_name;
use flota_api::proto::dispatcher::OpenStream;
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::proto::streams::frame::Frame as F;
use flota_api::proto::streams::streams_server::{Streams, StreamsServer};
use flota_api::proto::streams::{Frame, LogsRequest};
use flota_identity::Peer;
use flota_raft_store::Tables;

use crate::control::{find_service, find_task, propose_status};
use crate::manager::Manager;

/// A worker that has not opened its side by then is not waited for.
const OPEN_WAIT: Duration = Duration::from_secs(3);
/// Frames under way in each direction; behind them the sender waits.
const QUEUE: usize = 32;

type Outbox = mpsc::Sender<Result<Frame, Status>>;

/// The worker's side of a stream.
struct Data {
    inbox: Streaming<Frame>,
    outbox: Outbox,
}

type Waiting = HashMap<String, (NodeId, oneshot::Sender<Data>)>;

/// Streams that workers were asked to open. Cloned handles share it.
#[derive(Clone, Default)]
pub(crate) struct Pending(Arc<Mutex<Waiting>>);

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

/// Takes a stream that nobody waits for any more out of the list.
struct Forget<'a>(&'a Pending, &'a str);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.0.lock().expect("no holder panics").remove(self.1);
    }
}

/// Serves Streams: the workers' side.
#[derive(Clone, Debug)]
pub struct StreamsService(Manager);

impl StreamsService {
    /// For this manager.
    pub fn server(manager: Manager) -> StreamsServer<Self> {
        StreamsServer::new(Self(manager)).max_decoding_message_size(MESSAGE_BOUND)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

#[tonic::async_trait]
impl Streams for StreamsService {
    type DataStream = Answers;

    async fn data(&self, request: Request<Streaming<Frame>>) -> Result<Response<Answers>, Status> {
        let node = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned();
        let mut inbox = request.into_inner();
        let first = inbox.message().await?.and_then(|frame| frame.frame);
        let Some(F::Accept(id)) = first else {
            return Err(Status::invalid_argument("a data stream begins with `accept`"));
        };
        let waiting = self.0.pending.0.lock().expect("no holder panics").remove(&id);
        // Only the node that was asked may answer.
        let waiting = waiting.filter(|(asked, _)| Some(asked) == node.as_ref());
        let (_, waiting) = waiting.ok_or_else(|| Status::not_found("nobody waits for this stream"))?;
        let (outbox, answers) = mpsc::channel(QUEUE);
        waiting.send(Data { inbox, outbox }).map_err(|_| Status::cancelled("nobody waits for this stream any more"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// Carries out what the user's first frame asks for; what comes of it goes into the receiver, at once or when the
/// task's worker answers.
pub(crate) fn open(manager: &Manager, user: Streaming<Frame>) -> mpsc::Receiver<Result<Frame, Status>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let manager = manager.clone();
    tokio::spawn(async move {
        if let Err(status) = serve(&manager, user, &sender).await {
            let _ = sender.send(Err(status)).await;
        }
    });
    receiver
}

async fn serve(manager: &Manager, mut user: Streaming<Frame>, sender: &Outbox) -> Result<(), Status> {
    let first = user.message().await?.and_then(|frame| frame.frame);
    // A task or service that is not in it does not exist.
    let view = manager.proven_view().await.map_err(|error| propose_status(&error))?;
    match first {
        Some(F::Exec(mut request)) => {
            let task = find_task(&view, &request.task)?.clone();
            request.task = task.id.to_string();
            let data = ask(manager, &task, &view, F::Exec(request)).await?;
            join(user, data, sender.clone()).await;
            Ok(())
        }
        Some(F::Logs(request)) => logs(manager, &view, request, sender),
        _ => Err(Status::invalid_argument("a stream begins with `exec` or `logs`")),
    }
}

/// Asks the task's worker to open a stream, and waits for it.
async fn ask(manager: &Manager, task: &Task, view: &Tables, request: F) -> Result<Data, Status> {
    let name = view.spec_of(task).map_or_else(|| task.id.to_string(), |spec| task_name(&spec.name, task.slot));
    let Some(node_id) = &task.node_id else {
        let reason = task.pending_reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        return Err(Status::failed_precondition(format!("task {name} has no node yet{reason}")));
    };
    let node = view.node_of(task).map_or("", |node| node.description.hostname.as_str());
    let unreachable = |why: &str| Status::failed_precondition(format!("task {name} on node {node}: {why}"));
    let id = manager.random.draw(random);
    let (sender, receiver) = oneshot::channel();
    let pending = manager.pending.clone();
    pending.0.lock().expect("no holder panics").insert(id.clone(), (node_id.clone(), sender));
    // Also when whoever asked goes away while this waits.
    let _forget = Forget(&pending, &id);
    let request = OpenStream { id: id.clone(), request: Some(Frame { frame: Some(request) }) };
    let sent = manager.sessions.send(node_id, Message::OpenStream(request));
    sent.map_err(|_| unreachable("the node does not answer"))?;
    let result = tokio::time::timeout(OPEN_WAIT, receiver).await;
    result.ok().and_then(Result::ok).ok_or_else(|| unreachable("the node did not open the stream in time"))
}

/// Frames of the user to the worker, and back, until the worker's side ends.
async fn join(mut user: Streaming<Frame>, data: Data, to_user: Outbox) {
    let Data { mut inbox, outbox: to_worker } = data;
    let there = async move {
        while let Ok(Some(frame)) = user.message().await {
            if to_worker.send(Ok(frame)).await.is_err() {
                return;
            }
        }
        // Dropping the sender tells the worker that nobody listens any more.
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
                    let _ = to_user
                        .send(Err(Status::unavailable(format!("the node went away: {}", status.message()))))
                        .await;
                    return;
                }
            }
        }
    };
    tokio::pin!(there);
    tokio::select! {
        biased;
        () = back => {}
        () = &mut there => {}
    }
}

/// Logs of one task, or of all tasks of a service; a node that does not answer is said, and not waited for.
fn logs(manager: &Manager, view: &Tables, request: LogsRequest, to_user: &Outbox) -> Result<(), Status> {
    let service = (!request.service.is_empty()).then(|| find_service(view, &request.service)).transpose()?;
    let tasks: Vec<Arc<Task>> = match service {
        // Of a task that was replaced on a node that is down there is nothing to be had, and nothing to be waited for.
        Some(service) => {
            let down = |task: &Task| view.node_of(task).is_none_or(|it| it.state == NodeState::Down);
            let there = |task: &&Arc<Task>| task.node_id.is_some() && (task.is_live() || !down(task));
            view.tasks_of_service(&service.id).filter(there).cloned().collect()
        }
        None => vec![find_task(view, &request.task)?.clone()],
    };
    for task in tasks {
        let (manager, view, to_user) = (manager.clone(), manager.store.view(), to_user.clone());
        let request = LogsRequest { task: task.id.to_string(), service: String::new(), ..request.clone() };
        tokio::spawn(async move {
            let mut data = match ask(&manager, &task, &view, F::Logs(request)).await {
                Ok(data) => data,
                Err(status) => {
                    let error = F::Error(status.message().to_owned());
                    let _ = to_user.send(Ok(Frame { frame: Some(error) })).await;
                    return;
                }
            };
            loop {
                let frame = tokio::select! {
                    biased;
                    frame = data.inbox.message() => frame,
                    // Nobody reads any more: without this a quiet task's stream would stay open.
                    () = to_user.closed() => return,
                };
                let frame = match frame {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return,
                    Err(status) => {
                        let text = format!("the logs of task {} end early: {}", task.id, status.message());
                        Frame { frame: Some(F::Error(text)) }
                    }
                };
                let broken = matches!(frame.frame, Some(F::Error(_)));
                if to_user.send(Ok(frame)).await.is_err() || broken {
                    return;
                }
            }
        });
    }
    Ok(())
}
