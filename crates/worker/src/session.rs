//! One session with a manager: the gRPC stream and the conversion of its messages. No other file of the worker knows
//! their wire format, except for the streams of users' data (`streams.rs`) and of blobs (`images.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use flota_api::Malformed;
use flota_api::defaults::{MESSAGE_BOUND, SESSION_FORMAT};
use flota_api::model::{Assignment, ServiceSpec, TaskStatus};
use flota_api::proto::dispatcher as pd;
use flota_api::proto::dispatcher::dispatcher_client::DispatcherClient;
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::types as pt;
use flota_api::version::Timestamp;

use crate::messages::{
    AssignmentSet, Departure, FromLeader, ImageReport, OpenStream, Part, Refused, Registered, Registration, SetVersion,
    StatusBatch, TaskReport, ToLeader, UsageReport,
};

/// Time that a manager has to answer.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// The shortest period of heartbeats that a leader can ask for.
const LEAST_HEARTBEAT: Duration = Duration::from_millis(100);
/// Most tasks in a message about their usage; a leader accepts no more.
const USAGE_BOUND: usize = 2_000;
/// Number of messages to the manager that may be queued.
const QUEUE: usize = 64;

/// Why a session can't be opened or has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the manager did not answer within {CONNECT_WAIT:?}")]
    NoAnswer,
    #[error("the manager refused or broke the session: {0}")]
    Rpc(String),
    #[error("the manager closed the session")]
    Closed,
    #[error("the manager's assignments name the task {0}, but not its spec")]
    NoSpec(String),
    #[error("the manager sent an unusable message: {0}")]
    Malformed(#[from] Malformed),
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        let mut text = status.message().to_owned();
        // A failed connection has its reason in the causes, such as a certificate that is not valid yet by this clock.
        let mut cause = std::error::Error::source(&status);
        while let Some(error) = cause {
            if !text.contains(&error.to_string()) {
                text = format!("{text}: {error}");
            }
            cause = error.source();
        }
        Self::Rpc(text)
    }
}

/// A session. It is established once the manager has sent [`FromLeader::Registered`].
#[derive(Debug)]
pub(crate) struct Session {
    outbox: mpsc::Sender<pd::WorkerMessage>,
    inbox: Streaming<pd::ManagerMessage>,
}

impl Session {
    /// Opens a session and registers.
    pub(crate) async fn open(channel: Channel, registration: Registration) -> Result<Self, SessionError> {
        let (outbox, messages) = mpsc::channel(QUEUE);
        let register = ToManager::Register(register(registration));
        outbox.send(pd::WorkerMessage { message: Some(register) }).await.map_err(|_| SessionError::Closed)?;
        let mut client = DispatcherClient::new(channel).max_decoding_message_size(MESSAGE_BOUND);
        let answer = tokio::time::timeout(CONNECT_WAIT, client.session(ReceiverStream::new(messages))).await;
        let inbox = answer.map_err(|_| SessionError::NoAnswer)??.into_inner();
        Ok(Self { outbox, inbox })
    }

    /// Sends a message; waits while the queue is full.
    pub(crate) async fn send(&self, message: ToLeader) -> Result<(), SessionError> {
        let message = match message {
            ToLeader::Heartbeat(now) => ToManager::Heartbeat(pd::Heartbeat { now: Some(now.0) }),
            ToLeader::Statuses(batch) => ToManager::Statuses(status_batch(batch)),
            ToLeader::Description(description) => ToManager::Description(description.as_ref().into()),
            ToLeader::Programmed(version) => ToManager::Programmed(pd::Programmed { version }),
            ToLeader::Usage(UsageReport { tasks, node }) => {
                let tasks = tasks.into_iter().take(USAGE_BOUND).map(Into::into).collect();
                ToManager::Usage(pd::Usage { tasks, node: node.map(Into::into) })
            }
            ToLeader::Leaving(departure) => {
                ToManager::Leaving(pd::Leaving { machine: departure == Departure::Machine })
            }
        };
        self.outbox.send(pd::WorkerMessage { message: Some(message) }).await.map_err(|_| SessionError::Closed)
    }

    /// Returns the next message and skips those that this build does not know. Dropping the future loses no message.
    pub(crate) async fn recv(&mut self) -> Result<FromLeader, SessionError> {
        loop {
            if let Some(message) = self.inbox.message().await?.ok_or(SessionError::Closed)?.message {
                return from_leader(message);
            }
        }
    }

    /// Sends no further message, and returns when the manager has received everything and closes the session.
    pub(crate) async fn close(self) {
        let Self { outbox, mut inbox } = self;
        drop(outbox);
        while let Ok(Some(_)) = inbox.message().await {}
    }
}

fn register(it: Registration) -> pd::Register {
    pd::Register {
        node_id: it.node_id,
        description: Some((&it.description).into()),
        listen: it.address,
        epoch: it.newest.epoch,
        version: it.newest.version,
        format: SESSION_FORMAT,
        images: it.images,
    }
}

fn status_batch(batch: StatusBatch) -> pd::StatusBatch {
    let report = |it: TaskReport| pd::TaskReport { task_id: it.task.into(), status: Some((&it.status).into()) };
    let image = |it: ImageReport| pd::ImageReport { digest: it.digest, size: it.size, gone: it.gone };
    pd::StatusBatch {
        sequence: batch.sequence,
        reports: batch.reports.into_iter().map(report).collect(),
        images: batch.images.into_iter().map(image).collect(),
        dropped_volumes: batch.dropped_volumes.into_iter().map(Into::into).collect(),
    }
}

