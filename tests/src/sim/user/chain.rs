//! A user who deploys and removes a stack whose services depend on each other: a job, a service that needs its work,
//! another one that needs that service, and a job that needs the other one. Also the check that they start in this order.

use std::collections::BTreeSet;
use std::time::Duration;

use flota_api::model::{DependencyCondition as Condition, Service, Task};
use flota_api::proto::specs::{Dependency, DependencyCondition, ServiceMode, ServiceSpec};
use flota_api::proto::types::{RestartCondition, RestartPolicy};
use flota_api::state::DesiredState;
use flota_raft_store::View;
use flota_worker::{FakeMachine, FakeProgram};

use super::Client;
use crate::sim::violation::{Kind, Violation};

const STACK: &str = "the-chain";
const JOB: &str = "the-chain_job";
const FIRST: &str = "the-chain_first";
const LAST: &str = "the-chain_last";
const REPORT: &str = "the-chain_report";

/// Makes the tasks of the jobs end well on this machine.
pub(in crate::sim) fn prepare(machine: &FakeMachine) {
    let runs = Some(Duration::from_millis(700));
    for job in [JOB, REPORT] {
        machine.set_program(job, FakeProgram { runs, ..FakeProgram::default() });
    }
}

/// Checks that a service of the stack has tasks only if those on which it depends were ready. These services are created
/// and removed and never changed, so what was ready once still shows.
///
/// # Errors
/// A service has begun too early.
pub(in crate::sim) fn check_order(view: &View) -> Result<(), Violation> {
    let has_begun =
        |service: &Service| view.tasks_of_service(&service.id).any(|task| task.desired_state != DesiredState::Remove);
    for name in [FIRST, LAST, REPORT] {
        let Some(service) = view.service_by_name(name).filter(|it| has_begun(it)) else { continue };
        for dependency in &service.spec.depends_on {
            let Some(on) = view.service_by_name(&dependency.service) else { continue };
            let shows = |task: &Task| dependency.condition != Condition::Completed || task.has_done_its_work();
            let tasks = view.tasks_of_service(&on.id).filter(|task| shows(task));
            let slots: BTreeSet<u64> = tasks.map(|task| task.slot).collect();
            if (slots.len() as u64) < on.spec.mode.replicas().unwrap_or_default() {
                let text = format!("{name} has tasks, and of {} there are only {slots:?}", dependency.service);
                return Err(Kind::StartedTooEarly.because(text));
            }
        }
    }
    Ok(())
}

impl Client {
    /// Deploys and removes the stack until the history is stopped.
    pub(super) async fn change_chain(mut self) {
        while !self.history.is_stopped() {
            self.deploy_stack(STACK, self.chain()).await;
            self.pause(10_000).await;
            if self.history.is_stopped() {
                return;
            }
            self.remove_stack(STACK).await;
            self.pause(3_000).await;
        }
    }

    fn chain(&self) -> Vec<ServiceSpec> {
        let spec = |name: &str, on: Option<(&str, DependencyCondition)>| {
            let depends_on = on.map(|(service, condition)| Dependency {
                service: service.into(),
                condition: condition.into(),
                optional: false,
            });
            ServiceSpec {
                name: name.into(),
                image: self.wishes.image.into(),
                replicas: 2,
                stop_grace_ms: 1_000,
                restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
                depends_on: depends_on.into_iter().collect(),
                ..ServiceSpec::default()
            }
        };
        let condition = RestartCondition::OnFailure.into();
        let as_job = |spec: ServiceSpec| ServiceSpec {
            mode: ServiceMode::ReplicatedJob.into(),
            restart: Some(RestartPolicy { condition, delay_ms: 200, ..RestartPolicy::default() }),
            ..spec
        };
        let job = as_job(spec(JOB, None));
        let report = as_job(spec(REPORT, Some((LAST, DependencyCondition::Started))));
        let first = spec(FIRST, Some((JOB, DependencyCondition::Completed)));
        vec![report, spec(LAST, Some((FIRST, DependencyCondition::Started))), first, job]
    }
}
