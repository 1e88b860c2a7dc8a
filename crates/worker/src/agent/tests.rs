use std::pin::Pin;
use std::sync::Mutex;
use std::time::SystemTime;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::images::Images;
use crate::task_db::TaskDb;
use crate::task_runner::Shared;
use crate::translate::NodeNames;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{Role, TaskStatus};
use flota_api::proto::dispatcher::dispatcher_server::{Dispatcher, DispatcherServer};
use flota_api::proto::dispatcher::{NotLeader, Registered, StatusAck, StatusBatch, TaskAssignment};
use flota_api::seal::Sealer;
use flota_api::state::TaskState;
use flota_identity::{Identity, KeyPair, RootCa};
use flota_image::ImageStore;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// One session, as the leader has it.
struct Session {
    register: Register,
    inbox: Streaming<WorkerMessage>,
    outbox: mpsc::Sender<Result<ManagerMessage, Status>>,
}

impl Session {
    async fn say(&self, message: FromManager) {
        self.outbox.send(Ok(ManagerMessage { message: Some(message) })).await.expect("the worker is there");
    }

    async fn welcome(&self) {
        self.say(FromManager::Registered(Registered { heartbeat_ms: 1_000, ..Registered::default() })).await;
    }

    /// The next batch of reports; heartbeats are passed over, as they come.
    async fn batch(&mut self) -> StatusBatch {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.inbox.message()).await.expect("a batch in time");
            if let Some(ToManager::Statuses(batch)) = message.expect("no error").expect("the session goes on").message {
                return batch;
            }
        }
    }

    /// Until the worker has ended it.
    async fn ended(mut self) {
        let end = async { while let Ok(Some(_)) = self.inbox.message().await {} };
        tokio::time::timeout(PATIENCE, end).await.expect("the worker ends the session");
    }
}

/// A leader that does as the test says.
#[derive(Clone)]
struct Fake(mpsc::Sender<Session>);