fn from_leader(message: FromManager) -> Result<FromLeader, SessionError> {
    Ok(match message {
        FromManager::Registered(it) => FromLeader::Registered(Registered {
            heartbeat: Duration::from_millis(it.heartbeat_ms).max(LEAST_HEARTBEAT),
            grant_key: it.grant_public_key.into(),
        }),
        FromManager::NotLeader(it) => FromLeader::NotLeader(Some(it.address).filter(|it| !it.is_empty())),
        FromManager::Assignments(it) => FromLeader::Assignments(part(it)?),
        FromManager::Networks(it) => FromLeader::Networks(it.try_into()?),
        FromManager::KnownTunnelKey(it) => {
            let length = || Malformed::new("known_tunnel_key", format!("has {} bytes; a key has 32", it.len()));
            FromLeader::KeyKnown(it.as_ref().try_into().map_err(|_| length())?)
        }
        FromManager::Trusts(digest) => FromLeader::Trusts(digest),
        FromManager::GrantKeys(it) => FromLeader::GrantKeys(it.public_keys.into_iter().map(Into::into).collect()),
        FromManager::StatusAck(it) => FromLeader::StatusAck(it.sequence),
        FromManager::OpenStream(it) => {
            FromLeader::OpenStream(OpenStream { id: it.id, request: it.request.and_then(|it| it.try_into().ok()) })
        }
        FromManager::Managers(it) => {
            // One that this build does not know changes nothing.
            let role = it.role.and_then(|role| pt::Role::try_from(role).ok()).map(Into::into);
            FromLeader::Managers(it.managers.into_iter().map(|it| it.address).collect(), role)
        }
        FromManager::Heartbeat(it) => FromLeader::Heartbeat(it.now.map(Timestamp)),
        FromManager::Removed(_) => FromLeader::Removed,
    })
}

fn part(it: pd::Assignments) -> Result<Part, SessionError> {
    let mut set = AssignmentSet {
        version: SetVersion { epoch: it.epoch, version: it.version },
        is_full: it.full,
        removed: it.removed_tasks.into_iter().map(Into::into).collect(),
        images: it.images.into_iter().map(Into::into).collect(),
        dropped_images: it.dropped_images,
        dropped_volumes: it.dropped_volumes.into_iter().map(Into::into).collect(),
        ..AssignmentSet::default()
    };
    for chunk in it.value_data {
        set.add_chunk(chunk.data_id.into(), &chunk.bytes);
    }
    let specs: HashMap<_, _> =
        it.specs.into_iter().map(|it| ((it.service_id.clone(), it.spec_version), spec(it))).collect();
    for task in it.tasks {
        let spec = specs.get(&(task.service_id.clone(), task.spec_version));
        let spec = spec.cloned().ok_or_else(|| SessionError::NoSpec(task.task_id.clone()))?;
        let id = task.task_id.clone();
        let known = TaskStatus::try_from(task.status.clone()).unwrap_or_default();
        match spec.and_then(|spec| Assignment::with_spec(task, spec)) {
            Ok(assignment) => set.tasks.push(assignment),
            Err(error) => set.refused.push(Refused { task: id.into(), known, why: error.to_string() }),
        }
    }
    Ok(Part { set, more: it.more, sent_at: Timestamp(it.now) })
}

/// Converts a spec, which all of its tasks then share.
fn spec(it: pd::AssignedSpec) -> Result<Arc<ServiceSpec>, Malformed> {
    let spec = it.spec.ok_or(Malformed::new("specs.spec", "is missing"))?;
    Ok(Arc::new(spec.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, service: &str) -> pd::TaskAssignment {
        pd::TaskAssignment { task_id: id.into(), service_id: service.into(), ..Default::default() }
    }

    fn assigned(service: &str, spec: flota_api::proto::specs::ServiceSpec) -> pd::AssignedSpec {
        pd::AssignedSpec { service_id: service.into(), spec: Some(spec), ..Default::default() }
    }

    #[test]
    fn tasks_share_the_spec_that_came_beside_them() {
        let specs = vec![assigned("s", (&ServiceSpec::default()).into())];
        let tasks = vec![task("a", "s"), task("b", "s")];
        let part = part(pd::Assignments { tasks, specs, ..Default::default() }).expect("every task has its spec");
        assert!(Arc::ptr_eq(&part.set.tasks[0].spec, &part.set.tasks[1].spec));
        assert!(part.set.refused.is_empty());
    }

    #[test]
    fn a_task_that_can_not_be_understood_does_not_hold_up_the_others() {
        let specs = vec![assigned("s", (&ServiceSpec::default()).into()), assigned("new", Default::default())];
        let odd = pd::TaskAssignment { desired_state: 77, ..task("b", "s") };
        let set = pd::Assignments { tasks: vec![task("a", "s"), odd, task("c", "new")], specs, ..Default::default() };
        let part = part(set).expect("every task has its spec");
        assert_eq!(part.set.tasks.iter().map(|it| it.task_id.as_str()).collect::<Vec<_>>(), ["a"]);
        let why: Vec<_> = part.set.refused.iter().map(|it| (it.task.as_str(), it.why.as_str())).collect();
        let expected =
            [("b", "the field `desired_state` has an unknown value"), ("c", "the field `restart` is missing")];
        assert_eq!(why, expected);
    }

    #[test]
    fn a_task_without_its_spec_spoils_the_set() {
        let set = pd::Assignments { tasks: vec![task("a", "s")], ..Default::default() };
        assert!(matches!(part(set), Err(SessionError::NoSpec(task)) if task == "a"));
    }

    #[test]
    fn a_manager_that_does_not_know_the_leader_names_none() {
        let answer = |address: &str| from_leader(FromManager::NotLeader(pd::NotLeader { address: address.into() }));
        assert_eq!(answer("").expect("a good message"), FromLeader::NotLeader(None));
        assert_eq!(answer("m1:1").expect("a good message"), FromLeader::NotLeader(Some("m1:1".into())));
    }
}
