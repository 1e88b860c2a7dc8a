//! Places pending tasks on nodes: filters determine the nodes where a task can run, ranks the best one. A task that
//! can't run anywhere gets the reason.

mod devices;
mod filters;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flota_api::model::{DeviceId, Filter, Node, PendingReason, ServiceSpec, Task, TaskStatus};
use flota_api::object::{Kind, Object};
use flota_api::resources::Resources;
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::Timestamp;
use flota_raft_store::{Event, Tables};

use self::devices::FreeDevices;
use crate::control_loop::{ControlLoop, keyed_by};
use crate::plan::{Change, Plan, PlanContext};

/// How long a failure of a spec on a node counts against that node.
const FAILURES_COUNT: Duration = Duration::from_secs(300);

/// The loop; keyed by service.
#[derive(Debug, Default)]
pub(crate) struct Scheduler;

impl ControlLoop for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn all(&self, view: &Tables) -> Vec<String> {
        waiting(view)
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<String> {
        if let Event::Updated { old: Object::Task(old), new: Object::Task(new) } = event
            && old.holds_resources()
            && !new.holds_resources()
        {
            return waiting(view);
        }
        if let Event::Removed(Object::Task(_)) = event {
            return waiting(view);
        }
        keyed_by!(event,
            Task task => if task.is_waiting() { vec![task.service_id.to_string()] } else { Vec::new() },
            Node _node => waiting(view),
        )
    }

    fn plan(&mut self, key: &str, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let mut tasks: Vec<&Arc<Task>> = view.tasks_of_service(&key.into()).filter(|task| task.is_waiting()).collect();
        if tasks.is_empty() {
            return plan;
        }
        tasks.sort_by_key(|task| (task.meta.order(), task.slot));
        let mut nodes: Vec<NodeInfo> =
            view.nodes().map(|node| NodeInfo::new(node, view.tasks_of_node(&node.id), view, cx.now)).collect();
        for task in tasks {
            let Some(spec) = view.spec_of(task) else { continue };
            match choose(task, spec, &nodes) {
                Ok((index, device_ids)) => {
                    let node = &mut nodes[index];
                    let task = Task {
                        node_id: Some(node.node.id.clone()),
                        status: TaskStatus { state: TaskState::Assigned, at: cx.now, ..task.status.clone() },
                        pending_reason: None,
                        device_ids,
                        ..task.as_ref().clone()
                    };
                    node.take(&task, Some(spec));
                    plan.expect(Kind::Node, node.node.id.as_str());
                    plan.put(task);
                }
                Err(refused) => {
                    let reason = Some(match refused {
                        refused if refused.is_empty() => PendingReason::NoNode,
                        refused if fits_in_place(task, spec, &plan, view, cx.now) => PendingReason::NeedsRoom(refused),
                        refused => PendingReason::NoNodeFits(refused),
                    });
                    if reason != task.pending_reason {
                        plan.put(Task { pending_reason: reason, ..task.as_ref().clone() });
                    }
                }
            }
        }
        plan
    }
}

fn waiting(view: &Tables) -> Vec<String> {
    let services: std::collections::BTreeSet<_> =
        view.tasks_waiting().map(|task| task.service_id.to_string()).collect();
    services.into_iter().collect()
}

/// A node with its free resources and the tasks that run there.
pub(crate) struct NodeInfo {
    node: Arc<Node>,
    free: Resources,
    devices: FreeDevices,
    tasks: usize,
    by_service: BTreeMap<String, usize>,
    /// Number of tasks of a service's spec that recently failed or were rejected here.
    failures: BTreeMap<(String, u64), usize>,
}

impl NodeInfo {
    /// The node with these tasks on it.
    fn new<'a>(node: &Arc<Node>, tasks: impl Iterator<Item = &'a Arc<Task>>, view: &Tables, now: Timestamp) -> Self {
        let mut info = Self {
            node: Arc::clone(node),
            free: node.description.resources,
            devices: FreeDevices::new(&node.description.devices),
            tasks: 0,
            by_service: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        for task in tasks {
            if task.holds_resources() {
                info.take(task, view.spec_of(task).map(AsRef::as_ref));
            } else if matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
                && task.meta.updated_at.until(now) < FAILURES_COUNT
            {
                *info.failures.entry((task.service_id.to_string(), task.spec_version)).or_default() += 1;
            }
        }
        info
    }

    /// Adds a task. Without its spec, only the devices that the task itself names are accounted for.
    fn take(&mut self, task: &Task, spec: Option<&ServiceSpec>) {
        self.devices.hold(&task.device_ids);
        let Some(spec) = spec else { return };
        self.free = self.free.minus(&spec.reservations);
        // A stopping task still holds its resources, but does not count when tasks are spread.
        if task.is_live() {
            self.tasks += 1;
            *self.by_service.entry(task.service_id.to_string()).or_default() += 1;
        }
    }

    /// Lower is better: fewest failures of the spec, then fewest tasks of the service, then fewest tasks.
    fn rank(&self, task: &Task) -> (usize, usize, usize, &str) {
        let service = task.service_id.to_string();
        let of_service = self.by_service.get(&service).copied().unwrap_or(0);
        let failures = self.failures.get(&(service, task.spec_version)).copied().unwrap_or(0);
        (failures, of_service, self.tasks, self.node.id.as_str())
    }
}

/// Whether the node of the task that `task` replaces has room for it without that task. An update stops a running task
/// for its successor only if this holds.
fn fits_in_place(task: &Task, spec: &ServiceSpec, plan: &Plan, view: &Tables, now: Timestamp) -> bool {
    if task.desired_state != DesiredState::Ready {
        return false;
    }
    let mut replaced =
        view.tasks_of_service(&task.service_id).filter(|it| it.slot == task.slot && it.holds_resources());
    replaced.any(|replaced| {
        let Some(node) = view.node_of(replaced) else { return false };
        let planned = plan.changes.iter().filter_map(|change| match change {
            Change::Put(Object::Task(it)) if it.is_on(&node.id) => Some(it),
            _ => None,
        });
        let others = view.tasks_of_node(&node.id).filter(|it| it.id != replaced.id);
        filters::refuses(spec, &NodeInfo::new(node, others.chain(planned), view, now)).is_none()
    })
}

/// Returns the best node that passes all filters, with the devices that the task gets there; otherwise, how many nodes
/// each filter refused.
fn choose(
    task: &Task,
    spec: &ServiceSpec,
    nodes: &[NodeInfo],
) -> Result<(usize, Vec<DeviceId>), BTreeMap<Filter, u64>> {
    let mut refused: BTreeMap<Filter, u64> = BTreeMap::new();
    let passing = nodes.iter().enumerate().filter(|(_, info)| match filters::refuses(spec, info) {
        None => true,
        Some(filter) => {
            *refused.entry(filter).or_default() += 1;
            false
        }
    });
    match passing.min_by(|(_, left), (_, right)| left.rank(task).cmp(&right.rank(task))) {
        // The last filter has checked that there are enough devices.
        Some((index, info)) => Ok((index, info.devices.choose(&spec.generic_resources).unwrap_or_default())),
        None => Err(refused),
    }
}

#[cfg(test)]
mod tests;
