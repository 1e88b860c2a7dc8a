//! Tests of the agent against a leader on loopback that the test controls.

use std::pin::Pin;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::agent_handle::{AgentHandle, AgentOptions, start_reporting_to};
use crate::disk_thread::DiskThread;
use crate::executor::{FakeExecutor, FakeMachine};
use crate::health::HealthBoard;
use crate::messages::SetVersion;
use crate::networks::FakeNetworks;
use crate::records::MemoryRecords;
use crate::services::FakeServices;
use crate::test_cluster::TestCluster;
use crate::worker_state::FileState;
use flota_api::defaults::SESSION_FORMAT;
use flota_api::model::{Role, ServiceSpec, TaskStatus};
use flota_api::proto::dispatcher::dispatcher_server::{Dispatcher, DispatcherServer};
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::dispatcher::{
    AssignedSpec, Assignments, ManagerMessage, Networks, NotLeader, Register, Registered, StatusAck, StatusBatch,
    TaskAssignment, WorkerMessage,
};
use flota_api::proto::types::DesiredState;
use flota_api::state::TaskState;

/// An upper bound for every wait, far longer than any of them takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The leader's side of a session.
struct FakeSession {
    register: Register,
    inbox: Streaming<WorkerMessage>,
    outbox: mpsc::Sender<Result<ManagerMessage, Status>>,
}

impl FakeSession {
    async fn send(&self, message: FromManager) {
        self.outbox.send(Ok(ManagerMessage { message: Some(message) })).await.expect("the worker listens");
    }

    async fn welcome(&self) {
        self.send(FromManager::Registered(Registered { heartbeat_ms: 1_000, ..Registered::default() })).await;
    }

    /// Waits for the next batch of reports and skips heartbeats.
    async fn batch(&mut self) -> StatusBatch {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.inbox.message()).await.expect("a batch in time");
            if let Some(ToManager::Statuses(batch)) = message.expect("no error").expect("the session continues").message
            {
                return batch;
            }
        }
    }

    /// Waits for the next version that the worker has programmed.
    async fn programmed(&mut self) -> u64 {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.inbox.message()).await.expect("an answer in time");
            if let Some(ToManager::Programmed(it)) = message.expect("no error").expect("the session continues").message
            {
                return it.version;
            }
        }
    }

    /// Waits until the worker has ended the session. Returns whether the worker announced its departure.
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

    /// Waits until the worker has reported that this task is running.
    async fn runs(&mut self, task: &str) {
        loop {
            let batch = self.batch().await;
            self.send(FromManager::StatusAck(StatusAck { sequence: batch.sequence })).await;
            let mut reports = batch.reports.into_iter().filter(|it| it.task_id == task);
            if reports.any(|it| TaskStatus::try_from(it.status).is_ok_and(|it| it.state == TaskState::Running)) {
                return;
            }
        }
    }
}

/// A leader that the test controls.
#[derive(Clone)]
struct FakeLeader(mpsc::Sender<FakeSession>);

