//! The tables with their indices, and how they are read. They are persistent maps: a clone is cheap and does not change
//! when the original does. Only `apply`, `snapshot` and the overlays of planners put objects in.

mod dependencies;
mod limited;
mod networks;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::indices::{Indices, Load};
use super::table::{Held, Key, Table};
use crate::digest::{Digest, ObjectDigest};
use flota_api::id::{Id, NodeId, ServiceId, TaskId, VolumeId};
use flota_api::model::{
    Cluster, INGRESS, Image, Network, Node, NodeState, Registry, Service, ServiceSpec, Stack, Task, User, Volume,
};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::version::{Timestamp, Version};

/// The tables at one moment.
pub type View = Arc<Tables>;

/// The answer to a user's request, which a retry gets again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The version that the request made.
    pub(super) version: Version,
    /// Whether it was refused, and made none.
    pub(super) is_refusal: bool,
    /// The time of the entry; used only when an entry of the old format is applied.
    pub(super) at: Timestamp,
}

/// Everything that the cluster stores.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Index of the last applied entry.
    pub version: Version,
    /// Digest of all objects and answers. `apply` and `snapshot` maintain it; a planner's overlay has that of its base.
    pub(super) digest: Digest,
    /// Time of the last applied entry. It never falls, and is zero before the first entry of the present format.
    pub time: Timestamp,
    /// One table for each kind, at the kind's place in [`Kind::ALL`].
    objects: [Table; Kind::ALL.len()],
    /// Each version of a service's spec that the service, one of its revisions or one of its tasks refers to.
    pub(super) specs: OrdMap<(ServiceId, u64), Arc<ServiceSpec>>,
    indices: Indices,
    /// Answers by the id of their request.
    pub(super) answers: OrdMap<Key, Answer>,
    /// The keys of `answers`, oldest first.
    pub(super) answers_by_age: OrdSet<(Version, Key)>,
}

/// Typed access to the tables, by the names that readers use.
macro_rules! accessors {
    ($($kind:ident: $get:ident, $all:ident $(, $named:ident)?;)*) => { $(
        #[doc = concat!("The ", stringify!($kind), " with this id.")]
        pub fn $get(&self, id: impl Into<Id>) -> Option<&Arc<$kind>> { self.get(id) }
        #[doc = concat!("Every ", stringify!($kind), ", by id.")]
        pub fn $all(&self) -> impl Iterator<Item = &Arc<$kind>> { self.all() }
        $(
            #[doc = concat!("The ", stringify!($kind), " with this unique name.")]
            pub fn $named(&self, name: &str) -> Option<&Arc<$kind>> { self.by_name(name) }
        )?
    )* };
}

impl Tables {
    accessors! {
        Node: node, nodes;
        Service: service, services, service_by_name;
        Task: task, tasks;
        Image: image, images, image_by_reference;
        Stack: stack, stacks, stack_by_name;
        Registry: registry, registries, registry_by_host;
        Network: network, networks, network_by_name;
        Volume: volume, volumes, volume_by_name;
        User: user, users, user_by_name;
    }

    fn table(&self, kind: Kind) -> &Table {
        &self.objects[kind as usize]
    }

    fn table_mut(&mut self, kind: Kind) -> &mut Table {
        &mut self.objects[kind as usize]
    }

    /// The object of this kind with this id.
    pub fn get<T: StoreObject>(&self, id: impl Into<Id>) -> Option<&Arc<T>> {
        self.object(T::KIND, id).and_then(T::from_object)
    }

    /// Every object of this kind, by id.
    pub fn all<T: StoreObject>(&self) -> impl Iterator<Item = &Arc<T>> {
        self.table(T::KIND).objects().filter_map(T::from_object)
    }

    /// The object of this kind with this unique name.
    pub fn by_name<T: StoreObject>(&self, name: &str) -> Option<&Arc<T>> {
        self.table(T::KIND).by_name(name).and_then(T::from_object)
    }

