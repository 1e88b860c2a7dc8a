//! Decides for each request of the Control API who makes it, and whether that caller may, by the store: a certificate says
//! only who a user is. A follower forwards a user's request with the user's name and key, and the leader judges it anew, by
//! its own copy of the store. It believes these headers of no caller but another manager ([`crate::forward`]).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use flota_api::id::NodeId;
use flota_api::model::{Role, User};
use flota_api::reason::Reason;
use flota_api::version::Timestamp;
use flota_identity::{Peer, user_rights};
use flota_raft_store::{ProposeError, Tables};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Service, ServiceExt};

use crate::caller::{Caller, Who};
use crate::forward::{ForwardedFor, STALE, forwarded_for};
use crate::replica::Replica;

/// Shortest time between two log lines about refused requests.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Passes on the requests of callers who may make them, each with its [`Caller`]. It is cloned for each request.
#[derive(Clone, Debug)]
pub struct Admission<S> {
    inner: S,
    replica: Arc<Replica>,
    refusals: Arc<Mutex<Refusals>>,
}

/// When a refusal was logged last, and how many were not since.
#[derive(Debug, Default)]
struct Refusals {
    logged: Option<Instant>,
    left_out: u64,
}

impl<S> Admission<S> {
    /// Wraps `inner`.
    pub(crate) fn new(inner: S, replica: Replica) -> Self {
        Self { inner, replica: Arc::new(replica), refusals: Arc::default() }
    }

    /// Returns the caller, by what this manager knows.
    fn judge(&self, request: &Request<Body>) -> Result<Caller, Refused> {
        let view = self.replica.store.view();
        let path = request.uri().path();
        let hostname = |id: &NodeId| {
            let named = view.node(id).map(|node| node.description.hostname.clone()).filter(|name| !name.is_empty());
            named.unwrap_or_else(|| id.to_string())
        };
        let who = match request.extensions().get::<Peer>() {
            None | Some(Peer::Anonymous { .. }) => Err(Refused::Unknown(String::new())),
            Some(Peer::Local) => {
                let own = self.replica.raft.id();
                let node = view.managers().find(|node| node.raft_id == Some(own)).map(|node| node.id.clone());
                Ok(Who::Root(node.map_or_else(|| own.to_string(), |id| hostname(&id))))
            }
            Some(Peer::Node { role: Role::Worker, .. }) => Err(Refused::Worker),
            Some(Peer::Node { id, .. }) => match forwarded_for(request.headers()) {
                Some(ForwardedFor::User { name, key }) => self.user(&view, name, key),
                Some(ForwardedFor::Node(node)) => match view.node(node).is_some_and(|it| it.role == Role::Manager) {
                    true => Ok(Who::Node(node.into())),
                    false => Err(Refused::Worker),
                },
                Some(ForwardedFor::Root) => Ok(Who::Root(hostname(id))),
                None => Ok(Who::Node(id.clone())),
            },
            Some(Peer::User { name, key, .. }) => self.user(&view, name, key),
        };
        who.and_then(|who| may(who, path))
    }

    fn user(&self, view: &Tables, name: &str, key: &str) -> Result<Who, Refused> {
        known(view, name, key, self.replica.clock.wall().now()).map(|user| Who::User(user, key.to_owned()))
    }

    fn log(&self, refused: &Refused, path: &str) {
        let mut refusals = self.refusals.lock().expect("no holder panics");
        if refusals.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            refusals.left_out += 1;
            return;
        }
        tracing::warn!(method = path, error = %refused, left_out = refusals.left_out, "a request was refused");
        *refusals = Refusals { logged: Some(Instant::now()), left_out: 0 };
    }
}

/// Why a caller may not make a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("the cluster has no user `{0}`: it was removed, or the context is of another cluster")]
    Unknown(String),
    #[error("the certificate of user `{0}` was replaced by a newer one")]
    Replaced(String),
    #[error(
        "the certificate of user `{0}` expired at {1}; an admin renews it with `ctl swarm user renew {0} --out FILE`"
    )]
    Expired(String, Timestamp),
    #[error("user `{name}` has the role {role}, and this needs the role {needed}")]
    Role { name: String, role: &'static str, needed: &'static str },
    #[error("user `{0}` is limited to names that begin with {1}, and this concerns the whole cluster")]
    Limited(String, String),
    #[error("a worker makes no requests of this kind")]
    Worker,
    #[error("no user may do this: use the local socket of a manager")]
    Local,
}

/// Makes sure that this manager knows everything that a refusal may depend on. A manager that leads no more may not know a
/// user that another one has added since.
///
/// # Errors
/// This manager can't prove that it knows everything.
async fn learn(replica: &Replica, is_stale: bool) -> Result<(), Status> {
    if is_stale {
        replica.raft.freshen().await;
        return Ok(());
    }
    replica.raft.read_barrier().await.map_err(|_| {
        let why = ProposeError::Unproven.to_string();
        Reason::Unproven.attach(Status::unavailable(why))
    })
}

