//! What one worker has been told of its tasks and images, and what is to be told it next. It is pure;
//! `assignment_stream.rs` sends it.
//!
//! Only the parts of a task that can change are remembered, so a session costs little memory, and grants are signed
//! once for an image and not once for a task.

mod images;
mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::defaults::WITHDRAWAL_WAIT;
use flota_api::id::{NodeId, TaskId};
use flota_api::model::{self, Measured, PinnedValue, Registry, ServiceSpec, Task, ValueBytes, ValueData};
use flota_api::proto::dispatcher::{Assignments, ImageSource, TaskAssignment, TaskValue, TaskVolume};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::{Timestamp, Version};
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use super::networks::has_served;
use crate::values;
use images::{Sources, TaskImages, ToldImage, credentials, registry_for};
use parts::{Specs, cut};

pub(super) use images::Granter;

/// What a worker was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    node: NodeId,
    /// Whether the worker has been sent a full set.
    has_begun: bool,
    /// Sorted by id. A session is idle nearly always, so what it remembers is kept as small as it can be.
    /// Those that are alike, as most are, share one.
    tasks: Box<[(TaskId, Arc<ToldTask>)]>,
    /// The tasks that are not told yet to stop, or that they may stop because they are unhealthy, since nodes may still send
    /// them connections.
    delayed: BTreeMap<TaskId, Delayed>,
    /// Number of tasks that were told to stop although nodes had not confirmed that they send them no more connections.
    unconfirmed_stops: u64,
    /// The images that the node is to fetch or, if it has them already, to report.
    images: Vec<Arc<ImageSource>>,
    /// Sources of the images of its tasks and of those that it is to fetch, by digest.
    sources: Sources,
    /// Digests of images that the node is known to have.
    held: BTreeSet<String>,
    /// Digests of images that the node holds and the cluster does not need.
    dropped: BTreeSet<String>,
    /// Removed volumes that the node is to drop, and of which it has not reported that yet.
    dropped_volumes: Vec<String>,
}

/// A task that may still get connections.
#[derive(Clone, Copy, Debug)]
struct Delayed {
    /// What the nodes have to confirm.
    version: Version,
    /// The time after which the task stops without their confirmation.
    until: Timestamp,
}

/// The parts of an assignment that can change while the worker has it. Its status only repeats the worker's reports.
#[derive(Clone, Debug, PartialEq)]
struct ToldTask {
    desired_state: DesiredState,
    paused: bool,
    not_before: Option<Timestamp>,
    image: Option<Arc<ImageSource>>,
    /// Version of the registry's credentials.
    credentials: Option<Version>,
    /// The images that it mounts.
    mounted: Box<[ToldImage]>,
    unconfirmed_nodes: Vec<String>,
    withdrawn_attempt: Option<u32>,
    /// The cluster's default.
    no_new_privileges: bool,
    /// The versions of its secrets and configs.
    values: Box<[PinnedValue]>,
    /// In a box, because few tasks are measured.
    measured: Option<Box<Measured>>,
}

impl Told {
    /// Creates the state of a session whose worker was told nothing yet. `held` are the images that the node reported.
    pub(super) fn new(node: NodeId, held: BTreeSet<String>) -> Self {
        Self { node, held, ..Self::default() }
    }