#[tonic::async_trait]
impl Dispatcher for FakeLeader {
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
        let _ = self.0.send(FakeSession { register, inbox, outbox }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// Starts a leader on loopback. Returns its address and the sessions that are opened with it.
async fn leader(cluster: &TestCluster) -> (String, mpsc::Receiver<FakeSession>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    let (incoming, _) =
        flota_identity::incoming(listener, cluster.credentials(Role::Manager), None, Default::default());
    let (sender, sessions) = mpsc::channel(8);
    let server = tonic::transport::Server::builder().add_service(DispatcherServer::new(FakeLeader(sender)));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    (address, sessions)
}

/// A worker without containers. It ends when it is dropped.
struct Bench {
    dir: tempfile::TempDir,
    reporter: Reporter,
    machine: FakeMachine,
    disk: Arc<DiskThread>,
    agent: AgentHandle,
}

fn worker(cluster: &TestCluster, managers: Vec<String>) -> Bench {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let credentials = cluster.credentials(Role::Worker);
    let disk = Arc::new(DiskThread::start().expect("a thread"));
    let (reporter, machine, clock) = (Reporter::default(), FakeMachine::new("bench"), Clock::system());
    let (_, cdi_devices) = watch::channel(Vec::new());
    let options = AgentOptions {
        node_id: credentials.identity().node_id.to_string(),
        description: NodeDescription { boot_id: machine.boot_id(), ..NodeDescription::default() },
        address: "127.0.0.1:1".into(),
        dialer: Dialer::new(credentials),
        managers,
        executor: Arc::new(FakeExecutor::new(machine.clone(), clock.clone())),
        health: HealthBoard::default(),
        services: Arc::new(FakeServices(machine.clone())),
        networks: Arc::new(FakeNetworks::default()),
        records: Arc::new(MemoryRecords::default()),
        state: Arc::new(FileState::new(dir.path(), Arc::clone(&disk))),
        offers: Arc::default(),
        cdi_devices,
        trusts: watch::Sender::default(),
        clock,
        random: Random::from_os(),
    };
    let agent = start_reporting_to(options, reporter.clone(), CancellationToken::new());
    Bench { dir, reporter, machine, disk, agent }
}

async fn next(sessions: &mut mpsc::Receiver<FakeSession>) -> FakeSession {
    tokio::time::timeout(PATIENCE, sessions.recv()).await.expect("a session in time").expect("the leader lives")
}

fn full(epoch: u64, version: u64) -> FromManager {
    FromManager::Assignments(Assignments { epoch, version, full: true, ..Assignments::default() })
}

#[tokio::test]
async fn a_worker_registers_with_the_newest_set_and_refuses_an_older_one() {
    let cluster = TestCluster::new();
    let (address, mut sessions) = leader(&cluster).await;
    let bench = worker(&cluster, vec![address]);
    let first = next(&mut sessions).await;
    assert_eq!((first.register.epoch, first.register.version, first.register.format), (0, 0, SESSION_FORMAT));
    first.welcome().await;
    first.send(full(2, 10)).await;
    // The leader receives the batch when it answers the next message; then the connection breaks.
    bench.reporter.report(&"t".into(), TaskStatus::default());
    let mut first = first;
    first.batch().await;
    drop(first);
    let second = next(&mut sessions).await;
    assert_eq!((second.register.epoch, second.register.version), (2, 10));
    second.welcome().await;
    second.send(full(2, 9)).await;
    second.ended().await;
    let third = next(&mut sessions).await;
    third.welcome().await;
    third.send(full(1, 99)).await;
    third.ended().await;
    assert_eq!(next(&mut sessions).await.register.version, 10, "an older epoch is older, whatever its version");
    bench.disk.drain();
    assert_eq!(
        Newest::load(Arc::new(FileState::new(bench.dir.path(), Arc::clone(&bench.disk)))).get(),
        SetVersion { epoch: 2, version: 10 },
        "also after a restart"
    );
}

#[tokio::test]
async fn a_worker_goes_where_a_manager_says_that_the_leader_is() {
    let cluster = TestCluster::new();
    let ((follower, mut asked), (leading, mut sessions)) = (leader(&cluster).await, leader(&cluster).await);
    let _bench = worker(&cluster, vec![follower]);
    next(&mut asked).await.send(FromManager::NotLeader(NotLeader { address: leading })).await;
    next(&mut sessions).await.welcome().await;
}

#[tokio::test]
async fn reports_are_sent_again_until_the_leader_has_them() {
    let cluster = TestCluster::new();
    let (address, mut sessions) = leader(&cluster).await;
    let bench = worker(&cluster, vec![address]);
    let mut first = next(&mut sessions).await;
    first.welcome().await;
    bench.reporter.report(&"t".into(), TaskStatus { state: TaskState::Running, ..TaskStatus::default() });
    let lost = first.batch().await;
    drop(first);
    let mut second = next(&mut sessions).await;
    second.welcome().await;
    let again = second.batch().await;
    assert_eq!(lost.reports, again.reports);
    second.send(FromManager::StatusAck(StatusAck { sequence: again.sequence })).await;
    bench.reporter.report(&"u".into(), TaskStatus::default());
    let other = second.batch().await;
    assert_eq!(other.reports.iter().map(|it| it.task_id.as_str()).collect::<Vec<_>>(), ["u"], "what it has is not");
}

#[tokio::test]
async fn a_silent_leader_is_left_for_another_one() {
    let cluster = TestCluster::new();
    let ((silent, mut first), (other, mut second)) = (leader(&cluster).await, leader(&cluster).await);
    let _bench = worker(&cluster, vec![silent, other]);
    // This leader never answers a heartbeat: the connection stays open without a response.
    let _kept = next(&mut first).await;
    next(&mut second).await.welcome().await;
}

#[tokio::test]
async fn each_whole_description_of_the_networks_is_confirmed_in_every_session() {
    let cluster = TestCluster::new();
    let (address, mut sessions) = leader(&cluster).await;
    let _bench = worker(&cluster, vec![address]);
    let part = |version, more| FromManager::Networks(Networks { version, full: true, more, ..Networks::default() });
    let mut first = next(&mut sessions).await;
    first.welcome().await;
    first.send(part(6, true)).await;
    first.send(part(7, false)).await;
    assert_eq!(first.programmed().await, 7);
    first.send(part(8, true)).await;
    drop(first);
    // The leader of another session does not know what an earlier one was told, and a part that came there is void.
    let mut second = next(&mut sessions).await;
    second.welcome().await;
    second.send(part(7, false)).await;
    assert_eq!(second.programmed().await, 7);
}

/// A session in which the task `t` runs.
async fn session_with_task(cluster: &TestCluster) -> (Bench, FakeSession) {
    let (address, mut sessions) = leader(cluster).await;
    let bench = worker(cluster, vec![address]);
    let mut session = next(&mut sessions).await;
    session.welcome().await;
    let desired_state = DesiredState::Running.into();
    let tasks = vec![TaskAssignment { task_id: "t".into(), desired_state, ..TaskAssignment::default() }];
    let specs = vec![AssignedSpec { spec: Some((&ServiceSpec::default()).into()), ..AssignedSpec::default() }];
    session.send(FromManager::Assignments(Assignments { full: true, tasks, specs, ..Assignments::default() })).await;
    session.runs("t").await;
    (bench, session)
}

#[tokio::test]
async fn a_killed_agent_sends_nothing_and_leaves_its_containers() {
    let (bench, session) = session_with_task(&TestCluster::new()).await;
    bench.agent.kill();
    // No task is left that could be acted on.
    bench.agent.pool.assign(AssignmentSet { is_full: true, ..AssignmentSet::default() }, Duration::ZERO);
    assert!(!session.ended().await);
    assert_eq!(bench.machine.running().len(), 1);
}

#[tokio::test]
async fn an_agent_that_stops_tells_the_leader_and_leaves_its_containers() {
    let (bench, session) = session_with_task(&TestCluster::new()).await;
    let (leaves, ()) = tokio::join!(session.ended(), bench.agent.stop());
    assert!(leaves);
    assert_eq!(bench.machine.running().len(), 1);
}

#[tokio::test]
async fn a_machine_that_goes_down_stops_its_tasks_first() {
    let (bench, session) = session_with_task(&TestCluster::new()).await;
    bench.agent.stop_tasks().await;
    assert!(bench.machine.running().is_empty());
    assert!(session.ended().await);
}
