//! The sending side: encodes the library's requests as messages and decodes the responses.

use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::pairing::Pairing;
use super::peers::Peers;
use super::{Method, pack, snapshot, unpack};
use crate::raft::type_config::{Snapshot, TypeConfig, Vote};
use crate::store::View;

const LOST: &str = "the manager has lost entries that it had acknowledged";

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &openraft::BasicNode) -> Peer {
        self.set_address(target, &node.addr);
        Peer { peers: self.clone(), target }
    }
}

/// One other manager as a destination.
#[derive(Clone)]
pub(crate) struct Peer {
    peers: Peers,
    target: u64,
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

fn unreachable(status: &Status) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(format!("{:?}: {}", status.code(), status.message())))
}

impl Peer {
    async fn call<Q: Serialize, A: DeserializeOwned>(&self, method: Method, body: &Q, option: &RPCOption) -> Rpc<A> {
        self.peers.call(self.target, method, body, option.hard_ttl()).await.map_err(|status| unreachable(&status))
    }

    /// Sends the only request of a stream.
    async fn append_one<'s>(
        &self,
        mut input: impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
        option: &RPCOption,
    ) -> Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>> {
        let Some(rpc) = input.next().await else { return Ok(futures::stream::empty().boxed()) };
        let answer = self.call(Method::AppendOne, &rpc, option).await?;
        let answer = self.check(rpc.vote, answer);
        Ok(futures::stream::iter([answer]).boxed())
    }

    /// Refuses a response which says that the follower lacks entries that it had acknowledged.
    fn check(&self, leader: Vote, answer: StreamAppendResult<TypeConfig>) -> Rpc<StreamAppendResult<TypeConfig>> {
        let acknowledged = &self.peers.acknowledged;
        match &answer {
            Ok(Some(matched)) => acknowledged.matched(self.target, leader, *matched),
            Err(StreamAppendError::Conflict(conflict)) if acknowledged.is_lost(self.target, leader, *conflict) => {
                if acknowledged.set_lost(self.target, leader) {
                    tracing::error!(
                        raft.peer = self.target,
                        entry = conflict.index,
                        "a manager has lost entries that it had acknowledged: it gets no more of them in this term"
                    );
                }
                return Err(unreachable(&Status::data_loss(LOST)));
            }
            _ => {}
        }
        Ok(answer)
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = View;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let last = rpc.entries.last().map(openraft::entry::RaftEntry::log_id).or(rpc.prev_log_id);
        let ttl = option.hard_ttl();
        let requests = futures::stream::once(std::future::ready(rpc));
        let answer = async {
            let mut answers = self.stream_append(Box::pin(requests), option).await?;
            let ended = || unreachable(&Status::unavailable("the stream ended"));
            answers.next().await.ok_or_else(ended)?
        };
        let answer = tokio::time::timeout(ttl, answer).await;
        Ok(match answer.map_err(|_| unreachable(&Status::deadline_exceeded("no answer in time")))?? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let (from, to, peer) = (self.peers.own_id, self.target, self.clone());
        Box::pin(async move {
            // A single request is a heartbeat. Opening a stream for it costs every manager three times as much.
            if input.size_hint() == (1, Some(1)) {
                return peer.append_one(input, &option).await;
            }
            // All requests of one stream come from the same leader.
            let leader = Arc::new(std::sync::OnceLock::new());
            let (seen, pairing) = (Arc::clone(&leader), Pairing::default());
            let sent = pairing.clone();
            let requests = input.map(move |rpc| {
                seen.get_or_init(|| rpc.vote);
                sent.sent(rpc.entries.last().map(openraft::entry::RaftEntry::log_id).or(rpc.prev_log_id));
                pack(from, to, &rpc)
            });
            // A request that can't be encoded ends the stream; the library opens a new one.
            let requests = requests.take_while(|it| std::future::ready(it.is_ok()));
            let requests = requests.filter_map(|it| std::future::ready(it.ok()));
            // The library's stream of requests holds a lock that its next stream needs. It therefore ends as soon as
            // the responses are dropped, whatever the transport does with it.
            let over = CancellationToken::new();
            let reads = over.clone().drop_guard();
            let requests = requests.take_until(over.cancelled_owned()).boxed();
            let call = peer.peers.transport.append(to, requests);
            let answers = match tokio::time::timeout(option.hard_ttl(), call).await {
                Ok(answers) => answers.map_err(|status| unreachable(&status))?,
                Err(_) => return Err(unreachable(&Status::deadline_exceeded("no answer in time"))),
            };
            let answers = answers.map(move |answer| {
                let _ = &reads;
                let answer = answer.and_then(|it| unpack(&it)).map_err(|status| unreachable(&status))?;
                match leader.get() {
                    Some(leader) => peer.check(*leader, answer),
                    None => Ok(answer),
                }
            });
            let answers = answers.filter(move |answer| {
                std::future::ready(match answer {
                    Ok(Ok(matched)) => pairing.answered(*matched),
                    _ => true,
                })
            });
            Ok(answers.boxed())
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(Method::Vote, &rpc, &option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(Method::PreVote, &rpc, &option).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        self.call(Method::TransferLeader, &rpc, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        if self.peers.acknowledged.has_lost(self.target, vote) {
            return Err(StreamingError::Unreachable(Unreachable::from_string(LOST)));
        }
        let send = snapshot::send(&self.peers, self.target, self.peers.threads, vote, snapshot);
        tokio::select! {
            result = send => result.map_err(|status| {
                StreamingError::Unreachable(Unreachable::from_string(status.message()))
            }),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

#[cfg(test)]
mod tests;
