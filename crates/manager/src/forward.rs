//! Forwards a follower's requests to the leader, unchanged, in one place for all methods. The manager wraps each
//! service that only the leader can serve in a [`Forward`].

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use flota_api::defaults::{MESSAGE_BOUND, NODE_CA_BOUND};
use flota_api::model::Role;
use flota_api::reason::Reason;
use flota_identity::{Dialer, Peer};

use crate::replica::Replica;

/// Bytes before a message of gRPC (gRPC over HTTP2, "Length-Prefixed-Message").
const GRPC_HEADER: usize = 5;
/// Header of a request that a follower has forwarded; it is not forwarded again.
const FORWARDED: &str = "flota-forwarded";
/// Header of a request that any manager may answer from its own copy of the store.
pub const STALE: &str = "flota-stale";
/// Begin of the paths of the methods that callers without a certificate may call.
const NODE_CA: &str = "/flota.ca.NodeCa/";
/// Path of the method whose request is a stream.
const OPEN_STREAM: &str = "/flota.control.Control/OpenStream";
/// Longest wait for the next part of a request, and for all of one of [`NODE_CA`].
const BODY_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for all of another request.
const LONGEST_BODY_WAIT: Duration = Duration::from_secs(120);
/// How long a request waits for a leader.
const LEADER_WAIT: Duration = Duration::from_secs(4);

/// Header with the node or user that a request came from, as the forwarding manager read it from the certificate; absent for
/// a request of root on that manager.
const CALLER: &str = "flota-caller";
/// Begin of that header if it names a user; the name and the key of its certificate follow. Neither they nor ids of nodes
/// contain a slash.
const USER: &str = "user/";

/// The header of a caller without a certificate, who has no rights by it. No node has this id.
const ANONYMOUS: &str = "-";

/// Whose request another manager has forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardedFor<'a> {
    /// Root on that manager.
    Root,
    /// A node.
    Node(&'a str),
    /// A user.
    User {
        /// Its name.
        name: &'a str,
        /// The key of its certificate.
        key: &'a str,
    },
}

/// Returns for whom another manager has forwarded this request. Only a request of a manager has the headers that say so
/// ([`Forward`] removes them from all others).
pub(crate) fn forwarded_for(headers: &HeaderMap) -> Option<ForwardedFor<'_>> {
    headers.get(FORWARDED)?;
    let Some(caller) = headers.get(CALLER) else { return Some(ForwardedFor::Root) };
    let caller = caller.to_str().ok()?;
    let user = caller.strip_prefix(USER).and_then(|user| user.split_once('/'));
    Some(user.map_or(ForwardedFor::Node(caller), |(name, key)| ForwardedFor::User { name, key }))
}

/// Removes from the request of any other caller than a manager what only a manager may say.
fn remove_forged(request: &mut Request<Body>) {
    let is_manager = matches!(request.extensions().get::<Peer>(), Some(Peer::Node { role: Role::Manager, .. }));
    if !is_manager {
        for name in [FORWARDED, CALLER] {
            request.headers_mut().remove(name);
        }
    }
}

/// Returns what tells the leader who has made a request: nothing stands for root on this manager.
fn named(peer: Option<&Peer>) -> Option<HeaderValue> {
    let text = match peer {
        Some(Peer::Local) => return None,
        Some(Peer::Node { id, .. }) => id.to_string(),
        Some(Peer::User { name, key, .. }) => format!("{USER}{name}/{key}"),
        // A node without a certificate, or this manager itself, which renews its own. What such a request says of itself
        // decides: it has a token or a signature.
        Some(Peer::Anonymous { .. }) | None => ANONYMOUS.to_owned(),
    };
    Some(HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(ANONYMOUS)))
}

/// The channel to the leader, which followers keep.
#[derive(Debug)]
pub(crate) struct LeaderChannel {
    dialer: Dialer,
    known: Mutex<Option<(String, Channel)>>,
}

impl LeaderChannel {
    /// Creates a channel that connects through `dialer` when it is first used.
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self { dialer, known: Mutex::default() }
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

/// Serves requests here while this manager leads, and sends them to the leader otherwise. It is cloned for each request.
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
    replica: Arc<Replica>,
    leader: Arc<LeaderChannel>,
}

