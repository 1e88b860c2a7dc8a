//! The stream broker: opens a stream to the worker of a task, for exec, logs, forwarded connections, checks of networks
//! and the health of a task.
//!
//! Managers never dial workers. The broker asks the worker over its session to open a stream, and pairs the stream that
//! the worker then opens ([`StreamsService`]) with the caller that waits for it ([`StreamBroker::open`]).

mod grpc;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};

use flota_api::Malformed;
use flota_api::clock::Random;
use flota_api::id::{self, NodeId};
use flota_api::model::{NodeState, PendingReason, StreamKind, StreamRequest, Task, TaskFrame, TaskPort, UserFrame};
use flota_api::naming::task_name;
use flota_api::proto::dispatcher::OpenStream;
use flota_api::proto::dispatcher::manager_message::Message;
use flota_raft_store::Tables;

use crate::dispatcher::Sessions;

pub use grpc::StreamsService;

/// How long a worker has to open its side of a stream, and then to send its first frame. It includes the wait for the
/// session of a node that is not down: it is about to begin after the daemon has restarted or another manager leads.
const OPEN_WAIT: Duration = Duration::from_secs(3);
/// How long a worker has to connect to a port of a task, which is longer than it tries.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Frames in flight in each direction; the sender waits when there are more.
pub(crate) const QUEUE: usize = 32;

/// The worker's side of a stream.
pub(crate) struct WorkerStream {
    /// Frames from the worker. After an error no frame follows.
    pub(crate) inbox: BoxStream<'static, Result<TaskFrame, BrokenStream>>,
    /// Frames to the worker. Dropping it tells the worker that no one reads any more.
    pub(crate) outbox: mpsc::Sender<UserFrame>,
}

impl fmt::Debug for WorkerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerStream")
    }
}

/// Why a worker's side of a stream ends before its time.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum BrokenStream {
    /// The connection to the node broke, or the node gave up the stream.
    #[error("the node went away: {0}")]
    Lost(String),
    /// The node has sent a frame that this build does not know.
    #[error("the node sent what can't be used: {0}")]
    Malformed(#[from] Malformed),
}

/// Why a task's worker did not open a stream.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The task is not assigned.
    #[error("task {task} has no node yet{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NoNode { task: String, reason: Option<PendingReason> },
    /// The node has no session with this leader, and is down or does not begin one within [`OPEN_WAIT`].
    #[error("task {task} on node {node}: the node does not answer")]
    NoSession { task: String, node: String },
    /// The node has a session, and did not open the stream within [`OPEN_WAIT`].
    #[error("task {task} on node {node}: the node did not open the stream in time")]
    TimedOut { task: String, node: String },
    /// The worker did not connect to the task's port.
    #[error("task {task}: {why}")]
    NotConnected { task: String, why: NotConnected },
}

/// Why a worker did not connect to a port of its task.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NotConnected {
    /// The worker says why.
    #[error("{0}")]
    Refused(String),
    /// The worker has closed the stream.
    #[error("its node has closed the stream")]
    Closed,
    /// The stream broke.
    #[error(transparent)]
    Broken(#[from] BrokenStream),
    /// The worker did not answer within [`CONNECT_WAIT`].
    #[error("its node did not connect in time")]
    TimedOut,
}

/// No caller waits for a stream that a worker opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody waits for this stream")]
pub(crate) struct NotWaiting;

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

    /// Asks the task's worker to open a stream, and waits for it.
    ///
    /// # Errors
    /// The task has no node, or its node does not answer in time.
    pub(crate) async fn open(&self, task: &Task, view: &Tables, kind: StreamKind) -> Result<WorkerStream, OpenError> {
        let name = name_of(task, view);
        let Some(node_id) = &task.node_id else {
            return Err(OpenError::NoNode { task: name, reason: task.pending_reason.as_deref().cloned() });
        };
        let node = view.node_of(task);
        let is_down = node.is_none_or(|node| node.state == NodeState::Down);
        let node = node.map_or("", |node| node.description.hostname.as_str()).to_owned();
        let id = self.random.draw(id::random);
        let (sender, receiver) = oneshot::channel();
        self.pending.lock().expect("no holder panics").insert(id.clone(), (node_id.clone(), sender));
        // Runs also when the caller drops this future while it waits.
        let _forget = Forget { broker: self, id: &id };
        let request = StreamRequest { task: task.id.clone(), kind };
        let message = Message::OpenStream(OpenStream { id: id.clone(), request: Some(request.into()) });
        let opened = async {
            if !is_down {
                self.sessions.begun(node_id).await;
            }
            self.sessions.send(node_id, message).await.ok()?;
            Some(receiver.await.ok())
        };
        match tokio::time::timeout(OPEN_WAIT, opened).await {
            Ok(Some(Some(stream))) => Ok(stream),
            Ok(Some(None)) | Err(_) if self.sessions.has(node_id) => Err(OpenError::TimedOut { task: name, node }),
            Ok(_) | Err(_) => Err(OpenError::NoSession { task: name, node }),
        }
    }

    /// Whether the task's node has a session, so that a stream can be opened at once.
    pub(crate) fn reaches(&self, task: &Task) -> bool {
        task.node_id.as_ref().is_some_and(|node| self.sessions.has(node))
    }

    /// Opens a stream to a port of the task, and waits until the task's worker has connected to it.
    ///
    /// # Errors
    /// The task has no node, its node does not answer in time, or the port does not accept the connection.
    pub(crate) async fn connect(&self, task: &Task, view: &Tables, port: TaskPort) -> Result<WorkerStream, OpenError> {
        let mut worker = self.open(task, view, StreamKind::Forward(port)).await?;
        let why = match tokio::time::timeout(CONNECT_WAIT, worker.inbox.next()).await {
            Ok(Some(Ok(TaskFrame::Connected))) => return Ok(worker),
            Ok(Some(Ok(TaskFrame::Error(why)))) => NotConnected::Refused(why),
            Ok(Some(Err(broken))) => broken.into(),
            Ok(_) => NotConnected::Closed,
            Err(_) => NotConnected::TimedOut,
        };
        Err(OpenError::NotConnected { task: name_of(task, view), why })
    }

    /// Passes the stream that this node has opened to the caller that waits for it. Only the node that was asked may
    /// answer.
    pub(crate) fn accept(&self, id: &str, node: &NodeId, stream: WorkerStream) -> Result<(), NotWaiting> {
        let (_, waiting) = self.take(id).filter(|(asked, _)| asked == node).ok_or(NotWaiting)?;
        waiting.send(stream).map_err(|_| NotWaiting)
    }

    fn take(&self, id: &str) -> Option<(NodeId, oneshot::Sender<WorkerStream>)> {
        self.pending.lock().expect("no holder panics").remove(id)
    }
}

