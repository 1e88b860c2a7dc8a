//! A simulation that a test controls step by step: it arranges, acts, waits for a named condition and asserts.

use std::sync::{Arc, Mutex};

use tonic::Status;
use tonic::transport::Channel;

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{
    CreateServiceRequest, ListTasksRequest, TaskRow, UpdateNodeRequest, UpdateServiceRequest,
};
use flota_api::proto::specs::{NodeSpec, ServiceSpec};
use flota_api::proto::types::RestartPolicy;

use flota_identity::{Dialer, Peer};
use flota_raft_store::faults;

use super::cluster::SimCluster;
use super::host::{Host, USER};
use super::invariants::{converged, picture};
use super::run::{Options, Run};

/// A cluster that is up, for a test.
pub struct Script {
    run: Run,
}

type Answered<T> = Arc<Mutex<Option<Result<T, Status>>>>;

/// A request under way, sent from a simulated machine that does nothing else.
pub struct OpenRequest<T> {
    user: Host,
    answered: Answered<T>,
}

/// Runs a test on a cluster of three managers and this many workers, in a thread of its own.
///
/// # Panics
/// The test panics; the log of the simulation is then printed to standard error.
pub fn script(workers: u16, test: impl FnOnce(&mut Script) + Send + 'static) {
    script_with(3, workers, test);
}

/// Runs a test on a cluster of this many managers and workers, in a thread of its own.
///
/// # Panics
/// The test panics; the log of the simulation is then printed to standard error.
pub fn script_with(managers: u16, workers: u16, test: impl FnOnce(&mut Script) + Send + 'static) {
    script_of(Options { managers, workers, ..Options::new(1) }, test);
}

/// Runs a test on the cluster that these options describe, in a thread of its own.
///
/// # Panics
/// The test panics; the log of the simulation is then printed to standard error.
pub fn script_of(options: Options, test: impl FnOnce(&mut Script) + Send + 'static) {
    let run = move || {
        faults::set(options.fault);
        let mut script = Script { run: Run::new(options) };
        let tested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            script.run.until_up().expect("the cluster starts");
            test(&mut script);
        }));
        if let Err(panic) = tested {
            eprintln!("{}", script.run.cluster.world.log.tail(60));
            std::panic::resume_unwind(panic);
        }
    };
    let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(run).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Returns the spec of a service for tests.
pub fn spec(name: &str, replicas: u64) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        image: "app".into(),
        replicas,
        stop_grace_ms: 1_000,
        restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
        ..ServiceSpec::default()
    }
}

impl Script {
    /// The cluster, for changing it.
    pub fn cluster(&mut self) -> &mut SimCluster {
        &mut self.run.cluster
    }

    /// Runs until `condition` holds, for at most `most` milliseconds. Returns how many it took.
    ///
    /// # Panics
    /// The condition does not hold in time, or an invariant is violated.
    pub fn wait(&mut self, what: &str, most: u64, condition: impl Fn(&SimCluster) -> Result<(), String>) -> u64 {
        let begun = self.run.cluster.world.now();
        self.run.until(what, most, condition).expect("in time");
        self.run.cluster.world.now() - begun
    }

    /// Runs for this many milliseconds.
    ///
    /// # Panics
    /// An invariant is violated.
    pub fn pass(&mut self, millis: u64) {
        self.run.pass(millis).expect("the invariants hold");
    }

    /// Changes the tables of one manager without Raft, as bad memory can.
    ///
    /// # Panics
    /// The manager does not run.
    pub fn spoil_tables(&mut self, manager: usize) {
        self.run.spoil_tables(manager);
    }

    /// Runs until the cluster has converged.
    ///
    /// # Panics
    /// It takes longer than a minute.
    pub fn converge(&mut self) {
        self.wait("everything is as users want it", 60_000, converged);
    }

    /// Returns a text that lists all running containers.
    pub fn picture(&self) -> String {
        picture(&self.run.cluster)
    }

    /// Number of the leader.
    ///
    /// # Panics
    /// No manager leads.
    pub fn leader(&self) -> usize {
        self.run.cluster.leader().expect("a manager leads")
    }

