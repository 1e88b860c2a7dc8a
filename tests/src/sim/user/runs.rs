//! A user who runs two services of the mode cron again and again, while earlier runs are under way: the runs of one may
//! overlap, and each of the other replaces the one before.

use std::time::Duration;

use rand::Rng;

use flota_api::proto::control::RunServiceRequest;
use flota_api::proto::specs::{Concurrency, ServiceMode, ServiceSpec};
use flota_api::proto::types::{RestartCondition, RestartPolicy};
use flota_worker::{FakeMachine, FakeProgram};

use super::Client;

/// The service whose runs may overlap.
pub(in crate::sim) const OVERLAPPING: &str = "the-report";
/// The service whose runs replace each other.
const REPLACING: &str = "the-sync";
/// The services of this user.
pub(in crate::sim) const RUN: [&str; 2] = [OVERLAPPING, REPLACING];

/// Makes the tasks of the runs end well on this machine, some time after the next run was asked for.
pub(in crate::sim) fn prepare(machine: &FakeMachine) {
    let runs = Some(Duration::from_secs(3));
    for name in RUN {
        machine.set_program(name, FakeProgram { runs, ..FakeProgram::default() });
    }
}

impl Client {
    /// Begins runs until the history is stopped.
    pub(super) async fn begin_runs(mut self) {
        while !self.history.is_stopped() {
            let name = RUN[self.rng.random_range(0..RUN.len())];
            match self.rng.random_range(0..20) {
                0 => self.undeploy(name).await,
                1..=3 => {
                    let spec = self.runs(name);
                    self.deploy(spec).await;
                }
                _ => self.begin_run(name).await,
            }
            self.pause(2_000).await;
        }
    }

    /// Begins a run, if the service is there and its rule permits it.
    async fn begin_run(&mut self, name: &str) {
        let request_id = self.request_id(self.history.tag());
        let request = RunServiceRequest { request_id, service: name.to_owned() };
        let begun = self.request(|mut client| {
            let request = request.clone();
            async move { client.run_service(request).await.map(drop) }
        });
        let begun = begun.await;
        tracing::info!(client = self.number, name, ?begun, "a run was asked for");
    }

    fn runs(&mut self, name: &str) -> ServiceSpec {
        let concurrency = if name == OVERLAPPING { Concurrency::Allow } else { Concurrency::Replace };
        ServiceSpec {
            name: name.to_owned(),
            image: self.wishes.image.into(),
            mode: ServiceMode::Cron.into(),
            // Never while a simulation lasts.
            schedule: "0 0 29 2 *".into(),
            concurrency: concurrency.into(),
            replicas: self.rng.random_range(1..=3),
            env: vec![format!("RELEASE={}", self.rng.random_range(0..3))],
            stop_grace_ms: 1_000,
            restart: Some(RestartPolicy {
                condition: RestartCondition::OnFailure.into(),
                delay_ms: 200,
                ..RestartPolicy::default()
            }),
            ..ServiceSpec::default()
        }
    }
}
