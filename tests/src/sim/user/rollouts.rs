//! A user who rolls out services of all policies: new releases, some of which fail, are sick or take a while to be well;
//! earlier ones; updates that are paused, scaled meanwhile, and go on; services that are stopped, started and restarted; and
//! fewer tasks, of which the user says which one goes.

use std::time::Duration;

use rand::Rng;
use tonic::Status;
use tonic::transport::Channel;

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{ListTasksRequest, PauseUpdateRequest, RemoveTaskRequest, RollbackServiceRequest};
use flota_api::proto::specs::{
    FailureAction, HealthSpec, HealthTest, ServiceSpec, UpdateOrder, UpdatePolicy, health_test,
};
use flota_api::proto::types::{DesiredState, RestartPolicy};
use flota_worker::{FakeHealth, FakeMachine, FakeProgram};

use super::Client;

/// A service of this user. Its policies never change, because those that count are those that it has at that moment.
pub(in crate::sim) struct RolledOut {
    pub(in crate::sim) name: &'static str,
    replicas: u64,
    /// Largest number of its tasks on a node; 0 for any.
    on_node: u64,
    parallelism: u64,
    /// Order of its updates.
    pub(super) order: UpdateOrder,
    pub(super) rollback_order: UpdateOrder,
    failure_action: FailureAction,
    max_failure_millionths: u32,
    /// Whether its tasks have a health check.
    is_checked: bool,
}

/// The services of this user.
pub(in crate::sim) const ROLLED_OUT: [RolledOut; 4] = [
    // The tasks of the first two on a drained node just find room on two others: four, two on a node, and none.
    RolledOut {
        name: "the-shop",
        on_node: 2,
        order: UpdateOrder::StartFirst,
        rollback_order: UpdateOrder::StartFirst,
        ..MILL
    },
    RolledOut { replicas: 3, on_node: 1, ..MILL },
    RolledOut {
        name: "the-loom",
        parallelism: 1,
        failure_action: FailureAction::Pause,
        max_failure_millionths: 250_000,
        is_checked: true,
        ..MILL
    },
    RolledOut {
        name: "the-forge",
        replicas: 3,
        order: UpdateOrder::StartFirst,
        failure_action: FailureAction::Continue,
        is_checked: true,
        ..MILL
    },
];
const MILL: RolledOut = RolledOut {
    name: "the-mill",
    replicas: 4,
    on_node: 0,
    parallelism: 2,
    order: UpdateOrder::StopFirst,
    rollback_order: UpdateOrder::StopFirst,
    failure_action: FailureAction::Rollback,
    max_failure_millionths: 0,
    is_checked: false,
};

/// What is logged if a task that was taken from its service is there afterwards.
pub(in crate::sim) const NOT_TAKEN: &str = "a task that was taken from its service is to run";
/// The image of a release whose tasks fail.
const BROKEN: &str = "broken-app";
/// The image of a release whose tasks never are healthy.
const SICK: &str = "sick-app";
/// The image of a release whose tasks are healthy after a while.
const SLOW: &str = "slow-app";

/// Sets how the tasks of the releases behave on this machine.
pub(in crate::sim) fn prepare(machine: &FakeMachine) {
    let runs = Some(Duration::from_millis(50));
    machine.set_program(BROKEN, FakeProgram { runs, exit_code: 1, ..FakeProgram::default() });
    for (image, after) in [(SICK, Duration::from_secs(3_600)), (SLOW, Duration::from_millis(900))] {
        machine.set_program(image, FakeProgram { health: FakeHealth::From(after), ..FakeProgram::default() });
    }
}

impl RolledOut {
    fn spec(&self, image: &str, release: u64, delay_ms: u64) -> ServiceSpec {
        let policy = UpdatePolicy {
            parallelism: self.parallelism,
            delay_ms,
            monitor_ms: 1_000,
            failure_action: self.failure_action.into(),
            max_failure_millionths: self.max_failure_millionths,
            order: self.order.into(),
            ..UpdatePolicy::default()
        };
        let rollback =
            UpdatePolicy { failure_action: FailureAction::Pause.into(), order: self.rollback_order.into(), ..policy };
        let check = HealthSpec {
            test: Some(HealthTest { test: Some(health_test::Test::Shell("well".into())) }),
            interval_ms: Some(200),
            start_period_ms: Some(1_500),
            start_interval_ms: Some(100),
            retries: 2,
            ..HealthSpec::default()
        };
        ServiceSpec {
            name: self.name.to_owned(),
            image: image.to_owned(),
            replicas: self.replicas,
            env: vec![format!("RELEASE={release}")],
            stop_grace_ms: 1_000,
            restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
            update: Some(policy),
            rollback: Some(rollback),
            max_replicas_per_node: self.on_node,
            healthcheck: self.is_checked.then_some(check),
            ..ServiceSpec::default()
        }
    }
}

