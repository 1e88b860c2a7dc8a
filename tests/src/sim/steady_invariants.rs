//! What holds at every moment of the services of which users change only what concerns no task: their tasks stay as they
//! are. One leaves its node only if that is lost or drained, breaks the constraints of the service, or has more than its
//! share when a user rebalances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId, TaskId};
use flota_api::model::{Availability, NodeState, Service, Task};
use flota_api::state::DesiredState;
use flota_api::version::Version;
use flota_raft_store::View;

use super::user::STEADY;
use super::violation::{Kind, Violation};

/// For so many entries, what a leader does may be because of a node that would be fit again.
const DECIDED_BEFORE: Version = 10;

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub(super) struct SteadyInvariants {
    /// The tasks that were the only ones of their slots, and served.
    serving: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    /// The last version at which a node was not fit for the tasks of a service.
    unfit: BTreeMap<(ServiceId, NodeId), Version>,
}

impl SteadyInvariants {
    /// Checks what a newer version of the store has.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), Violation> {
        let before = std::mem::take(&mut self.serving);
        for service in STEADY.iter().filter_map(|name| view.service_by_name(name)) {
            let name = &service.spec.name;
            if service.spec_version != 1 {
                let text =
                    format!("no change concerns the tasks of {name}, and it is at spec {}", service.spec_version);
                return Err(Kind::NeedlessMove.because(text));
            }
            for node in view.nodes().filter(|node| !is_fit(service, &node.id, view)) {
                self.unfit.insert((service.id.clone(), node.id.clone()), view.version);
            }
            let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
            let served = before.get(&service.id).into_iter().flatten().filter_map(|id| view.task(id));
            let has_other =
                |task: &Task| tasks.iter().any(|it| it.slot == task.slot && it.id != task.id && it.is_live());
            for task in served.filter(|task| task.desired_state != DesiredState::Running || has_other(task)) {
                let was_unfit = |node: &NodeId| {
                    let last = self.unfit.get(&(service.id.clone(), node.clone()));
                    last.is_some_and(|last| *last + DECIDED_BEFORE >= view.version)
                };
                let has_reason = task.relocates || task.preempted_by.is_some();
                if !has_reason && !task.node_id.as_ref().is_some_and(was_unfit) {
                    return Err(
                        Kind::NeedlessMove.because(format!("nothing asks to replace a task of {name}: {task:?}"))
                    );
                }
            }
            let is_alone = |task: &&&Arc<Task>| {
                task.is_serving() && tasks.iter().filter(|it| it.slot == task.slot && it.is_live()).count() == 1
            };
            let serving = tasks.iter().filter(is_alone).map(|task| task.id.clone()).collect();
            self.serving.insert(service.id.clone(), serving);
        }
        Ok(())
    }
}

/// Whether the tasks of the service may stay on the node.
fn is_fit(service: &Service, node: &NodeId, view: &View) -> bool {
    view.node(node).is_some_and(|node| {
        node.state != NodeState::Down
            && node.spec.availability != Availability::Drain
            && service.spec.constraints.iter().all(|constraint| node.satisfies(constraint))
    })
}

/// Whether the tasks of the service have left the nodes on which they may not be.
pub(super) fn converged(service: &Service, view: &View) -> Result<(), String> {
    if !STEADY.contains(&service.spec.name.as_str()) {
        return Ok(());
    }
    let is_wrong =
        |task: &&Arc<Task>| task.is_live() && task.node_id.as_ref().is_some_and(|node| !is_fit(service, node, view));
    match view.tasks_of_service(&service.id).find(is_wrong) {
        Some(task) => Err(format!("a task of {} is where it may not be: {task:?}", service.spec.name)),
        None => Ok(()),
    }
}
