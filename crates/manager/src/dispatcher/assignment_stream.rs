//! The manager's side of a session: sends a worker its assignments, and then each difference as the store changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::Status;

use flota_api::defaults::GRANT_LIFE;
use flota_api::id::NodeId;
use flota_api::model::Node;
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::proto::dispatcher::{Managers, Peer};
use flota_raft_store::Tables;

use super::assignments::{Granter, Told};
use super::sessions::{Outbox, Sessions, outgoing};
use crate::replica::Replica;

/// Sends the node's assignments and the addresses of the managers for as long as the session lasts. Returns when the
/// node was removed. `held` are the images that the node reported.
///
/// # Errors
/// The worker has closed the session.
pub(super) async fn send_assignments(
    replica: &Replica,
    sessions: &Sessions,
    node_id: &NodeId,
    held: BTreeSet<String>,
    outbox: &Outbox,
) -> Result<(), Status> {
    let concerned = sessions.concerned(node_id);
    let mut told = Told::new(node_id.clone(), held);
    let mut managers = Managers::default();
    loop {
        let view = replica.store.view();
        if view.node(node_id).is_none() {
            return send(outbox, Message::Removed(true)).await;
        }
        let current = current_managers(&view);
        if current != managers {
            managers = current;
            send(outbox, Message::Managers(managers.clone())).await?;
        }
        let key = view.cluster().map(|cluster| cluster.grant_key.0.as_slice()).unwrap_or_default();
        let granter = Granter { key, expires: Granter::expiry(replica.clock.wall().now()) };
        for part in told.tell(&view, &granter, replica.clock.now()) {
            send(outbox, Message::Assignments(part)).await?;
        }
        tokio::select! {
            biased;
            () = concerned.notified() => {}
            // The grants are renewed before they expire.
            () = tokio::time::sleep(GRANT_LIFE / 4) => {}
        }
    }
}

async fn send(outbox: &Outbox, message: Message) -> Result<(), Status> {
    outbox.send(outgoing(message)).await.map_err(|_| Status::cancelled("the worker has gone"))
}

fn current_managers(view: &Tables) -> Managers {
    let peer = |node: &Arc<Node>| Peer { node_id: node.id.to_string(), address: node.address.clone() };
    Managers { managers: view.managers().map(peer).collect() }
}
