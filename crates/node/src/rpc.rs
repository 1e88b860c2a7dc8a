//! Access control for the port (mutual TLS, for nodes) and the local socket (for this machine's root). Each call is
//! checked against the table in `flota_identity` before any service sees it.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Service, ServiceExt};

use flota_api::id::NodeId;
use flota_api::model::Role;
use flota_api::reason::Reason;
use flota_identity::{CertifiedRole, Peer, Sources, may_call};
use flota_manager::Manager;

use crate::calls::Calls;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The method with which a machine joins.
const JOIN: &str = "/flota.ca.NodeCa/IssueCertificate";

/// Returns the caller of the method at the path with the role that the store gives it; `None` if it may do nothing.
type Rightful = Arc<dyn Fn(&Peer, &str) -> Option<Peer> + Send + Sync>;
/// Returns why a node with a valid certificate is refused all the same, if it is.
type Bars = Arc<dyn Fn(&NodeId) -> Option<Reason> + Send + Sync>;

/// Passes a call on only if the table allows it.
#[derive(Clone)]
pub(crate) struct Authorize<S> {
    inner: S,
    /// The identity of all callers of this listener, if the connections do not have their own.
    peer: Option<Peer>,
    rightful: Rightful,
    bars: Bars,
    /// Counts the calls of peers without a certificate.
    sources: Sources,
    /// Counts the calls of users.
    calls: Calls,
}

impl<S> fmt::Debug for Authorize<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorize").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<S> Authorize<S> {
    /// For the local socket, whose callers are all this machine's root.
    pub(crate) fn local(inner: S) -> Self {
        let (rightful, bars): (Rightful, Bars) = (Arc::new(|peer, _| Some(peer.clone())), Arc::new(|_| None));
        Self { inner, peer: Some(Peer::Local), rightful, bars, sources: Sources::default(), calls: Calls::default() }
    }

    /// For the node's port. A worker's port has no `manager`: it serves only images, and demands a grant for each.
    pub(crate) fn port(inner: S, manager: Option<Manager>, sources: Sources, calls: Calls) -> Self {
        let known = manager.clone();
        let bars = move |id: &NodeId| known.as_ref()?.bars(id);
        let rightful = move |peer: &Peer, path: &str| match &manager {
            Some(manager) => manager.rightful(peer, path),
            None => Some(peer.clone()),
        };
        Self { inner, peer: None, rightful: Arc::new(rightful), bars: Arc::new(bars), sources, calls }
    }

    /// Returns the answer to a caller who may not make this call; `None` if it may. It then appears to the service with the
    /// role that it has now.
    fn refusal(&self, request: &mut Request<Body>) -> Option<Status> {
        let path = request.uri().path();
        let peer = request.extensions().get::<Peer>().filter(|peer| may_call(peer, path));
        let denied = || Reason::Denied.attach(Status::permission_denied("this caller may not call this method"));
        let Some(peer) = peer else { return Some(denied()) };
        // The manager that leads finds out what the user may do (`manager/admission.rs`).
        if matches!(peer, Peer::User { .. }) {
            return None;
        }
        // A removed node may still open a session, because there it learns that it was removed, and repeat a request to
        // leave whose answer was lost. It speaks for itself alone, as a worker does.
        let is_farewell = path.starts_with("/flota.dispatcher.Dispatcher/") || path == "/flota.ca.NodeCa/LeaveRaft";
        if let Some(reason) = peer.node_id().filter(|_| !is_farewell).and_then(|id| (self.bars)(id)) {
            return Some(reason.attach(Status::permission_denied("the cluster has removed this node")));
        }
        let rightful = (self.rightful)(peer, path).or_else(|| match peer {
            Peer::Node { id, address, key, .. } if is_farewell => {
                Some(Peer::Node { id: id.clone(), role: Role::Worker, address: *address, key: key.clone() })
            }
            _ => None,
        });
        // Its certificate allows the call, so it was a manager, and passes on what its users ask of it.
        let Some(rightful) = rightful.filter(|peer| may_call(peer, path)) else {
            let text = "this node is not a manager any more; use a manager's socket";
            return Some(Reason::NotAManager.attach(Status::failed_precondition(text)));
        };
        if let Peer::Node { role, .. } = peer {
            let certified = CertifiedRole(*role);
            request.extensions_mut().insert(certified);
        }
        request.extensions_mut().insert(rightful);
        None
    }

    /// Whether the caller has a certificate, or its address has not made too many calls without one.
    fn is_in_time(&self, request: &Request<Body>) -> bool {
        match request.extensions().get::<Peer>() {
            Some(Peer::Anonymous { address }) => self.sources.may_call(address.ip()),
            _ => true,
        }
    }
}

