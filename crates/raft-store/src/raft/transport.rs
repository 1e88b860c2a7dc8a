//! Raft's messages over gRPC. Who may connect, and as whom, is decided by the [`Dial`] that is given and by the
//! listener that serves [`TransportService`].

mod client;
mod server;

pub(crate) use client::Connections;
pub(crate) use server::Heard;
pub use server::TransportService;

use flota_api::proto::raft::RaftMessage;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

/// Makes connections to other managers.
pub trait Dial: Send + Sync + 'static {
    /// A channel to the manager at `host:port`; connects when it is first used, and again when it broke.
    fn dial(&self, address: &str) -> tonic::transport::Channel;
}

/// Encoding of the bodies: postcard.
const FORMAT: u32 = 1;

fn pack<T: Serialize>(from: u64, to: u64, body: &T) -> Result<RaftMessage, Status> {
    let body = postcard::to_stdvec(body).map_err(|error| Status::internal(error.to_string()))?;
    Ok(RaftMessage { format: FORMAT, from, to, body: body.into() })
}

fn unpack<T: DeserializeOwned>(message: &RaftMessage) -> Result<T, Status> {
    if message.format != FORMAT {
        return Err(Status::invalid_argument(format!("format {} is not spoken here", message.format)));
    }
    postcard::from_bytes(&message.body).map_err(|error| Status::invalid_argument(error.to_string()))
}
