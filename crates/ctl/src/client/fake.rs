//! A fake manager for tests: a gRPC server on a socket in a temporary folder. It carries out a list of acts, one for
//! each call, repeats the last one, and records the calls.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::{Stream, StreamExt, stream};
use http::{Request, Response};
use tokio::io::{AsyncReadExt, DuplexStream, copy, duplex, split};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use flota_api::event::EventCursor;
use flota_api::proto::control::{
    CreateServiceRequest, Empty, Events, GetRequest, ListTasksRequest, NodeRow, PauseUpdateRequest, RemoveRequest,
    RemoveTaskRequest, RollbackServiceRequest, RunServiceRequest, ServiceChange, ServiceHistory, ServiceProgress,
    ServiceRow, StackRow, TaskRow, Tasks, UpdateServiceRequest, WatchEventsRequest, WatchServiceRequest,
};
use flota_api::proto::streams::Frame;
use flota_api::proto::{self, objects};

/// The reaction of the manager to one call.
#[derive(Clone)]
pub(crate) enum Act {
    /// Answers with this status.
    Refuse(Status),
    /// Reads the request and breaks its connection.
    Break,
    /// Never answers.
    Hang,
    /// Answers a create.
    Create,
    /// Answers a request for one service, a rollback, or a pause.
    Service(Box<ServiceRow>),
    /// Answers a request for the specs of a service.
    History(ServiceHistory),
    /// Answers a request for one task.
    Task(TaskRow),
    /// Answers a request for one node.
    Node(NodeRow),
    /// Answers a request for one stack.
    Stack(StackRow),
    /// Answers an update of a service with this service.
    Update(Box<ServiceRow>),
    /// Answers a removal.
    Remove,
    /// Answers that connections can be forwarded.
    Check,
    /// Answers a list with these pages.
    Pages(Vec<Tasks>),
    /// Answers a watch with these messages, and then this status, if any.
    Watch(Vec<ServiceProgress>, Option<Status>),
    /// Answers with these events, and then this status, if any.
    Events(Vec<Events>, Option<Status>),
    /// Answers a stream with these frames, and then this status, if any.
    Frames(Vec<Frame>, Option<Status>),
}

/// A running fake manager, which ends with the test's runtime.
pub(crate) struct FakeManager {
    pub(crate) socket: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
}

impl FakeManager {
    /// Starts a fake manager that listens at `NAME.sock` in `folder`.
    pub(crate) fn start(folder: &Path, name: &str, acts: impl Into<VecDeque<Act>>) -> Self {
        Self::start_limited(folder, name, acts, u64::MAX)
    }

    /// Starts a fake manager each of whose connections breaks after this number of bytes to the client.
    pub(crate) fn start_limited(folder: &Path, name: &str, acts: impl Into<VecDeque<Act>>, bytes: u64) -> Self {
        let socket = folder.join(format!("{name}.sock"));
        let listener = UnixListener::bind(&socket).expect("the folder is there");
        let (cut, seen) = (Arc::new(Notify::new()), Arc::default());
        let script = Script { acts: Arc::new(Mutex::new(acts.into())), seen: Arc::clone(&seen), cut: Arc::clone(&cut) };
        let (sender, connections) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, inside) = duplex(64 << 10);
                tokio::spawn(relay(client, inside, bytes, Arc::clone(&cut)));
                if sender.send(Ok::<_, Infallible>(server)).await.is_err() {
                    return;
                }
            }
        });
        let server = tonic::transport::Server::builder().add_service(script);
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(connections)));
        Self { socket, seen }
    }

    /// Returns the recorded calls in order: the request id of a create, else the method and the name of the object.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no holder panics").clone()
    }
}

/// Forwards the bytes of one connection until one end closes it, the limit is reached, or it is cut.
async fn relay(client: UnixStream, server: DuplexStream, bytes: u64, cut: Arc<Notify>) {
    let ((mut from_client, mut to_client), (from_server, mut to_server)) = (client.into_split(), split(server));
    let mut from_server = from_server.take(bytes);
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        _ = copy(&mut from_server, &mut to_client) => {}
        () = cut.notified() => {}
    }
}