/// Returns the address of a caller who tries a join token with this node. Tries that a manager forwards were counted there.
fn tries_token(request: &Request<Body>) -> Option<IpAddr> {
    match request.extensions().get::<Peer>().filter(|_| request.uri().path() == JOIN)? {
        Peer::Anonymous { address } | Peer::Node { role: Role::Worker, address, .. } => Some(address.ip()),
        Peer::Node { .. } | Peer::User { .. } | Peer::Local => None,
    }
}

/// Logs a join token that was refused; any other outcome does not count as a wrong token.
fn judge_try(response: &Response<Body>, address: IpAddr, sources: &Sources) {
    match Status::from_header_map(response.headers()) {
        Some(status) if Reason::of(&status) == Some(Reason::BadToken) => {
            tracing::warn!(%address, error = status.message(), "a join token was refused");
        }
        _ => sources.token_was_not_wrong(address),
    }
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        let refused = if let Some(refusal) = self.refusal(&mut request) {
            refusal
        } else if !self.is_in_time(&request) {
            let text = "too many calls without a certificate come from this address; try again later";
            Reason::Busy.attach(Status::unavailable(text))
        } else if let Some(address) = tries_token(&request) {
            if self.sources.may_try_token(address) {
                let (answer, sources) = (self.inner.call(request), self.sources.clone());
                return Box::pin(async move {
                    let response = answer.await?;
                    judge_try(&response, address, &sources);
                    Ok(response)
                });
            }
            tracing::debug!(%address, "too many wrong join tokens of this address");
            let text = "too many wrong join tokens came from this address; try again in a minute";
            Reason::Busy.attach(Status::unavailable(text))
        } else if let Some(Peer::User { name, .. }) = request.extensions().get::<Peer>() {
            if let Some(place) = self.calls.take(name) {
                let answer = self.inner.call(request);
                return Box::pin(async move { Ok(place.hold(answer.await?)) });
            }
            let text = format!("user `{name}` has too many requests open at this manager");
            Reason::Busy.attach(Status::resource_exhausted(text))
        } else {
            return Box::pin(self.inner.call(request));
        };
        Box::pin(std::future::ready(Ok(refused.into_http())))
    }
}

/// The state of this node's manager.
#[derive(Clone, Debug)]
pub(crate) enum ManagerState {
    /// The daemon is starting.
    Starting,
    /// The manager is running.
    Running(Box<Manager>),
    /// The manager does not start before somebody opens its keys.
    Locked,
    /// The node is a worker, or belongs to no cluster.
    Absent,
}

impl ManagerState {
    /// Returns the manager, or the status to refuse a caller with.
    pub(crate) fn running(self) -> Result<Manager, Status> {
        match self {
            Self::Running(manager) => Ok(*manager),
            Self::Starting => Err(starting()),
            Self::Locked => Err(Reason::Locked.attach(Status::failed_precondition(
                "this manager is locked; open its keys with `ctl swarm unlock` on its machine",
            ))),
            Self::Absent => Err(Reason::NotAManager.attach(Status::failed_precondition(
                "this node is not a manager; use a manager's socket, or start a cluster with `ctl swarm init`",
            ))),
        }
    }
}

/// The status of a manager that can't answer yet. Callers try another manager, or this one again.
pub(crate) fn starting() -> Status {
    Reason::Starting.attach(Status::unavailable("this manager is starting"))
}

/// Control on the local socket, served by the manager that the node has when the call arrives.
#[derive(Clone, Debug)]
pub(crate) struct LocalControl(pub(crate) watch::Receiver<ManagerState>);

impl NamedService for LocalControl {
    const NAME: &'static str = "flota.control.Control";
}

