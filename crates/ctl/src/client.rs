//! Requests to managers, over the local socket, the sockets and addresses that `--host` or FLOTA_HOST name, or the addresses of a
//! context; used by every command.
//!
//! Every request goes through [`rounds`]: when the connection to one manager is lost, the next one is asked. A request
//! that changes something carries the same id with every try, so that it takes effect only once.

mod connection;
#[cfg(test)]
pub(crate) mod fake;
mod rounds;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use flota_api::clock::Clock;
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{ListRequest, ListTasksRequest, ListValuesRequest, WatchEventsRequest};
use flota_api::proto::node::local_node_client::LocalNodeClient;
use flota_api::proto::node::{InfoRequest, NodeInfo};
use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as F;
use flota_api::reason::Reason;
use flota_identity::Dialer;

use crate::context::{Contexts, Credentials};
use crate::error::{Failed, Hinted, Usage, is_unreachable};
use connection::{Connection, ManagerAddress};
use rounds::{Attempt, Limits};

/// Pause before a broken stream is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// Largest number of frames in flight to a task; the sender waits when there are more.
const QUEUE: usize = 32;
const DEFAULT_SOCKET: &str = "/run/flota/flota.sock";

/// A client of one or more managers, which are tried in order.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    targets: Vec<ManagerAddress>,
    limits: Limits,
    /// The file of the context whose credentials are used, if any.
    context: Option<PathBuf>,
}

/// A request for a list, which may ask for what one manager knows instead of the newest state.
pub(crate) trait MayBeStale: Clone {
    /// Returns whether this request accepts stale data.
    fn is_stale(&self) -> bool;
}

impl MayBeStale for ListRequest {
    fn is_stale(&self) -> bool {
        self.stale
    }
}

impl MayBeStale for ListValuesRequest {
    fn is_stale(&self) -> bool {
        self.list.as_ref().is_some_and(|list| list.stale)
    }
}

impl MayBeStale for ListTasksRequest {
    fn is_stale(&self) -> bool {
        self.stale
    }
}

impl MayBeStale for WatchEventsRequest {
    fn is_stale(&self) -> bool {
        self.stale
    }
}

/// Returns the request with the header by which a manager answers it from what it knows, if it asks for that.
fn addressed<R: MayBeStale>(request: R) -> tonic::Request<R> {
    let mut request = tonic::Request::new(request);
    if request.get_ref().is_stale() {
        request.metadata_mut().insert("flota-stale", MetadataValue::from_static("1"));
    }
    request
}

/// Returns a fresh id for a request that changes something.
pub(crate) fn request_id() -> String {
    flota_api::id::random(&mut rand::rng())
}

fn control(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel).max_decoding_message_size(MESSAGE_BOUND)
}

fn local_node(channel: Channel) -> LocalNodeClient<Channel> {
    LocalNodeClient::new(channel).max_decoding_message_size(MESSAGE_BOUND)
}

impl Client {
    /// Creates a client of the managers behind `hosts`, which are sockets unless it is an error, or of the one on this machine if `hosts` is empty.
    pub(crate) fn new(hosts: &[String]) -> anyhow::Result<Self> {
        let hosts = hosts.iter().filter(|host| !host.is_empty());
        let targets = hosts.map(|host| target(host, None)).collect::<anyhow::Result<Vec<_>>>()?;
        let targets =
            if targets.is_empty() { vec![ManagerAddress::Socket(PathBuf::from(DEFAULT_SOCKET))] } else { targets };
        Ok(Self { targets, limits: Limits::default(), context: None })
    }

