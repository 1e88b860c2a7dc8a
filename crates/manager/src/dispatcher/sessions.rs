//! The open sessions with this leader: one for each node; a new session replaces the older one. The dispatcher
//! registers them; the stream broker and the CA reach a worker through them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use flota_api::id::NodeId;
use flota_api::proto::dispatcher::ManagerMessage;
use flota_api::proto::dispatcher::manager_message::Message;

/// Messages that may wait for a slow worker.
pub(super) const QUEUE: usize = 64;

/// A message of a session, or its end. It is in a box, because a queue allocates the places of many messages at once.
pub(super) type Outgoing = Result<Box<ManagerMessage>, Status>;

/// The sending side of a session.
pub(crate) type SessionOutbox = mpsc::Sender<Outgoing>;

/// Wraps a message for an [`SessionOutbox`].
pub(super) fn outgoing(message: Message) -> Outgoing {
    Ok(Box::new(ManagerMessage { message: Some(message) }))
}

#[derive(Clone, Debug)]
struct Open {
    number: u64,
    outbox: SessionOutbox,
    cancel: CancellationToken,
    /// Wakes the session when the assignments of its node may have changed.
    concerned: Arc<Notify>,
}

/// A node has no session with this leader.
#[derive(Debug, thiserror::Error)]
#[error("the node does not answer")]
pub(crate) struct Unreachable;

/// Every open session. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    open: Arc<Mutex<(u64, BTreeMap<NodeId, Open>)>>,
    changed: Arc<Notify>,
    /// Wakes those that wait for a session to begin.
    begun: Arc<Notify>,
}

impl Sessions {
    /// Registers a new session of this node, and ends an older one. Returns the session's number and its cancellation
    /// token.
    pub(crate) fn begin(
        &self,
        node: &NodeId,
        outbox: SessionOutbox,
        scope: &CancellationToken,
    ) -> (u64, CancellationToken) {
        let cancel = scope.child_token();
        let mut open = self.open.lock().expect("no holder panics");
        open.0 += 1;
        let number = open.0;
        let session = Open { number, outbox, cancel: cancel.clone(), concerned: Arc::default() };
        if let Some(older) = open.1.insert(node.clone(), session) {
            older.cancel.cancel();
        }
        self.changed.notify_one();
        self.begun.notify_waiters();
        (number, cancel)
    }

    /// Whether the node has a session.
    pub(crate) fn has(&self, node: &NodeId) -> bool {
        self.open.lock().expect("no holder panics").1.contains_key(node)
    }

    /// Waits until the node has a session, for ever if it never gets one.
    pub(crate) async fn begun(&self, node: &NodeId) {
        loop {
            // It is woken by sessions that begin from here on, so that none is missed.
            let next = self.begun.notified();
            if self.has(node) {
                return;
            }
            next.await;
        }
    }

    /// Removes the session with this number after it has ended. Returns whether it was the node's newest.
    pub(super) fn ended(&self, node: &NodeId, number: u64) -> bool {
        let mut open = self.open.lock().expect("no holder panics");
        let newest = open.1.get(node).is_some_and(|it| it.number == number);
        if newest {
            open.1.remove(node);
            self.changed.notify_one();
        }
        newest
    }

    /// Ends the node's session, if it has one.
    pub(crate) fn end(&self, node: &NodeId) {
        if let Some(open) = self.open.lock().expect("no holder panics").1.remove(node) {
            open.cancel.cancel();
            self.changed.notify_one();
        }
    }

    /// Number of open sessions.
    pub(crate) fn count(&self) -> usize {
        self.open.lock().expect("no holder panics").1.len()
    }

    /// Queues a message to the node. Waits for room in the queue, for ever if the node does not read its messages.
    ///
    /// # Errors
    /// The node has no session with this leader, or its session ends meanwhile.
    pub(crate) async fn send(&self, node: &NodeId, message: Message) -> Result<(), Unreachable> {
        let outbox = self.open.lock().expect("no holder panics").1.get(node).map(|open| open.outbox.clone());
        outbox.ok_or(Unreachable)?.send(outgoing(message)).await.map_err(|_| Unreachable)
    }

    /// Returns what wakes the node's session when [`Sessions::wake`] or [`Sessions::wake_all`] is called. Calls from the
    /// beginning of the session on count.
    pub(super) fn concerned(&self, node: &NodeId) -> Arc<Notify> {
        self.open.lock().expect("no holder panics").1.get(node).map(|it| Arc::clone(&it.concerned)).unwrap_or_default()
    }

    /// Makes the session of this node look at its assignments, if the node has one.
    pub(super) fn wake(&self, node: &NodeId) {
        if let Some(it) = self.open.lock().expect("no holder panics").1.get(node) {
            it.concerned.notify_one();
        }
    }

    /// Makes every session look at its node's assignments.
    pub(super) fn wake_all(&self) {
        self.open.lock().expect("no holder panics").1.values().for_each(|it| it.concerned.notify_one());
    }

    /// Wakes [`Sessions::changed`]: something about a session's node has changed.
    pub(super) fn touch(&self) {
        self.changed.notify_one();
    }

    /// Waits until something about the sessions has changed since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