impl<S> Forward<S> {
    /// Wraps `inner`. The leader is reached through `leader`.
    pub(crate) fn new(inner: S, replica: Replica, leader: Arc<LeaderChannel>) -> Self {
        Self { inner, replica: Arc::new(replica), leader }
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

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        remove_forged(&mut request);
        let Self { inner, replica, leader } = self.clone();
        Box::pin(async move {
            // A user whom this manager does not know may be new, and is judged where its request is carried out, unread.
            let is_known = match request.extensions().get::<Peer>() {
                Some(Peer::User { name, key, .. }) => {
                    replica.store.view().user_by_name(name).is_some_and(|user| user.certificate(key).is_some())
                }
                _ => true,
            };
            let request = if is_known { whole(request).await } else { Ok(request) };
            let request = match request {
                Ok(request) => request,
                Err(refusal) => return Ok(refusal.into_http()),
            };
            if request.headers().contains_key(STALE) {
                return inner.oneshot(request).await;
            }
            match timeout(LEADER_WAIT, find_leader(&replica)).await {
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

/// Receives all of a request, unless it is a stream. One that is slow takes no place at the leader, whose connection all requests
/// of this manager share, and none here for ever.
async fn whole(request: Request<Body>) -> Result<Request<Body>, Status> {
    let path = request.uri().path();
    if path == OPEN_STREAM {
        return Ok(request);
    }
    let is_ca = path.starts_with(NODE_CA);
    let (bound, most) = match is_ca {
        true => (NODE_CA_BOUND + GRPC_HEADER, BODY_WAIT),
        false => (MESSAGE_BOUND + GRPC_HEADER, LONGEST_BODY_WAIT),
    };
    let (parts, mut body) = request.into_parts();
    let late = || Reason::Busy.attach(Status::deadline_exceeded("the request did not arrive in time"));
    let received = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = timeout(BODY_WAIT, body.frame()).await.map_err(|_| late())? {
            if let Ok(data) = frame?.into_data() {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() > bound {
                let text = format!("the request is over the bound of {} bytes", bound - GRPC_HEADER);
                return Err(Reason::TooLarge.attach(Status::out_of_range(text)));
            }
        }
        Ok(bytes.freeze())
    };
    let bytes = timeout(most, received).await.map_err(|_| late())??;
    Ok(Request::from_parts(parts, Body::new(Full::new(bytes))))
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
    // A manager's own request may have the header by mistake.
    parts.headers.remove(CALLER);
    if let Some(caller) = named(parts.extensions.get::<Peer>()) {
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::StreamExt;
    use http_body_util::StreamBody;

    use super::*;

    const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 1);

    fn node(role: Role) -> Peer {
        Peer::Node { id: "n".into(), role, address: ADDRESS.into(), key: String::new() }
    }

    fn user() -> Peer {
        Peer::User { name: "ada".into(), key: "k".into(), address: ADDRESS.into() }
    }

    fn request(peer: Peer) -> Request<Body> {
        let request = Request::builder().header(FORWARDED, "1").header(CALLER, "user/root/key");
        let mut request = request.body(Body::empty()).expect("a request");
        request.extensions_mut().insert(peer);
        request
    }

    #[test]
    fn only_a_manager_may_say_for_whom_a_request_is() {
        let forged = Some(ForwardedFor::User { name: "root", key: "key" });
        let anonymous = Peer::Anonymous { address: ADDRESS.into() };
        for (peer, believed) in [
            (node(Role::Manager), forged),
            (node(Role::Worker), None),
            (user(), None),
            (Peer::Local, None),
            (anonymous, None),
        ] {
            let mut request = request(peer.clone());
            remove_forged(&mut request);
            assert_eq!(forwarded_for(request.headers()), believed, "{peer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_received_in_time_and_within_its_bound_before_anything_is_done_for_it() {
        let asked = async |path: &str, parts: Vec<Vec<u8>>, ends: bool| {
            let mut frames = Vec::new();
            for part in parts {
                frames.push(Ok::<_, Status>(Full::new(Bytes::from(part)).frame().await.expect("one").expect("a part")));
            }
            let rest = futures::stream::pending().take(usize::from(!ends));
            let body = Body::new(StreamBody::new(futures::stream::iter(frames).chain(rest)));
            whole(Request::builder().uri(path).body(body).expect("a request")).await
        };
        let renew = "/flota.ca.NodeCa/RenewCertificate";
        let list = "/flota.control.Control/ListNodes";
        for path in [renew, list] {
            let received = asked(path, vec![b"ab".to_vec(), b"c".to_vec()], true).await.expect("it is whole");
            assert_eq!(received.into_body().collect().await.expect("it is here").to_bytes().as_ref(), b"abc");
            let late = asked(path, vec![b"ab".to_vec()], false).await.expect_err("the rest never comes");
            assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        }
        for (path, bound) in [(renew, NODE_CA_BOUND), (list, MESSAGE_BOUND)] {
            let large = asked(path, vec![vec![0; bound], vec![0; GRPC_HEADER + 1]], false).await;
            assert_eq!(large.expect_err("it is too large").code(), tonic::Code::OutOfRange);
        }
        // One that comes slowly, for a minute.
        let slow = async |path: &str| {
            let byte = Full::new(Bytes::from_static(b"x")).frame().await.expect("one").expect("a part");
            let bytes = byte.into_data().expect("a byte");
            let parts = futures::stream::iter(0..12).then(move |_| {
                let part = bytes.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    Full::new(part).frame().await.expect("one").map_err(|never| match never {})
                }
            });
            let body = Body::new(StreamBody::new(Box::pin(
                parts.map(|it: Result<_, Infallible>| it.map_err(|never| -> Status { match never {} })),
            )));
            whole(Request::builder().uri(path).body(body).expect("a request")).await
        };
        assert_eq!(slow(renew).await.expect_err("it takes too long").code(), tonic::Code::DeadlineExceeded);
        slow(list).await.expect("users may have slow networks");
        asked(OPEN_STREAM, vec![], false).await.expect("it goes on while it is served");
    }

    #[test]
    fn the_leader_reads_who_has_asked_a_follower() {
        let read = |peer: Option<&Peer>| {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED, HeaderValue::from_static("1"));
            named(peer).map(|caller| headers.insert(CALLER, caller));
            forwarded_for(&headers).map(|it| format!("{it:?}"))
        };
        assert_eq!(read(Some(&user())).as_deref(), Some("User { name: \"ada\", key: \"k\" }"));
        assert_eq!(read(Some(&node(Role::Worker))).as_deref(), Some("Node(\"n\")"));
        assert_eq!(read(Some(&Peer::Local)).as_deref(), Some("Root"));
        let anonymous = Peer::Anonymous { address: ADDRESS.into() };
        for nobody in [Some(&anonymous), None] {
            assert_eq!(read(nobody).as_deref(), Some("Node(\"-\")"), "there is no such node");
        }
        assert_eq!(forwarded_for(&HeaderMap::new()), None);
    }
}