impl Refused {
    /// Whether another view of the store may not lead to it.
    fn may_change(&self) -> bool {
        match self {
            Self::Unknown(name) => !name.is_empty(),
            Self::Replaced(_) | Self::Expired(..) | Self::Role { .. } | Self::Limited(..) => true,
            Self::Worker | Self::Local => false,
        }
    }
}

/// Returns the user with this name, if the store knows it by the certificate with this key and that has not expired.
fn known(view: &Tables, name: &str, key: &str, now: Timestamp) -> Result<Arc<User>, Refused> {
    let user = view.user_by_name(name).ok_or_else(|| Refused::Unknown(name.to_owned()))?;
    let certificate = user.certificate(key).ok_or_else(|| Refused::Replaced(name.to_owned()))?;
    if certificate.expires_at <= now {
        return Err(Refused::Expired(name.to_owned(), certificate.expires_at));
    }
    Ok(Arc::clone(user))
}

/// Returns the caller, if the table lets it call the method at `path`.
fn may(who: Who, path: &str) -> Result<Caller, Refused> {
    let method = path.rsplit('/').next().unwrap_or_default().to_owned();
    let caller = Caller { who, method };
    let Some(user) = caller.user() else { return Ok(caller) };
    let rights = user_rights(path).ok_or(Refused::Local)?;
    if user.role < rights.role {
        let (role, needed) = (user.role.as_str(), rights.role.as_str());
        return Err(Refused::Role { name: user.name.clone(), role, needed });
    }
    if caller.is_limited() && !rights.limited {
        return Err(Refused::Limited(user.name.clone(), caller.prefixes()));
    }
    Ok(caller)
}

impl<S: NamedService> NamedService for Admission<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Admission<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each call uses its own clone of `inner`, and waits until that one is ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let judged = self.judge(&request);
        let admission = self.clone();
        Box::pin(async move {
            let caller = match judged {
                Err(refused) if refused.may_change() => {
                    let is_stale = request.headers().contains_key(STALE);
                    if let Err(status) = learn(&admission.replica, is_stale).await {
                        return Ok(status.into_http());
                    }
                    admission.judge(&request)
                }
                judged => judged,
            };
            match caller {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    admission.inner.oneshot(request).await
                }
                Err(refused) => {
                    admission.log(&refused, request.uri().path());
                    Ok(Reason::Denied.attach(Status::permission_denied(refused.to_string())).into_http())
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{NodeCertificate, UserRole};
    use flota_api::object::StoreObject;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn store(role: UserRole, prefixes: &[&str]) -> Tables {
        let certificates = [("old", 999_999), ("new", 2_000_000)]
            .map(|(key, at)| NodeCertificate { key: key.into(), expires_at: Timestamp(at) });
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        let mut view = Tables::default();
        let user = User {
            id: "u".into(),
            name: "ada".into(),
            role,
            prefixes,
            certificates: certificates.to_vec(),
            ..User::default()
        };
        view.put(user.into_object());
        view
    }

    fn judge(view: &Tables, name: &str, key: &str, method: &str) -> Result<String, Refused> {
        let user = known(view, name, key, NOW)?;
        may(Who::User(user, key.to_owned()), &format!("/flota.control.Control/{method}")).map(|caller| caller.actor())
    }

    #[test]
    fn the_store_decides_what_a_user_may_and_a_certificate_only_who_it_is() {
        let view = store(UserRole::Viewer, &[]);
        assert_eq!(judge(&view, "ada", "new", "ListServices"), Ok("ada".into()));
        assert!(matches!(judge(&view, "eve", "new", "ListServices"), Err(Refused::Unknown(_))));
        assert!(matches!(judge(&view, "ada", "other", "ListServices"), Err(Refused::Replaced(_))));
        assert!(matches!(judge(&view, "ada", "old", "ListServices"), Err(Refused::Expired(..))));
        assert!(matches!(judge(&view, "ada", "new", "CreateService"), Err(Refused::Role { needed: "operator", .. })));
        assert!(matches!(judge(&view, "ada", "new", "NoSuchMethod"), Err(Refused::Local)));
        let view = store(UserRole::Operator, &[]);
        assert_eq!(judge(&view, "ada", "new", "CreateService"), Ok("ada".into()));
        assert!(matches!(judge(&view, "ada", "new", "CreateUser"), Err(Refused::Role { needed: "admin", .. })));
        assert_eq!(judge(&view, "ada", "new", "ListImages"), Ok("ada".into()));
        let limited = store(UserRole::Operator, &["a-"]);
        assert_eq!(judge(&limited, "ada", "new", "CreateService"), Ok("ada".into()));
        assert!(matches!(judge(&limited, "ada", "new", "ListImages"), Err(Refused::Limited(..))));
        assert_eq!(judge(&store(UserRole::Admin, &[]), "ada", "new", "CreateUser"), Ok("ada".into()));
    }
}
