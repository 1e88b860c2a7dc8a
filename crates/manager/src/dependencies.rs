//! What a service waits for because of others: before it starts or goes on with an update, for those on which it depends,
//! and before it stops, for those that depend on it.
//!
//! Everything here is a pure function of the view. The orchestrator asks whether a service may go on, and the Control API
//! tells users why it may not. [`concerned`] finds the services that a change may let go on, through an index of the
//! store, so that nothing is looked at again and again.

mod circle;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{Dependency, DependencyCondition, RestartCondition, Service, ServiceSpec, Task, UpdatePhase};
use flota_api::object::{Kind, Object};
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Event, Tables};

use crate::plan::Plan;
use crate::wanted::{self, Eligibility};

pub(crate) use circle::circles;

/// A service that another one waits for. It is displayed as users read it after the words `waits for`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Name of the service.
    service: String,
    why: Why,
}

/// What is missing of a service that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    Missing,
    Stopped,
    /// Its tasks are being replaced.
    Updating,
    /// Its update waits for a user's decision, for this reason.
    Paused(Option<String>),
    /// Its update has failed, for this reason, after the update that waits was asked for.
    RolledBack(String),
    /// It has a task on each node, and no node takes one.
    NoNode,
    /// So many of its tasks are as the condition says.
    Tasks {
        ready: u64,
        wanted: u64,
        condition: DependencyCondition,
    },
    /// It stops first, and so many of its tasks have not ended.
    Stops {
        left: usize,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.service;
        match &self.why {
            Why::Missing => write!(f, "`{name}`: there is no such service"),
            Why::Stopped => write!(f, "`{name}`: it is stopped"),
            Why::Updating => write!(f, "`{name}`: it is being updated"),
            Why::Paused(Some(reason)) => write!(f, "`{name}`: its update is paused: {reason}"),
            Why::Paused(None) => write!(f, "`{name}`: its update is paused"),
            Why::RolledBack(cause) => write!(f, "`{name}`: its update has failed and was rolled back: {cause}"),
            Why::NoNode => write!(f, "`{name}`: no node takes its tasks"),
            Why::Tasks { ready, wanted, condition } => {
                let word = match condition {
                    DependencyCondition::Started => "running",
                    DependencyCondition::Healthy => "healthy",
                    DependencyCondition::Completed => "completed",
                };
                write!(f, "`{name}`: {ready} of {wanted} {word}")
            }
            Why::Stops { left: 1 } => write!(f, "`{name}` to stop: 1 task is left"),
            Why::Stops { left } => write!(f, "`{name}` to stop: {left} tasks are left"),
        }
    }
}

/// Returns in one sentence what is waited for; `None` if it is nothing.
pub(crate) fn sentence(waits: &[Wait]) -> Option<String> {
    let all: Vec<String> = waits.iter().map(ToString::to_string).collect();
    (!all.is_empty()).then(|| format!("waits for {}", all.join(", and for ")))
}

/// Whether the service may get its first tasks. The plan then depends on those that it has waited for.
pub(crate) fn may_start(service: &Service, view: &Tables, plan: &mut Plan) -> bool {
    if is_starting(service, view) {
        expect_dependencies(service, view, plan);
    }
    faults::is_on(Fault::EarlyStart) || start_waits(service, view).is_empty()
}

/// Whether the update of the service may begin with further slots. The plan then depends on those that it has waited for.
pub(crate) fn may_update(service: &Service, view: &Tables, plan: &mut Plan) -> bool {
    if is_updating(service) {
        expect_dependencies(service, view, plan);
    }
    update_waits(service, view).is_empty()
}

fn expect_dependencies(service: &Service, view: &Tables, plan: &mut Plan) {
    for dependency in &service.spec.depends_on {
        if let Some(on) = view.service_by_name(&dependency.service) {
            plan.expect(Kind::Service, &on.id);
        }
    }
}

/// Whether the task may be told to stop, because its service was removed or stopped. `is_held`: tasks of services that stop
/// first may still run. A task that has no node runs nothing. One that has ended is kept, because it may be the only trace of the
/// order, as that of a job between two services is. A task that never had a node imposes no order.
pub(crate) fn may_stop(task: &Task, is_held: bool) -> bool {
    !is_held || task.node_id.is_none()
}

/// Returns everything that the service waits for now.
pub(crate) fn waits(service: &Service, view: &Tables) -> Vec<Wait> {
    if service.spec.stopped {
        let runs = |task: &Arc<Task>| task.is_live() && task.node_id.is_some();
        return if view.tasks_of_service(&service.id).any(runs) { stop_waits(&service.id, view) } else { Vec::new() };
    }
    let is_outdated = || view.live_versions(&service.id).any(|version| version != service.spec_version);
    match start_waits(service, view) {
        waits if waits.is_empty() && is_outdated() => update_waits(service, view),
        waits => waits,
    }
}

