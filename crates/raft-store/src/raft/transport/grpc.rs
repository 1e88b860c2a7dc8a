//! Raft's messages over gRPC: one channel for each peer, by Raft id, so that a changed address takes effect at once.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::raft::RaftMessage;
use flota_api::proto::raft::raft_transport_client::RaftTransportClient;
use flota_api::reason::Reason;

use super::{AppendAnswers, CallAnswer, Method, Transport};

/// Opens connections to other managers.
pub trait Dial: Send + Sync + 'static {
    /// Returns a channel to the manager at `host:port`. It connects on first use, and reconnects after it breaks.
    fn dial(&self, address: &str) -> Channel;
}

/// Delivers messages over channels from a [`Dial`].
pub struct GrpcTransport {
    dial: Arc<dyn Dial>,
    removed: CancellationToken,
    channels: Mutex<HashMap<u64, (String, Channel)>>,
}

impl std::fmt::Debug for GrpcTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrpcTransport")
    }
}

impl GrpcTransport {
    /// Creates a transport without any addresses. `removed` is cancelled when another manager answers that the cluster has
    /// removed this one.
    pub fn new(dial: Arc<dyn Dial>, removed: CancellationToken) -> Self {
        Self { dial, removed, channels: Mutex::default() }
    }

    fn client(&self, peer: u64) -> Result<Client, Status> {
        let channels = self.channels.lock().expect("no holder panics");
        let (_, channel) = channels.get(&peer).ok_or_else(|| Status::unavailable("its address is not known"))?;
        Ok(client_of(channel.clone()))
    }

    fn send(&self, client: Result<Client, Status>, method: Method, message: RaftMessage) -> CallAnswer {
        let removed = self.removed.clone();
        Box::pin(async move {
            let mut client = client?;
            let answer = match method {
                Method::AppendOne => client.append_one(message).await,
                Method::Vote => client.vote(message).await,
                Method::PreVote => client.pre_vote(message).await,
                Method::TransferLeader => client.transfer_leader(message).await,
                Method::Snapshot => client.snapshot(message).await,
                Method::Digest => client.digest(message).await,
                Method::ReadIndex => client.read_index(message).await,
            };
            answer.map(tonic::Response::into_inner).inspect_err(|status| heed(status, &removed))
        })
    }
}

type Client = RaftTransportClient<Channel>;

fn client_of(channel: Channel) -> Client {
    Client::new(channel).max_decoding_message_size(MESSAGE_BOUND).max_encoding_message_size(MESSAGE_BOUND)
}

/// Cancels `removed` if the status says that the cluster has removed this manager.
fn heed(status: &Status, removed: &CancellationToken) {
    if Reason::of(status) == Some(Reason::NodeRemoved) {
        removed.cancel();
    }
}

/// The requests of one stream. The newtype is needed because the compiler can't see through the trait object that the
/// call may move between threads.
struct Requests(BoxStream<'static, RaftMessage>);

impl Stream for Requests {
    type Item = RaftMessage;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RaftMessage>> {
        self.0.poll_next_unpin(cx)
    }
}

impl Transport for GrpcTransport {
    fn set_address(&self, peer: u64, address: &str) {
        let mut channels = self.channels.lock().expect("no holder panics");
        if channels.get(&peer).is_none_or(|(known, _)| known != address) {
            channels.insert(peer, (address.to_owned(), self.dial.dial(address)));
        }
    }

    fn call_at(&self, address: &str, method: Method, message: RaftMessage) -> CallAnswer {
        self.send(Ok(client_of(self.dial.dial(address))), method, message)
    }

    fn redirect(&self, peer: u64, known: &str, address: &str) {
        let mut channels = self.channels.lock().expect("no holder panics");
        channels.insert(peer, (known.to_owned(), self.dial.dial(address)));
    }

    fn call(&self, peer: u64, method: Method, message: RaftMessage) -> CallAnswer {
        self.send(self.client(peer), method, message)
    }

    fn append(
        &self,
        peer: u64,
        requests: BoxStream<'static, RaftMessage>,
    ) -> BoxFuture<'static, Result<AppendAnswers, Status>> {
        let (client, removed) = (self.client(peer), self.removed.clone());
        Box::pin(async move {
            let mut client = client?;
            let answers = client.append(Requests(requests)).await.inspect_err(|status| heed(status, &removed))?;
            let answers: AppendAnswers = answers.into_inner().boxed();
            Ok(answers)
        })
    }
}
