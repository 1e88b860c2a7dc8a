//! To a manager: over the local socket, or over the sockets that `--host` or FLOTA_HOST name, in order; the next at
//! once when one does not answer. A request that changes something carries an id, so that a retry is done once.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::control::ListRequest;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::node::local_node_client::LocalNodeClient;
use flota_api::proto::node::{InfoRequest, NodeInfo};
use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as F;

use crate::error::{Failed, Hinted, Usage};

/// Every manager has had its chance by then.
const DEADLINE: Duration = Duration::from_millis(4_800);
/// One that has not answered by then is left for the next, while there is one; the request's id makes that safe.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// What a node knows by itself it says at once.
const NODE_WAIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
const DEFAULT_SOCKET: &str = "/run/flota/flota.sock";

/// Managers' sockets, in the order in which they are tried.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    sockets: Vec<PathBuf>,
    stale: bool,
}

/// A fresh id of a request that changes something.
pub(crate) fn request_id() -> String {
    flota_api::id::random(&mut rand::rng())
}

impl Client {
    pub(crate) fn new(hosts: &[String], stale: bool) -> anyhow::Result<Self> {
        let socket = |host: &String| match host.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ if host.starts_with("tcp://") => Err(anyhow::anyhow!(Usage(format!(
                "--host {host}: tcp:// needs a user's certificate, which is not there yet; use unix://"
            )))),
            _ => Err(anyhow::anyhow!(Usage(format!("--host {host}: it has the form unix:///path/to/flota.sock")))),
        };
        let sockets = hosts.iter().filter(|host| !host.is_empty()).map(socket).collect::<Result<Vec<_>, _>>()?;
        let sockets = if sockets.is_empty() { vec![PathBuf::from(DEFAULT_SOCKET)] } else { sockets };
        Ok(Self { sockets, stale })
    }

    /// What a list asks for.
    pub(crate) fn list(&self) -> tonic::Request<ListRequest> {
        let mut request = tonic::Request::new(ListRequest { stale: self.stale });
        if self.stale {
            request.metadata_mut().insert("flota-stale", tonic::metadata::MetadataValue::from_static("1"));
        }
        request
    }

    async fn connect(path: PathBuf) -> Result<Channel, Status> {
        let failed = |error: std::io::Error| Status::unavailable(format!("{}: {error}", path.display()));
        let stream = UnixStream::connect(&path).await.map_err(failed)?;
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection is gone"));
            std::future::ready(stream)
        });
        let endpoint = Endpoint::from_static("http://flota");
        endpoint.connect_with_connector(connector).await.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Calls one manager after the other until one answers.
    async fn with<T, F: Future<Output = Result<T, Status>>>(&self, call: impl Fn(Channel) -> F) -> anyhow::Result<T> {
        let until = tokio::time::Instant::now() + DEADLINE;
        let last = std::sync::Mutex::new(Status::unavailable("no manager answered in time: there may be no quorum"));
        let say = |status| *last.lock().expect("no holder panics") = status;
        let patience = if self.sockets.len() > 1 { PATIENCE } else { DEADLINE };
        let all = async {
            let mut reached = false;
            let mut fatal = false;
            // In a circle: while a leader is being chosen, each of them may answer soon.
            for socket in self.sockets.iter().cycle() {
                let asked = async {
                    let channel = Self::connect(socket.clone()).await?;
                    reached = true;
                    call(channel).await
                };
                match tokio::time::timeout(patience, asked).await {
                    Err(_) => say(Status::unavailable(format!("{} does not answer", socket.display()))),
                    // A node that is no manager is passed over while others are left.
                    Ok(Err(status)) if status.message().contains("is no manager") => {
                        fatal = true;
                        say(status);
                    }
                    Ok(Err(status)) if status.code() == Code::Unavailable => {
                        fatal = false;
                        say(status);
                    }
                    Ok(other) => return Some(other),
                }
                if self.sockets.last() == Some(socket) {
                    if !reached || fatal || tokio::time::Instant::now() + PAUSE >= until {
                        return None;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            None
        };
        match tokio::time::timeout_at(until, all).await {
            Ok(Some(result)) => result.map_err(failure),
            // What the last one said that said something.
            Ok(None) | Err(_) => Err(failure(last.into_inner().expect("no holder panics"))),
        }
    }

    /// Calls Control.
    pub(crate) async fn control<T, F>(&self, call: impl Fn(ControlClient<Channel>) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.with(|channel| {
            let client = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BOUND);
            let answer = call(client);
            async move { answer.await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// All pages of a list as one; `join` adds a page to what came before.
    pub(crate) async fn pages<T, F>(
        &self,
        call: impl Fn(ControlClient<Channel>) -> F,
        join: impl Fn(&mut T, T),
    ) -> anyhow::Result<T>
    where
        F: Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    {
        let first = self.with(|channel| {
            let answer = call(ControlClient::new(channel).max_decoding_message_size(MESSAGE_BOUND));
            async move {
                let mut pages = answer.await?.into_inner();
                let first = pages.message().await?.ok_or_else(|| Status::unavailable("the list is cut off"))?;
                Ok((first, pages))
            }
        });
        let (mut whole, mut pages) = first.await?;
        while let Some(page) = pages.message().await.map_err(failure)? {
            join(&mut whole, page);
        }
        Ok(whole)
    }

    /// Opens a stream through a manager; `first` says what is wanted. What is sent goes to the task, what comes is its.
    pub(crate) async fn stream(&self, first: F) -> anyhow::Result<(mpsc::Sender<Frame>, Streaming<Frame>)> {
        self.with(|channel| {
            let first = Frame { frame: Some(first.clone()) };
            async move {
                let (sender, receiver) = mpsc::channel(32);
                sender.send(first).await.map_err(|_| Status::internal("the stream is closed"))?;
                let mut client = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BOUND);
                let answers = client.open_stream(ReceiverStream::new(receiver)).await?.into_inner();
                Ok((sender, answers))
            }
        })
        .await
    }

    /// The node behind the first socket, for what concerns that machine. What is asked of it may take its time.
    pub(crate) async fn node(&self) -> anyhow::Result<LocalNodeClient<Channel>> {
        let socket = self.sockets.first().cloned().context("no node is known")?;
        let channel = Self::connect(socket).await.map_err(failure)?;
        Ok(LocalNodeClient::new(channel).max_decoding_message_size(MESSAGE_BOUND))
    }

    /// The first node that answers, and what it says of itself: for what any of them can do.
    pub(crate) async fn any_node(&self) -> anyhow::Result<(LocalNodeClient<Channel>, NodeInfo)> {
        let mut last = Status::unavailable("no node is known");
        for socket in &self.sockets {
            let asked = async {
                let channel = Self::connect(socket.clone()).await?;
                let mut node = LocalNodeClient::new(channel).max_decoding_message_size(MESSAGE_BOUND);
                let info = node.info(InfoRequest {}).await?.into_inner();
                Ok((node, info))
            };
            match tokio::time::timeout(NODE_WAIT, asked).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::unavailable(format!("{} does not answer", socket.display())),
            }
        }
        Err(failure(last))
    }
}

/// A status as an error with a hint where a next step is known.
pub(crate) fn failure(status: Status) -> anyhow::Error {
    let hint = match status.message() {
        text if text.contains("flota.sock") && text.contains("No such file") => {
            Some("is flotad running? `ctl sandbox up` starts a whole cluster on this machine")
        }
        text if text.starts_with("no leader") => {
            Some("start the other managers again; `ls --stale` shows what this one knows")
        }
        _ => None,
    };
    let error = anyhow::Error::new(Failed(status));
    match hint {
        Some(hint) => Hinted { error, hint: hint.into() }.into(),
        None => error,
    }
}
