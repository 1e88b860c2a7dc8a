//! The manager's side of a session: sends a worker its assignments, and then each difference as the store changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::Status;

use flota_api::id::NodeId;
use flota_api::model::{Node, Role};
use flota_api::object::Object;
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::proto::dispatcher::{Assignments, ManagerMessage, Managers, Peer};
use flota_identity::GrantKey;
use flota_raft_store::{Event, Tables};

use super::assignments::{AssignmentSet, Granter, cut};
use super::sessions::Outbox;
use crate::replica::Replica;

/// Sends the node's assignments and the addresses of the managers for as long as the session lasts. Returns when the
/// node was removed. `held` are the images that the node reported.
///
/// # Errors
/// The worker has closed the session.
pub(super) async fn send_assignments(
    replica: &Replica,
    node_id: &NodeId,
    mut held: BTreeSet<String>,
    outbox: &Outbox,
) -> Result<(), Status> {
    let (mut view, mut watch) = replica.store.view_and_watch();
    let key = view.cluster().and_then(|cluster| GrantKey::from_der(&cluster.grant_key.0));
    let mut sent: Option<AssignmentSet> = None;
    let mut managers = Managers::default();
    loop {
        let granter = Granter { key: key.as_ref(), expires: Granter::expiry(replica.clock.wall().now()) };
        let set = AssignmentSet::of(node_id, &view, &granter, &mut held);
        let epoch = view.cluster().map_or(0, |cluster| cluster.epoch);
        let assignments = match &sent {
            None => Some(set.full(epoch, view.version)),
            Some(before) => set.difference(before, epoch, view.version),
        };
        sent = Some(set);
        let current = current_managers(&view);
        if current != managers {
            managers = current;
            send(outbox, Message::Managers(managers.clone())).await?;
        }
        let now = replica.clock.now().0;
        for part in assignments.into_iter().flat_map(|it| cut(Assignments { now, ..it })) {
            send(outbox, Message::Assignments(part)).await?;
        }
        // Wait until an event concerns this node. A watch that lagged may have missed one, so that ends the wait as
        // well.
        while let Ok(events) = watch.next().await {
            if events.iter().any(|event| concerns(event, node_id)) {
                break;
            }
        }
        (view, watch) = replica.store.view_and_watch();
        if view.node(node_id.as_str()).is_none() {
            send(outbox, Message::Removed(true)).await?;
            return Ok(());
        }
    }
}

async fn send(outbox: &Outbox, message: Message) -> Result<(), Status> {
    let message = ManagerMessage { message: Some(message) };
    outbox.send(Ok(message)).await.map_err(|_| Status::cancelled("the worker has gone"))
}

fn current_managers(view: &Tables) -> Managers {
    let managers = view.nodes().filter(|node| node.role == Role::Manager);
    let peer = |node: &Arc<Node>| Peer { node_id: node.id.to_string(), address: node.address.clone() };
    Managers { managers: managers.map(peer).collect() }
}

/// Returns whether the node's assignments may differ after this event. A false positive only costs a comparison.
fn concerns(event: &Event, node_id: &NodeId) -> bool {
    let object = match event {
        Event::Created(object) | Event::Removed(object) | Event::Updated { new: object, .. } => object,
        Event::Reset => return true,
        Event::Committed(_) => return false,
    };
    match object {
        Object::Task(task) => task.is_on(node_id),
        Object::Node(_) | Object::Image(_) | Object::Cluster(_) | Object::Registry(_) => true,
        Object::Service(_) | Object::Stack(_) => false,
    }
}
