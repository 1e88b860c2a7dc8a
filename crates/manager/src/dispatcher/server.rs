//! Serves sessions on the leader only; another manager names the leader and ends the session.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use flota_api::defaults::{MESSAGE_BOUND, SESSION_FORMAT};
use flota_api::id::NodeId;
use flota_api::model::NodeState;
use flota_api::proto::dispatcher::dispatcher_server::{Dispatcher, DispatcherServer};
use flota_api::proto::dispatcher::manager_message::Message as ToWorker;
use flota_api::proto::dispatcher::worker_message::Message as FromWorker;
use flota_api::proto::dispatcher::{Heartbeat, Leaving, ManagerMessage, NotLeader, Register, WorkerMessage};
use flota_api::proto::types::NodeDescription;
use flota_identity::{CertifiedRole, Peer};

use super::assignment_stream::send_assignments;
use super::clocks::ClockReports;
use super::liveness::Liveness;
use super::mailbox::{Mailbox, READ_WAIT};
use super::programmed::Programmed;
use super::registration::{RegisterError, register, write_descriptions};
use super::reports::{self, BATCH_BOUND, write_batches};
use super::sessions::{Outgoing, SessionOutbox, Sessions, outgoing};
use super::status_sink::StatusSink;
use crate::replica::Replica;
use crate::usage::Usage;

/// Longest time for which a leaving node waits for the end of its session.
const LEAVE_WAIT: Duration = Duration::from_millis(900);
/// Time limit for the registration of a new session.
const REGISTER_WAIT: Duration = Duration::from_secs(5);

/// Serves the Dispatcher.
#[derive(Clone, Debug)]
pub struct DispatcherService {
    pub(super) replica: Replica,
    pub(super) sessions: Sessions,
    pub(super) liveness: Liveness,
    pub(super) programmed: Programmed,
    pub(super) usage: Usage,
    pub(super) sink: StatusSink,
}

