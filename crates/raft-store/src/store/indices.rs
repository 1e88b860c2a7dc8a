//! Indices over the tables: the tasks of a service, of a slot and of a node, those that wait or have failed, what
//! unfinished tasks use, which specs depend on a service, who holds which image, who may have data of a removed volume,
//! and which nodes are managers. Those of networks are in `networks.rs`.
//!
//! [`super::Tables::put`] and [`super::Tables::remove`] keep them up to date, so a change costs what it touches. They
//! follow from the objects, so they are neither in the digest nor in a snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::groups::{Groups, Tally};
use super::networks::NetworkIndices;
use flota_api::id::{ImageId, NodeId, ServiceId, TaskId, VolumeId};
use flota_api::model::{Image, Node, PinnedImage, Role, Service, ServiceSpec, Task, Volume};
use flota_api::resources::Resources;
use flota_api::state::TaskState;
use flota_api::version::{Timestamp, Version};

/// The resources that the tasks of a node hold there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Reservations of all tasks that have not ended.
    pub reserved: Resources,
    /// Number of tasks that have not ended.
    pub held: u64,
    /// Number of tasks that have neither ended nor been told to stop.
    pub live: u64,
}

/// Every index. The fields are read by the accessors of the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Indices {
    /// Tasks of a service, by slot.
    pub(super) of_service: Groups<ServiceId, (u64, TaskId)>,
    pub(super) of_node: Groups<NodeId, TaskId>,
    /// Tasks of a service that may run and have no node yet, in the order of their turns.
    pub(super) waiting: Groups<ServiceId, Turn>,
    /// Tasks of a service that failed or were rejected.
    pub(super) failed: Groups<ServiceId, TaskId>,
    /// Tasks that wait for room on a node.
    pub(super) claims: Groups<NodeId, TaskId>,
    /// Number of live tasks of a service on each node.
    pub(super) live: Tally<ServiceId, NodeId>,
    /// Number of tasks made from each version of a service's spec.
    pub(super) versions: Tally<ServiceId, u64>,
    /// Number of live tasks made from each version of a service's spec.
    pub(super) live_versions: Tally<ServiceId, u64>,
    /// Number of unfinished tasks with this image digest, of the image that they run or of one that they mount, by node. A
    /// task that has it twice counts twice.
    pub(super) users: Tally<Arc<str>, Option<NodeId>>,
    pub(super) loads: OrdMap<NodeId, Load>,
    /// Nodes that take tasks, by their number of live tasks.
    pub(super) takers: OrdSet<(u64, NodeId)>,
    /// For each service, how many of the nodes that take tasks have this number of its live tasks, if they have any.
    pub(super) levels: Tally<ServiceId, u64>,
    /// Images with this digest; those that have a name come first.
    pub(super) images: Groups<Arc<str>, (bool, ImageId)>,
    /// Services that are pinned to this image digest.
    pub(super) pins: Groups<Arc<str>, ServiceId>,
    /// Number of services with each priority.
    pub(super) priorities: Tally<(), i32>,
    /// Services whose tasks run beside those of the service with this name.
    pub(super) affine: Groups<Arc<str>, ServiceId>,
    /// Services whose tasks do not run beside those of the service with this name.
    pub(super) averse: Groups<Arc<str>, ServiceId>,
    /// Versions of services' specs with this name, those of services that were removed too.
    pub(super) named: Groups<Arc<str>, (ServiceId, u64)>,
    /// Versions of services' specs that depend on the service with this name.
    pub(super) dependents: Groups<Arc<str>, (ServiceId, u64)>,
    /// Images that a node holds or was asked to hold.
    pub(super) images_of_node: Groups<NodeId, ImageId>,
    /// Removed volumes of which a node may still have data.
    pub(super) removed_volumes: Groups<NodeId, VolumeId>,
    pub(super) managers: OrdSet<NodeId>,
    /// Nodes that were lost more than once lately, as far as was recorded.
    pub(super) flapping: OrdSet<NodeId>,
    pub(super) networks: NetworkIndices,
}

