use std::pin::Pin;
use std::time::SystemTime;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::agent_handle::{AgentHandle, AgentOptions, start_reporting_to};
use crate::executor::{FakeExecutor, FakeMachine};
use crate::records::MemoryRecords;
use crate::services::FakeServices;
use crate::worker_state::FileState;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{Role, ServiceSpec, TaskStatus};
use flota_api::proto::dispatcher::dispatcher_server::{Dispatcher, DispatcherServer};
use flota_api::proto::dispatcher::{AssignedSpec, NotLeader, Registered, StatusAck, StatusBatch, TaskAssignment};
use flota_api::proto::types::DesiredState;
use flota_api::state::TaskState;
use flota_identity::{Identity, KeyPair, RootCa};

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

    /// Until the worker has ended it; whether it said that it leaves.
    async fn ended(mut self) -> bool {
        let end = async {
            let mut leaves = false;
            while let Ok(Some(message)) = self.inbox.message().await {
                leaves |= matches!(message.message, Some(ToManager::Leaving(_)));
            }
            leaves
        };
        tokio::time::timeout(PATIENCE, end).await.expect("the worker ends the session")
    }

    /// Until the worker has reported that this task runs.
    async fn runs(&mut self, task: &str) {
        loop {
            let batch = self.batch().await;
            self.say(FromManager::StatusAck(StatusAck { sequence: batch.sequence })).await;
            let mut reports = batch.reports.into_iter().filter(|it| it.task_id == task);
            if reports.any(|it| TaskStatus::try_from(it.status).is_ok_and(|it| it.state == TaskState::Running)) {
                return;
            }
        }
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
    machine: FakeMachine,
    agent: AgentHandle,
}

fn worker(cluster: &Cluster, managers: Vec<String>) -> Bench {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let identity = cluster.identity(Role::Worker);
    let (reporter, machine, clock) = (Reporter::default(), FakeMachine::new("bench"), Clock::system());
    let options = AgentOptions {
        node_id: identity.node_id.to_string(),
        description: NodeDescription { boot_id: machine.boot_id(), ..NodeDescription::default() },
        address: "127.0.0.1:1".into(),
        dialer: Dialer::new(&identity).expect("its own key"),
        managers,
        executor: Arc::new(FakeExecutor::new(machine.clone(), clock.clone())),
        services: Arc::new(FakeServices),
        records: Arc::new(MemoryRecords::default()),
        state: Arc::new(FileState::new(dir.path())),
        offers: Arc::default(),
        clock,
        random: Random::from_os(),
    };
    let agent = start_reporting_to(options, reporter.clone(), CancellationToken::new());
    Bench { dir, reporter, machine, agent }
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
    assert_eq!(Newest::load(Arc::new(FileState::new(bench.dir.path()))).get(), (2, 10), "also after a restart");
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
    bench.agent.pool.assign(set(&["kept", "named"]), Duration::ZERO);
    assert_eq!(bench.agent.pool.tasks(), ["kept", "named"]);
    let grace = Duration::from_millis(300);
    bench.agent.pool.assign(set(&["named"]), grace);
    assert_eq!(bench.agent.pool.tasks(), ["kept", "named"], "not stopped at once");
    bench.agent.pool.assign(set(&["named"]), Duration::ZERO);
    tokio::task::yield_now().await;
    assert_eq!(bench.agent.pool.tasks(), ["kept", "named"], "nor by a later set of the same epoch");
    // One that names it keeps it for good.
    bench.agent.pool.assign(set(&["named", "kept"]), Duration::ZERO);
    tokio::time::sleep(grace * 2).await;
    assert_eq!(bench.agent.pool.tasks(), ["kept", "named"]);
    bench.agent.pool.assign(set(&["named"]), grace);
    let gone = async {
        while bench.agent.pool.tasks() != ["named"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is stopped when its grace is over");
}

/// A session in which the task `t` runs.
async fn session_with_task(cluster: &Cluster) -> (Bench, Session) {
    let (address, mut sessions) = cluster.leader().await;
    let bench = worker(cluster, vec![address]);
    let mut session = next(&mut sessions).await;
    session.welcome().await;
    let desired_state = DesiredState::Running.into();
    let tasks = vec![TaskAssignment { task_id: "t".into(), desired_state, ..TaskAssignment::default() }];
    let specs = vec![AssignedSpec { spec: Some((&ServiceSpec::default()).into()), ..AssignedSpec::default() }];
    session.say(FromManager::Assignments(Assignments { full: true, tasks, specs, ..Assignments::default() })).await;
    session.runs("t").await;
    (bench, session)
}

#[tokio::test]
async fn a_killed_agent_says_nothing_and_leaves_its_containers() {
    let (bench, session) = session_with_task(&Cluster::new()).await;
    bench.agent.kill();
    // Nobody is left who could obey.
    bench.agent.pool.assign(Assignments { full: true, ..Assignments::default() }, Duration::ZERO);
    assert!(!session.ended().await);
    assert_eq!(bench.machine.running().len(), 1);
}

#[tokio::test]
async fn an_agent_that_stops_says_that_it_leaves_and_leaves_its_containers() {
    let (bench, session) = session_with_task(&Cluster::new()).await;
    let (leaves, ()) = tokio::join!(session.ended(), bench.agent.stop());
    assert!(leaves);
    assert_eq!(bench.machine.running().len(), 1);
}

#[tokio::test]
async fn a_machine_that_goes_down_stops_its_tasks_first() {
    let (bench, session) = session_with_task(&Cluster::new()).await;
    bench.agent.stop_tasks().await;
    assert!(bench.machine.running().is_empty());
    assert!(session.ended().await);
}