    /// Sends a user's request to one manager; [`Script::end`] returns the answer.
    pub fn begin<T, F>(
        &mut self,
        manager: usize,
        call: impl FnOnce(ControlClient<Channel>) -> F + Send + 'static,
    ) -> OpenRequest<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        self.begin_as(Peer::Local, manager, |channel| call(ControlClient::new(channel)))
    }

    /// Sends a request of `peer` to one manager; [`Script::end`] returns the answer.
    pub fn begin_as<T, F>(
        &mut self,
        peer: Peer,
        manager: usize,
        call: impl FnOnce(Channel) -> F + Send + 'static,
    ) -> OpenRequest<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let world = &mut self.run.cluster.world;
        let user = (0..=USER.0).rev().map(Host).find(|host| !world.is_up(*host)).expect("users are few");
        let answered = Answered::default();
        let (connector, slot) = (world.network.connector(user, peer), Arc::clone(&answered));
        let address = self.run.cluster.managers[manager].host.address();
        self.run.cluster.world.start(user, async move {
            // A channel must be created in the runtime that uses it.
            let answer = call(Dialer::through(connector).manager(&address)).await;
            *slot.lock().expect("no holder panics") = Some(answer);
        });
        OpenRequest { user, answered }
    }

    /// Returns the answer to a request if there is one, and ends the request.
    ///
    /// # Panics
    /// The thread that holds the request's slot panicked.
    pub fn end<T>(&mut self, asked: OpenRequest<T>) -> Option<Result<T, Status>> {
        self.run.cluster.world.crash(asked.user, false);
        asked.answered.lock().expect("no holder panics").take()
    }

    /// Sends a user's request to one manager and returns the answer.
    ///
    /// # Errors
    /// The error that the manager answers.
    ///
    /// # Panics
    /// The manager does not answer within 30 seconds.
    pub fn request<T, F>(
        &mut self,
        manager: usize,
        call: impl FnOnce(ControlClient<Channel>) -> F + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        self.request_as(Peer::Local, manager, |channel| call(ControlClient::new(channel)))
    }

    /// Sends a request of `peer` to one manager and returns the answer.
    ///
    /// # Errors
    /// The error that the manager answers.
    ///
    /// # Panics
    /// The manager does not answer within 30 seconds.
    pub fn request_as<T, F>(
        &mut self,
        peer: Peer,
        manager: usize,
        call: impl FnOnce(Channel) -> F + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let asked = self.begin_as(peer, manager, call);
        let there = Arc::clone(&asked.answered);
        self.wait("a manager answers", 30_000, move |_| match *there.lock().expect("no holder panics") {
            Some(_) => Ok(()),
            None => Err("no answer".into()),
        });
        self.end(asked).expect("it was waited for")
    }

    /// Creates a service through this manager.
    ///
    /// # Errors
    /// The error that the manager answers.
    pub fn create(&mut self, manager: usize, spec: ServiceSpec) -> Result<(), Status> {
        let request_id = format!("create {}", spec.name);
        let request = CreateServiceRequest { request_id, spec: Some(spec), ..CreateServiceRequest::default() };
        self.request(manager, |mut client| async move { client.create_service(request).await.map(drop) })
    }

    /// Updates a service through this manager, whatever the version of the service is.
    ///
    /// # Errors
    /// The error that the manager answers.
    pub fn update(&mut self, manager: usize, request_id: &str, spec: ServiceSpec) -> Result<(), Status> {
        let service = spec.name.clone();
        let request = UpdateServiceRequest {
            request_id: request_id.into(),
            service,
            spec: Some(spec),
            ..UpdateServiceRequest::default()
        };
        self.request(manager, |mut client| async move { client.update_service(request).await.map(drop) })
    }

    /// Lists all tasks through this manager, as users see them.
    ///
    /// # Panics
    /// The manager refuses.
    pub fn tasks(&mut self, manager: usize) -> Vec<TaskRow> {
        let rows = self.request(manager, |mut client| async move {
            let mut pages = client.list_tasks(ListTasksRequest::default()).await?.into_inner();
            let mut rows = Vec::new();
            while let Some(page) = pages.message().await? {
                rows.extend(page.tasks);
            }
            Ok(rows)
        });
        rows.expect("a list is answered")
    }

    /// Sets the availability and the labels of a node through the leader.
    ///
    /// # Panics
    /// No manager leads, or the leader refuses.
    pub fn update_node(&mut self, node: &str, spec: NodeSpec) {
        let request_id = format!("{node} at {}", self.run.cluster.world.now());
        let request = UpdateNodeRequest { request_id, node: node.into(), version: 0, spec: Some(spec) };
        let updated =
            self.request(self.leader(), |mut client| async move { client.update_node(request).await.map(drop) });
        updated.expect("the node is updated");
    }
}