/// The turn of a waiting task among those of its service: whether it has no room that was made for it, the version of its
/// spec, its age, its slot and its id.
type Turn = (bool, u64, (Version, Timestamp), u64, TaskId);

/// Everything about a task that an index depends on.
#[derive(PartialEq)]
struct Facts<'a> {
    task: (&'a ServiceId, u64, u64, &'a TaskId),
    age: (Version, Timestamp),
    node: Option<&'a NodeId>,
    digest: Option<&'a str>,
    mounted: &'a [PinnedImage],
    is_waiting: bool,
    claim: Option<&'a NodeId>,
    has_ended: bool,
    has_failed: bool,
    is_live: bool,
}

impl<'a> Facts<'a> {
    fn of(task: &'a Task) -> Self {
        let state = task.status.state;
        Self {
            task: (&task.service_id, task.slot, task.spec_version, &task.id),
            age: task.meta.order(),
            node: task.node_id.as_ref(),
            digest: task.image_digest.as_deref(),
            mounted: &task.mounted_images,
            is_waiting: task.is_waiting(),
            claim: task.claim(),
            has_ended: state.is_terminal(),
            has_failed: matches!(state, TaskState::Failed | TaskState::Rejected),
            is_live: task.is_live(),
        }
    }

    fn service(&self) -> ServiceId {
        self.task.0.clone()
    }

    fn id(&self) -> TaskId {
        self.task.3.clone()
    }

    fn turn(&self) -> Turn {
        let (_, slot, version, id) = self.task;
        (self.claim.is_none(), version, self.age, slot, id.clone())
    }

    /// What the index of users has of the image with this digest, if the task still needs it.
    fn user(&self, digest: &str) -> Option<(Arc<str>, Option<NodeId>)> {
        (!self.has_ended).then(|| (digest.into(), self.node.cloned()))
    }

    /// The node whose resources the task holds.
    fn host(&self) -> Option<&NodeId> {
        self.node.filter(|_| !self.has_ended)
    }

    /// The service and the node that have the task among their live ones.
    fn live(&self) -> Option<(&ServiceId, &NodeId)> {
        self.node.filter(|_| self.is_live).map(|node| (self.task.0, node))
    }
}

impl Indices {
    /// Follows the change of a task from `old` to `new`, which comes after this version. `reserved` is what its spec
    /// reserves.
    pub(super) fn task(&mut self, old: Option<&Task>, new: Option<&Task>, reserved: &Resources, after: Version) {
        self.networks.task(old, new, after);
        let (old, new) = (old.map(Facts::of), new.map(Facts::of));
        // Most changes are reports of progress, which concern no index.
        if old == new {
            return;
        }
        macro_rules! follow {
            ($index:ident, $fact:expr) => {
                self.$index.update(old.as_ref().and_then($fact), new.as_ref().and_then($fact))
            };
        }
        follow!(of_service, |it: &Facts| Some((it.service(), (it.task.1, it.id()))));
        follow!(versions, |it: &Facts| Some((it.service(), it.task.2)));
        follow!(of_node, |it: &Facts| Some((it.node?.clone(), it.id())));
        follow!(waiting, |it: &Facts| it.is_waiting.then(|| (it.service(), it.turn())));
        follow!(claims, |it: &Facts| Some((it.claim?.clone(), it.id())));
        follow!(failed, |it: &Facts| it.has_failed.then(|| (it.service(), it.id())));
        follow!(live, |it: &Facts| it.live().map(|(service, node)| (service.clone(), node.clone())));
        follow!(live_versions, |it: &Facts| it.is_live.then(|| (it.service(), it.task.2)));
        follow!(users, |it: &Facts| it.user(it.digest?));
        for (it, image) in old.iter().flat_map(|it| it.mounted.iter().map(move |image| (it, image))) {
            self.users.update(it.user(&image.digest), None);
        }
        for (it, image) in new.iter().flat_map(|it| it.mounted.iter().map(move |image| (it, image))) {
            self.users.update(None, it.user(&image.digest));
        }
        if let Some((node, it)) = old.as_ref().and_then(|it| Some((it.host()?, it))) {
            self.unload(node, reserved, it.is_live);
        }
        if let Some((node, it)) = new.as_ref().and_then(|it| Some((it.host()?, it))) {
            let load = self.loads.entry(node.clone()).or_default();
            load.reserved = load.reserved.plus(reserved);
            load.held += 1;
            load.live += u64::from(it.is_live);
        }
        let (was, is) = (old.as_ref().and_then(Facts::live), new.as_ref().and_then(Facts::live));
        if was != is {
            was.into_iter().for_each(|(service, node)| self.rank(service, node, |now| now + 1));
            is.into_iter().for_each(|(service, node)| self.rank(service, node, |now| now - 1));
        }
    }