    /// Returns a name of this object that another object of its kind has.
    pub(super) fn taken_name<'a>(&self, object: &'a Object) -> Option<&'a str> {
        let is_taken = |name: &&str| {
            let holder = self.table(object.kind()).by_name(name);
            holder.is_some_and(|holder| holder.id() != object.id())
        };
        object.names().into_iter().find(is_taken)
    }

    /// Whether the user's request with this id has been carried out or refused. It is not carried out any more.
    pub fn answered(&self, request_id: &str) -> bool {
        self.answers.contains_key(request_id)
    }

    /// Version of the oldest answer to a request that is kept.
    pub(super) fn oldest_answer(&self) -> Option<Version> {
        self.answers_by_age.get_min().map(|(version, _)| *version)
    }

    /// Whether the user's request with this id has been refused.
    pub fn refused(&self, request_id: &str) -> bool {
        self.answers.get(request_id).is_some_and(|answer| answer.is_refusal)
    }

    /// Digest of the tables as the last entry left them.
    pub fn digest(&self) -> Digest {
        self.digest.at(self.time)
    }

    /// The cluster object; `None` before the first entry.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.all().next()
    }

    fn tasks_with<'a>(&'a self, ids: impl Iterator<Item = &'a TaskId>) -> impl Iterator<Item = &'a Arc<Task>> {
        ids.filter_map(|id| self.task(id))
    }

    /// Tasks of a service, in the order of their slots, then of their ids.
    pub fn tasks_of_service(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_with(self.indices.of_service.of(id).map(|(_, id)| id))
    }

    /// Tasks of one slot of a service, in the order of their ids.
    pub fn tasks_of_slot(&self, id: &ServiceId, slot: u64) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_with(self.indices.of_slot(id, slot))
    }

    /// Services that have tasks; a service that was removed may still have some.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = &ServiceId> {
        self.indices.of_service.keys()
    }

    /// Tasks that were given to a node, in the order of their ids.
    pub fn tasks_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_with(self.indices.of_node.of(id))
    }

    /// Services with tasks that may run and have no node yet.
    pub fn services_waiting(&self) -> impl Iterator<Item = &ServiceId> {
        self.indices.waiting.keys()
    }

    /// Tasks of a service that may run and have no node yet, in the order in which they get nodes: those for which tasks were
    /// stopped, so that others leave them their room, then those of an older spec, then those that are older.
    pub fn tasks_waiting(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_with(self.indices.waiting.of(id).map(|(.., id)| id))
    }

    /// Tasks of a service that failed or were rejected, in the order of their ids.
    pub fn tasks_failed(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_with(self.indices.failed.of(id))
    }

    /// Tasks that wait until others have stopped on this node, in the order of their ids.
    pub fn claims_on(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_with(self.indices.claims.of(id))
    }

    /// The priorities that services have, lowest first.
    pub fn priorities(&self) -> impl Iterator<Item = i32> {
        self.indices.priorities.of(&()).map(|(priority, _)| *priority)
    }

    /// The priority of the tasks of a service; that of one that was removed is the default.
    pub fn priority_of(&self, id: &ServiceId) -> i32 {
        self.service(id).map_or(0, |service| service.spec.priority)
    }

    /// The resources that the tasks of a node hold there.
    pub fn load(&self, id: &NodeId) -> Load {
        self.indices.loads.get(id).copied().unwrap_or_default()
    }

    /// Nodes that take tasks: those with the fewest live tasks first, then by id.
    pub fn takers(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.indices.takers.iter().filter_map(|(_, id)| self.node(id))
    }

    /// Nodes that were lost more than once, of which the last time may be long ago.
    pub fn flapping(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.indices.flapping.iter().filter_map(|id| self.node(id))
    }

    /// Number of live tasks of a service on a node.
    pub fn live_tasks(&self, service: &ServiceId, node: &NodeId) -> u64 {
        self.indices.live.count(service, node)
    }

    /// The numbers of live tasks of a service on the nodes that take tasks, the smallest first, and how many nodes have
    /// each.
    pub fn live_task_levels(&self, service: &ServiceId) -> impl Iterator<Item = (u64, u64)> {
        let levels = || self.indices.levels.of(service).map(|(level, nodes)| (*level, nodes));
        let with_any: u64 = levels().map(|(_, nodes)| nodes).sum();
        let without = self.indices.takers.len() as u64 - with_any;
        Some((0, without)).filter(|_| without > 0).into_iter().chain(levels())
    }

    /// The node that a task was given to; `None` if it has no node yet or the node was removed.
    pub fn node_of(&self, task: &Task) -> Option<&Arc<Node>> {
        self.node(task.node_id.as_ref()?)
    }

    /// Whether no node reports the end of the task: it has none, or its node is down or was removed.
    pub fn is_lost(&self, task: &Task) -> bool {
        self.node_of(task).is_none_or(|node| node.state == NodeState::Down)
    }

    /// The spec that a task was made from.
    pub fn spec_of(&self, task: &Task) -> Option<&Arc<ServiceSpec>> {
        self.specs.get(&(task.service_id.clone(), task.spec_version))
    }

    /// A certain version of a service's spec; kept as long as a task or a revision refers to it.
    pub fn spec_version(&self, service: &ServiceId, version: u64) -> Option<&Arc<ServiceSpec>> {
        self.specs.get(&(service.clone(), version))
    }

    /// Versions of a service's spec that its live tasks were made from, lowest first.
    pub fn live_versions(&self, service: &ServiceId) -> impl Iterator<Item = u64> {
        self.indices.live_versions.of(service).map(|(version, _)| *version)
    }

    /// The image with this digest; if there are several, one that has a name.
    pub fn image_by_digest(&self, digest: &str) -> Option<&Arc<Image>> {
        self.indices.images.of(digest).find_map(|(_, id)| self.image(id))
    }

    /// Nodes with unfinished tasks that run or mount the image with this digest; `None` stands for tasks without a node.
    pub fn users_of_image(&self, digest: &str) -> impl Iterator<Item = Option<&NodeId>> {
        self.indices.users.of(digest).map(|(node, _)| node.as_ref())
    }

    /// Services of which a spec, the present one or one that is kept, is pinned to the image with this digest.
    pub fn services_pinned_to(&self, digest: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.indices.pins.of(digest).filter_map(|id| self.service(id))
    }

    /// Whether a service is pinned to the image with this digest.
    pub fn is_pinned(&self, digest: &str) -> bool {
        self.indices.pins.of(digest).next().is_some()
    }

    /// Services whose tasks run beside those of the service with this name.
    pub fn affine_to(&self, name: &str) -> impl Iterator<Item = &ServiceId> {
        self.indices.affine.of(name)
    }

    /// Services whose tasks do not run beside those of the service with this name.
    pub fn averse_to(&self, name: &str) -> impl Iterator<Item = &ServiceId> {
        self.indices.averse.of(name)
    }

    /// Images that a node holds or was asked to hold.
    pub fn images_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Image>> {
        self.indices.images_of_node.of(id).filter_map(|id| self.image(id))
    }

    /// Volumes that a user has removed and of which the node may still have data.
    pub fn removed_volumes_of_node(&self, id: &NodeId) -> impl Iterator<Item = &VolumeId> {
        self.indices.removed_volumes.of(id)
    }

    /// Every version of a service's spec that the service, one of its revisions or one of its tasks refers to.
    pub fn specs(&self) -> impl Iterator<Item = (&ServiceId, u64, &Arc<ServiceSpec>)> {
        self.specs.iter().map(|((service, version), spec)| (service, *version, spec))
    }

    /// Every node, by id, from the first one that is not below `id`; those below it come last.
    pub fn nodes_from(&self, id: impl Into<Id>) -> impl Iterator<Item = &Arc<Node>> {
        self.table(Kind::Node).objects_from(id.into()).filter_map(Node::from_object)
    }

    /// Nodes that are managers, by id.
    pub fn managers(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.indices.managers.iter().filter_map(|id| self.node(id))
    }

    /// Networks that tasks of a spec join, in the order of their interfaces.
    pub fn networks_of_spec(&self, spec: &ServiceSpec) -> impl Iterator<Item = &Arc<Network>> {
        let ingress = self.network_by_name(INGRESS).filter(|_| spec.is_in_ingress());
        spec.networks.iter().filter_map(|it| self.network(it.network.as_str())).chain(ingress)
    }

    /// Whether the task has all attachments that its spec asks for.
    pub fn is_attached(&self, task: &Task) -> bool {
        let has = |network: &Arc<Network>| task.attachments.iter().any(|it| it.network == network.id);
        self.spec_of(task).is_none_or(|spec| self.networks_of_spec(spec).all(has))
    }

    /// Number of objects of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.table(kind).len()
    }

    /// The object of this kind and id.
    pub fn object(&self, kind: Kind, id: impl Into<Id>) -> Option<&Object> {
        self.table(kind).get(id.into())
    }

    /// The object's version; `None` if there is no such object.
    pub fn version_of(&self, kind: Kind, id: impl Into<Id>) -> Option<Version> {
        self.object(kind, id).map(|object| object.meta().version)
    }

    /// Inserts or replaces an object and updates all indices. Planners use it for their overlays, and it leaves the
    /// digest as it is; the tables of the store change only through `apply`.
    pub fn put(&mut self, object: Object) {
        self.replace(object);
    }

    /// As [`Tables::put`]. Returns the object that was there before.
    pub fn replace(&mut self, object: Object) -> Option<Object> {
        self.hold(Held { object, digest: None }).map(|old| old.object)
    }

    /// As [`Tables::replace`], and makes the digest follow.
    pub(super) fn replace_counted(&mut self, object: Object) -> Option<Object> {
        let new = ObjectDigest::of(&object);
        let old = self.hold(Held { object, digest: Some(new) });
        self.digest.add_object(new);
        self.discount(old)
    }

    /// Removes an object and updates all indices.
    pub fn remove(&mut self, kind: Kind, id: impl Into<Id>) -> Option<Object> {
        self.release(kind, id.into()).map(|removed| removed.object)
    }

    /// As [`Tables::remove`], and makes the digest follow.
    pub(super) fn remove_counted(&mut self, kind: Kind, id: Id) -> Option<Object> {
        let removed = self.release(kind, id);
        self.discount(removed)
    }

    fn hold(&mut self, new: Held) -> Option<Held> {
        let object = new.object.clone();
        let old = self.table_mut(object.kind()).put(new);
        self.follow(old.as_ref().map(|old| &old.object), Some(&object));
        old
    }

    fn release(&mut self, kind: Kind, id: Id) -> Option<Held> {
        let removed = self.table_mut(kind).remove(id)?;
        self.follow(Some(&removed.object), None);
        Some(removed)
    }

    /// Takes what was held out of the digest.
    fn discount(&mut self, old: Option<Held>) -> Option<Object> {
        let Held { object, digest } = old?;
        self.digest.take_object(digest.unwrap_or_else(|| ObjectDigest::of(&object)));
        Some(object)
    }

    /// Makes specs and indices follow the change of an object.
    fn follow(&mut self, old: Option<&Object>, new: Option<&Object>) {
        let Some(object) = new.or(old) else { return };
        match object {
            Object::Service(service) => {
                if new.is_some() {
                    self.hold_spec((service.id.clone(), service.spec_version), Arc::clone(&service.spec));
                }
                let versions = self.specs.range((service.id.clone(), 0)..=(service.id.clone(), u64::MAX));
                let versions: Vec<u64> = versions.map(|((_, version), _)| *version).collect();
                versions.into_iter().for_each(|version| self.drop_unused_spec(&service.id, version));
                self.indices.service(inside(old), inside(new));
            }
            Object::Task(task) => {
                let reserved = self.spec_of(task).map(|spec| spec.reservations).unwrap_or_default();
                self.indices.task(inside(old), inside(new), &reserved, self.version);
                if new.is_none() {
                    self.drop_unused_spec(&task.service_id, task.spec_version);
                }
            }
            Object::Image(_) => self.indices.image(inside(old), inside(new)),
            Object::Node(node) => {
                let live = self.tasks_of_node(&node.id).filter(|task| task.is_live());
                let services = live.map(|task| task.service_id.clone()).collect();
                self.indices.node(inside(old), inside(new), services, self.version);
            }
            Object::Cluster(_)
            | Object::Stack(_)
            | Object::Registry(_)
            | Object::StoredSecret(_)
            | Object::StoredConfig(_)
            | Object::ValueData(_)
            | Object::User(_)
            | Object::Audit(_) => {}
            Object::Network(_) => self.indices.networks.network(inside(old), inside(new)),
            Object::Volume(_) => self.indices.removed_volume(inside(old), inside(new)),
        }
    }

    /// Inserts or replaces a version of a service's spec.
    pub(super) fn hold_spec(&mut self, version: (ServiceId, u64), spec: Arc<ServiceSpec>) {
        let old = self.specs.insert(version.clone(), Arc::clone(&spec));
        self.indices.spec(&version, old.as_ref(), Some(&spec));
    }

    /// Drops a spec that neither its service nor one of its revisions or tasks refers to.
    fn drop_unused_spec(&mut self, service: &ServiceId, version: u64) {
        let is_kept = self.service(service).is_some_and(|service| {
            service.spec_version == version || service.revisions.iter().any(|it| it.version == version)
        });
        if !is_kept && self.indices.versions.count(service, &version) == 0 {
            let version = (service.clone(), version);
            let old = self.specs.remove(&version);
            self.indices.spec(&version, old.as_ref(), None);
        }
    }

    /// Every object, in the order of the kinds, then by id.
    pub fn objects(&self) -> impl Iterator<Item = Object> + Send + use<> {
        // The clone is cheap and does not change while the caller iterates.
        self.objects.clone().into_iter().flat_map(Table::into_objects)
    }
}

fn inside<T: StoreObject>(object: Option<&Object>) -> Option<&T> {
    object.and_then(T::from_object).map(AsRef::as_ref)
}
