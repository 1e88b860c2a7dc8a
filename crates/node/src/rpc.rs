//! Access control for the port (mutual TLS, for nodes) and the local socket (for this machine's root). Each call is
//! checked against the table in `flota_identity` before any service sees it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Service, ServiceExt};

use flota_api::reason::Reason;
use flota_identity::{Peer, Sources, may_call};
use flota_manager::Manager;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Passes a call on only if the table allows it.
#[derive(Clone, Debug)]
pub(crate) struct Authorize<S> {
    inner: S,
    /// The identity of all callers of this listener, if the connections do not have their own.
    peer: Option<Peer>,
    /// Knows which nodes were removed. `None` on a worker, which serves only images, for which it demands a grant.
    manager: Option<Manager>,
    /// Counts the calls of peers without a certificate.
    sources: Sources,
}

impl<S> Authorize<S> {
    pub(crate) fn new(inner: S, peer: Option<Peer>, manager: Option<Manager>, sources: Sources) -> Self {
        Self { inner, peer, manager, sources }
    }

    fn allows(&self, request: &Request<Body>) -> bool {
        let Some(peer) = request.extensions().get::<Peer>() else { return false };
        let path = request.uri().path();
        // A removed node may still open a session, because there it learns that it was removed, and repeat a request to
        // leave whose answer was lost.
        let is_farewell = path.starts_with("/flota.dispatcher.Dispatcher/") || path == "/flota.ca.NodeCa/LeaveRaft";
        let revoked = |id| self.manager.as_ref().is_some_and(|manager| manager.is_revoked(id));
        may_call(peer, path) && (is_farewell || !peer.node_id().is_some_and(revoked))
    }

    /// Whether the caller has a certificate, or its address has not made too many calls without one.
    fn is_in_time(&self, request: &Request<Body>) -> bool {
        match request.extensions().get::<Peer>() {
            Some(Peer::Anonymous { address }) => self.sources.may_call(address.ip()),
            _ => true,
        }
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
        let refused = if !self.allows(&request) {
            Reason::Denied.attach(Status::permission_denied("this caller may not call this method"))
        } else if !self.is_in_time(&request) {
            let text = "too many calls without a certificate come from this address; try again later";
            Reason::Busy.attach(Status::unavailable(text))
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
    /// The node is a worker, or belongs to no cluster.
    Absent,
}

impl ManagerState {
    /// Returns the manager, or the status to refuse a caller with.
    pub(crate) fn running(self) -> Result<Manager, Status> {
        match self {
            Self::Running(manager) => Ok(*manager),
            Self::Starting => Err(starting()),
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
