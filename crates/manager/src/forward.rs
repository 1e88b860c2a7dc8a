//! A request to a follower goes on to the leader, whole, as it came: one place, for every method.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use flota_api::reason::Reason;
use flota_identity::Peer;

use crate::manager::Manager;

/// On a request that a follower sent on; it is not sent on again.
const FORWARDED: &str = "flota-forwarded";
/// On a request that is to be answered by whoever was asked.
pub const STALE: &str = "flota-stale";
/// How long a request waits for a leader to be found.
const LEADER_WAIT: Duration = Duration::from_secs(4);

/// The node that a request came from, as the manager that sent it on read it from the certificate.
const CALLER: &str = "flota-caller";

/// The node that another manager sent this request on for. Only to be believed when the certificate is a manager's.
pub(crate) fn forwarded_for(metadata: &tonic::metadata::MetadataMap) -> Option<&str> {
    metadata.get(CALLER).filter(|_| metadata.contains_key(FORWARDED))?.to_str().ok()
}

/// Serves requests here while this manager leads, else sends them to the leader.
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
    manager: Manager,
}

impl<S> Forward<S> {
    /// Around `inner`.
    pub fn new(inner: S, manager: Manager) -> Self {
        Self { inner, manager }
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
        // Each call takes its own clone, and waits for that.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let (inner, manager) = (self.inner.clone(), self.manager.clone());
        Box::pin(async move {
            if request.headers().contains_key(STALE) {
                return inner.oneshot(request).await;
            }
            match tokio::time::timeout(LEADER_WAIT, find_leader(&manager)).await {
                Ok(None) => inner.oneshot(request).await,
                Ok(Some(_)) if request.headers().contains_key(FORWARDED) => {
                    Ok(Status::unavailable("leadership has just moved; try again").into_http())
                }
                Ok(Some(address)) => Ok(tokio::select! {
                    biased;
                    response = send(&manager, &address, request) => response,
                    // A machine that is gone answers nothing: the next leader is not waited for any longer than itself.
                    () = moved(&manager, &address) => {
                        Status::unavailable("leadership has just moved; try again").into_http()
                    }
                }),
                Err(_) => Ok(no_leader(&manager).into_http()),
            }
        })
    }
}

fn no_leader(manager: &Manager) -> Status {
    let voters = manager.raft.members().iter().filter(|member| member.votes).count();
    let text = format!("no leader: fewer than {} of {voters} managers answer each other", voters / 2 + 1);
    Reason::NoLeader.attach(Status::unavailable(text))
}

/// `None`: this manager leads and has taken up its work. Waits while nobody does.
async fn find_leader(manager: &Manager) -> Option<String> {
    let (mut leadership, mut leading) = (manager.raft.leadership(), manager.leading.clone());
    loop {
        if leading.borrow_and_update().is_some() {
            return None;
        }
        let state = leadership.borrow_and_update().clone();
        if !state.is_self
            && let Some(address) = manager.leader_address()
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

/// Until somebody else leads than the manager at `address`.
async fn moved(manager: &Manager, address: &str) {
    let mut leadership = manager.raft.leadership();
    loop {
        let leader = leadership.borrow_and_update().leader;
        if leader.is_some() && manager.leader_address().is_some_and(|leader| leader != address) {
            return;
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

async fn send(manager: &Manager, address: &str, request: Request<Body>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    parts.headers.insert(FORWARDED, HeaderValue::from_static("1"));
    // Whatever the caller itself wrote there is overwritten.
    parts.headers.remove(CALLER);
    let caller = parts.extensions.get::<Peer>().and_then(Peer::node_id);
    if let Some(caller) = caller.and_then(|id| HeaderValue::from_str(id.as_str()).ok()) {
        parts.headers.insert(CALLER, caller);
    }
    parts.extensions.clear();
    let path = parts.uri.path().to_owned();
    // The channel needs an absolute URI; its connector alone decides where it goes.
    let uri = http::Uri::builder().scheme("http").authority("flota").path_and_query(path).build();
    let Ok(uri) = uri else { return Status::invalid_argument("the method's path is malformed").into_http() };
    parts.uri = uri;
    let channel = manager.dialer.manager(address);
    match channel.oneshot(Request::from_parts(parts, body)).await {
        Ok(response) => response,
        Err(error) => Status::unavailable(format!("the leader at {address} does not answer: {error}")).into_http(),
    }
}
