//! The side that receives. The caller's certificate was checked before; here the Raft ids are.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use flota_api::proto::raft::RaftMessage;
use flota_api::proto::raft::raft_transport_server::RaftTransport;

use super::{pack, unpack};
use crate::raft::type_config::{Raft, Snapshot, SnapshotMeta, Vote};
use crate::store::Tables;

/// Largest snapshot that is taken.
const SNAPSHOT_BOUND: usize = 1 << 30;

/// Takes Raft's messages for this manager.
#[derive(Clone)]
pub struct TransportService {
    pub(in crate::raft) own_id: u64,
    pub(in crate::raft) raft: Raft,
    pub(in crate::raft) heard: Heard,
}

/// When a leader last sent something. Shared by all who ask.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    start: tokio::time::Instant,
    millis: Arc<AtomicU64>,
}

impl Default for Heard {
    fn default() -> Self {
        Self { start: tokio::time::Instant::now(), millis: Arc::default() }
    }
}

impl Heard {
    fn now(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// Since then; since the start where nothing ever came.
    pub(crate) fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.millis.load(Ordering::Relaxed)))
    }
}

impl std::fmt::Debug for TransportService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TransportService({})", self.own_id)
    }
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("Raft has stopped here: {error}"))
}

impl TransportService {
    /// A message for another Raft id is for a manager that was here before: it must not be answered.
    fn check(&self, message: &RaftMessage) -> Result<(), Status> {
        if message.to == self.own_id {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("Raft id {} is not here; this is {}", message.to, self.own_id)))
    }

    fn answer<T: serde::Serialize>(&self, message: &RaftMessage, body: &T) -> Result<Response<RaftMessage>, Status> {
        pack(self.own_id, message.from, body).map(Response::new)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<RaftMessage, Status>> + Send>>;

#[tonic::async_trait]
impl RaftTransport for TransportService {
    type AppendStream = Answers;

    async fn append(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<Answers>, Status> {
        let service = self.clone();
        let requests: BoxStream<'static, _> = request
            .into_inner()
            .map(move |message| {
                let message = message.ok()?;
                service.check(&message).ok()?;
                service.heard.now();
                unpack(&message).ok()
            })
            .take_while(|request| std::future::ready(request.is_some()))
            .filter_map(std::future::ready)
            .boxed();
        let own_id = self.own_id;
        let answers = self.raft.stream_append(requests).map(move |answer| match answer {
            Ok(answer) => pack(own_id, 0, &answer),
            Err(error) => Err(fatal(error)),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let message = request.into_inner();
        self.check(&message)?;
        let answer = self.raft.vote(unpack(&message)?).await.map_err(fatal)?;
        self.answer(&message, &answer)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let message = request.into_inner();
        self.check(&message)?;
        let answer = self.raft.pre_vote(unpack(&message)?).await.map_err(fatal)?;
        self.answer(&message, &answer)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let message = request.into_inner();
        self.check(&message)?;
        let answer = self.raft.handle_transfer_leader(unpack(&message)?).await.map_err(fatal)?;
        self.answer(&message, &answer)
    }

    async fn snapshot(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<RaftMessage>, Status> {
        let mut stream = request.into_inner();
        let head = stream.message().await?.ok_or_else(|| Status::invalid_argument("the snapshot is empty"))?;
        self.check(&head)?;
        let (vote, meta): (Vote, SnapshotMeta) = unpack(&head)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await? {
            if bytes.len() + chunk.body.len() > SNAPSHOT_BOUND {
                return Err(Status::resource_exhausted(format!("a snapshot has at most {SNAPSHOT_BOUND} bytes")));
            }
            bytes.extend_from_slice(&chunk.body);
        }
        let records = split(&bytes).ok_or_else(|| Status::invalid_argument("the snapshot is cut off"))?;
        let tables =
            Tables::from_records(records.into_iter()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let snapshot = Snapshot { meta, snapshot: tables.into() };
        let answer = self.raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
        self.answer(&head, &answer)
    }
}

fn split(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut records = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (record, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        records.push(record);
        bytes = rest;
    }
    bytes.is_empty().then_some(records)
}
