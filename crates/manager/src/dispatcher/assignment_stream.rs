//! The manager's side of a session: sends a worker its networks and its assignments, and then the differences as the
//! store changes, at the pace of `pace.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt;
use tonic::Status;

use flota_api::defaults::GRANT_LIFE;
use flota_api::id::NodeId;
use flota_api::model::{Node, Secret, Task};
use flota_api::object::Kind;
use flota_api::proto::dispatcher::manager_message::Message;
use flota_api::proto::dispatcher::{GrantKeys, Managers, Peer};
use flota_api::proto::types as pt;
use flota_api::version::Timestamp;
use flota_identity::GrantKey;
use flota_raft_store::{Store, Tables};

use super::assignments::{Granter, Told};
use super::networks::ToldNetworks;
use super::pace::Pace;
use super::programmed::{Programmed, Withdrawal};
use super::sessions::{SessionOutbox, Sessions, outgoing};
use crate::replica::Replica;
use crate::trust;

/// Sends the node's networks, its assignments and the addresses of the managers for as long as the session lasts.
/// Returns when the node was removed. `held` are the images that the node reported.
///
/// # Errors
/// The worker has closed the session.
pub(super) async fn send_assignments(
    replica: &Replica,
    (sessions, programmed): (&Sessions, &Programmed),
    node_id: &NodeId,
    held: BTreeSet<String>,
    outbox: &SessionOutbox,
) -> Result<(), Status> {
    let concerned = sessions.concerned(node_id);
    let mut pace = Pace::default();
    let mut told = Session { tasks: Told::new(node_id.clone(), held), ..Session::default() };
    loop {
        let (now, wall) = (replica.clock.now(), replica.clock.wall().now());
        // The view is not kept while the session waits: it would keep every object that has changed since.
        let Some(messages) = told.news(&replica.store, programmed, node_id, (now, wall)) else {
            return send(outbox, Message::Removed(true)).await;
        };
        if !messages.is_empty() {
            pace.told(replica.store.view().count(Kind::Node));
        }
        for message in messages {
            send(outbox, message).await?;
        }
        // The grants are renewed before they expire.
        let patience = told.tasks.held_until().map_or(GRANT_LIFE / 4, |until| now.until(until));
        tokio::select! {
            biased;
            () = concerned.notified() => {}
            () = tokio::time::sleep(patience) => {}
        }
        pace.turn().await;
        // The next look has everything that has woken the session until now.
        concerned.notified().now_or_never();
    }
}

/// The assignments and networks that the worker of a session has been sent.
#[derive(Default)]
struct Session {
    managers: Managers,
    networks: ToldNetworks,
    tasks: Told,
    /// The last key of the node's own of which it was told that the other nodes know it.
    known_key: Option<[u8; 32]>,
    /// What it was told last to trust, unless it has confirmed that.
    trusts: Option<String>,
    /// The keys of which it accepts grants; those of before the registration came with the answer to that.
    grant_keys: Option<Vec<Secret>>,
}

impl Session {
    /// Returns the messages that bring the worker to the present state of the store, by the time of the cluster and that
    /// of this manager's own clock; `None` if its node was removed.
    fn news(
        &mut self,
        store: &Store,
        programmed: &Programmed,
        node_id: &NodeId,
        (now, wall): (Timestamp, Timestamp),
    ) -> Option<Vec<Message>> {
        // The news are taken before the view, which therefore has all of them.
        let news = programmed.take(node_id);
        let view = store.view();
        let node = view.node(node_id)?;
        let mut messages = Vec::new();
        let managers = current_managers(&view, node);
        if managers != self.managers {
            self.managers = managers;
            messages.push(Message::Managers(self.managers.clone()));
        }
        // A worker knows a network before it prepares a task for it.
        if let Some((news, version)) = news {
            let updates = self.networks.tell(node_id, news, version, &view);
            messages.extend(updates.iter().map(|update| Message::Networks(update.into())));
        }
        // The worker accepts what is signed with a key before it is told of such a grant.
        messages.extend(self.grant_keys(&view).map(Message::GrantKeys));
        let key = view.cluster().map(|cluster| cluster.grant_key.0.as_slice()).unwrap_or_default();
        let granter = Granter { key, expires: Granter::expiry(wall) };
        let withdrawal = |task: &Task, version| match programmed.withdrawal(task, version, &view) {
            Withdrawal::Confirmed => None,
            Withdrawal::Waits(nodes) => Some(nodes),
        };
        // From here on, a confirmation wakes this session.
        programmed.set_holding(node_id, true);
        messages.extend(self.tasks.tell(&view, &granter, &withdrawal, now).into_iter().map(Message::Assignments));
        programmed.count_unconfirmed_stops(self.tasks.take_unconfirmed_stops());
        let new_key = new_key(node).filter(|key| self.known_key != Some(*key));
        let known = new_key.filter(|_| programmed.knows_keys(node, &view));
        if let Some(key) = known {
            self.known_key = known;
            messages.push(Message::KnownTunnelKey(key.to_vec().into()));
        }
        let trusts = view.cluster().and_then(|cluster| trust::news(cluster, node));
        if trusts != self.trusts {
            messages.extend(trusts.clone().map(Message::Trusts));
            self.trusts = trusts;
        }
        programmed.set_holding(node_id, self.tasks.held_until().is_some() || new_key != known);
        Some(messages)
    }

    /// Returns the keys of which the worker is to accept grants, if it does not know them.
    fn grant_keys(&mut self, view: &Tables) -> Option<GrantKeys> {
        let keys = trust::grant_keys(view.cluster()?);
        // The answer to the registration had the one that signs.
        let is_known = self.grant_keys.as_ref().map_or(keys.len() == 1, |known| *known == keys);
        if is_known && self.grant_keys.is_some() {
            return None;
        }
        let public = |key: &Secret| Some(GrantKey::from_der(&key.0)?.public_key().into());
        let message = GrantKeys { public_keys: keys.iter().filter_map(public).collect() };
        self.grant_keys = Some(keys);
        (!is_known).then_some(message)
    }
}

/// Returns the key with which the node is going to replace its other one.
fn new_key(node: &Node) -> Option<[u8; 32]> {
    match node.description.tunnel_keys[..] {
        [_, new] => Some(new.public),
        _ => None,
    }
}

async fn send(outbox: &SessionOutbox, message: Message) -> Result<(), Status> {
    outbox.send(outgoing(message)).await.map_err(|_| Status::cancelled("the worker has disconnected"))
}

/// Returns the managers that can be called, and the role of the node that is told.
fn current_managers(view: &Tables, told: &Node) -> Managers {
    let peer = |node: &Arc<Node>| Peer { node_id: node.id.to_string(), address: node.address.clone() };
    // One that was promoted has no Raft id before its manager starts.
    let managers = view.managers().filter(|node| node.raft_id.is_some()).map(peer).collect();
    Managers { managers, role: Some(pt::Role::from(told.role).into()) }
}