fn name_of(task: &Task, view: &Tables) -> String {
    let name = view.spec_of(task).map_or_else(|| task.id.to_string(), |spec| task_name(&spec.name, task.slot));
    with_run(name, task)
}

/// Returns the name of a task with the number of its run if it has one: `backup.1#7`.
pub(crate) fn with_run(name: String, task: &Task) -> String {
    match task.run {
        Some(run) => format!("{name}#{run}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use flota_api::model::{LogRange, Node};
    use flota_api::object::StoreObject;

    fn broker() -> StreamBroker {
        StreamBroker::new(Sessions::default(), Random::seeded(1))
    }

    fn task(node: &str) -> Task {
        Task { id: "t".into(), node_id: (!node.is_empty()).then(|| node.into()), ..Task::default() }
    }

    async fn open(broker: &StreamBroker, task: &Task) -> OpenError {
        broker
            .open(task, &Tables::default(), StreamKind::Logs(LogRange::default()))
            .await
            .expect_err("no worker opens a stream")
    }

    #[tokio::test]
    async fn a_task_without_a_node_and_a_node_without_a_session_open_no_stream() {
        let broker = broker();
        assert!(matches!(open(&broker, &task("")).await, OpenError::NoNode { .. }));
        assert!(matches!(open(&broker, &task("n")).await, OpenError::NoSession { .. }));
        assert_eq!(broker.pending.lock().expect("no holder panics").len(), 0, "no request waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_about_to_begin_is_waited_for_and_that_of_a_node_that_is_down_is_not() {
        let (broker, task) = (broker(), task("n"));
        let (outbox, mut worker) = mpsc::channel(1);
        let mut view = Tables::default();
        for (state, waits) in [(NodeState::Down, false), (NodeState::Unknown, true), (NodeState::Ready, true)] {
            view.put(Node { id: "n".into(), state, ..Node::default() }.into_object());
            let begun = tokio::time::Instant::now();
            let refused = broker.open(&task, &view, StreamKind::Health).await.expect_err("no session begins");
            assert!(matches!(refused, OpenError::NoSession { .. }), "{refused}");
            assert_eq!(begun.elapsed(), if waits { OPEN_WAIT } else { Duration::ZERO }, "{state:?}");
        }
        let later = async {
            tokio::time::sleep(OPEN_WAIT / 2).await;
            broker.sessions.begin(&"n".into(), outbox, &CancellationToken::new());
            let asked = worker.recv().await.and_then(Result::ok).and_then(|it| it.message);
            let Some(Message::OpenStream(asked)) = asked else { panic!("the worker was not asked") };
            let (inbox, outbox) = (futures::stream::empty().boxed(), mpsc::channel(1).0);
            broker.accept(&asked.id, &"n".into(), WorkerStream { inbox, outbox }).expect("it is waited for");
        };
        let (opened, ()) = tokio::join!(broker.open(&task, &view, StreamKind::Health), later);
        opened.expect("the session has begun in time");
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
        assert!(broker.take(&asked.id).is_none(), "a stream that is opened too late finds no request");
    }
    #[tokio::test(start_paused = true)]
    async fn more_requests_than_a_session_queues_wait_for_room() {
        let broker = broker();
        let (outbox, mut worker) = mpsc::channel(1);
        broker.sessions.begin(&"n".into(), outbox, &CancellationToken::new());
        let task = task("n");
        let requests = futures::future::join_all((0..3).map(|_| open(&broker, &task)));
        let reads = async {
            for _ in 0..3 {
                worker.recv().await.expect("the session is open").expect("it is a message");
            }
        };
        let (errors, ()) = tokio::join!(requests, reads);
        assert!(errors.iter().all(|error| matches!(error, OpenError::TimedOut { .. })), "{errors:?}");
    }
}