impl Service<Request<Body>> for LocalControl {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let manager = self.0.borrow().clone().running();
        Box::pin(async move {
            match manager {
                Ok(manager) => manager.control().oneshot(request).await,
                Err(refusal) => Ok(refusal.into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_removed_node_may_say_farewell_and_a_demoted_one_what_workers_may() {
        // A service may look at the role of its caller, so that is the one that the store gives.
        let served = tower::service_fn(|request: Request<Body>| async move {
            let peer = request.extensions().get::<Peer>().expect("a caller");
            let is_member = peer.node_id().is_some_and(|id| id.as_str() == "member");
            assert_eq!(matches!(peer, Peer::Node { role: Role::Manager, .. }), is_member, "{peer:?}");
            Ok(Response::new(Body::empty()))
        });
        let rightful: Rightful = Arc::new(|peer, _| match peer {
            Peer::Node { id, .. } if ["removed", "leaving"].contains(&id.as_str()) => None,
            Peer::Node { id, address, key, .. } if id.as_str() == "demoted" => {
                Some(Peer::Node { id: id.clone(), role: Role::Worker, address: *address, key: key.clone() })
            }
            _ => Some(peer.clone()),
        });
        let bars: Bars = Arc::new(|id| match id.as_str() {
            "leaving" => Some(Reason::Denied),
            "removed" => Some(Reason::NodeRemoved),
            _ => None,
        });
        let mut port = Authorize {
            inner: served,
            peer: None,
            rightful,
            bars,
            sources: Sources::default(),
            calls: Calls::default(),
        };
        let mut refusal = async |id: &str, path: &str| {
            let address = ([127, 0, 0, 1], 1).into();
            let mut request = Request::builder().uri(path).body(Body::empty()).expect("a request");
            request.extensions_mut().insert(Peer::Node {
                id: id.into(),
                role: Role::Manager,
                address,
                key: String::new(),
            });
            let response = port.call(request).await.expect("it is infallible");
            Status::from_header_map(response.headers()).map(|status| Reason::of(&status).expect("it has a reason"))
        };
        for path in ["/flota.control.Control/ListNodes", "/flota.raft.RaftTransport/Vote", "/flota.ca.NodeCa/JoinRaft"]
        {
            assert_eq!(refusal("member", path).await, None, "{path}");
            assert_eq!(refusal("leaving", path).await, Some(Reason::Denied), "{path}");
            assert_eq!(refusal("demoted", path).await, Some(Reason::NotAManager), "{path}");
            assert_eq!(refusal("removed", path).await, Some(Reason::NodeRemoved), "{path}");
        }
        for path in ["/flota.dispatcher.Dispatcher/Session", "/flota.ca.NodeCa/LeaveRaft"] {
            assert_eq!(refusal("removed", path).await, None, "{path}");
            assert_eq!(refusal("demoted", path).await, None, "{path}");
        }
        assert_eq!(refusal("removed", "/flota.node.LocalNode/Init").await, Some(Reason::Denied));
    }

    #[tokio::test]
    async fn wrong_join_tokens_are_bounded_for_each_address_and_right_ones_are_not() {
        let served = tower::service_fn(|request: Request<Body>| async move {
            let is_wrong = request.headers().contains_key("wrong");
            let refused = || Reason::BadToken.attach(Status::unauthenticated("it is wrong")).into_http();
            Ok(if is_wrong { refused() } else { Response::new(Body::empty()) })
        });
        let rightful: Rightful = Arc::new(|peer, _| Some(peer.clone()));
        let bars: Bars = Arc::new(|_| None);
        let mut port = Authorize {
            inner: served,
            peer: None,
            rightful,
            bars,
            sources: Sources::default(),
            calls: Calls::default(),
        };
        let mut answer = async |peer: Peer, is_wrong: bool| {
            let mut request = Request::builder().uri(JOIN).body(Body::empty()).expect("a request");
            request.extensions_mut().insert(peer);
            if is_wrong {
                request.headers_mut().insert("wrong", http::HeaderValue::from_static("1"));
            }
            let response = port.call(request).await.expect("it is infallible");
            Status::from_header_map(response.headers()).and_then(|status| Reason::of(&status))
        };
        let stranger = |last: u8| Peer::Anonymous { address: ([10, 0, 0, last], 1).into() };
        for _ in 0..50 {
            assert_eq!(answer(stranger(1), false).await, None);
        }
        for _ in 0..10 {
            assert_eq!(answer(stranger(1), true).await, Some(Reason::BadToken));
        }
        for is_wrong in [true, false] {
            assert_eq!(answer(stranger(1), is_wrong).await, Some(Reason::Busy), "not even a right one is looked at");
        }
        assert_eq!(answer(stranger(2), false).await, None);
        // A follower has counted for the machines whose tries it forwards.
        let (address, key) = (([10, 0, 0, 3], 1).into(), String::new());
        let follower = Peer::Node { id: "m".into(), role: Role::Manager, address, key };
        for _ in 0..50 {
            assert_eq!(answer(follower.clone(), true).await, Some(Reason::BadToken));
        }
    }

    #[tokio::test]
    async fn a_starting_manager_and_a_worker_refuse_with_different_reasons() {
        let (state, receiver) = watch::channel(ManagerState::Starting);
        let mut control = LocalControl(receiver);
        let mut answer = async || {
            let request = Request::new(Body::empty());
            let response = control.call(request).await.expect("it is infallible");
            let status = Status::from_header_map(response.headers()).expect("a status");
            (status.code(), Reason::of(&status))
        };
        assert_eq!(answer().await, (tonic::Code::Unavailable, Some(Reason::Starting)));
        state.send_replace(ManagerState::Absent);
        assert_eq!(answer().await, (tonic::Code::FailedPrecondition, Some(Reason::NotAManager)));
    }
}
