//! Serves sessions, on the leader alone; another manager says who leads.

use std::collections::BTreeSet;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use flota_api::defaults::{MESSAGE_BOUND, SESSION_FORMAT};
use flota_api::id::NodeId;
use flota_api::model::{Node, NodeState, Role};
use flota_api::naming;
use flota_api::object::Object;
use flota_api::proto::dispatcher::dispatcher_server::{Dispatcher, DispatcherServer};
use flota_api::proto::dispatcher::manager_message::Message as ToWorker;
use flota_api::proto::dispatcher::worker_message::Message as FromWorker;
use flota_api::proto::dispatcher::{
    Assignments, Heartbeat, ManagerMessage, Managers, NotLeader, Peer as WirePeer, Register, Registered, StatusAck,
    StatusBatch, WorkerMessage,
};
use flota_identity::{GrantKey, Peer};
use flota_raft_store::{Event, WriteTx};

use super::assignments::{AssignmentSet, Granter, cut};
use super::image_report;
use super::liveness::period;
use super::session::{Outbox, QUEUE};
use super::status_sink::StatusSink;
use crate::control::WriteFailed;
use crate::manager::Manager;

/// A node that leaves waits no longer than a second for its session's end.
const LEAVE_WAIT: std::time::Duration = std::time::Duration::from_millis(900);
/// Reports in one batch, as a worker cuts them.
const BATCH_BOUND: usize = 2_000;
/// Characters of a status' texts that are kept.
const TEXT_BOUND: usize = 1_000;

/// A node that does not say who it is within this time is not listened to.
const REGISTER_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves the Dispatcher.
#[derive(Clone, Debug)]
pub struct DispatcherService {
    manager: Manager,
    sink: StatusSink,
}

