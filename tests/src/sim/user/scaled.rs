//! A user who changes a service whose number of tasks follows their load. Each task uses the same memory all the time,
//! so the name of the service says what becomes of that number, whatever the user sets.

use rand::Rng;

use flota_api::proto::specs::{ScalePolicy, ServiceSpec, UpdatePolicy};
use flota_api::proto::types::RestartPolicy;
use flota_worker::{FakeMachine, FakeProgram};

use super::Client;

/// The load of a service that is scaled, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum SteadyLoad {
    /// Fewer tasks are enough, however many there are.
    Low,
    /// The tasks use what they are to use.
    Right,
    /// More tasks are needed, however many there are.
    High,
}

/// The services whose number of tasks follows their load. A simulation has one of them at most.
pub(in crate::sim) const SCALED: [(&str, SteadyLoad); 3] =
    [("the-lull", SteadyLoad::Low), ("the-flow", SteadyLoad::Right), ("the-rush", SteadyLoad::High)];
/// Memory that a task is to use, in bytes.
const TARGET: u64 = 100 << 20;

/// Gives the tasks of these services their load on this machine.
pub(in crate::sim) fn prepare(machine: &FakeMachine) {
    for (name, load) in SCALED {
        let memory_bytes = match load {
            SteadyLoad::Low => TARGET / 10,
            SteadyLoad::Right => TARGET,
            SteadyLoad::High => TARGET * 2,
        };
        machine.set_program(name, FakeProgram { memory_bytes, ..FakeProgram::default() });
    }
}

impl Client {
    /// Changes the service until the history is stopped.
    pub(super) async fn change_scaled(mut self, name: &'static str) {
        while !self.history.is_stopped() {
            // No window is waited for: what a look at the load leads to is seen soon.
            let scale = ScalePolicy { min: 2, max: 5, memory_bytes: TARGET, ..ScalePolicy::default() };
            let spec = ServiceSpec {
                name: name.to_owned(),
                image: self.wishes.image.into(),
                // Also a number that is out of bounds.
                replicas: self.rng.random_range(0..=7),
                env: vec![format!("RELEASE={}", self.rng.random_range(0..2))],
                stop_grace_ms: 1_000,
                scale: Some(scale),
                restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
                update: Some(UpdatePolicy { parallelism: 2, monitor_ms: 1_000, ..UpdatePolicy::default() }),
                ..ServiceSpec::default()
            };
            self.deploy(spec).await;
            self.pause(8_000).await;
        }
    }
}