    /// As [`Self::new`], with the credentials of a context: the one that is `asked` for, or else the one in use. Without
    /// `hosts`, its managers are the ones to talk to.
    pub(crate) fn with_context(hosts: &[String], asked: Option<&str>) -> anyhow::Result<Self> {
        let needs_none = !hosts.is_empty() && hosts.iter().all(|host| host.is_empty() || host.starts_with("unix://"));
        if needs_none && hosts.iter().any(|host| !host.is_empty()) {
            if let Some(name) = asked.filter(|name| *name != crate::context::DEFAULT) {
                let hosts = hosts.join(",");
                let why =
                    format!("context {name} is asked for, and the host {hosts}: give --host or FLOTA_HOST= to choose");
                anyhow::bail!(Usage(why));
            }
            return Self::new(hosts);
        }
        let found = match Contexts::of_user() {
            Ok(contexts) => contexts.choose(asked)?,
            Err(error) if asked.is_some() => return Err(error),
            // A user without a home directory has no contexts.
            Err(_) => None,
        };
        let Some((path, credentials)) = found else { return Self::new(hosts) };
        let dialer = dialer(&credentials)?;
        let hosts: Vec<_> = hosts.iter().filter(|host| !host.is_empty()).cloned().collect();
        let of_context = || credentials.managers.iter().map(|it| format!("tcp://{it}")).collect();
        let hosts = if hosts.is_empty() { of_context() } else { hosts };
        let targets = hosts.iter().map(|host| target(host, Some(&dialer))).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { targets, limits: Limits::default(), context: Some(path) })
    }

    /// Returns the file of the context in use, and what it says.
    pub(crate) fn context(&self) -> anyhow::Result<Option<(PathBuf, Credentials)>> {
        self.context.as_ref().map(|path| Ok((path.clone(), Credentials::read(path)?))).transpose()
    }

    /// Sends a request that changes something until a manager has answered it. Each try sends the same request with
    /// the same id.
    pub(crate) async fn change<R, T, F>(
        &self,
        request: R,
        call: impl Fn(ControlClient<Channel>, R) -> F,
    ) -> anyhow::Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.unary(self.limits.change, request, call).await
    }

    /// Sends a request that only reads.
    pub(crate) async fn read<R, T, F>(
        &self,
        request: R,
        call: impl Fn(ControlClient<Channel>, R) -> F,
    ) -> anyhow::Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.unary(self.limits.read, request, call).await
    }

    async fn unary<R, T, F>(
        &self,
        bound: Duration,
        request: R,
        call: impl Fn(ControlClient<Channel>, R) -> F,
    ) -> anyhow::Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let attempt = |attempt: Attempt| {
            let answer = call(control(attempt.connection.channel.clone()), request.clone());
            async move { attempt.answer(answer).await.map(Response::into_inner) }
        };
        // On the heap: a future with a spec in each of its states is so large that a few of them fill a thread's stack.
        Box::pin(rounds::request(&self.targets, &self.limits, bound, attempt)).await.map_err(failure)
    }

    /// Reads all pages of a list and returns them as one; `join` adds a page to those before it. A list that breaks
    /// off is requested again from its first page, so that all pages show the same state. A request that may be stale
    /// is answered by the manager that receives it.
    pub(crate) async fn list<R, T, F>(
        &self,
        request: R,
        call: impl Fn(ControlClient<Channel>, tonic::Request<R>) -> F,
        join: impl Fn(&mut T, T),
    ) -> anyhow::Result<T>
    where
        R: MayBeStale,
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        let join = &join;
        let attempt = |attempt: Attempt| {
            let answer = call(control(attempt.connection.channel.clone()), addressed(request.clone()));
            async move {
                let mut pages = attempt.answer(answer).await?.into_inner();
                let first = attempt.answer(pages.message()).await?;
                let mut whole = first.ok_or_else(|| Status::unavailable("the list has no page"))?;
                while let Some(page) = attempt.answer(pages.message()).await? {
                    join(&mut whole, page);
                }
                Ok(whole)
            }
        };
        rounds::request(&self.targets, &self.limits, self.limits.read, attempt).await.map_err(failure)
    }

    /// Follows a stream until `each` breaks. When the stream is lost or ends earlier, it is opened again with the next
    /// manager. While no manager is reachable, this repeats without a bound: the caller sets one.
    pub(crate) async fn watch<R, T, F>(
        &self,
        request: R,
        call: impl Fn(ControlClient<Channel>, R) -> F,
        mut each: impl FnMut(T) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()>
    where
        R: Clone,
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        loop {
            match self.read(request.clone(), &call).await {
                Ok(mut stream) => loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            if each(message)?.is_break() {
                                return Ok(());
                            }
                        }
                        Ok(None) => break,
                        Err(status) if may_reopen(&status) => break,
                        Err(status) => return Err(failure(status)),
                    }
                },
                Err(error) if is_unreachable(&error) => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    /// Follows a stream until `each` breaks. A stream that is lost or ends earlier is opened again with the request that
    /// `request` then returns. It is an error if that does not succeed for some seconds, or if the stream is lost repeatedly
    /// with no more than its first message in between.
    pub(crate) async fn follow<R, T, F>(
        &self,
        request: impl Fn() -> R,
        call: impl Fn(ControlClient<Channel>, tonic::Request<R>) -> F,
        mut each: impl FnMut(T) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()>
    where
        R: MayBeStale,
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        // Absent until a manager has answered: an error is reported at once where nothing has worked yet.
        let mut give_up: Option<Instant> = None;
        loop {
            let mut stream = match self.read(request(), |control, request| call(control, addressed(request))).await {
                Ok(stream) => stream,
                Err(error) if is_unreachable(&error) && give_up.is_some_and(|at| Instant::now() < at) => {
                    tokio::time::sleep(REOPEN_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (opened, mut messages) = (Instant::now(), 0_usize);
            let broken = loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        messages += 1;
                        if each(message)?.is_break() {
                            return Ok(());
                        }
                    }
                    Ok(None) => break Status::unavailable("the manager has ended the stream"),
                    Err(status) => break status,
                }
            };
            if messages > 0 || opened.elapsed() > self.limits.change {
                give_up = None;
            }
            let until = *give_up.get_or_insert_with(|| Instant::now() + self.limits.change);
            if !may_reopen(&broken) || Instant::now() >= until {
                return Err(failure(broken));
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    /// Opens a stream to a task through a manager; `first` names the task and what to do with it. What is sent goes to
    /// the task, and what is received comes from it. The first frame is sent only after a manager has accepted the
    /// stream, and to that manager only, so that a command never starts twice.
    pub(crate) async fn stream(&self, first: F) -> anyhow::Result<(mpsc::Sender<Frame>, Streaming<Frame>)> {
        let attempt = |attempt: Attempt| async move {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let mut client = control(attempt.connection.channel.clone());
            let answers = attempt.answer(client.open_stream(ReceiverStream::new(receiver))).await?.into_inner();
            Ok((sender, answers))
        };
        let opened = rounds::request(&self.targets, &self.limits, self.limits.read, attempt).await;
        let (sender, answers) = opened.map_err(failure)?;
        let sent = sender.send(Frame { frame: Some(first) }).await;
        sent.map_err(|_| failure(Status::unavailable("the manager closed the stream before it began")))?;
        Ok((sender, answers))
    }

    /// Reads a stream to its end. A lost stream is opened again with the request that `request` then returns. A stream
    /// that is lost repeatedly without a frame in between is an error.
    pub(crate) async fn receive(&self, mut request: impl FnMut() -> F, mut each: impl FnMut(F)) -> anyhow::Result<()> {
        let mut give_up = Instant::now() + self.limits.change;
        loop {
            let opened = Instant::now();
            let (_open, mut frames) = self.stream(request()).await?;
            let mut is_empty = true;
            let broken = loop {
                match frames.message().await {
                    Ok(Some(frame)) => {
                        is_empty = false;
                        frame.frame.into_iter().for_each(&mut each);
                    }
                    Ok(None) => return Ok(()),
                    Err(status) => break status,
                }
            };
            // A stream that stayed open for long counts as working even if it had no frames.
            if !is_empty || opened.elapsed() > self.limits.change {
                give_up = Instant::now() + self.limits.change;
            }
            if !may_reopen(&broken) || Instant::now() >= give_up {
                return Err(failure(broken));
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    /// Connects to the node behind the first socket, for requests about that machine. These have no time limit.
    pub(crate) async fn node(&self) -> anyhow::Result<LocalNodeClient<Channel>> {
        let target = self.local()?.first().context("no node is known")?;
        Ok(local_node(Connection::open(target).await.map_err(failure)?.channel))
    }

    /// Returns the targets, if they are sockets of this machine.
    ///
    /// # Errors
    /// A user talks to managers from outside, and not to nodes.
    fn local(&self) -> anyhow::Result<&[ManagerAddress]> {
        if self.targets.iter().all(|target| matches!(target, ManagerAddress::Socket(_))) {
            return Ok(&self.targets);
        }
        let text = "this is about one machine, and needs the socket of its flotad: run it there, with --context default or \
                    --host unix:///run/flota/flota.sock";
        Err(Usage(text.into()).into())
    }

    /// Returns the description of the node behind the first socket; waits while that node is starting.
    pub(crate) async fn info(&self) -> anyhow::Result<NodeInfo> {
        Ok(self.first_of(self.local()?.get(..1).unwrap_or_default()).await?.1)
    }

    /// Returns the first node that answers and its description, for requests that any node can serve.
    pub(crate) async fn any_node(&self) -> anyhow::Result<(LocalNodeClient<Channel>, NodeInfo)> {
        self.first_of(self.local()?).await
    }

    /// Returns `host:port` of a manager.
    pub(crate) async fn manager_address(&self) -> anyhow::Result<String> {
        match self.targets.first() {
            Some(ManagerAddress::Port { address, .. }) => Ok(address.clone()),
            _ => Ok(self.any_node().await?.1.address),
        }
    }

    async fn first_of(&self, targets: &[ManagerAddress]) -> anyhow::Result<(LocalNodeClient<Channel>, NodeInfo)> {
        rounds::request(targets, &self.limits, self.limits.read, describe).await.map_err(failure)
    }

    /// Sends a request that any node can carry out, and that may take effect twice, until a node has answered it. The
    /// wait for the answer has no time limit.
    pub(crate) async fn at_any_node<R, T, F>(
        &self,
        request: R,
        call: impl Fn(LocalNodeClient<Channel>, R) -> F,
    ) -> anyhow::Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let call = &call;
        let attempt = |attempt: Attempt| {
            let request = request.clone();
            async move { call(describe(attempt).await?.0, request).await.map(Response::into_inner) }
        };
        rounds::request(self.local()?, &self.limits, self.limits.change, attempt).await.map_err(failure)
    }
}

/// Returns where a host is. One of the form `tcp://` needs a dialer.
fn target(host: &str, dialer: Option<&Dialer>) -> anyhow::Result<ManagerAddress> {
    if let Some(address) = host.strip_prefix("tcp://") {
        let is_whole =
            address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let Some(dialer) = dialer else { return Err(no_credentials(host).into()) };
        if !is_whole {
            return Err(Usage(format!("--host {host}: it must have the form tcp://HOST:PORT")).into());
        }
        return Ok(ManagerAddress::Port { address: address.to_owned(), dialer: dialer.clone() });
    }
    match host.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(ManagerAddress::Socket(PathBuf::from(path))),
        _ => {
            Err(Usage(format!("--host {host}: it must have the form unix:///path/to/flota.sock or tcp://HOST:PORT"))
                .into())
        }
    }
}

fn no_credentials(host: &str) -> Usage {
    Usage(format!(
        "--host {host}: tcp:// needs a user's credentials: --context NAME, FLOTA_CONTEXT or `ctl context use NAME`; an admin \
         makes them with `ctl swarm user add`"
    ))
}

/// Returns what connects with these credentials.
fn dialer(credentials: &Credentials) -> anyhow::Result<Dialer> {
    let identity = credentials.identity()?;
    let expires_at = identity.validity.expires_at;
    let dialer = Dialer::for_user(&identity).context("the key of the context does not match its certificate")?;
    if expires_at <= Clock::system().now() {
        let error = anyhow::anyhow!("the certificate of user `{}` expired at {expires_at}", identity.name);
        return Err(Hinted { error, hint: renewal_hint(&identity.name) }.into());
    }
    Ok(dialer)
}

fn renewal_hint(user: &str) -> String {
    format!(
        "an admin makes another one with `ctl swarm user renew {user} --out FILE`; then `ctl context rm NAME` and \
         `ctl context create NAME --from FILE`"
    )
}

async fn describe(attempt: Attempt) -> Result<(LocalNodeClient<Channel>, NodeInfo), Status> {
    let mut node = local_node(attempt.connection.channel.clone());
    let info = attempt.answer(node.info(InfoRequest {})).await?.into_inner();
    Ok((node, info))
}

/// Returns whether a stream that ended with this status can be opened again, with this manager or another.
fn may_reopen(status: &Status) -> bool {
    status.code() == Code::Unavailable || rounds::is_lost(status)
}

/// Converts a status to an error, with a hint if a next step is known.
pub(crate) fn failure(status: Status) -> anyhow::Error {
    let status = match status.code() {
        // tonic's text for a broken connection ("h2 protocol error") does not help a user.
        code if code != Code::Unavailable && rounds::is_lost(&status) => Status::new(code, "the connection broke"),
        _ => status,
    };
    let hint = match Reason::of(&status) {
        Some(Reason::NoLeader) => Some("start the other managers again; `ls --stale` shows what this one knows"),
        None if rounds::is_foreign(&status) => Some(
            "the cluster's CA was replaced since this context was made, or the address is that of another cluster: an admin \
             makes another context with `ctl swarm user renew USER --out FILE`",
        ),
        None if rounds::nobody_listens(&status) => {
            Some("is flotad running? `ctl sandbox up` starts a whole cluster on this machine")
        }
        _ => None,
    };
    let error = anyhow::Error::new(Failed(status));
    match hint {
        Some(hint) => Hinted { error, hint: hint.into() }.into(),
        None => error,
    }
}