type SessionMessages = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = SessionMessages;

    async fn session(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<SessionMessages>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned();
        let node_id = peer.ok_or_else(|| Status::unauthenticated("a session needs a node's certificate"))?;
        let certified = request.extensions().get::<CertifiedRole>().copied();
        let Some(scope) = self.replica.leader_scope() else {
            let address = self.replica.leader_address().unwrap_or_default();
            let answer = ManagerMessage { message: Some(ToWorker::NotLeader(NotLeader { address })) };
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(answer)))));
        };
        let (service, (outbox, mailbox)) = (self.clone(), Mailbox::new());
        let answers = mailbox.clone();
        tokio::spawn(async move {
            // Each future on the way to the one that reads keeps room for what it passes on.
            let mut inbox = Box::new(request.into_inner());
            let register = tokio::time::timeout(REGISTER_WAIT, inbox.next()).await;
            if let Ok(Some(Ok(WorkerMessage { message: Some(FromWorker::Register(register)) }))) = register {
                service.serve((node_id, certified), Box::new(register), inbox, (outbox, &mailbox), scope).await;
            } else {
                let _ = outbox.send(Err(Status::invalid_argument("a session begins with `register`"))).await;
            }
            // The last messages can still be read for a while.
            tokio::time::sleep(READ_WAIT).await;
            mailbox.clear();
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl DispatcherService {
    /// Wraps this service for a tonic server.
    pub(super) fn into_server(self) -> DispatcherServer<Self> {
        DispatcherServer::new(self).max_decoding_message_size(MESSAGE_BOUND).max_encoding_message_size(MESSAGE_BOUND)
    }

    /// Runs a session from its registration to its end.
    async fn serve(
        &self,
        (node_id, certified): (NodeId, Option<CertifiedRole>),
        registration: Box<Register>,
        inbox: Box<Streaming<WorkerMessage>>,
        (outbox, mailbox): (SessionOutbox, &Mailbox),
        scope: CancellationToken,
    ) {
        if let Err(status) = check(&node_id, &registration) {
            let _ = outbox.send(Err(status)).await;
            return;
        }
        let held = registration.images.iter().cloned().collect();
        let (number, cancel) = self.sessions.begin(&node_id, outbox.clone(), &scope);
        // A future that a session needs once or seldom is in a box, so that its own future is small while it waits.
        let registered = tokio::select! {
            biased;
            // The node has registered anew meanwhile. What this one says of it is old.
            () = cancel.cancelled() => Err(Err(Status::aborted("the session was ended by the manager"))),
            registered = Box::pin(register(&self.replica, &node_id, certified, *registration)) => {
                registered.map_err(|error| refusal(&error))
            }
        };
        let registered = match registered {
            Ok(registered) => registered,
            // The session was not open yet, so liveness must not count it as broken.
            Err(refusal) => {
                self.sessions.ended(&node_id, number);
                let _ = outbox.send(refusal).await;
                return;
            }
        };
        let period = Duration::from_millis(registered.heartbeat_ms);
        let _ = outbox.send(outgoing(ToWorker::Registered(registered))).await;
        self.liveness.begins(&node_id, period);
        self.programmed.begin(&node_id, number);
        let told = (&self.sessions, &self.programmed);
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Status::aborted("the session was ended by the manager")),
            result = self.exchange(&node_id, inbox, &outbox) => result,
            () = mailbox.is_neglected() => Err(Status::deadline_exceeded("the node does not read its messages")),
            result = send_assignments(&self.replica, told, &node_id, held, &outbox) => result,
        };
        self.programmed.ended(&node_id, number).iter().for_each(|waits| self.sessions.wake(waits));
        // A connection may break long after its node became down: the node stays down and does not become unknown
        // again.
        let down = self.replica.store.view().node(&node_id).is_none_or(|node| node.state == NodeState::Down);
        if self.sessions.ended(&node_id, number) {
            self.usage.ended(&node_id);
            if !down {
                self.liveness.broke(&node_id);
            }
        }
        if let Err(status) = result {
            let _ = outbox.try_send(Err(status));
        }
    }

    /// Handles the worker's messages until it leaves or closes the session. Reports and descriptions are written beside the
    /// other messages, so that heartbeats behind them do not wait.
    async fn exchange(
        &self,
        node_id: &NodeId,
        inbox: Box<Streaming<WorkerMessage>>,
        outbox: &SessionOutbox,
    ) -> Result<(), Status> {
        let (batches, queue) = mpsc::channel(reports::QUEUE);
        let (description, newest) = watch::channel(None);
        tokio::select! {
            result = self.receive(node_id, inbox, outbox, (&batches, &description)) => result,
            () = write_batches(&self.replica, &self.sink, node_id, queue, outbox) => {
                Err(Status::cancelled("the worker has disconnected"))
            }
            // It ends only when its sender is dropped, which is here.
            () = write_descriptions(&self.replica, node_id, newest) => Ok(()),
        }
    }

    async fn receive(
        &self,
        node_id: &NodeId,
        mut inbox: Box<Streaming<WorkerMessage>>,
        outbox: &SessionOutbox,
        (batches, description): (&mpsc::Sender<reports::ReportBatch>, &watch::Sender<Option<NodeDescription>>),
    ) -> Result<(), Status> {
        let mut clock_reports = ClockReports::default();
        while let Some(next) = inbox.message().await? {
            if let Some(FromWorker::Leaving(leaving)) = next.message {
                Box::pin(self.leave(node_id, leaving)).await;
                return Ok(());
            }
            self.liveness.record_message(node_id);
            match next.message {
                Some(FromWorker::Heartbeat(heartbeat)) => {
                    clock_reports.compare(&self.replica, node_id, heartbeat.now);
                    let now = Some(self.replica.clock.now().0);
                    let _ = outbox.try_send(outgoing(ToWorker::Heartbeat(Heartbeat { now })));
                }
                Some(FromWorker::Statuses(batch))
                    if batch.reports.len() + batch.images.len() + batch.dropped_volumes.len() > BATCH_BOUND =>
                {
                    return Err(Status::invalid_argument(format!("a batch has at most {BATCH_BOUND} reports")));
                }
                Some(FromWorker::Description(it)) => drop(description.send_replace(Some(it))),
                Some(FromWorker::Programmed(it)) => {
                    self.programmed.confirm(node_id, it.version).iter().for_each(|waits| self.sessions.wake(waits));
                }
                Some(FromWorker::Usage(it)) if it.tasks.len() > BATCH_BOUND => {
                    return Err(Status::invalid_argument(format!(
                        "a report has the usage of at most {BATCH_BOUND} tasks"
                    )));
                }
                Some(FromWorker::Usage(it)) => {
                    let tasks = it.tasks.into_iter().map(Into::into).collect();
                    self.usage.record(node_id, tasks, it.node.map(Into::into));
                }
                // The writer ends only with this session.
                Some(FromWorker::Statuses(batch)) => drop(batches.send(Box::new(batch)).await),
                _ => return Err(Status::invalid_argument("this message has no place in a session")),
            }
        }
        Ok(())
    }

    /// Records that the node leaves and waits until the store says so. The node stops when the session is closed, and
    /// by then the whole cluster must know.
    async fn leave(&self, node_id: &NodeId, leaving: Leaving) {
        if leaving.machine {
            self.liveness.shuts_down(node_id);
        } else {
            self.liveness.restarts(node_id);
        }
        self.sessions.touch();
        let not_ready = async {
            loop {
                let (view, mut watch) = self.replica.store.view_and_watch();
                if view.node(node_id).is_none_or(|node| node.state != NodeState::Ready) {
                    return;
                }
                drop(view);
                let _ = watch.next().await;
            }
        };
        let _ = tokio::time::timeout(LEAVE_WAIT, not_ready).await;
    }
}

/// Refuses a session for another node than that of the certificate, or in another format.
fn check(node_id: &NodeId, registration: &Register) -> Result<(), Status> {
    if registration.node_id != node_id.as_str() {
        return Err(Status::permission_denied("the id is not the certificate's"));
    }
    if registration.format != SESSION_FORMAT {
        let text = format!("a session has the format {SESSION_FORMAT}, not {}", registration.format);
        return Err(Status::failed_precondition(text));
    }
    Ok(())
}

/// Returns the response to a node that can't be registered.
fn refusal(error: &RegisterError) -> Outgoing {
    match error {
        RegisterError::NotMember => outgoing(ToWorker::Removed(true)),
        RegisterError::Invalid(_) | RegisterError::Propose(_) => Err(Status::unavailable(error.to_string())),
    }
}
