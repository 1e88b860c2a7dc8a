//! The side that sends: one channel for each peer, found by its Raft id, so that a changed address is used at once.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::raft::RaftMessage;
use flota_api::proto::raft::raft_transport_client::RaftTransportClient;

use super::{Dial, pack, unpack};
use crate::raft::type_config::{Snapshot, TypeConfig, Vote};
use crate::store::View;

/// Bytes of records in one message of a snapshot.
const SNAPSHOT_CHUNK: usize = 1 << 20;

/// Makes [`Peer`]s, and knows where they are.
#[derive(Clone)]
pub(crate) struct Connections {
    own_id: u64,
    dial: Arc<dyn Dial>,
    channels: Arc<Mutex<HashMap<u64, (String, Channel)>>>,
}

impl Connections {
    pub(crate) fn new(own_id: u64, dial: Arc<dyn Dial>) -> Self {
        Self { own_id, dial, channels: Arc::default() }
    }

    /// Learns where a manager is; an old channel to another address is dropped.
    pub(crate) fn set_address(&self, id: u64, address: &str) {
        let mut channels = self.channels.lock().expect("no holder panics");
        if channels.get(&id).is_none_or(|(known, _)| known != address) {
            channels.insert(id, (address.to_owned(), self.dial.dial(address)));
        }
    }

    fn channel(&self, id: u64) -> Option<Channel> {
        self.channels.lock().expect("no holder panics").get(&id).map(|(_, channel)| channel.clone())
    }
}

impl RaftNetworkFactory<TypeConfig> for Connections {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &openraft::BasicNode) -> Peer {
        self.set_address(target, &node.addr);
        Peer { connections: self.clone(), target }
    }
}

/// One other manager.
#[derive(Clone)]
pub(crate) struct Peer {
    connections: Connections,
    target: u64,
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

fn unreachable(status: &Status) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(format!("{:?}: {}", status.code(), status.message())))
}

impl Peer {
    fn client(&self) -> Result<RaftTransportClient<Channel>, Status> {
        let channel = self.connections.channel(self.target);
        let channel = channel.ok_or_else(|| Status::unavailable("its address is not known"))?;
        let client = RaftTransportClient::new(channel);
        Ok(client.max_decoding_message_size(MESSAGE_BOUND).max_encoding_message_size(MESSAGE_BOUND))
    }

    /// One request, one answer, within the time that the library gives.
    async fn call<Q, A, F, Fut>(&self, body: &Q, option: &RPCOption, call: F) -> Rpc<A>
    where
        Q: serde::Serialize,
        A: serde::de::DeserializeOwned,
        F: FnOnce(RaftTransportClient<Channel>, RaftMessage) -> Fut,
        Fut: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let work = async {
            let message = pack(self.connections.own_id, self.target, body)?;
            unpack(call(self.client()?, message).await?.get_ref())
        };
        match tokio::time::timeout(option.hard_ttl(), work).await {
            Ok(result) => result.map_err(|status| unreachable(&status)),
            Err(_) => Err(unreachable(&Status::deadline_exceeded("no answer in time"))),
        }
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
        let result: StreamAppendResult<TypeConfig> = self
            .call(&rpc, &option, |mut client, message| async move {
                let mut answers = client.append(tokio_stream::once(message)).await?.into_inner();
                let answer = answers.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
                Ok(Response::new(answer))
            })
            .await?;
        Ok(match result {
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
        let (from, to) = (self.connections.own_id, self.target);
        Box::pin(async move {
            let mut client = self.client().map_err(|status| unreachable(&status))?;
            // A request that can't be encoded ends the stream; the library opens it anew.
            let messages = input.map(move |rpc| pack(from, to, &rpc)).take_while(|it| std::future::ready(it.is_ok()));
            let call = client.append(messages.filter_map(|it| std::future::ready(it.ok())));
            let answers = match tokio::time::timeout(option.hard_ttl(), call).await {
                Ok(answers) => answers.map_err(|status| unreachable(&status))?.into_inner(),
                Err(_) => return Err(unreachable(&Status::deadline_exceeded("no answer in time"))),
            };
            let answers =
                answers.map(|answer| answer.and_then(|it| unpack(&it)).map_err(|status| unreachable(&status)));
            Ok(answers.boxed())
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(&rpc, &option, |mut client, message| async move { client.vote(message).await }).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(&rpc, &option, |mut client, message| async move { client.pre_vote(message).await }).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        self.call(&rpc, &option, |mut client, message| async move { client.transfer_leader(message).await }).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (from, to) = (self.connections.own_id, self.target);
        let send = async {
            let head = pack(from, to, &(vote, &snapshot.meta))?;
            let body =
                chunks(snapshot.snapshot).map(move |body| RaftMessage { format: 1, from, to, body: body.into() });
            let request = Request::new(futures::stream::once(std::future::ready(head)).chain(body));
            unpack(self.client()?.snapshot(request).await?.get_ref())
        };
        let failed = |status: Status| StreamingError::Unreachable(Unreachable::from_string(status.message()));
        tokio::select! {
            result = tokio::time::timeout(option.hard_ttl(), send) => match result {
                Ok(result) => result.map_err(failed),
                Err(_) => Err(failed(Status::deadline_exceeded("the snapshot was not sent in time"))),
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

/// A snapshot's records, each with its length, in chunks; made by a thread of their own, as fast as they are sent:
/// heartbeats go out beside it.
fn chunks(view: View) -> ReceiverStream<Vec<u8>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut chunk = Vec::new();
        for record in view.records() {
            let length = u32::try_from(record.len()).expect("a record is bounded by an entry");
            chunk.extend_from_slice(&length.to_be_bytes());
            chunk.extend_from_slice(&record);
            if chunk.len() >= SNAPSHOT_CHUNK && sender.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return;
            }
        }
        let _ = sender.blocking_send(chunk);
    });
    ReceiverStream::new(receiver)
}
