//! What holds at every moment of health checks: no task that has one counts as running before it has succeeded.

use flota_api::model::HealthTest;
use flota_api::state::TaskState;
use flota_raft_store::View;

use super::cluster::SimCluster;
use super::violation::{Kind, Violation};

/// Checks all tasks on nodes that no test speaks for.
///
/// # Errors
/// A task was never healthy.
pub(super) fn check_tables(cluster: &SimCluster, view: &View) -> Result<(), Violation> {
    for worker in cluster.workers.iter().filter(|it| !it.is_manual) {
        for task in view.tasks_of_node(&worker.node_id).filter(|task| task.status.state == TaskState::Running) {
            let test = view.spec_of(task).and_then(|spec| spec.healthcheck.test.clone());
            let is_checked = test.is_some_and(|test| test != HealthTest::None);
            if is_checked && !worker.machine.has_been_healthy(task.id.as_str()) {
                return Err(Kind::FalseHealth.because(format!("it was never healthy: {task:?}")));
            }
        }
    }
    Ok(())
}
