//! A node whose side of the session a test controls: the test decides which messages it sends, and when. It is for
//! tests of how the leader handles a node that falls silent, leaves, holds images or opens streams.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use flota_api::defaults::{HEARTBEAT, SESSION_FORMAT};
use flota_api::model::Role;
use flota_api::proto::dispatcher::dispatcher_client::DispatcherClient;
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::dispatcher::{
    Heartbeat, OpenStream, Programmed, Register, StatusBatch, TaskReport, WorkerMessage,
};
use flota_api::proto::types::{TaskState, TaskStatus};
use flota_identity::Dialer;

use super::process::peer;
use super::script::Script;

/// Opens a stream that the leader requested, over the channel to the leader.
pub type Streams = fn(Channel, OpenStream) -> BoxFuture<'static, ()>;

#[derive(Debug, Default)]
struct Seen {
    messages: Vec<FromManager>,
    /// Why the session ended: `Ok` if the manager closed it.
    end: Option<Result<(), Status>>,
}

/// A node in session with one manager. It sends heartbeats, reports every task that it is assigned as running, and
/// confirms every change of its networks.
#[derive(Debug)]
pub struct ManualNode {
    outbox: mpsc::UnboundedSender<WorkerMessage>,
    seen: Arc<Mutex<Seen>>,
    beats: Arc<AtomicBool>,
    reads: Arc<AtomicBool>,
    programs: Arc<AtomicBool>,
}

impl Script {
    /// Replaces a worker's daemon by a manual node, and begins a session with this manager. `images`: digests of the
    /// images that the node reports.
    pub fn manual(&mut self, worker: usize, manager: usize, images: &[&str], streams: Streams) -> ManualNode {
        let node_id = self.cluster().workers[worker].node_id.to_string();
        let images = images.iter().map(ToString::to_string).collect();
        self.manual_as(worker, manager, Register { node_id, images, ..Register::default() }, streams)
    }

    /// Replaces a worker's daemon by a manual node, and begins a session with this manager by sending `register`.
    pub fn manual_as(&mut self, worker: usize, manager: usize, register: Register, streams: Streams) -> ManualNode {
        let cluster = self.cluster();
        cluster.crash_worker(worker, false);
        cluster.workers[worker].is_manual = true;
        let it = &cluster.workers[worker];
        let (host, address) = (it.host, cluster.managers[manager].host.address());
        let connector = cluster.world.network.connector(host, peer(host, &it.node_id, Role::Worker));
        let register = Register {
            description: Some((&cluster.description(worker)).into()),
            listen: host.address(),
            format: SESSION_FORMAT,
            ..register
        };
        let (outbox, messages) = mpsc::unbounded_channel();
        let on = || Arc::new(AtomicBool::new(true));
        let node = ManualNode { outbox, seen: Arc::default(), beats: on(), reads: on(), programs: on() };
        node.send(ToManager::Register(register));
        let (seen, outbox) = (Arc::clone(&node.seen), node.outbox.clone());
        let (beats, reads) = (Arc::clone(&node.beats), Arc::clone(&node.reads));
        let programs = Arc::clone(&node.programs);
        cluster.world.start(host, async move {
            let channel = Dialer::through(connector).manager(&address);
            let ended = run_session(channel, messages, outbox, (&seen, &beats, &reads, &programs), streams).await;
            seen.lock().expect("no holder panics").end = Some(ended);
        });
        node
    }
}

/// Runs the session until it ends.
async fn run_session(
    channel: Channel,
    messages: mpsc::UnboundedReceiver<WorkerMessage>,
    outbox: mpsc::UnboundedSender<WorkerMessage>,
    (seen, beats, reads, programs): (&Mutex<Seen>, &AtomicBool, &AtomicBool, &AtomicBool),
    streams: Streams,
) -> Result<(), Status> {
    let mut client = DispatcherClient::new(channel.clone());
    let mut inbox = client.session(UnboundedReceiverStream::new(messages)).await?.into_inner();
    let mut beat = tokio::time::interval(HEARTBEAT);
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            message = inbox.message(), if reads.load(Ordering::SeqCst) => match message? {
                Some(message) => message.message,
                None => return Ok(()),
            },
            _ = beat.tick() => {
                if beats.load(Ordering::SeqCst) {
                    send(&outbox, ToManager::Heartbeat(Heartbeat::default()));
                }
                continue;
            }
        };
        let Some(message) = message else { continue };
        match &message {
            FromManager::Assignments(assignments) => {
                let running =
                    |task: &str| TaskReport { task_id: task.into(), status: Some(status(TaskState::Running)) };
                let reports: Vec<_> = assignments.tasks.iter().map(|task| running(&task.task_id)).collect();
                sequence += 1;
                if !reports.is_empty() {
                    send(&outbox, ToManager::Statuses(StatusBatch { sequence, reports, ..StatusBatch::default() }));
                }
            }
            FromManager::Networks(update) if !update.more && programs.load(Ordering::SeqCst) => {
                send(&outbox, ToManager::Programmed(Programmed { version: update.version }));
            }
            FromManager::OpenStream(open) => drop(tokio::spawn(streams(channel.clone(), open.clone()))),
            _ => {}
        }
        seen.lock().expect("no holder panics").messages.push(message);
    }
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { attempt: 1, state: state.into(), ..TaskStatus::default() }
}

fn send(outbox: &mpsc::UnboundedSender<WorkerMessage>, message: ToManager) {
    // It fails only if the session has ended, which the test sees from [`ManualNode::end`].
    let _ = outbox.send(WorkerMessage { message: Some(message) });
}

impl ManualNode {
    /// Sends a message in the session.
    pub fn send(&self, message: ToManager) {
        send(&self.outbox, message);
    }

    /// Stops sending heartbeats.
    pub fn stop_beats(&self) {
        self.beats.store(false, Ordering::SeqCst);
    }

    /// Stops confirming changes of networks.
    pub fn stop_programming(&self) {
        self.programs.store(false, Ordering::SeqCst);
    }

    /// Stops reading the manager's messages.
    pub fn stop_reading(&self) {
        self.reads.store(false, Ordering::SeqCst);
    }

    /// Whether the manager has sent a message that `is` accepts.
    ///
    /// # Errors
    /// All messages that it has sent, if there is none.
    ///
    /// # Panics
    /// The session's process panicked.
    pub fn was_sent(&self, is: impl Fn(&FromManager) -> bool) -> Result<(), String> {
        let seen = self.seen.lock().expect("no holder panics");
        if seen.messages.iter().any(is) { Ok(()) } else { Err(format!("{:?}", seen.messages)) }
    }

    /// Returns why the session has ended: `Ok` if the manager closed it.
    ///
    /// # Errors
    /// It has not ended.
    ///
    /// # Panics
    /// The session's process panicked.
    pub fn end(&self) -> Result<Result<(), Status>, String> {
        let seen = self.seen.lock().expect("no holder panics");
        seen.end.clone().ok_or_else(|| "the session continues".into())
    }
}

/// Opens no stream.
pub fn no_streams(_: Channel, _: OpenStream) -> BoxFuture<'static, ()> {
    Box::pin(std::future::ready(()))
}