#[derive(Clone)]
struct Script {
    acts: Arc<Mutex<VecDeque<Act>>>,
    seen: Arc<Mutex<Vec<String>>>,
    cut: Arc<Notify>,
}

/// Answers a call with the next act, which must be of the matching kind.
macro_rules! unary {
    ($script:ident, $request:ident, |$it:ident: $type:ty| $noted:expr, $act:pat => $answer:expr) => {{
        let call = service_fn(|request: tonic::Request<$type>| {
            let $it = request.into_inner();
            let noted = $noted;
            async move {
                match $script.take(&noted).await? {
                    $act => Ok(tonic::Response::new($answer)),
                    _ => panic!("{noted}: the next act is for another method"),
                }
            }
        });
        Grpc::new(ProstCodec::default()).unary(call, $request).await
    }};
}

/// Returns the text that is recorded for a call: the method and the name of the object.
fn called(method: &str, name: &str) -> String {
    format!("{method} {name}").trim_end().to_owned()
}

/// Returns the name of the service that an update is for, and what users change most often.
fn updated(request: &UpdateServiceRequest) -> String {
    let spec = request.spec.clone().unwrap_or_default();
    let forced = if spec.force > 0 { format!(" force={}", spec.force) } else { String::new() };
    format!("{}{forced}{}", request.service, if spec.stopped { " stopped" } else { "" })
}

/// Returns the text that is recorded for a request for events.
fn events_called(request: &WatchEventsRequest) -> String {
    let cursor = |it: proto::types::EventCursor| EventCursor::from(it).to_string();
    let from = request.since.map_or_else(|| "now".to_owned(), cursor);
    let until = request.until.map(cursor).or(request.until_now.then(|| "now".to_owned()));
    format!("WatchEvents from {from}{}", until.map(|until| format!(" until {until}")).unwrap_or_default())
}

impl Script {
    fn note(&self, text: &str) {
        self.seen.lock().expect("no holder panics").push(text.to_owned());
    }

    fn next(&self) -> Act {
        let mut acts = self.acts.lock().expect("no holder panics");
        match acts.len() {
            1 => acts[0].clone(),
            _ => acts.pop_front().expect("there is at least one act"),
        }
    }

    /// Records a call and returns the act that answers it, or the status that refuses it.
    async fn take(&self, text: &str) -> Result<Act, Status> {
        self.note(text);
        match self.next() {
            Act::Refuse(status) => Err(status),
            Act::Hang => pending().await,
            Act::Break => {
                self.cut.notify_waiters();
                pending().await
            }
            act => Ok(act),
        }
    }

