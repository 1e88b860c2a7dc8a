//! What listens: one port with mutual TLS for nodes, one socket for this machine's root. Each call is held against
//! the table of who may call what before anything else sees it.

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
use flota_identity::{Peer, may_call};
use flota_manager::Manager;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Lets a call through only where the table allows it.
#[derive(Clone, Debug)]
pub(crate) struct Authorize<S> {
    inner: S,
    /// Who everybody on this listener is, where the connection does not say it.
    everyone: Option<Peer>,
    /// Knows which nodes were removed; a worker does not: there the leader's grants decide.
    manager: Option<Manager>,
}

impl<S> Authorize<S> {
    pub(crate) fn new(inner: S, everyone: Option<Peer>, manager: Option<Manager>) -> Self {
        Self { inner, everyone, manager }
    }

    fn allows(&self, request: &Request<Body>) -> bool {
        let Some(peer) = request.extensions().get::<Peer>() else { return false };
        let path = request.uri().path();
        // A session may begin all the same: that is where a removed node is told so.
        let session = path.starts_with("/flota.dispatcher.Dispatcher/");
        let revoked = |id| self.manager.as_ref().is_some_and(|manager| manager.is_revoked(id));
        may_call(peer, path) && (session || !peer.node_id().is_some_and(revoked))
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
        if let Some(peer) = &self.everyone {
            request.extensions_mut().insert(peer.clone());
        }
        if self.allows(&request) {
            return Box::pin(self.inner.call(request));
        }
        let refused = Status::permission_denied("this caller may not call this method");
        Box::pin(std::future::ready(Ok(refused.into_http())))
    }
}

/// What this node's manager is doing.
#[derive(Clone, Debug)]
pub(crate) enum ManagerState {
    /// The daemon has just started, and takes up its place in its cluster.
    Starting,
    /// The manager serves.
    Running(Box<Manager>),
    /// The node is a worker, or belongs to no cluster.
    Absent,
}

impl ManagerState {
    /// The manager, or the refusal for whoever wants it.
    pub(crate) fn running(self) -> Result<Manager, Status> {
        match self {
            Self::Running(manager) => Ok(*manager),
            Self::Starting => Err(starting()),
            Self::Absent => Err(Reason::NotAManager.attach(Status::failed_precondition(
                "this node is no manager: use a manager's socket, or begin with `ctl swarm init`",
            ))),
        }
    }
}

/// The refusal of a manager that can't answer yet: the caller asks another one, or this one again.
pub(crate) fn starting() -> Status {
    Reason::Starting.attach(Status::unavailable("this manager is starting"))
}

/// Control on the local socket: of the manager that this node has at the time of the call.
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
    async fn a_manager_that_starts_says_so_and_a_worker_that_it_is_none() {
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