impl DispatcherService {
    /// For this manager.
    pub fn server(manager: Manager) -> DispatcherServer<Self> {
        let sink = StatusSink::start(manager.proposer());
        DispatcherServer::new(Self { manager, sink })
            .max_decoding_message_size(MESSAGE_BOUND)
            .max_encoding_message_size(MESSAGE_BOUND)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

fn message(message: ToWorker) -> Result<ManagerMessage, Status> {
    Ok(ManagerMessage { message: Some(message) })
}

#[tonic::async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = Answers;

    async fn session(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<Answers>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned();
        let node_id = peer.ok_or_else(|| Status::unauthenticated("a session needs a node's certificate"))?;
        let scope = self.manager.leading.borrow().clone();
        let Some(scope) = scope else {
            let address = self.manager.leader_address().unwrap_or_default();
            let answer = message(ToWorker::NotLeader(NotLeader { address }));
            return Ok(Response::new(Box::pin(tokio_stream::once(answer))));
        };
        let (outbox, answers) = mpsc::channel(QUEUE);
        let service = self.clone();
        tokio::spawn(async move {
            let mut inbox = request.into_inner();
            let register = tokio::time::timeout(REGISTER_WAIT, inbox.next()).await;
            if let Ok(Some(Ok(WorkerMessage { message: Some(FromWorker::Register(register)) }))) = register {
                service.serve(node_id, register, inbox, outbox, scope).await;
            } else {
                let _ = outbox.send(Err(Status::invalid_argument("a session begins with `register`"))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl DispatcherService {
    async fn serve(
        &self,
        node_id: NodeId,
        register: Register,
        inbox: Streaming<WorkerMessage>,
        outbox: Outbox,
        scope: CancellationToken,
    ) {
        if register.node_id != node_id.as_str() {
            let _ = outbox.send(Err(Status::permission_denied("the id is not the certificate's"))).await;
            return;
        }
        if register.format != SESSION_FORMAT {
            let text = format!("a session has the format {SESSION_FORMAT}, not {}", register.format);
            let _ = outbox.send(Err(Status::failed_precondition(text))).await;
            return;
        }
        let register_images = register.images.iter().cloned().collect();
        let (number, cancel) = self.manager.sessions.begin(&node_id, outbox.clone(), &scope);
        let result = match self.register(&node_id, register).await {
            Ok(registered) => {
                let _ = outbox.send(message(ToWorker::Registered(registered))).await;
                self.manager.liveness.heard(&node_id);
                let held = register_images;
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => Err(Status::aborted("the session was ended by the manager")),
                    result = self.hear(&node_id, inbox, (&outbox, &cancel)) => result,
                    result = self.tell(&node_id, held, &outbox) => result,
                }
            }
            // It never was in session: there is nothing that could have broken.
            Err(error) => {
                self.manager.sessions.ended(&node_id, number);
                let answer = match error {
                    WriteFailed::Nothing => message(ToWorker::Removed(true)),
                    other => Err(Status::unavailable(other.to_string())),
                };
                let _ = outbox.send(answer).await;
                return;
            }
        };
        // A connection may be given up long after the node was: it does not become less certain by that.
        let down = self.manager.store.view().node(node_id.as_str()).is_none_or(|node| node.state == NodeState::Down);
        if self.manager.sessions.ended(&node_id, number) && !down {
            self.manager.liveness.broke(&node_id);
        }
        if let Err(status) = result {
            let _ = outbox.try_send(Err(status));
        }
    }

    /// Writes what the node says of itself; `Nothing`: the cluster does not know it (any more).
    async fn register(&self, node_id: &NodeId, register: Register) -> Result<Registered, WriteFailed> {
        let description: flota_api::model::NodeDescription = register.description.into();
        let refuse = |text: String| WriteFailed::Refused(Status::invalid_argument(text));
        naming::check(&description.hostname).map_err(|error| refuse(format!("hostname: {error}")))?;
        description.check_offers().map_err(refuse)?;
        if !register.listen.is_empty() && register.listen.parse::<std::net::SocketAddr>().is_err() {
            return Err(refuse("listen: it is no IP:PORT".into()));
        }
        self.manager
            .write(|view| {
                let node = view.node(node_id.as_str()).ok_or(WriteFailed::Nothing)?;
                if node.has_left() {
                    return Err(WriteFailed::Nothing);
                }
                let new = Node {
                    description: description.clone(),
                    address: if register.listen.is_empty() { node.address.clone() } else { register.listen.clone() },
                    state: NodeState::Ready,
                    state_reason: None,
                    state_since: if node.state == NodeState::Ready {
                        node.state_since
                    } else {
                        self.manager.clock.now()
                    },
                    ..node.as_ref().clone()
                };
                let cluster = view.cluster().ok_or(WriteFailed::Nothing)?;
                let key = GrantKey::from_der(&cluster.grant_key.0);
                let registered = Registered {
                    heartbeat_ms: u64::try_from(period(view.nodes().count()).as_millis()).unwrap_or(u64::MAX),
                    grant_public_key: key.map(|key| key.public_key()).unwrap_or_default().into(),
                    raft_id: node.raft_id.unwrap_or_default(),
                    node_name: description.hostname.clone(),
                };
                let mut tx = WriteTx::new(view.clone(), "");
                // What it holds may be more than the store knew: it was away.
                for image in view.images().filter(|image| register.images.contains(&image.digest)) {
                    if let Some(image) = image_report::with_holder(image, node_id) {
                        tx.update(image);
                    }
                }
                if new != **node {
                    tx.update(new);
                }
                Ok((tx.finish(), registered))
            })
            .await
    }

    async fn hear(
        &self,
        node_id: &NodeId,
        mut inbox: Streaming<WorkerMessage>,
        (outbox, cancel): (&Outbox, &CancellationToken),
    ) -> Result<(), Status> {
        while let Some(next) = inbox.message().await? {
            match next.message {
                Some(FromWorker::Leaving(leaving)) => {
                    self.manager.liveness.leaves(node_id, leaving.machine);
                    self.manager.sessions.touch();
                    // The node goes on when the session is closed: by then everybody knows.
                    let _ = tokio::time::timeout(LEAVE_WAIT, self.not_ready(node_id)).await;
                    return Ok(());
                }
                other => {
                    self.manager.liveness.heard(node_id);
                    match other {
                        Some(FromWorker::Heartbeat(_)) => {
                            let _ = outbox.try_send(message(ToWorker::Heartbeat(Heartbeat {})));
                        }
                        Some(FromWorker::Statuses(batch)) => self.statuses(node_id, batch, (outbox, cancel))?,
                        _ => return Err(Status::invalid_argument("this message has no place in a session")),
                    }
                }
            }
        }
        Ok(())
    }

    /// Until the store says that the node is not ready.
    async fn not_ready(&self, node_id: &NodeId) {
        let (mut view, mut watch) = self.manager.store.view_and_watch();
        while view.node(node_id.as_str()).is_some_and(|node| node.state == NodeState::Ready) {
            let _ = watch.next().await;
            (view, watch) = self.manager.store.view_and_watch();
        }
    }

    /// Puts them into the store and acknowledges them; where that fails the session ends, and the worker sends them
    /// again in the next one.
    fn statuses(
        &self,
        node_id: &NodeId,
        batch: StatusBatch,
        (outbox, cancel): (&Outbox, &CancellationToken),
    ) -> Result<(), Status> {
        if batch.reports.len() + batch.images.len() > BATCH_BOUND {
            return Err(Status::invalid_argument(format!("a batch has at most {BATCH_BOUND} reports")));
        }
        let report = |it: flota_api::proto::dispatcher::TaskReport| {
            let mut status: flota_api::model::TaskStatus = it.status.try_into()?;
            truncate(&mut status.error);
            truncate(&mut status.message);
            Ok((it.task_id.into(), node_id.clone(), status))
        };
        let reports = batch.reports.into_iter().map(report).collect::<Result<Vec<_>, flota_api::Malformed>>();
        let reports = reports.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (service, node_id, sequence) = (self.clone(), node_id.clone(), batch.sequence);
        let (outbox, cancel) = (outbox.clone(), cancel.clone());
        // Not waited for here: heartbeats come behind it. A worker has one batch under way.
        tokio::spawn(async move {
            let written = async {
                if !reports.is_empty() {
                    service.sink.put(reports).await.map_err(|error| Status::unavailable(error.to_string()))?;
                }
                for report in batch.images {
                    image_report::write(&service.manager, &node_id, report).await?;
                }
                Ok::<_, Status>(())
            };
            match written.await {
                Ok(()) => drop(outbox.send(message(ToWorker::StatusAck(StatusAck { sequence }))).await),
                Err(error) => {
                    tracing::warn!(node.id = %node_id, %error, "reports could not be written: the session ends");
                    cancel.cancel();
                }
            }
        });
        Ok(())
    }

    /// Sends the set, then each difference, for as long as the session lasts. `held`: images that the node said it has.
    async fn tell(&self, node_id: &NodeId, mut held: BTreeSet<String>, outbox: &Outbox) -> Result<(), Status> {
        let (mut view, mut watch) = self.manager.store.view_and_watch();
        let key = view.cluster().and_then(|cluster| GrantKey::from_der(&cluster.grant_key.0));
        let mut told: Option<AssignmentSet> = None;
        let mut managers = Managers::default();
        loop {
            let granter = Granter { key: key.as_ref(), expires: Granter::expiry(self.manager.clock.wall().now()) };
            let set = AssignmentSet::of(node_id, &view, &granter, &mut held);
            let epoch = view.cluster().map_or(0, |cluster| cluster.epoch);
            let assignments = match &told {
                None => Some(set.full(epoch, view.version)),
                Some(before) => set.difference(before, epoch, view.version),
            };
            told = Some(set);
            let current = current_managers(&view);
            if current != managers {
                managers = current;
                send(outbox, ToWorker::Managers(managers.clone())).await?;
            }
            let now = self.manager.clock.now().0;
            for part in assignments.into_iter().flat_map(|it| cut(Assignments { now, ..it })) {
                send(outbox, ToWorker::Assignments(part)).await?;
            }
            // Until something of this node's has changed; a lagging watch means: look.
            while let Ok(events) = watch.next().await {
                if events.iter().any(|event| concerns(event, node_id)) {
                    break;
                }
            }
            (view, watch) = self.manager.store.view_and_watch();
            if view.node(node_id.as_str()).is_none() {
                send(outbox, ToWorker::Removed(true)).await?;
                return Ok(());
            }
        }
    }
}

async fn send(outbox: &Outbox, it: ToWorker) -> Result<(), Status> {
    outbox.send(message(it)).await.map_err(|_| Status::cancelled("the worker has gone"))
}

fn truncate(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(TEXT_BOUND) {
        text.truncate(at);
    }
}

fn current_managers(view: &flota_raft_store::Tables) -> Managers {
    let managers = view.nodes().filter(|node| node.role == Role::Manager);
    let peer = |node: &std::sync::Arc<Node>| WirePeer { node_id: node.id.to_string(), address: node.address.clone() };
    Managers { managers: managers.map(peer).collect() }
}

/// Whether the node's set may be another after this event. A wrong yes only costs a comparison.
fn concerns(event: &Event, node_id: &NodeId) -> bool {
    let object = match event {
        Event::Created(object) | Event::Removed(object) | Event::Updated { new: object, .. } => object,
        Event::Reset => return true,
        Event::Committed(_) => return false,
    };
    match object {
        Object::Task(task) => task.is_on(node_id),
        Object::Node(_) | Object::Image(_) | Object::Cluster(_) | Object::Registry(_) => true,
        Object::Service(_) | Object::Stack(_) => false,
    }
}
