//! The stream broker: opens a stream to the worker of a task, for exec, logs and forwarded connections.
//!
//! Managers never dial workers. The broker asks the worker over its session to open a stream, and pairs the stream that
//! the worker then opens ([`StreamsService`]) with the caller that waits for it ([`StreamBroker::open`]).

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use flota_api::clock::Random;
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::id::{self, NodeId};
use flota_api::model::{PendingReason, Task};
use flota_api::naming::task_name;
use flota_api::proto::dispatcher::OpenStream;
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::proto::streams::frame::Frame as Content;
use flota_api::proto::streams::streams_server::{Streams, StreamsServer};
use flota_api::proto::streams::{ForwardRequest, Frame};
use flota_api::text::printable_within;
use flota_identity::Peer;
use flota_raft_store::Tables;

use crate::dispatcher::Sessions;

/// How long a worker has to open its side of a stream, and then to send its first frame.
const OPEN_WAIT: Duration = Duration::from_secs(3);
/// How long a worker has to connect to a port of a task, which is longer than it tries.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Frames in flight in each direction; the sender waits when there are more.
pub(crate) const QUEUE: usize = 32;

/// Bytes of an error or a name of a worker that reach the user.
pub(crate) const TEXT_BOUND: usize = 1_000;

/// The sending side of a stream of frames.
pub(crate) type Outbox = mpsc::Sender<Result<Frame, Status>>;

/// The worker's side of a stream.
#[derive(Debug)]
pub(crate) struct WorkerStream {
    /// Frames from the worker.
    pub(crate) inbox: Streaming<Frame>,
    /// Frames to the worker. Dropping it tells the worker that no one reads any more.
    pub(crate) outbox: Outbox,
}

/// Why a task's worker did not open a stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The task is not assigned.
    #[error("task {task} has no node yet{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NoNode { task: String, reason: Option<PendingReason> },
    /// The node has no session with this leader.
    #[error("task {task} on node {node}: the node does not answer")]
    NoSession { task: String, node: String },
    /// The node has a session, and did not open the stream within [`OPEN_WAIT`].
    #[error("task {task} on node {node}: the node did not open the stream in time")]
    TimedOut { task: String, node: String },
    /// The worker did not connect to the task's port.
    #[error("task {task}: {why}")]
    NotConnected { task: String, why: String },
}

/// Streams that workers were asked to open, by id: the worker's node, and the caller that waits.
type Pending = HashMap<String, (NodeId, oneshot::Sender<WorkerStream>)>;

/// Pairs requests for a stream with the streams that workers open. Clones are the same broker.
#[derive(Clone)]
pub(crate) struct StreamBroker {
    sessions: Sessions,
    random: Random,
    pending: Arc<Mutex<Pending>>,
}

impl fmt::Debug for StreamBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamBroker")
    }
}

/// Removes a pending stream when its caller no longer waits.
struct Forget<'a> {
    broker: &'a StreamBroker,
    id: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.broker.take(self.id);
    }
}

impl StreamBroker {
    /// Creates a broker that reaches workers through `sessions` and draws the streams' ids from `random`.
    pub(crate) fn new(sessions: Sessions, random: Random) -> Self {
        Self { sessions, random, pending: Arc::default() }
    }

    /// Asks the task's worker to open a stream that begins with `request`, and waits for it.
    ///
    /// # Errors
    /// The task has no node, or its node does not answer in time.
    pub(crate) async fn open(&self, task: &Task, view: &Tables, request: Content) -> Result<WorkerStream, OpenError> {
        let name = name_of(task, view);
        let Some(node_id) = &task.node_id else {
            return Err(OpenError::NoNode { task: name, reason: task.pending_reason.clone() });
        };
        let node = view.node_of(task).map_or("", |node| node.description.hostname.as_str()).to_owned();
        let id = self.random.draw(id::random);
        let (sender, receiver) = oneshot::channel();
        self.pending.lock().expect("no holder panics").insert(id.clone(), (node_id.clone(), sender));
        // Runs also when the caller drops this future while it waits.
        let _forget = Forget { broker: self, id: &id };
        let request = OpenStream { id: id.clone(), request: Some(Frame { frame: Some(request) }) };
        if self.sessions.send(node_id, Message::OpenStream(request)).is_err() {
            return Err(OpenError::NoSession { task: name, node });
        }
        let opened = tokio::time::timeout(OPEN_WAIT, receiver).await;
        opened.ok().and_then(Result::ok).ok_or(OpenError::TimedOut { task: name, node })
    }