    async fn serve(self, request: Request<Body>) -> Response<Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let script = &self;
        match method.as_str() {
            "CreateService" => {
                unary!(script, request, |it: CreateServiceRequest| it.request_id.clone(), Act::Create => {
                    let service = objects::Service { id: "created".into(), ..Default::default() };
                    ServiceChange { service: Some(service), warnings: Vec::new() }
                })
            }
            "GetNode" => unary!(script, request, |it: GetRequest| called("GetNode", &it.name), Act::Node(row) => row),
            "GetService" => {
                unary!(script, request, |it: GetRequest| called("GetService", &it.name), Act::Service(row) => *row)
            }
            "GetTask" => unary!(script, request, |it: GetRequest| called("GetTask", &it.name), Act::Task(row) => row),
            "GetStack" => {
                unary!(script, request, |it: GetRequest| called("GetStack", &it.name), Act::Stack(row) => row)
            }
            "UpdateService" => {
                unary!(script, request, |it: UpdateServiceRequest| called("UpdateService", &updated(&it)),
                    Act::Update(row) => ServiceChange { service: row.service, warnings: Vec::new() })
            }
            "RollbackService" => {
                let noted = |it: &RollbackServiceRequest| match it.version {
                    Some(version) => format!("{} to {version}", it.service),
                    None => it.service.clone(),
                };
                unary!(script, request, |it: RollbackServiceRequest| called("RollbackService", &noted(&it)),
                    Act::Service(row) => row.service.unwrap_or_default())
            }
            "RunService" => {
                unary!(script, request, |it: RunServiceRequest| called("RunService", &it.service),
                    Act::Service(row) => row.service.unwrap_or_default())
            }
            "PauseUpdate" => {
                let noted = |it: &PauseUpdateRequest| format!("{} {}", it.service, it.paused);
                unary!(script, request, |it: PauseUpdateRequest| called("PauseUpdate", &noted(&it)),
                    Act::Service(row) => row.service.unwrap_or_default())
            }
            "GetServiceHistory" => {
                unary!(script, request, |it: GetRequest| called("GetServiceHistory", &it.name),
                    Act::History(history) => history)
            }
            "RemoveTask" => {
                unary!(script, request, |it: RemoveTaskRequest| called("RemoveTask", &it.name),
                    Act::Remove => Empty::default())
            }
            "RemoveNode" | "RemoveService" | "RemoveStack" => {
                unary!(script, request, |it: RemoveRequest| called(&method, &it.name), Act::Remove => Empty::default())
            }
            "CheckForward" => {
                unary!(script, request, |it: GetRequest| called("CheckForward", &it.name),
                    Act::Check => Empty::default())
            }
            _ => self.serve_stream(&method, request).await,
        }
    }

    /// Serves the methods whose answers are streams.
    async fn serve_stream(self, method: &str, request: Request<Body>) -> Response<Body> {
        let script = &self;
        match method {
            "ListTasks" => {
                let list = service_fn(|request: tonic::Request<ListTasksRequest>| async move {
                    let ListTasksRequest { services, nodes, .. } = request.into_inner();
                    let scope = services.into_iter().chain(nodes).collect::<Vec<_>>().join(" ");
                    let act = script.take(&called("ListTasks", &scope)).await?;
                    let Act::Pages(pages) = act else { panic!("a list has pages") };
                    Ok(tonic::Response::new(messages(pages, None)))
                });
                Grpc::new(ProstCodec::default()).server_streaming(list, request).await
            }
            "WatchService" => {
                let watch = service_fn(|_: tonic::Request<WatchServiceRequest>| async move {
                    let Act::Watch(all, end) = script.take("WatchService").await? else {
                        panic!("a watch has messages")
                    };
                    Ok(tonic::Response::new(messages(all, end)))
                });
                Grpc::new(ProstCodec::default()).server_streaming(watch, request).await
            }
            "WatchEvents" => {
                let watch = service_fn(|request: tonic::Request<WatchEventsRequest>| async move {
                    let Act::Events(all, end) = script.take(&events_called(request.get_ref())).await? else {
                        panic!("events come in messages")
                    };
                    Ok(tonic::Response::new(messages(all, end)))
                });
                Grpc::new(ProstCodec::default()).server_streaming(watch, request).await
            }
            "OpenStream" => {
                let open = service_fn(|request: tonic::Request<tonic::Streaming<Frame>>| async move {
                    let act = script.take("OpenStream").await?;
                    let Act::Frames(all, end) = act else { panic!("a stream has frames") };
                    Ok(tonic::Response::new(after_first_frame(request.into_inner(), script.clone(), all, end)))
                });
                Grpc::new(ProstCodec::default()).streaming(open, request).await
            }
            other => panic!("no test calls {other}"),
        }
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn messages<T: Send + 'static>(all: Vec<T>, end: Option<Status>) -> Messages<T> {
    Box::pin(stream::iter(all.into_iter().map(Ok).chain(end.map(Err))))
}

/// Behaves as a manager does: opens the stream at once, and sends frames after the user's first one.
fn after_first_frame(
    mut user: tonic::Streaming<Frame>,
    script: Script,
    all: Vec<Frame>,
    end: Option<Status>,
) -> Messages<Frame> {
    let first = async move {
        let first = user.message().await.expect("the user does not break off").expect("a first frame");
        script.note(&format!("{:?}", first.frame.expect("a frame")));
        stream::iter(all.into_iter().map(Ok).chain(end.map(Err)))
    };
    Box::pin(stream::once(first).flatten())
}

impl NamedService for Script {
    const NAME: &'static str = "flota.control.Control";
}

impl Service<Request<Body>> for Script {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let script = self.clone();
        Box::pin(async move { Ok(script.serve(request).await) })
    }
}