/// Returns what a service that has no tasks yet waits for. One that has any is not held up by others any more.
pub(crate) fn start_waits(service: &Service, view: &Tables) -> Vec<Wait> {
    if !is_starting(service, view) {
        return Vec::new();
    }
    unmet(service, view, |on| on.update.is_active().then_some(Why::Updating))
}

/// Whether the service depends on others and has no tasks yet.
fn is_starting(service: &Service, view: &Tables) -> bool {
    !service.spec.depends_on.is_empty() && !service.spec.stopped && !has_begun(service, view)
}

/// Whether the service depends on others and is being brought to a newer spec.
fn is_updating(service: &Service) -> bool {
    !service.spec.depends_on.is_empty() && service.update.phase == UpdatePhase::Updating
}

/// Whether the service has tasks; a job, tasks of its present run. Those that it had before it was stopped do not count.
fn has_begun(service: &Service, view: &Tables) -> bool {
    let is_of_run = |task: &Task| !service.spec.mode.is_job() || wanted::is_of_present_run(service, task);
    view.tasks_of_service(&service.id).any(|task| is_of_run(task) && task.desired_state != DesiredState::Remove)
}

/// Returns what the update of the service waits for. A rollback waits for nothing: it brings back what has worked.
pub(crate) fn update_waits(service: &Service, view: &Tables) -> Vec<Wait> {
    if !is_updating(service) {
        return Vec::new();
    }
    unmet(service, view, |on| {
        let update = &on.update;
        // A failure from before is known to whoever has asked for this update.
        let is_known = on.spec_set_at < service.spec_set_at;
        match update.phase {
            UpdatePhase::Updating | UpdatePhase::RollingBack => Some(Why::Updating),
            UpdatePhase::Paused | UpdatePhase::RollbackPaused => Some(Why::Paused(update.reason.clone())),
            UpdatePhase::RolledBack if !is_known => update.rollback_cause.clone().map(Why::RolledBack),
            UpdatePhase::RolledBack | UpdatePhase::Completed => None,
        }
    })
}

/// Returns the dependencies that are not met. `of_update` returns what the update of one of them has to do with that.
fn unmet(service: &Service, view: &Tables, of_update: impl Fn(&Service) -> Option<Why>) -> Vec<Wait> {
    let wait = |dependency: &Dependency| {
        let why = match view.service_by_name(&dependency.service) {
            None => dependency.required.then_some(Why::Missing),
            Some(on) if on.spec.stopped && !dependency.required => None,
            Some(on) => lack(on, dependency.condition, &of_update, view),
        };
        why.map(|why| Wait { service: dependency.service.clone(), why })
    };
    service.spec.depends_on.iter().filter_map(wait).collect()
}

/// Returns what the service lacks until it is as the condition says.
fn lack(
    on: &Service,
    condition: DependencyCondition,
    of_update: &impl Fn(&Service) -> Option<Why>,
    view: &Tables,
) -> Option<Why> {
    let (ready, wanted) = counted(on, condition, view);
    let is_met = ready >= wanted;
    // A job that has been completed and then stopped still counts as completed.
    if on.spec.stopped && !(condition == DependencyCondition::Completed && is_met) {
        return Some(Why::Stopped);
    }
    match of_update(on) {
        Some(why) => Some(why),
        None if is_met => None,
        None if on.spec.mode.is_global() && wanted::tasks(on, view) == 0 => Some(Why::NoNode),
        None => Some(Why::Tasks { ready, wanted, condition }),
    }
}