    /// Returns the messages that bring the worker to `view`: the full set at first, then the differences.
    ///
    /// A task is told to stop only after a while if `withdrawal` returns nodes that have not confirmed this version and may
    /// still send it connections. The list is empty if there are such nodes and it is not known yet which.
    pub(super) fn tell(
        &mut self,
        view: &Tables,
        granter: &Granter<'_>,
        withdrawal: &dyn Fn(&Task, Version) -> Option<Vec<NodeId>>,
        now: Timestamp,
    ) -> Vec<Assignments> {
        let at = now;
        let delayed = std::mem::take(&mut self.delayed);
        let (mut tasks, mut specs, mut told) = (Vec::new(), Specs::new(), Vec::<(TaskId, Arc<ToldTask>)>::new());
        let mut data = BTreeMap::new();
        let node = self.node.clone();
        let mut finder = TaskImages::new(&node, view, granter, std::mem::take(&mut self.sources));
        for task in view.tasks_of_node(&node).filter(|task| is_assigned(task)) {
            let Some(spec) = view.spec_of(task) else { continue };
            let ended = task.status.state.is_terminal();
            if let Some(known) = self.known(&task.id).filter(|_| ended) {
                told.push((task.id.clone(), Arc::clone(known)));
                continue;
            }
            let digest = task.image_digest.as_ref().filter(|_| !ended);
            let image = digest.map(|digest| finder.source(digest));
            let registry = if ended { None } else { registry_for(&spec.image, image.as_deref(), view) };
            let mounted = if ended { Box::default() } else { finder.mounted(task, spec) };
            let (desired_state, unconfirmed_nodes) = self.desired(task, delayed.get(&task.id), withdrawal, view, at);
            let now = ToldTask {
                desired_state,
                unconfirmed_nodes,
                withdrawn_attempt: self.withdrawn_attempt(task, delayed.get(&task.id), withdrawal, view, at),
                paused: task.paused,
                not_before: task.not_before,
                image,
                credentials: registry.map(|registry| registry.meta.version),
                mounted,
                values: if ended { Box::default() } else { values::of_task(task, spec, view).into() },
                no_new_privileges: view.cluster().is_some_and(|cluster| cluster.no_new_privileges),
                measured: view.service(&task.service_id).and_then(|service| measured(&service.spec)).map(Box::new),
            };
            if self.known(&task.id).is_none_or(|known| **known != now) {
                let before = self.known(&task.id).map(|known| &*known.values).unwrap_or_default();
                // A worker keeps the values of a task that it has received, so only new ones are sent.
                let new = now.values.iter().filter(|pin| !before.contains(pin));
                data.extend(new.filter_map(|pin| Some((pin.data.clone(), bytes_of(pin, view)?))));
                let task = assignment(task, spec, &now, registry, view);
                specs.entry((task.service_id.clone(), task.spec_version)).or_insert_with(|| Arc::clone(spec));
                tasks.push(task);
            }
            let alike = self.known(&task.id).or_else(|| told.last().map(|(_, last)| last)).filter(|it| ***it == now);
            let now = alike.map_or_else(|| Arc::new(now), Arc::clone);
            // The tasks of a node are in the order of their ids.
            told.push((task.id.clone(), now));
        }
        let wanted = view.images_of_node(&self.node).filter(|image| !image.confirmed().any(|id| *id == self.node));
        let images: Vec<_> = wanted.map(|image| finder.source(&image.digest)).collect();
        let sources = finder.into_sources();
        // An image object exists while the image has a name or a task uses it. Without the object, no copy is needed.
        let dropped: BTreeSet<_> =
            self.held.iter().filter(|digest| view.image_by_digest(digest).is_none()).cloned().collect();
        self.held.extend(view.images_of_node(&self.node).map(|image| image.digest.clone()));
        // Not every node that has an image is known as a holder.
        self.held.extend(sources.keys().cloned());
        let is_gone = |id: &&TaskId| told.binary_search_by(|(other, _)| other.cmp(id)).is_err();
        let removed_tasks: Vec<_> =
            self.tasks.iter().map(|(id, _)| id).filter(is_gone).map(ToString::to_string).collect();
        let dropped_images: Vec<_> = dropped.difference(&self.dropped).cloned().collect();
        let mut dropped_volumes: Vec<String> = view.removed_volumes_of_node(&node).map(ToString::to_string).collect();
        if faults::is_on(Fault::EagerDrop) {
            let is_here = |volume: &&Arc<model::Volume>| volume.places.iter().any(|place| place.node_id == self.node);
            dropped_volumes = view.volumes().filter(is_here).map(|volume| volume.id.to_string()).collect();
        }
        let drops_others = dropped_volumes.iter().any(|id| !self.dropped_volumes.contains(id));
        let is_news = drops_others || !tasks.is_empty() || !removed_tasks.is_empty() || !dropped_images.is_empty();
        let whole = Assignments {
            epoch: view.cluster().map_or(0, |cluster| cluster.epoch),
            version: view.version,
            full: !self.has_begun,
            now: now.0,
            tasks,
            removed_tasks,
            images: images.iter().map(|image| image.as_ref().clone()).collect(),
            dropped_images,
            dropped_volumes: dropped_volumes.clone(),
            ..Assignments::default()
        };
        let is_needed = is_news || whole.full || images != self.images;
        (self.has_begun, self.tasks, self.images) = (true, told.into(), images);
        (self.sources, self.dropped, self.dropped_volumes) = (sources, dropped, dropped_volumes);
        if is_needed { cut(whole, &specs, &data) } else { Vec::new() }
    }

    /// What the worker was told of a task.
    fn known(&self, id: &TaskId) -> Option<&Arc<ToldTask>> {
        self.tasks.binary_search_by(|(other, _)| other.cmp(id)).ok().map(|index| &self.tasks[index].1)
    }

    /// Takes the number of tasks that were told to stop, since the last call, although nodes had not confirmed that they send
    /// them no more connections.
    pub(super) fn take_unconfirmed_stops(&mut self) -> u64 {
        std::mem::take(&mut self.unconfirmed_stops)
    }

    /// Returns the earliest time at which a stop is not held back any longer; `None` if none is held back.
    pub(super) fn held_until(&self) -> Option<Timestamp> {
        self.delayed.values().map(|it| it.until).min()
    }

