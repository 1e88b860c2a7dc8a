//! A user who rolls out two services, one whose updates start the new task of a slot first and one whose updates stop
//! the old one first: new releases, broken ones, which the cluster takes back by itself, earlier ones, and fewer tasks,
//! of which the user says which one goes.

use std::time::Duration;

use rand::Rng;
use tonic::Status;
use tonic::transport::Channel;

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{ListTasksRequest, RemoveTaskRequest, RollbackServiceRequest};
use flota_api::proto::specs::{FailureAction, ServiceSpec, UpdateOrder, UpdatePolicy};
use flota_api::proto::types::{DesiredState, RestartPolicy};
use flota_worker::{FakeMachine, FakeProgram};

use super::Client;

/// The service whose updates start the new task of a slot before the old one is stopped.
pub(in crate::sim) const STARTS_FIRST: &str = "the-shop";
/// The services of this user.
pub(in crate::sim) const ROLLED_OUT: [&str; 2] = [STARTS_FIRST, "the-mill"];
/// What is logged if a task that was taken from its service is there afterwards.
pub(in crate::sim) const NOT_TAKEN: &str = "a task that was taken from its service is to run";
/// The image of a release whose tasks fail.
const BROKEN: &str = "broken-app";

/// Makes the tasks of a broken release fail on this machine.
pub(in crate::sim) fn prepare(machine: &FakeMachine) {
    let runs = Some(Duration::from_millis(50));
    machine.set_program(BROKEN, FakeProgram { runs, exit_code: 1, ..FakeProgram::default() });
}

impl Client {
    /// Changes the services until the history is stopped. The last release of each is a good one.
    pub(super) async fn roll_out(mut self) {
        for name in ROLLED_OUT {
            self.release(name, self.wishes.image).await;
        }
        self.pause(2_000).await;
        while !self.history.is_stopped() {
            let name = ROLLED_OUT[self.rng.random_range(0..ROLLED_OUT.len())];
            match self.rng.random_range(0..10) {
                0..=4 => self.release(name, self.wishes.image).await,
                5..=6 => self.release(name, BROKEN).await,
                7 => self.roll_back(name).await,
                _ => self.take_task(name).await,
            }
            self.pause(3_000).await;
        }
        for name in ROLLED_OUT {
            self.release(name, self.wishes.image).await;
        }
    }

    /// Replaces all tasks of the service.
    async fn release(&mut self, name: &str, image: &str) {
        // What is checked by these policies is what they say at that moment, so all of them say the same.
        let starts_first = name == STARTS_FIRST;
        let order = if starts_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        // The tasks of one service on a drained node just find room on two others, and that of the other service finds none.
        let (replicas, max_replicas_per_node) = if starts_first { (4, 2) } else { (3, 1) };
        let policy = UpdatePolicy {
            parallelism: 2,
            delay_ms: self.rng.random_range(0..=1) * 300,
            monitor_ms: 1_000,
            failure_action: FailureAction::Rollback.into(),
            order: order.into(),
            ..UpdatePolicy::default()
        };
        let spec = ServiceSpec {
            name: name.to_owned(),
            image: image.to_owned(),
            replicas,
            env: vec![format!("RELEASE={}", self.history.tag())],
            stop_grace_ms: 1_000,
            restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
            update: Some(policy),
            rollback: Some(UpdatePolicy { failure_action: FailureAction::Pause.into(), ..policy }),
            max_replicas_per_node,
            ..ServiceSpec::default()
        };
        self.deploy(spec).await;
    }

    async fn roll_back(&mut self, name: &str) {
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
