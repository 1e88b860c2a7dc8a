//! The manager's side of a session: sends a worker its networks and its assignments, and then each difference as the
//! store changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::Status;

use flota_api::defaults::GRANT_LIFE;
use flota_api::id::NodeId;
use flota_api::model::{Node, Task};
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::proto::dispatcher::{Managers, Peer};
use flota_raft_store::Tables;

use super::assignments::{Granter, Told};
use super::networks::ToldNetworks;
use super::programmed::{Programmed, Withdrawal};
use super::sessions::{Outbox, Sessions, outgoing};
use crate::replica::Replica;

/// Sends the node's networks, its assignments and the addresses of the managers for as long as the session lasts. Returns when the
/// node was removed. `held` are the images that the node reported.
///
/// # Errors
/// The worker has closed the session.
pub(super) async fn send_assignments(
    replica: &Replica,
    (sessions, programmed): (&Sessions, &Programmed),
    node_id: &NodeId,
    held: BTreeSet<String>,
    outbox: &Outbox,
) -> Result<(), Status> {
    let concerned = sessions.concerned(node_id);
    let mut told = Told::new(node_id.clone(), held);
    let (mut networks, mut managers) = (ToldNetworks::default(), Managers::default());
    loop {
        // The news are taken before the view, which therefore has all of them.
        let news = programmed.take(node_id);
        let view = replica.store.view();
        if view.node(node_id).is_none() {
            return send(outbox, Message::Removed(true)).await;
        }
        let current = current_managers(&view);
        if current != managers {
            managers = current;
            send(outbox, Message::Managers(managers.clone())).await?;
        }
        // A worker knows a network before it prepares a task for it.
        if let Some((news, version)) = news {
            for update in networks.tell(node_id, news, version, &view) {
                send(outbox, Message::Networks((&update).into())).await?;
            }
        }
        let key = view.cluster().map(|cluster| cluster.grant_key.0.as_slice()).unwrap_or_default();
        let granter = Granter { key, expires: Granter::expiry(replica.clock.wall().now()) };
        let withdrawal = |task: &Task, version| match programmed.withdrawal(task, version, &view) {
            Withdrawal::Confirmed => None,
            Withdrawal::Waits(nodes) => Some(nodes),
        };
        // From here on, a confirmation wakes this session.
        programmed.set_holding(node_id, true);
        let now = replica.clock.now();
        for part in told.tell(&view, &granter, &withdrawal, now) {
            send(outbox, Message::Assignments(part)).await?;
        }
        let held_until = told.held_until();
        programmed.set_holding(node_id, held_until.is_some());
        // The grants are renewed before they expire.
        let patience = held_until.map_or(GRANT_LIFE / 4, |until| now.until(until));
        tokio::select! {
            biased;
            () = concerned.notified() => {}
            () = tokio::time::sleep(patience) => {}
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