    /// Opens a stream to a port of the task, and waits until the task's worker has connected to it.
    ///
    /// # Errors
    /// As [`StreamBroker::open`], or the port does not accept the connection.
    pub(crate) async fn connect(&self, task: &Task, view: &Tables, port: u16) -> Result<WorkerStream, OpenError> {
        let request = ForwardRequest { task: task.id.to_string(), port: port.into(), turn: 0 };
        let mut worker = self.open(task, view, Content::Forward(request)).await?;
        let first = tokio::time::timeout(CONNECT_WAIT, worker.inbox.message()).await;
        let why = match first.map(|answer| answer.map(|frame| frame.and_then(|it| it.frame))) {
            Ok(Ok(Some(Content::Connected(_)))) => return Ok(worker),
            Ok(Ok(Some(Content::Error(why)))) => printable_within(&why, TEXT_BOUND),
            Ok(Ok(_)) => "its node has closed the stream".into(),
            Ok(Err(status)) => format!("its node went away: {}", status.message()),
            Err(_) => "its node did not connect in time".into(),
        };
        Err(OpenError::NotConnected { task: name_of(task, view), why })
    }

    fn take(&self, id: &str) -> Option<(NodeId, oneshot::Sender<WorkerStream>)> {
        self.pending.lock().expect("no holder panics").remove(id)
    }
}

fn name_of(task: &Task, view: &Tables) -> String {
    view.spec_of(task).map_or_else(|| task.id.to_string(), |spec| task_name(&spec.name, task.slot))
}

/// Serves Streams: a worker opens a stream that it was asked for.
#[derive(Clone, Debug)]
pub struct StreamsService(StreamBroker);

impl StreamsService {
    /// Creates the service that passes the workers' streams to this broker.
    pub(crate) fn server(broker: StreamBroker) -> StreamsServer<Self> {
        StreamsServer::new(Self(broker)).max_decoding_message_size(MESSAGE_BOUND)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

#[tonic::async_trait]
impl Streams for StreamsService {
    type DataStream = Answers;

    async fn data(&self, request: Request<Streaming<Frame>>) -> Result<Response<Answers>, Status> {
        let node = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned();
        let mut inbox = request.into_inner();
        let late = |_| Status::deadline_exceeded("the first frame of a data stream did not come in time");
        let first = tokio::time::timeout(OPEN_WAIT, inbox.message()).await.map_err(late)??;
        let Some(Content::Accept(id)) = first.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument("a data stream begins with `accept`"));
        };
        // Only the node that was asked may answer.
        let waiting = self.0.take(&id).filter(|(asked, _)| Some(asked) == node.as_ref());
        let (_, waiting) = waiting.ok_or_else(|| Status::not_found("nobody waits for this stream"))?;
        let (outbox, answers) = mpsc::channel(QUEUE);
        let stream = WorkerStream { inbox, outbox };
        waiting.send(stream).map_err(|_| Status::cancelled("nobody waits for this stream any more"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use flota_api::proto::streams::LogsRequest;

    fn broker() -> StreamBroker {
        StreamBroker::new(Sessions::default(), Random::seeded(1))
    }

    fn task(node: &str) -> Task {
        Task { id: "t".into(), node_id: (!node.is_empty()).then(|| node.into()), ..Task::default() }
    }

    async fn open(broker: &StreamBroker, task: &Task) -> OpenError {
        let request = Content::Logs(LogsRequest::default());
        broker.open(task, &Tables::default(), request).await.expect_err("no worker opens a stream")
    }

    #[tokio::test]
    async fn a_task_without_a_node_and_a_node_without_a_session_open_no_stream() {
        let broker = broker();
        assert!(matches!(open(&broker, &task("")).await, OpenError::NoNode { .. }));
        assert!(matches!(open(&broker, &task("n")).await, OpenError::NoSession { .. }));
        assert_eq!(broker.pending.lock().expect("no holder panics").len(), 0, "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_asked_over_its_session_and_not_waited_for_without_end() {
        let broker = broker();
        let (outbox, mut worker) = mpsc::channel(1);
        broker.sessions.begin(&"n".into(), outbox, &CancellationToken::new());
        let error = open(&broker, &task("n")).await;
        assert!(matches!(error, OpenError::TimedOut { .. }), "{error}");
        let asked = worker.recv().await.and_then(Result::ok).and_then(|it| it.message);
        let Some(Message::OpenStream(asked)) = asked else { panic!("the worker was not asked") };
        assert!(broker.take(&asked.id).is_none(), "a stream that is opened too late finds nobody");
    }
}