/// Returns how many tasks of the service are as the condition says, one for each slot or node, and how many should be.
fn counted(on: &Service, condition: DependencyCondition, view: &Tables) -> (u64, u64) {
    let mode = &on.spec.mode;
    let is_done = |task: &Task| {
        on.spec.restart.condition != RestartCondition::Any
            && wanted::is_of_present_run(on, task)
            && task.has_done_its_work()
    };
    let eligible = Eligibility::of(on, view);
    let runs =
        |task: &Task| task.is_live() && task.status.state == TaskState::Running && has_place(on, &eligible, task, view);
    let counts = |task: &&Arc<Task>| {
        is_done(task)
            || match condition {
                DependencyCondition::Started => runs(task),
                DependencyCondition::Healthy => task.is_proven() && runs(task),
                DependencyCondition::Completed => false,
            }
    };
    let tasks = view.tasks_of_service(&on.id).filter(counts);
    let places: BTreeSet<(Option<&NodeId>, u64)> = match mode.is_global() {
        true => tasks.map(|task| (task.pinned_to.as_ref(), 0)).collect(),
        false => tasks.map(|task| (None, task.slot)).collect(),
    };
    // No more tasks of a job run at once than it allows.
    let most = mode.max_concurrent().filter(|_| condition != DependencyCondition::Completed);
    let wanted = match on.replicas() {
        Some(replicas) => most.map_or(replicas, |most| replicas.min(most.get())),
        // While no node takes a task, nothing has started.
        None => wanted::tasks(on, view).max(1),
    };
    (places.len() as u64, wanted)
}

/// Whether the node of the task is there, and one on which its service should run.
fn has_place(service: &Service, eligible: &Eligibility, task: &Task, view: &Tables) -> bool {
    let is_right = |node| !service.spec.mode.is_global() || eligible.keeps(node);
    !view.is_lost(task) && view.node_of(task).is_some_and(|node| is_right(node))
}

/// Returns what the tasks of a service that was removed or stopped wait for before they stop: those of the services that
/// depend on it and were removed or stopped, too.
pub(crate) fn stop_waits(id: &ServiceId, view: &Tables) -> Vec<Wait> {
    let may_run = |task: &&Arc<Task>| task.node_id.is_some() && !task.status.state.is_terminal() && !view.is_lost(task);
    let wait = |first: ServiceId| {
        let left = view.tasks_of_service(&first).filter(may_run).count();
        // Specs that were set at the same moment can form a circle, in which nobody may wait.
        if left == 0 || stop_first(&first, view).contains(id) {
            return None;
        }
        Some(Wait { service: name_of(&first, view)?.to_owned(), why: Why::Stops { left } })
    };
    stop_first(id, view).into_iter().filter(|first| first != id).filter_map(wait).collect()
}

/// Returns the services that stop before this one does: they were removed or stopped, and depend on it, or on another one
/// that does.
fn stop_first(id: &ServiceId, view: &Tables) -> BTreeSet<ServiceId> {
    let mut found = BTreeSet::new();
    let mut left = if view.has_dependents() { vec![id.clone()] } else { Vec::new() };
    while let Some(name) = left.pop().and_then(|id| name_of(&id, view).map(str::to_owned)) {
        let depends = |id: &&ServiceId| match view.service(*id) {
            Some(service) => service.spec.stopped && depends_on(&service.spec, &name),
            None => true,
        };
        left.extend(view.dependents(&name).filter(depends).filter(|id| found.insert((*id).clone())).cloned());
    }
    found
}

fn depends_on(spec: &ServiceSpec, name: &str) -> bool {
    spec.depends_on.iter().any(|it| it.service == name)
}

/// Returns the spec of a service, which may have been removed.
fn spec_by<'a>(id: &ServiceId, view: &'a Tables) -> Option<&'a ServiceSpec> {
    let of_tasks = || view.tasks_of_service(id).find_map(|task| view.spec_of(task));
    view.service(id).map(|it| &it.spec).or_else(of_tasks).map(AsRef::as_ref)
}

fn name_of<'a>(id: &ServiceId, view: &'a Tables) -> Option<&'a str> {
    spec_by(id, view).map(|spec| spec.name.as_str())
}

/// Whether the service was removed or stopped.
fn is_to_stop(id: &ServiceId, view: &Tables) -> bool {
    view.service(id).is_none_or(|it| it.spec.stopped)
}

/// Whether the service was removed or stopped, and has tasks.
fn is_leaving(id: &ServiceId, view: &Tables) -> bool {
    is_to_stop(id, view) && view.tasks_of_service(id).next().is_some()
}

