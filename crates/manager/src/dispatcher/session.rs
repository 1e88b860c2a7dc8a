//! The sessions that are open with this leader; one for each node, the newest wins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use flota_api::id::NodeId;
use flota_api::proto::dispatcher::ManagerMessage;
use flota_api::proto::dispatcher::manager_message::Message;

/// Messages that may wait for a slow worker; it is cut off when there are more.
pub(crate) const QUEUE: usize = 64;

pub(crate) type Outbox = mpsc::Sender<Result<ManagerMessage, Status>>;

#[derive(Clone, Debug)]
struct Open {
    number: u64,
    outbox: Outbox,
    cancel: CancellationToken,
}

/// Every open session. Cloned handles share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    open: Arc<Mutex<(u64, BTreeMap<NodeId, Open>)>>,
    changed: Arc<Notify>,
}

impl Sessions {
    /// A new session of this node; an older one is ended. Gives its number and what ends it.
    pub(crate) fn begin(&self, node: &NodeId, outbox: Outbox, scope: &CancellationToken) -> (u64, CancellationToken) {
        let cancel = scope.child_token();
        let mut open = self.open.lock().expect("no holder panics");
        open.0 += 1;
        let number = open.0;
        if let Some(older) = open.1.insert(node.clone(), Open { number, outbox, cancel: cancel.clone() }) {
            older.cancel.cancel();
        }
        self.changed.notify_one();
        (number, cancel)
    }

    /// The session with this number has ended; whether it was the node's newest.
    pub(crate) fn ended(&self, node: &NodeId, number: u64) -> bool {
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

    /// Sends to the node.
    ///
    /// # Errors
    /// It has no session with this leader, or does not read.
    pub(crate) fn send(&self, node: &NodeId, message: Message) -> Result<(), Status> {
        let unreachable = || Status::unavailable("the task's node does not answer");
        let outbox = self.open.lock().expect("no holder panics").1.get(node).map(|open| open.outbox.clone());
        let message = ManagerMessage { message: Some(message) };
        outbox.ok_or_else(unreachable)?.try_send(Ok(message)).map_err(|_| unreachable())
    }

    /// Something about a session's node has changed.
    pub(crate) fn touch(&self) {
        self.changed.notify_one();
    }

    /// Something about the sessions has changed since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
