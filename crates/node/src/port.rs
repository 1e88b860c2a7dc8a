//! The node's port: what is served there depends on the role of the node. Which caller may call what is checked in `rpc.rs`
//! for each call; a node that loses rights also loses the connections that it has open.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use flota_api::clock::Clock;
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::id::NodeId;
use flota_api::object::Kind;
use flota_api::proto::raft::raft_transport_server::RaftTransportServer;
use flota_api::version::Timestamp;
use flota_identity::{CONNECTION_WINDOW, Credentials, STREAM_WINDOW, Sources};
use flota_manager::Manager;
use flota_raft_store::{Store, Tables};
use flota_worker::Worker;

use crate::calls::Calls;
use crate::rpc::Authorize;

/// Interval and timeout of HTTP/2 keepalive: a peer that does not answer is dropped after twice this time.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Largest number of concurrent calls on one connection.
const STREAMS: u32 = 1_024;
/// How long the listener of the earlier role may take to go.
const BIND_WAIT: Duration = Duration::from_secs(10);
/// Pause between two attempts to bind.
const BIND_PAUSE: Duration = Duration::from_millis(5);
/// How long a node that has lost rights keeps its connections. Each of its calls is refused from the first moment; within this
/// time it gets the answer to its request to leave, and learns of the change in its session.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long nothing is looked at if nothing changes and no certificate expires.
const LONG: Duration = Duration::from_secs(3_600);

/// Listens at the node's port.
///
/// # Errors
/// The port is taken, or is not one of this machine.
pub(crate) async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| format!("failed to listen at {listen}"))
}

/// Listens at the port that this daemon has just closed; its old listener may take a moment to go.
///
/// # Errors
/// The port does not become free.
pub(crate) async fn bind_again(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let until = tokio::time::Instant::now() + BIND_WAIT;
    loop {
        match TcpListener::bind(listen).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tokio::time::Instant::now() < until => {
                tokio::time::sleep(BIND_PAUSE).await;
            }
            bound => return bound.with_context(|| format!("failed to listen again at {listen}")),
        }
    }
}

/// Serves the node's port until `shutdown` is cancelled.
pub(crate) fn serve(
    listener: TcpListener,
    credentials: &Credentials,
    manager: Option<&Manager>,
    worker: &Worker,
    shutdown: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let raft = manager.map(|manager| manager.raft().runtime());
    let sources = Sources::default();
    let (incoming, raft_incoming) =
        flota_identity::incoming(listener, credentials.clone(), raft.clone(), sources.clone());
    if let Some(manager) = manager {
        tokio::spawn(end_connections(manager.store().clone(), sources.clone(), shutdown.clone()));
    }
    let (known, calls) = (manager.cloned(), Calls::default());
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(STREAMS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(tower::layer::layer_fn(move |inner| {
            Authorize::port(inner, known.clone(), sources.clone(), calls.clone())
        }));
    let mut router = server.clone().add_service(worker.image_server());
    if let Some(manager) = manager {
        router = router
            .add_service(manager.ca())
            .add_service(manager.control())
            .add_service(manager.dispatcher())
            .add_service(manager.streams());
    }
    if let (Some(manager), Some(raft)) = (manager, raft) {
        let transport = RaftTransportServer::new(manager.raft().transport())
            .max_decoding_message_size(MESSAGE_BOUND)
            .max_encoding_message_size(MESSAGE_BOUND);
        // On Raft's own threads, so that neither requests nor image transfers delay a heartbeat.
        let served = server
            .add_service(transport)
            .serve_with_incoming_shutdown(ReceiverStream::new(raft_incoming), shutdown.clone().cancelled_owned());
        raft.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "failed to serve Raft connections");
            }
        });
    }
    let served = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), shutdown.cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "failed to serve connections of nodes");
        }
    })
}

/// The nodes with more rights than any worker, those without any, and what users are known by.
#[derive(Debug, Default, PartialEq, Eq)]
struct Standing {
    managers: BTreeSet<NodeId>,
    removed: BTreeSet<NodeId>,
    /// The keys of the certificates of users that have not expired.
    users: BTreeSet<String>,
    /// When the next one of these expires.
    next_expiry: Option<Timestamp>,
}

impl Standing {
    fn of(view: &Tables, now: Timestamp) -> Self {
        let users = || view.users().flat_map(|user| &user.certificates).filter(|it| it.expires_at > now);
        let removed = view.cluster().into_iter().flat_map(|cluster| &cluster.revoked);
        Self {
            managers: view.managers().map(|node| node.id.clone()).collect(),
            removed: removed.map(|it| it.node_id.clone()).collect(),
            users: users().map(|it| it.key.clone()).collect(),
            next_expiry: users().map(|it| it.expires_at).min(),
        }
    }

