//! The receiving side. The caller's certificate has been checked before; this module checks the Raft ids.

use std::pin::Pin;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use tonic::{Request, Response, Status, Streaming};

use flota_api::proto::raft::RaftMessage;
use flota_api::proto::raft::raft_transport_server::RaftTransport;

use super::snapshot::{Piece, PieceAnswer, Receiving};
use super::{AppendAnswers, Method, pack, unpack};
use crate::raft::Raft;
use crate::raft::digests::Digests;
use crate::raft::threads::Threads;
use crate::raft::type_config::{LogId, Snapshot, TypeConfig};
use crate::store::SnapshotError;

/// Receives Raft's messages for this manager.
#[derive(Clone)]
pub struct TransportService {
    pub(in crate::raft) own_id: u64,
    pub(in crate::raft) raft: Raft,
    pub(in crate::raft) receiving: Arc<tokio::sync::Mutex<Receiving>>,
    pub(in crate::raft) digests: Digests,
    pub(in crate::raft) threads: Threads,
}

impl std::fmt::Debug for TransportService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TransportService({})", self.own_id)
    }
}

/// Whether the indices of a request's entries are consecutive. The library relies on it.
fn is_consecutive(request: &AppendEntriesRequest<TypeConfig>) -> bool {
    let first = request.prev_log_id.map_or(0, |id| id.index + 1);
    request.entries.iter().zip(first..).all(|(entry, index)| entry.log_id.index == index)
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("Raft has stopped here: {error}"))
}

impl TransportService {
    /// Refuses a message for another Raft id: it is meant for an earlier manager at this address.
    fn check(&self, message: &RaftMessage) -> Result<(), Status> {
        if message.to == self.own_id {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("Raft id {} is not here; this is {}", message.to, self.own_id)))
    }

    /// Handles one request.
    ///
    /// # Errors
    /// The message is for another manager or can't be decoded, or Raft has stopped.
    pub async fn call(&self, method: Method, message: RaftMessage) -> Result<RaftMessage, Status> {
        self.check(&message)?;
        let from = message.from;
        match method {
            Method::AppendOne => {
                let request = unpack(&message).ok().filter(is_consecutive);
                let request =
                    request.ok_or_else(|| Status::invalid_argument("the entries do not follow each other"))?;
                let mut answers = Box::pin(self.raft.stream_append(futures::stream::iter([request])));
                let answer = answers.next().await.ok_or_else(|| fatal("it does not answer"))?.map_err(fatal)?;
                pack(self.own_id, from, &answer)
            }
            Method::Vote => {
                let answer = self.raft.vote(unpack(&message)?).await.map_err(fatal)?;
                pack(self.own_id, from, &answer)
            }
            Method::PreVote => {
                let answer = self.raft.pre_vote(unpack(&message)?).await.map_err(fatal)?;
                pack(self.own_id, from, &answer)
            }
            Method::TransferLeader => {
                let answer = self.raft.handle_transfer_leader(unpack(&message)?).await.map_err(fatal)?;
                pack(self.own_id, from, &answer)
            }
            Method::Snapshot => {
                let piece: Piece = unpack(&message)?;
                drop(message);
                // The library relies on this.
                if piece.meta.last_log_id.is_some_and(|last| last.leader_id.term > piece.vote.leader_id.term) {
                    return Err(Status::invalid_argument("the snapshot is of a later term than its sender"));
                }
                pack(self.own_id, from, &self.take_piece(piece).await?)
            }
            Method::Digest => pack(self.own_id, from, &self.digests.at(unpack(&message)?)),
            Method::ReadIndex => {
                let read = self.raft.get_read_log_id(openraft::ReadPolicy::ReadIndex).await;
                let (committed, _) = read.map_err(|error| Status::unavailable(error.to_string()))?;
                pack::<LogId>(self.own_id, from, committed.log_id())
            }
        }
    }

    /// Handles a stream of AppendEntries. It ends at a request that can't be decoded.
    pub fn append(&self, requests: BoxStream<'static, RaftMessage>) -> AppendAnswers {
        let service = self.clone();
        let requests = requests
            .map(move |message| {
                service.check(&message).ok()?;
                unpack(&message).ok().filter(is_consecutive)
            })
            .take_while(|request| std::future::ready(request.is_some()))
            .filter_map(std::future::ready)
            .boxed();
        let own_id = self.own_id;
        let answers = self.raft.stream_append(requests).map(move |answer| match answer {
            Ok(answer) => pack(own_id, 0, &answer),
            Err(error) => Err(fatal(error)),
        });
        answers.boxed()
    }

    /// Returns the answer to a piece that could not be taken. A snapshot that this build can't apply stops this manager, as an
    /// entry does: it would be sent again and again.
    fn refusal(&self, error: &std::io::Error) -> Status {
        let cause = error.get_ref().and_then(|error| error.downcast_ref::<SnapshotError>());
        if let Some(SnapshotError::Newer(error)) = cause {
            tracing::error!(%error, "this manager can't apply the leader's snapshot: it stops");
            let raft = self.raft.clone();
            // Stopping the core ends this request, so another task does it.
            tokio::spawn(async move { drop(raft.shutdown().await) });
        }
        Status::unavailable(format!("failed to receive the snapshot: {error}"))
    }

    async fn take_piece(&self, piece: Piece) -> Result<PieceAnswer, Status> {
        let mut receiving = Arc::clone(&self.receiving).lock_owned().await;
        if receiving.is_installing(&piece) {
            return receiving.installed().await;
        }
        let taken = self.threads.blocking(move || {
            let next = receiving.take(&piece)?;
            let is_complete = piece.is_last && next == piece.end();
            let tables = if is_complete { Some(receiving.finish()?) } else { None };
            Ok((next, tables, piece, receiving))
        });
        let (next, tables, piece, mut receiving) = taken.await.map_err(|error: std::io::Error| self.refusal(&error))?;
        let Some(tables) = tables else { return Ok(PieceAnswer::Next(next)) };
        let (raft, vote) = (self.raft.clone(), piece.vote);
        let snapshot = Snapshot { meta: piece.meta.clone(), snapshot: tables.into() };
        receiving.install(&piece, async move { raft.install_full_snapshot(vote, snapshot).await.map_err(fatal) });
        receiving.installed().await
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<RaftMessage, Status>> + Send>>;
type Reply = Result<Response<RaftMessage>, Status>;

#[tonic::async_trait]
impl RaftTransport for TransportService {
    type AppendStream = Answers;

    async fn append(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<Answers>, Status> {
        let requests = request.into_inner();
        let requests = requests.take_while(|it| std::future::ready(it.is_ok()));
        let requests = requests.filter_map(|it| std::future::ready(it.ok()));
        Ok(Response::new(Self::append(self, requests.boxed())))
    }

    async fn append_one(&self, request: Request<RaftMessage>) -> Reply {
        self.call(Method::AppendOne, request.into_inner()).await.map(Response::new)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Reply {
        self.call(Method::Vote, request.into_inner()).await.map(Response::new)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Reply {
        self.call(Method::PreVote, request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Reply {
        self.call(Method::TransferLeader, request.into_inner()).await.map(Response::new)
    }

    async fn snapshot(&self, request: Request<RaftMessage>) -> Reply {
        self.call(Method::Snapshot, request.into_inner()).await.map(Response::new)
    }

    async fn digest(&self, request: Request<RaftMessage>) -> Reply {
        self.call(Method::Digest, request.into_inner()).await.map(Response::new)
    }

    async fn read_index(&self, request: Request<RaftMessage>) -> Reply {
        self.call(Method::ReadIndex, request.into_inner()).await.map(Response::new)
    }
}