/// Returns the services that may go on after this event, because of what it has changed in another one that is still known.
/// `changed` are those for which the orchestrator looks again itself, which a change of a node concerns.
pub(crate) fn concerned(event: &Event, changed: impl Iterator<Item = ServiceId>, view: &Tables) -> BTreeSet<ServiceId> {
    let mut found = BTreeSet::new();
    if !view.has_dependents() {
        return found;
    }
    match event {
        Event::Updated { old: Object::Task(old), new: Object::Task(new) } if shown(old) == shown(new) => {}
        Event::Created(Object::Task(task))
        | Event::Updated { new: Object::Task(task), .. }
        | Event::Removed(Object::Task(task)) => {
            found.extend(name_of(&task.service_id, view).into_iter().flat_map(|name| followers(name, view)));
            if is_to_stop(&task.service_id, view) {
                found.extend(view.spec_of(task).into_iter().flat_map(|spec| leaving(spec, view)));
            }
        }
        Event::Created(Object::Service(service))
        | Event::Updated { new: Object::Service(service), .. }
        | Event::Removed(Object::Service(service)) => {
            found.extend(followers(&service.spec.name, view));
            found.extend(leaving(&service.spec, view));
            if let Event::Updated { old: Object::Service(old), .. } = event {
                found.extend(leaving(&old.spec, view));
            }
        }
        Event::Created(Object::Node(_))
        | Event::Updated { new: Object::Node(_), .. }
        | Event::Removed(Object::Node(_)) => {
            for id in changed {
                found.extend(name_of(&id, view).into_iter().flat_map(|name| followers(name, view)));
                if is_leaving(&id, view) {
                    let specs: BTreeSet<_> = view.tasks_of_service(&id).map(|it| it.spec_version).collect();
                    let specs = specs.into_iter().filter_map(|version| view.spec_version(&id, version));
                    found.extend(specs.flat_map(|spec| leaving(spec, view)));
                }
            }
        }
        _ => {}
    }
    found
}

/// Returns everything about a task that others wait for.
fn shown(task: &Task) -> (bool, bool, bool, bool) {
    let runs = task.status.state == TaskState::Running;
    (task.is_live(), runs, task.is_proven(), task.status.state.is_terminal())
}

/// Returns the services that depend on the one of this name, and have not begun, or have an update to go on with.
fn followers<'a>(name: &'a str, view: &'a Tables) -> impl Iterator<Item = ServiceId> + 'a {
    let waits = |it: &&Arc<Service>| {
        depends_on(&it.spec, name) && !it.spec.stopped && (is_updating(it) || !has_begun(it, view))
    };
    view.dependents(name).filter_map(|id| view.service(id)).filter(waits).map(|it| it.id.clone())
}

/// Returns the services on which a service of this spec depends, directly or through others, and which are to stop after
/// it, as [`stop_first`] has it.
fn leaving<'a>(spec: &'a ServiceSpec, view: &'a Tables) -> BTreeSet<ServiceId> {
    let names = |spec: &'a ServiceSpec| spec.depends_on.iter().map(|it| it.service.as_str());
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut left: Vec<&str> = names(spec).collect();
    while let Some(name) = left.pop() {
        if !seen.insert(name) {
            continue;
        }
        for id in view.services_named(name).filter(|id| is_to_stop(id, view)) {
            found.extend(is_leaving(id, view).then(|| id.clone()));
            left.extend(spec_by(id, view).into_iter().flat_map(names));
        }
    }
    found
}

/// Whether the event takes away the last that was known of a service: nothing says any more on which others it depended, and
/// each of [`all_leaving`] may have waited for it, or for another one through it.
pub(crate) fn is_last_trace(event: &Event, view: &Tables) -> bool {
    let Event::Removed(Object::Task(task)) = event else { return false };
    view.service(&task.service_id).is_none() && view.tasks_of_service(&task.service_id).next().is_none()
}

/// Returns all services that were removed or stopped, and have tasks.
pub(crate) fn all_leaving(view: &Tables) -> impl Iterator<Item = &ServiceId> {
    view.services_with_tasks().filter(|id| is_to_stop(id, view))
}

/// The services of which a change may change what one waits for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    ids: BTreeSet<ServiceId>,
    /// Those that need not be there yet.
    names: BTreeSet<String>,
}

impl Watched {
    /// Returns those of the service with this id, which may have been removed.
    pub(crate) fn of(id: &ServiceId, view: &Tables) -> Self {
        let names: BTreeSet<String> =
            view.service(id).iter().flat_map(|it| &it.spec.depends_on).map(|it| it.service.clone()).collect();
        let known = names.iter().filter_map(|name| view.service_by_name(name)).map(|it| it.id.clone());
        let ids = known.chain(stop_first(id, view)).collect();
        Self { ids, names }
    }

    /// Whether the event is about one of them.
    pub(crate) fn has(&self, event: &Event) -> bool {
        match event {
            Event::Created(object) | Event::Updated { new: object, .. } | Event::Removed(object) => match object {
                Object::Service(it) => self.ids.contains(&it.id) || self.names.contains(&it.spec.name),
                Object::Task(it) => self.ids.contains(&it.service_id),
                _ => false,
            },
            Event::Committed(_) | Event::Reset => false,
        }
    }
}

#[cfg(test)]
mod tests;
