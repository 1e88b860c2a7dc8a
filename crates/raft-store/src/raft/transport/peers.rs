//! The other managers as destinations of messages: the sender's id, the transport, and what each of them has
//! acknowledged.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

use super::reversion::Acknowledged;
use super::{Method, Transport, pack, unpack};
use crate::raft::threads::Threads;

/// The other managers, by Raft id. Clones share everything.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(super) own_id: u64,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) acknowledged: Acknowledged,
    pub(super) threads: Threads,
}

impl Peers {
    pub(crate) fn new(own_id: u64, transport: Arc<dyn Transport>, threads: Threads) -> Self {
        Self { own_id, transport, acknowledged: Acknowledged::default(), threads }
    }

    /// Sets the address of a manager.
    pub(crate) fn set_address(&self, id: u64, address: &str) {
        self.transport.set_address(id, address);
    }

    /// Whether the manager with this id is at this address; `known` is the one where it was. If so, it is sought there from
    /// now on.
    pub(crate) async fn find(&self, id: u64, known: &str, address: &str, wait: Duration) -> bool {
        // Any request will do: a manager with another id refuses it.
        let Ok(question) = pack(self.own_id, id, &0u64) else { return false };
        let answer = tokio::time::timeout(wait, self.transport.call_at(address, Method::Digest, question)).await;
        let is_there = matches!(answer, Ok(Ok(_)));
        if is_there {
            self.transport.redirect(id, known, address);
        }
        is_there
    }

    /// Sends one request and waits at most `wait` for the response.
    pub(crate) async fn call<Q, A>(&self, to: u64, method: Method, body: &Q, wait: Duration) -> Result<A, Status>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        let message = pack(self.own_id, to, body)?;
        match tokio::time::timeout(wait, self.transport.call(to, method, message)).await {
            Ok(answer) => unpack(&answer?),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }
}
