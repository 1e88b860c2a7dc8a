//! Forwards a follower's requests to the leader, unchanged, in one place for all methods. The manager wraps each
//! service that only the leader can serve in a [`Forward`].

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use flota_api::reason::Reason;
use flota_identity::{Dialer, Peer};

use crate::replica::Replica;

/// Header of a request that a follower has forwarded; it is not forwarded again.
const FORWARDED: &str = "flota-forwarded";
/// Header of a request that any manager may answer from its own copy of the store.
pub const STALE: &str = "flota-stale";
/// How long a request waits for a leader.
const LEADER_WAIT: Duration = Duration::from_secs(4);

/// Header with the node that a request came from, as the forwarding manager read it from the certificate.
const CALLER: &str = "flota-caller";

/// Returns the node for which another manager has forwarded this request. The caller must check that the certificate is
/// a manager's.
pub(crate) fn forwarded_for(metadata: &tonic::metadata::MetadataMap) -> Option<&str> {
    metadata.get(CALLER).filter(|_| metadata.contains_key(FORWARDED))?.to_str().ok()
}

/// The channel to the leader, which followers keep. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct LeaderChannel {
    dialer: Dialer,
    known: Arc<Mutex<Option<(String, Channel)>>>,
}

impl LeaderChannel {
    /// Creates a channel that connects through `dialer` when it is first used.
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self { dialer, known: Arc::default() }
    }

    /// Returns the channel to the leader at `address`.
    fn to(&self, address: &str) -> Channel {
        let mut known = self.known.lock().expect("no holder panics");
        if let Some((_, channel)) = known.as_ref().filter(|(at, _)| at == address) {
            return channel.clone();
        }
        let channel = self.dialer.manager(address);
        *known = Some((address.to_owned(), channel.clone()));
        channel
    }
}

/// Serves requests here while this manager leads, and sends them to the leader otherwise.
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
    replica: Replica,
    leader: LeaderChannel,
}

impl<S> Forward<S> {
    /// Wraps `inner`. The leader is reached through `leader`.
    pub(crate) fn new(inner: S, replica: Replica, leader: LeaderChannel) -> Self {
        Self { inner, replica, leader }
    }
}

impl<S: tonic::server::NamedService> tonic::server::NamedService for Forward<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Forward<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each call uses its own clone of `inner`, and waits until that one is ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let Self { inner, replica, leader } = self.clone();
        Box::pin(async move {
            if request.headers().contains_key(STALE) {
                return inner.oneshot(request).await;
            }
            match tokio::time::timeout(LEADER_WAIT, find_leader(&replica)).await {
                Ok(None) => inner.oneshot(request).await,
                Ok(Some(_)) if request.headers().contains_key(FORWARDED) => Ok(moved_on().into_http()),
                Ok(Some(address)) => Ok(tokio::select! {
                    biased;
                    response = send(leader.to(&address), &address, request) => response,
                    // A dead leader may never answer, so the request ends as soon as another leader is known.
                    () = moved(&replica, &address) => {
                        moved_on().into_http()
                    }
                }),
                Err(_) => Ok(no_leader(&replica).into_http()),
            }
        })
    }
}

fn moved_on() -> Status {
    Reason::LeadershipMoved.attach(Status::unavailable("leadership has just moved; try again"))
}

fn no_leader(replica: &Replica) -> Status {
    let voters = replica.raft.members().iter().filter(|member| member.votes).count();
    let text = format!("no leader: fewer than {} of {voters} managers answer each other", voters / 2 + 1);
    Reason::NoLeader.attach(Status::unavailable(text))
}

/// Returns the leader's address, or `None` when this manager leads and has started its work. Waits while there is no
/// leader.
async fn find_leader(replica: &Replica) -> Option<String> {
    let (mut leadership, mut leading) = (replica.raft.leadership(), replica.leading.clone());
    loop {
        if leading.borrow_and_update().is_some() {
            return None;
        }
        let state = leadership.borrow_and_update().clone();
        if !state.is_self
            && let Some(address) = replica.leader_address()
        {
            return Some(address);
        }
        tokio::select! {
            biased;
            changed = leadership.changed() => if changed.is_err() { return std::future::pending().await },
            changed = leading.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

/// Waits until a manager other than the one at `address` leads.
async fn moved(replica: &Replica, address: &str) {
    let mut leadership = replica.raft.leadership();
    loop {
        let leader = leadership.borrow_and_update().leader;
        if leader.is_some() && replica.leader_address().is_some_and(|leader| leader != address) {
            return;
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

async fn send(channel: Channel, address: &str, request: Request<Body>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    parts.headers.insert(FORWARDED, HeaderValue::from_static("1"));
    // Clients must not set this header themselves.
    parts.headers.remove(CALLER);
    let caller = parts.extensions.get::<Peer>().and_then(Peer::node_id);
    if let Some(caller) = caller.and_then(|id| HeaderValue::from_str(id.as_str()).ok()) {
        parts.headers.insert(CALLER, caller);
    }
    parts.extensions.clear();
    let path = parts.uri.path().to_owned();
    // The channel needs an absolute URI; its connector alone determines the destination.
    let uri = http::Uri::builder().scheme("http").authority("flota").path_and_query(path).build();
    let Ok(uri) = uri else { return Status::invalid_argument("the method's path is malformed").into_http() };
    parts.uri = uri;
    match channel.oneshot(Request::from_parts(parts, body)).await {
        Ok(response) => response,
        Err(error) => {
            let text = format!("the leader at {address} does not answer: {error}");
            Reason::OutcomeUnknown.attach(Status::unavailable(text)).into_http()
        }
    }
}
