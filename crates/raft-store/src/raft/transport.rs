//! Raft's messages between managers. peer.rs encodes the library's requests as [`RaftMessage`]s, a [`Transport`]
//! delivers them, and [`TransportService`] receives them. Real managers use [`GrpcTransport`]. The [`Dial`] that it is
//! given and the listener in front of the service decide who may connect, and with which identity.

#[cfg(test)]
mod fake;
mod grpc;
#[cfg(feature = "faults")]
mod inspect;
mod pairing;
mod peer;
mod peers;
mod reversion;
mod server;
mod snapshot;

pub(crate) use peers::Peers;
pub use server::TransportService;
pub(crate) use snapshot::Receiving;

#[cfg(test)]
pub(crate) use fake::FakeTransport;
pub use grpc::{Dial, GrpcTransport};
#[cfg(feature = "faults")]
pub use inspect::{SentEntry, sent_entries};

use flota_api::proto::raft::RaftMessage;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

/// A request with a single response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A single AppendEntries, such as a heartbeat (Raft paper §5.2).
    AppendOne,
    /// RequestVote (Raft paper §5.2).
    Vote,
    /// PreVote, which precedes RequestVote (Raft dissertation §9.6).
    PreVote,
    /// The leader asks this manager to become the leader at once (dissertation §3.10).
    TransferLeader,
    /// One piece of a snapshot (Raft paper §7).
    Snapshot,
    /// Asks for the digest of the receiver's tables after an entry.
    Digest,
    /// Asks for the leader's commit index; it answers after a quorum has confirmed that it leads (dissertation §6.4).
    ReadIndex,
}

/// The responses to a stream of AppendEntries, in the order of the requests.
pub type AppendAnswers = BoxStream<'static, Result<RaftMessage, Status>>;

/// The response to a single request.
pub type CallAnswer = BoxFuture<'static, Result<RaftMessage, Status>>;

/// Delivers messages to other managers, which are identified by their Raft ids.
pub trait Transport: Send + Sync + 'static {
    /// Sets the address of a manager (`host:port`). Called again whenever it may have changed.
    fn set_address(&self, peer: u64, address: &str);

    /// Sends one request to whoever is at this address, which need not be that of a known manager. The caller limits the
    /// time.
    fn call_at(&self, address: &str, method: Method, message: RaftMessage) -> CallAnswer;

    /// Uses this address for a manager that is not found at `known` any more, until [`Transport::set_address`] sets another
    /// one than `known`.
    fn redirect(&self, peer: u64, known: &str, address: &str);

    /// Sends one request. The caller limits the time.
    fn call(&self, peer: u64, method: Method, message: RaftMessage) -> CallAnswer;

    /// Opens a stream of AppendEntries (Raft paper §5.3). Many requests may be under way at once.
    fn append(
        &self,
        peer: u64,
        requests: BoxStream<'static, RaftMessage>,
    ) -> BoxFuture<'static, Result<AppendAnswers, Status>>;
}

/// Encoding of the message bodies. 2: postcard, with terms that have one leader.
const FORMAT: u32 = 2;

fn pack<T: Serialize>(from: u64, to: u64, body: &T) -> Result<RaftMessage, Status> {
    let body = postcard::to_stdvec(body).map_err(|error| Status::internal(error.to_string()))?;
    Ok(RaftMessage { format: FORMAT, from, to, body: body.into() })
}

fn unpack<T: DeserializeOwned>(message: &RaftMessage) -> Result<T, Status> {
    if message.format != FORMAT {
        return Err(Status::invalid_argument(format!("message format {} is not supported", message.format)));
    }
    postcard::from_bytes(&message.body).map_err(|error| Status::invalid_argument(error.to_string()))
}
