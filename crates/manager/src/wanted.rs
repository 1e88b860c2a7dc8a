//! How many tasks a service should have, and on which nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use flota_api::id::NodeId;
use flota_api::model::{
    Availability, CronRun, Node, NodeState, PinnedImage, Platform, RunState, Service, ServiceMode, ServiceSpec, Task,
};
use flota_raft_store::Tables;

/// Which nodes have a task of a service that has one on each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eligibility<'a> {
    spec: &'a ServiceSpec,
    /// The platforms of its image.
    platforms: &'a [Platform],
    /// The images that it mounts.
    mounted: &'a [PinnedImage],
}

impl<'a> Eligibility<'a> {
    /// The rule for the present spec of the service. If no node at all can run the image, the tasks that run are
    /// not stopped for that: those of the new image wait for nodes, and users read why.
    pub(crate) fn of(service: &'a Service, view: &Tables) -> Self {
        let (platforms, mounted) = (service.image_platforms.as_slice(), service.mounted_images.as_slice());
        let all = Self { spec: &service.spec, platforms: &[], mounted: &[] };
        let some = Self { platforms, mounted, ..all };
        let is_known = !platforms.is_empty() || mounted.iter().any(|it| !it.platforms.is_empty());
        let has_place = || service.spec.mode.is_global() && view.nodes().any(|node| some.keeps(node));
        if !is_known || has_place() { some } else { all }
    }

    /// Whether the service keeps its task on the node. Also a node that is down keeps it: no other node can have it instead.
    pub(crate) fn keeps(&self, node: &Node) -> bool {
        !self.spec.stopped
            && !node.has_left()
            && node.spec.availability != Availability::Drain
            && self.spec.constraints.iter().all(|constraint| node.satisfies(constraint))
            && node.description.has_platform_of(self.platforms)
            && self.mounted.iter().all(|it| node.description.has_platform_of(&it.platforms))
    }

    /// Whether the service gets a task on the node if it has none there.
    pub(crate) fn takes(&self, node: &Node) -> bool {
        self.keeps(node) && node.state == NodeState::Ready && node.spec.availability == Availability::Active
    }
}

/// Returns how many tasks of the service should run now; of a job, how many should have done their work in the end.
pub(crate) fn tasks(service: &Service, view: &Tables) -> u64 {
    let (spec, nodes) = (&service.spec, Eligibility::of(service, view));
    let has_task = |node: &Node| view.live_tasks(&service.id, &node.id) > 0;
    let runs = |node: &Node| node.state != NodeState::Down && nodes.keeps(node) && has_task(node);
    match &spec.mode {
        ServiceMode::GlobalJob {} => {
            let done: BTreeSet<&NodeId> = done(service, view).filter_map(|task| task.pinned_to.as_ref()).collect();
            let counts = |node: &Node| done.contains(&node.id) || nodes.takes(node) || runs(node);
            view.nodes().filter(|node| counts(node)).count() as u64
        }
        _ if spec.stopped => 0,
        ServiceMode::Replicated { .. } | ServiceMode::ReplicatedJob { .. } => service.replicas().unwrap_or_default(),
        ServiceMode::Cron { .. } => under_way(service).map(|run| run.completions).sum(),
        ServiceMode::Global {} => view.nodes().filter(|node| nodes.takes(node) || runs(node)).count() as u64,
    }
}

/// Returns the runs that are under way and not being stopped.
fn under_way(service: &Service) -> impl Iterator<Item = &CronRun> {
    service.cron.live().filter(|run| run.state == RunState::Running)
}

/// Whether the task has the present spec of the service and, if that is a job without a schedule, belongs to its present run.
/// An earlier spec that has come back has its earlier number again, but is another run.
pub(crate) fn is_of_present_run(service: &Service, task: &Task) -> bool {
    task.spec_version == service.spec_version && (!service.spec.mode.has_numbered_runs() || task.run == service.job_run)
}

/// Returns the tasks of a job that have done their work by its present spec; of the mode cron, in the runs that are under
/// way.
pub(crate) fn done<'a>(service: &'a Service, view: &'a Tables) -> impl Iterator<Item = &'a Arc<Task>> {
    let is_present = |task: &&Arc<Task>| match service.spec.mode {
        ServiceMode::Cron { .. } => under_way(service).any(|run| Some(run.number) == task.run),
        _ => is_of_present_run(service, task),
    };
    let tasks = view.tasks_of_service(&service.id).filter(|_| service.spec.mode.is_job());
    tasks.filter(is_present).filter(|task| task.has_done_its_work())
}