    /// Ranks the node again, if it takes tasks, after its live tasks of this service have changed by one. `before`
    /// returns what a present number was.
    fn rank(&mut self, service: &ServiceId, node: &NodeId, before: impl Fn(u64) -> u64) {
        let live = self.loads.get(node).map_or(0, |load| load.live);
        if self.takers.remove(&(before(live), node.clone())).is_none() {
            return;
        }
        self.takers.insert((live, node.clone()));
        let count = self.live.count(service, node);
        let level = |count: u64| (count > 0).then(|| (service.clone(), count));
        self.levels.update(level(before(count)), level(count));
    }

    fn unload(&mut self, node: &NodeId, reserved: &Resources, is_live: bool) {
        let Some(load) = self.loads.get_mut(node) else { return };
        load.reserved = load.reserved.minus(reserved);
        load.held -= 1;
        load.live -= u64::from(is_live);
        if load.held == 0 {
            self.loads.remove(node);
        }
    }

    /// Follows the change of a service from `old` to `new`.
    pub(super) fn service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        self.networks.service(old, new);
        let priority = |service: &Service| ((), service.spec.priority);
        self.priorities.update(old.map(priority), new.map(priority));
        let named = |names: fn(&Service) -> Vec<&str>| {
            let group = move |service: Option<&Service>| -> BTreeSet<(Arc<str>, ServiceId)> {
                let service = service.into_iter();
                service.flat_map(|it| names(it).into_iter().map(|name| (Arc::from(name), it.id.clone()))).collect()
            };
            (group(old), group(new))
        };
        let follow = |index: &mut Groups<Arc<str>, ServiceId>, (old, new): (BTreeSet<_>, BTreeSet<_>)| {
            old.difference(&new).for_each(|it: &(Arc<str>, ServiceId)| index.update(Some(it.clone()), None));
            new.difference(&old).for_each(|it| index.update(None, Some(it.clone())));
        };
        follow(&mut self.pins, named(|it| it.image_digests().collect()));
        follow(&mut self.affine, named(|it| it.spec.affinity.iter().map(String::as_str).collect()));
        follow(&mut self.averse, named(|it| it.spec.anti_affinity.iter().map(String::as_str).collect()));
    }

    /// Follows the change of a version of a service's spec from `old` to `new`.
    pub(super) fn spec(
        &mut self,
        version: &(ServiceId, u64),
        old: Option<&Arc<ServiceSpec>>,
        new: Option<&Arc<ServiceSpec>>,
    ) {
        // Most changes of a service leave its spec as it is.
        if old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(old, new)) {
            return;
        }
        let named = |it: &Arc<ServiceSpec>| (Arc::from(it.name.as_str()), version.clone());
        self.named.update(old.map(named), new.map(named));
        let names = |spec: Option<&Arc<ServiceSpec>>| -> BTreeSet<Arc<str>> {
            spec.iter().flat_map(|it| &it.depends_on).map(|it| Arc::from(it.service.as_str())).collect()
        };
        let (old, new) = (names(old), names(new));
        let fact = |name: &Arc<str>| Some((Arc::clone(name), version.clone()));
        old.difference(&new).for_each(|name| self.dependents.update(fact(name), None));
        new.difference(&old).for_each(|name| self.dependents.update(None, fact(name)));
    }

    /// Follows the change of an image from `old` to `new`.
    pub(super) fn image(&mut self, old: Option<&Image>, new: Option<&Image>) {
        let fact = |it: &Image| (Arc::from(it.digest.as_str()), (it.references.is_empty(), it.id.clone()));
        self.images.update(old.map(fact), new.map(fact));
        let holders = |image: Option<&Image>| -> Vec<(NodeId, ImageId)> {
            let holders = image.into_iter().flat_map(|it| it.holders.iter().map(|holder| (holder, it.id.clone())));
            holders.map(|(holder, id)| (holder.node_id.clone(), id)).collect()
        };
        holders(old).into_iter().for_each(|it| self.images_of_node.update(Some(it), None));
        holders(new).into_iter().for_each(|it| self.images_of_node.update(None, Some(it)));
    }

    /// Follows the change of a volume from `old` to `new`.
    pub(super) fn removed_volume(&mut self, old: Option<&Volume>, new: Option<&Volume>) {
        let places = |volume: Option<&Volume>| -> BTreeSet<(NodeId, VolumeId)> {
            let removed = volume.filter(|it| it.is_removed).into_iter();
            removed.flat_map(|it| it.places.iter().map(|place| (place.node_id.clone(), it.id.clone()))).collect()
        };
        places(old).into_iter().for_each(|it| self.removed_volumes.update(Some(it), None));
        places(new).into_iter().for_each(|it| self.removed_volumes.update(None, Some(it)));
    }

    /// Follows the change of a node from `old` to `new`, which comes after this version. `services` have live tasks on it.
    pub(super) fn node(
        &mut self,
        old: Option<&Node>,
        new: Option<&Node>,
        services: BTreeSet<ServiceId>,
        after: Version,
    ) {
        self.networks.node(old, new, after);
        let taker = |node: Option<&Node>| node.filter(|node| node.takes_tasks()).map(|node| node.id.clone());
        let (was, is) = (taker(old), taker(new));
        if let Some(node) = was.as_ref().or(is.as_ref()).filter(|_| was != is) {
            let place = (self.loads.get(node).map_or(0, |load| load.live), node.clone());
            if is.is_some() {
                self.takers.insert(place);
            } else {
                self.takers.remove(&place);
            }
            for service in services {
                let level = (service.clone(), self.live.count(&service, node));
                self.levels.update(was.is_some().then(|| level.clone()), is.is_some().then_some(level));
            }
        }
        let flaps = |node: Option<&Node>| node.filter(|node| node.losses.len() > 1).map(|node| node.id.clone());
        if let Some(id) = flaps(old) {
            self.flapping.remove(&id);
        }
        if let Some(id) = flaps(new) {
            self.flapping.insert(id);
        }
        let is_manager = |node: &Node| node.role == Role::Manager;
        if let Some(old) = old.filter(|node| is_manager(node)) {
            self.managers.remove(&old.id);
        }
        if let Some(new) = new.filter(|node| is_manager(node)) {
            self.managers.insert(new.id.clone());
        }
    }

    /// The tasks of one slot.
    pub(super) fn of_slot(&self, service: &ServiceId, slot: u64) -> impl Iterator<Item = &TaskId> {
        // No id is below the empty one.
        let end = slot.saturating_add(1);
        let tasks = self.of_service.range(service, (slot, TaskId::default()), (end, TaskId::default()));
        tasks.map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests;