impl Client {
    /// Changes the services until the history is stopped. The last release of each is a good one.
    pub(super) async fn roll_out(mut self) {
        for service in &ROLLED_OUT {
            self.release(service, self.wishes.image).await;
        }
        self.pause(2_000).await;
        while !self.history.is_stopped() {
            let service = &ROLLED_OUT[self.rng.random_range(0..ROLLED_OUT.len())];
            match self.rng.random_range(0..16) {
                0..=4 => self.release(service, self.wishes.image).await,
                5 => self.release(service, SLOW).await,
                6..=7 => self.release(service, BROKEN).await,
                8 => self.release(service, SICK).await,
                9..=10 => self.release_and_pause(service).await,
                11 => self.roll_back(service.name).await,
                12 => self.stop_and_start(service.name).await,
                // As `ctl service restart` and `service update --force` do.
                13 => self.amend(service.name, |spec| spec.force += 1).await,
                _ => self.take_task(service.name).await,
            }
            self.pause(3_000).await;
        }
        for service in &ROLLED_OUT {
            self.release(service, self.wishes.image).await;
        }
    }

    /// Replaces all tasks of the service.
    async fn release(&mut self, service: &RolledOut, image: &str) {
        let delay_ms = self.rng.random_range(0..=1) * 300;
        let release = self.history.tag();
        self.deploy(service.spec(image, release, delay_ms)).await;
    }

    /// Pauses an update in its midst, and lets it go on after a while; sometimes only the next release does.
    async fn release_and_pause(&mut self, service: &RolledOut) {
        let image = if self.rng.random_bool(0.7) { self.wishes.image } else { BROKEN };
        self.release(service, image).await;
        self.pause(400).await;
        self.pause_update(service.name, true).await;
        if self.rng.random_bool(0.3) {
            let replicas = self.rng.random_range(0..=service.replicas + 1);
            self.amend(service.name, |spec| spec.replicas = replicas).await;
        }
        self.pause(2_500).await;
        if self.rng.random_bool(0.7) {
            self.pause_update(service.name, false).await;
        }
    }

    async fn pause_update(&mut self, name: &str, paused: bool) {
        let request_id = self.request_id(self.history.tag());
        let request = PauseUpdateRequest { request_id, service: name.to_owned(), paused };
        // It is refused if the update has ended before.
        self.request(|mut client| {
            let request = request.clone();
            async move { client.pause_update(request).await.map(drop) }
        })
        .await;
    }

    async fn stop_and_start(&mut self, name: &str) {
        self.amend(name, |spec| spec.stopped = true).await;
        self.pause(2_000).await;
        self.amend(name, |spec| spec.stopped = false).await;
    }

    pub(super) async fn roll_back(&mut self, name: &str) {
        let request_id = self.request_id(self.history.tag());
        let request = RollbackServiceRequest { request_id, service: name.to_owned(), version: None };
        // It is refused if there is no earlier spec.
        self.request(|mut client| {
            let request = request.clone();
            async move { client.rollback_service(request).await.map(drop) }
        })
        .await;
    }

    /// Takes a task and its slot from the service, and looks whether that is the one that goes.
    async fn take_task(&mut self, name: &'static str) {
        let Some(Ok(tasks)) = self.request(|client| wanted(client, name)).await else { return };
        if tasks.is_empty() {
            return;
        }
        let task = tasks[self.rng.random_range(0..tasks.len())].clone();
        let request_id = self.request_id(self.history.tag());
        let request = RemoveTaskRequest { request_id, name: task.clone(), shrink: true };
        let taken = self.request(|mut client| {
            let request = request.clone();
            async move { client.remove_task(request).await.map(drop) }
        });
        if !matches!(taken.await, Some(Ok(()))) {
            return;
        }
        if let Some(Ok(tasks)) = self.request(|client| wanted(client, name)).await
            && tasks.contains(&task)
        {
            tracing::error!(task, "{NOT_TAKEN}");
        }
    }
}

/// Lists the tasks of a service that are to run.
async fn wanted(mut client: ControlClient<Channel>, service: &str) -> Result<Vec<String>, Status> {
    let request = ListTasksRequest { services: vec![service.to_owned()], ..ListTasksRequest::default() };
    let mut pages = client.list_tasks(request).await?.into_inner();
    let mut tasks = Vec::new();
    while let Some(page) = pages.message().await? {
        let rows = page.tasks.into_iter().filter_map(|row| row.task);
        tasks.extend(rows.filter(|task| task.desired_state() == DesiredState::Running).map(|task| task.id));
    }
    Ok(tasks)
}