    /// Returns the keys of the certificates by which no user is known any more.
    fn lost_users<'a>(&'a self, now: &'a Self) -> impl Iterator<Item = &'a String> {
        self.users.difference(&now.users)
    }

    /// Returns the nodes that have fewer rights now than before.
    fn lost(&self, now: &Self) -> BTreeSet<NodeId> {
        let demoted = self.managers.difference(&now.managers);
        demoted.chain(now.removed.difference(&self.removed)).cloned().collect()
    }
}

/// Ends the connections of each node that is demoted or removed, a moment after that, and those of users that are removed or
/// whose certificate has expired, until `shutdown` is cancelled.
async fn end_connections(store: Store, sources: Sources, shutdown: CancellationToken) {
    let clock = Clock::system();
    let mut known = Standing::of(&store.view(), clock.now());
    loop {
        let mut changes = store.watch_kinds(&[Kind::Cluster, Kind::Node, Kind::User]);
        let at = clock.now();
        let now = Standing::of(&store.view(), at);
        // Nothing is sent to a user before the end.
        known.lost_users(&now).for_each(|key| sources.end_user(key));
        let lost = known.lost(&now);
        if !lost.is_empty() {
            let sources = sources.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LAST_WORDS).await;
                lost.iter().for_each(|node| sources.end(node));
            });
        }
        known = now;
        let expiry = known.next_expiry.map_or(LONG, |next| at.until(next).min(LONG));
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(expiry) => {}
            () = changes.next() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Cluster, Node, NodeCertificate, Revoked, Role, User};
    use flota_api::object::StoreObject;

    #[test]
    fn who_is_demoted_or_removed_loses_its_connections_and_nobody_else() {
        let standing = |nodes: &[(&str, Role)], revoked: &[&str]| {
            let mut view = Tables::default();
            let revoked = revoked.iter().map(|id| Revoked { node_id: (*id).into(), until: Timestamp(9) }).collect();
            view.put(Cluster { revoked, ..Cluster::default() }.into_object());
            for (id, role) in nodes {
                view.put(Node { id: (*id).into(), role: *role, ..Node::default() }.into_object());
            }
            Standing::of(&view, Timestamp(5))
        };
        let (worker, manager) = (Role::Worker, Role::Manager);
        let before = standing(&[("a", manager), ("b", manager), ("w", worker), ("x", worker)], &["old"]);
        let lost = |now: Standing| before.lost(&now).into_iter().map(|id| id.to_string()).collect::<Vec<_>>();
        let demoted = standing(&[("a", manager), ("b", worker), ("w", worker), ("x", worker)], &["old"]);
        assert_eq!(lost(demoted), ["b"]);
        assert_eq!(lost(standing(&[("a", manager), ("b", manager), ("w", worker)], &["old", "x"])), ["x"]);
        let promoted = standing(&[("a", manager), ("b", manager), ("w", manager), ("x", worker)], &[]);
        assert!(lost(promoted).is_empty());
    }

    #[test]
    fn a_user_that_was_removed_or_has_another_certificate_loses_its_connections() {
        let at = |now: u64, users: &[(&str, &[&str])]| {
            let mut view = Tables::default();
            for (name, keys) in users {
                let certificate = |key: &&str| NodeCertificate { key: (*key).into(), expires_at: Timestamp(9) };
                let certificates = keys.iter().map(certificate).collect();
                view.put(
                    User { id: (*name).into(), name: (*name).into(), certificates, ..User::default() }.into_object(),
                );
            }
            Standing::of(&view, Timestamp(now))
        };
        let standing = |users: &[(&str, &[&str])]| at(5, users);
        let before = standing(&[("ada", &["a"]), ("bob", &["b"])]);
        let lost = |now: Standing| before.lost_users(&now).cloned().collect::<Vec<_>>();
        assert_eq!(lost(standing(&[("ada", &["a"])])), ["b"]);
        assert_eq!(lost(standing(&[("ada", &["a", "new"]), ("bob", &["b2"])])), ["b"]);
        assert!(lost(standing(&[("ada", &["a"]), ("bob", &["b", "c"]), ("eve", &["e"])])).is_empty());
        assert_eq!(before.next_expiry, Some(Timestamp(9)));
        let expired = at(9, &[("ada", &["a"]), ("bob", &["b"])]);
        assert_eq!(expired.next_expiry, None);
        assert_eq!(lost(expired), ["a", "b"], "their certificates have expired");
    }
}
