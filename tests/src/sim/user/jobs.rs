//! A user who changes two jobs: one that has so many tasks to do, of which only a few work at once, and one that has a
//! task to do on each node. A new release is a new run; another label is none. The tasks of some releases never end, and a
//! rollback brings an earlier release back as another run.

use std::time::Duration;

use rand::Rng;

use flota_api::proto::specs::{ServiceMode, ServiceSpec};
use flota_api::proto::types::{RestartCondition, RestartPolicy};
use flota_worker::{FakeMachine, FakeProgram};

use super::Client;

/// The job with so many tasks.
const COUNTED: &str = "the-import";
/// The jobs of this user.
pub(in crate::sim) const JOBS: [&str; 2] = [COUNTED, "the-sweep"];
/// The image of a release whose tasks never end by themselves.
const ENDLESS: &str = "endless-app";
/// Number of tasks of the job with so many that work at once.
const AT_ONCE: u64 = 2;

/// Makes the tasks of the jobs end well on this machine.
pub(in crate::sim) fn prepare(machine: &FakeMachine) {
    let runs = Some(Duration::from_millis(900));
    for job in JOBS {
        machine.set_program(job, FakeProgram { runs, ..FakeProgram::default() });
    }
    machine.set_program(ENDLESS, FakeProgram::default());
}

impl Client {
    /// Changes the jobs until the history is stopped. Each of them is there afterwards.
    pub(super) async fn change_jobs(mut self) {
        let mut release = 0;
        while !self.history.is_stopped() {
            let job = JOBS[self.rng.random_range(0..JOBS.len())];
            let mut image = self.wishes.image;
            match self.rng.random_range(0..12) {
                0..=5 => release += 1,
                6 => self.undeploy(job).await,
                7 => {
                    release += 1;
                    image = ENDLESS;
                }
                8..=9 => {
                    self.roll_back(job).await;
                    self.pause(5_000).await;
                    continue;
                }
                _ => {}
            }
            let spec = ServiceSpec { image: image.into(), ..self.job(job, release) };
            self.deploy(spec).await;
            self.pause(5_000).await;
        }
        for job in JOBS {
            let spec = self.job(job, release);
            self.deploy(spec).await;
        }
    }

    fn job(&self, name: &str, release: u64) -> ServiceSpec {
        let is_counted = name == COUNTED;
        let (mode, count) = match is_counted {
            // Another number of tasks comes with another release, so that the slots of a run are always the same.
            true => (ServiceMode::ReplicatedJob, 3 + release % 3),
            false => (ServiceMode::GlobalJob, 0),
        };
        ServiceSpec {
            name: name.to_owned(),
            image: self.wishes.image.into(),
            mode: mode.into(),
            replicas: count,
            max_concurrent: if is_counted { AT_ONCE } else { 0 },
            env: vec![format!("RELEASE={release}")],
            labels: [("change".to_owned(), self.history.tag().to_string())].into(),
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