    /// Returns the desired state that the worker is told of, and the names of nodes that may still send connections to the
    /// task although it is told to stop.
    fn desired(
        &mut self,
        task: &Task,
        delayed: Option<&Delayed>,
        withdrawal: &dyn Fn(&Task, Version) -> Option<Vec<NodeId>>,
        view: &Tables,
        now: Timestamp,
    ) -> (DesiredState, Vec<String>) {
        let Some(known) = self.known(&task.id) else { return (task.desired_state, Vec::new()) };
        let before = known.desired_state;
        if before.is_stopping() || !task.desired_state.is_stopping() || !has_served(task) {
            return (task.desired_state, known.unconfirmed_nodes.clone());
        }
        let version = task.meta.version;
        let Some(nodes) = withdrawal(task, version) else { return (task.desired_state, Vec::new()) };
        let until = delayed.map_or(now + WITHDRAWAL_WAIT, |it| it.until);
        if now < until {
            self.delayed.insert(task.id.clone(), Delayed { version, until });
            return (before, Vec::new());
        }
        tracing::warn!(task.id = %task.id, ?nodes, "a task stops although nodes may still send it connections");
        self.unconfirmed_stops += 1;
        let name = |id: &NodeId| view.node(id.as_str()).map(|node| node.description.hostname.clone());
        (task.desired_state, nodes.iter().filter_map(name).collect())
    }

    /// Returns the attempt of the task that is unhealthy, once it gets no more connections or has waited for that long enough.
    fn withdrawn_attempt(
        &mut self,
        task: &Task,
        delayed: Option<&Delayed>,
        withdrawal: &dyn Fn(&Task, Version) -> Option<Vec<NodeId>>,
        view: &Tables,
        now: Timestamp,
    ) -> Option<u32> {
        let attempt = Some(task.status.attempt);
        if !task.status.is_unhealthy() || !has_served(task) {
            return None;
        }
        let is_known = self.known(&task.id).is_some_and(|known| known.withdrawn_attempt == attempt);
        // A report does not change the version of its task, so what counts is where it was first seen.
        let first = Delayed { version: view.version, until: now + WITHDRAWAL_WAIT };
        let delayed = delayed.copied().unwrap_or(first);
        if !is_known && now < delayed.until && withdrawal(task, delayed.version).is_some() {
            self.delayed.insert(task.id.clone(), delayed);
            return None;
        }
        attempt
    }
}

/// Whether the node is to have the task. One that has ended stays there, so that the node keeps its output, until it is
/// to be removed.
fn is_assigned(task: &Task) -> bool {
    let kept = !task.status.state.is_terminal() || task.desired_state != DesiredState::Remove;
    (TaskState::Assigned..TaskState::Orphaned).contains(&task.status.state) && kept
}

fn assignment(
    task: &Task,
    spec: &ServiceSpec,
    told: &ToldTask,
    registry: Option<&Arc<Registry>>,
    view: &Tables,
) -> TaskAssignment {
    let mut status = flota_api::proto::types::TaskStatus::from(&task.status);
    // The results of health checks come from the worker.
    status.health.iter_mut().for_each(|it| it.log.clear());
    TaskAssignment {
        task_id: task.id.to_string(),
        service_id: task.service_id.to_string(),
        service_name: spec.name.clone(),
        slot: task.slot,
        desired_state: flota_api::proto::types::DesiredState::from(told.desired_state).into(),
        spec_version: task.spec_version,
        spec: None,
        status: Some(status),
        inherited_restarts: task.restart_history.count,
        restarts: Some((&task.restart_history).into()),
        not_before: task.not_before.map(|it| it.0),
        image: told.image.as_ref().map(|image| image.as_ref().clone()),
        credentials: registry.map(credentials),
        mounted_images: told.mounted.iter().map(|image| image.to_wire(view)).collect(),
        paused: task.paused,
        no_new_privileges: told.no_new_privileges,
        measured: told.measured.as_deref().map(Into::into),
        device_ids: task.device_ids.iter().map(Into::into).collect(),
        attachments: task.attachments.iter().map(Into::into).collect(),
        unconfirmed_nodes: told.unconfirmed_nodes.clone(),
        withdrawn_attempt: told.withdrawn_attempt.unwrap_or_default(),
        volumes: volumes(task, spec, view),
        values: told
            .values
            .iter()
            .map(|pin| TaskValue {
                version: pin.version,
                data_id: pin.data.to_string(),
                template: values::is_template(&pin.value, view),
            })
            .collect(),
    }
}

/// Returns what is measured of the tasks of a service with this spec, also of those that have an earlier one.
pub(super) fn measured(spec: &ServiceSpec) -> Option<Measured> {
    let policy = spec.scale.as_ref()?;
    Some(Measured { requests: policy.requests.as_ref().map(|it| it.from.clone()) })
}

/// The volumes of the task, each once. One that a user has removed with the task's stack is not among them.
fn volumes(task: &Task, spec: &ServiceSpec, view: &Tables) -> Vec<TaskVolume> {
    let names: BTreeSet<&str> = spec.volumes().collect();
    let known = names.into_iter().filter_map(|name| view.volume_by_name(name));
    let used = known.map(|volume| model::TaskVolume {
        name: volume.spec.name.clone(),
        id: volume.id.clone(),
        slot: volume.data_slot(spec.mode.is_global(), task.slot),
        file_system: volume.spec.file_system.clone(),
    });
    used.map(|volume| (&volume).into()).collect()
}

/// The bytes of a version.
fn bytes_of(pin: &PinnedValue, view: &Tables) -> Option<ValueBytes> {
    view.get::<ValueData>(pin.data.as_str()).map(|data| data.bytes.clone())
}

#[cfg(test)]
mod tests;