#[tonic::async_trait]
impl Dispatcher for Fake {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbox = request.into_inner();
        let Some(ToManager::Register(register)) = inbox.message().await?.and_then(|it| it.message) else {
            return Err(Status::invalid_argument("a session begins with `register`"));
        };
        let (outbox, answers) = mpsc::channel(8);
        let _ = self.0.send(Session { register, inbox, outbox }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

struct Cluster {
    id: ClusterId,
    ca: RootCa,
}

impl Cluster {
    fn new() -> Self {
        let id = ClusterId::random(&mut rand::rng());
        Self { ca: RootCa::generate(&id, SystemTime::now()).expect("a CA"), id }
    }

    fn identity(&self, role: Role) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let (request, node) = (key.signing_request().expect("a request"), NodeId::random(&mut rand::rng()));
        let certificate = self.ca.sign(&request, &node, role, &self.id, SystemTime::now()).expect("signed");
        Identity::new(certificate, key.to_der(), self.ca.certificate().to_vec()).expect("an identity")
    }

    /// A leader on loopback: its address, and the sessions that are opened with it.
    async fn leader(&self) -> (String, mpsc::Receiver<Session>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let (incoming, _) = flota_identity::incoming(listener, &self.identity(Role::Manager), None).expect("TLS");
        let (sender, sessions) = mpsc::channel(8);
        let server = tonic::transport::Server::builder().add_service(DispatcherServer::new(Fake(sender)));
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
        (address, sessions)
    }
}

/// A worker without containers; ends when it is dropped.
struct Bench {
    dir: tempfile::TempDir,
    reporter: Reporter,
    pool: TaskPool,
    shutdown: CancellationToken,
    _leaving: watch::Sender<Option<bool>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn worker(cluster: &Cluster, managers: Vec<String>) -> Bench {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let identity = cluster.identity(Role::Worker);
    let dialer = Dialer::new(&identity).expect("its own key");
    let reporter = Reporter::default();
    let images = Images {
        store: ImageStore::open(&dir.path().join("images"), true).expect("a folder"),
        dialer: dialer.clone(),
        reporter: reporter.clone(),
        grant_key: Arc::default(),
        fetching: Arc::default(),
        changing: Arc::default(),
        unwanted: Arc::default(),
    };
    let executor = Arc::new(Executor {
        offers: Arc::default(),
        node: NodeNames { id: identity.node_id.to_string(), hostname: "bench".into() },
        images,
        runtime: flota_runtime::Program::open("/nowhere".into()),
        data_dir: dir.path().join("data"),
        run_dir: dir.path().join("run"),
        hierarchies: Vec::new(),
        cgroup_parent: "flota".into(),
        overlay: true,
        known: Mutex::default(),
    });
    let (contact, contact_receiver) = watch::channel(Contact::default());
    let pool = TaskPool::start(Shared {
        executor: Arc::clone(&executor),
        db: TaskDb::open(&dir.path().join("db"), Sealer::new(&[7; 32])).expect("a folder"),
        reporter: reporter.clone(),
        contact: contact_receiver,
        live: Arc::default(),
        ended: Arc::default(),
    });
    let (leaving_sender, leaving) = watch::channel(None);
    let shutdown = CancellationToken::new();
    let agent = Agent {
        node_id: identity.node_id.to_string(),
        listen: "127.0.0.1:1".into(),
        offers: Arc::default(),
        dialer,
        managers: KnownManagers::load(&dir.path().join("managers"), managers),
        pool: pool.clone(),
        reporter: reporter.clone(),
        executor,
        contact,
        leaving,
        removed: watch::channel(false).0,
        newest: Newest::load(&dir.path().join("newest")),
        parts: None,
    };
    tokio::spawn(agent.run(shutdown.clone()));
    Bench { dir, reporter, pool, shutdown, _leaving: leaving_sender }
}

async fn next(sessions: &mut mpsc::Receiver<Session>) -> Session {
    tokio::time::timeout(PATIENCE, sessions.recv()).await.expect("a session in time").expect("the leader lives")
}

fn full(epoch: u64, version: u64) -> FromManager {
    FromManager::Assignments(Assignments { epoch, version, full: true, ..Assignments::default() })
}

#[tokio::test]
async fn a_worker_says_what_it_was_told_last_and_takes_no_older_set() {
    let cluster = Cluster::new();
    let (address, mut sessions) = cluster.leader().await;
    let bench = worker(&cluster, vec![address]);
    let first = next(&mut sessions).await;
    assert_eq!((first.register.epoch, first.register.version, first.register.format), (0, 0, SESSION_FORMAT));
    first.welcome().await;
    first.say(full(2, 10)).await;
    // Taken when the next message after it is answered; then the connection breaks.
    bench.reporter.report("t", TaskStatus::default());
    let mut first = first;
    first.batch().await;
    drop(first);
    let second = next(&mut sessions).await;
    assert_eq!((second.register.epoch, second.register.version), (2, 10));
    second.welcome().await;
    second.say(full(2, 9)).await;
    second.ended().await;
    let third = next(&mut sessions).await;
    third.welcome().await;
    third.say(full(1, 99)).await;
    third.ended().await;
    assert_eq!(next(&mut sessions).await.register.version, 10, "an older epoch is older, whatever its version");
    assert_eq!(Newest::load(&bench.dir.path().join("newest")).get(), (2, 10), "also after a restart");
}

#[tokio::test]
async fn a_worker_goes_where_a_manager_says_that_the_leader_is() {
    let cluster = Cluster::new();
    let ((follower, mut asked), (leader, mut sessions)) = (cluster.leader().await, cluster.leader().await);
    let _bench = worker(&cluster, vec![follower]);
    next(&mut asked).await.say(FromManager::NotLeader(NotLeader { address: leader })).await;
    next(&mut sessions).await.welcome().await;
}

#[tokio::test]
async fn reports_are_sent_again_until_the_leader_has_them() {
    let cluster = Cluster::new();
    let (address, mut sessions) = cluster.leader().await;
    let bench = worker(&cluster, vec![address]);
    let mut first = next(&mut sessions).await;
    first.welcome().await;
    bench.reporter.report("t", TaskStatus { state: TaskState::Running, ..TaskStatus::default() });
    let lost = first.batch().await;
    drop(first);
    let mut second = next(&mut sessions).await;
    second.welcome().await;
    let again = second.batch().await;
    assert_eq!(lost.reports, again.reports);
    second.say(FromManager::StatusAck(StatusAck { sequence: again.sequence })).await;
    bench.reporter.report("u", TaskStatus::default());
    let other = second.batch().await;
    assert_eq!(other.reports.iter().map(|it| it.task_id.as_str()).collect::<Vec<_>>(), ["u"], "what it has is not");
}

#[tokio::test]
async fn a_silent_leader_is_left_for_another_one() {
    let cluster = Cluster::new();
    let ((silent, mut first), (other, mut second)) = (cluster.leader().await, cluster.leader().await);
    let _bench = worker(&cluster, vec![silent, other]);
    // It never answers a heartbeat: the connection stands, but nobody is there.
    let _kept = next(&mut first).await;
    next(&mut second).await.welcome().await;
}

#[tokio::test]
async fn what_a_cluster_that_was_brought_back_does_not_name_is_kept_for_a_while() {
    let cluster = Cluster::new();
    let bench = worker(&cluster, Vec::new());
    let task = |id: &str| TaskAssignment { task_id: id.into(), ..TaskAssignment::default() };
    let set =
        |ids: &[&str]| Assignments { full: true, tasks: ids.iter().map(|id| task(id)).collect(), ..Default::default() };
    bench.pool.assign(set(&["kept", "named"]), Duration::ZERO);
    assert_eq!(bench.pool.tasks(), ["kept", "named"]);
    let grace = Duration::from_millis(300);
    bench.pool.assign(set(&["named"]), grace);
    assert_eq!(bench.pool.tasks(), ["kept", "named"], "not stopped at once");
    bench.pool.assign(set(&["named"]), Duration::ZERO);
    tokio::task::yield_now().await;
    assert_eq!(bench.pool.tasks(), ["kept", "named"], "nor by a later set of the same epoch");
    // One that names it keeps it for good.
    bench.pool.assign(set(&["named", "kept"]), Duration::ZERO);
    tokio::time::sleep(grace * 2).await;
    assert_eq!(bench.pool.tasks(), ["kept", "named"]);
    bench.pool.assign(set(&["named"]), grace);
    let gone = async {
        while bench.pool.tasks() != ["named"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is stopped when its grace is over");
}
