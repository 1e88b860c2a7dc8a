//! The tables with their indices, and how they are read. They are persistent maps: a clone is cheap and does not change
//! when the original does. Only `apply`, `snapshot` and the overlays of planners put objects in.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::digest::Digest;
use flota_api::id::{NodeId, ServiceId, TaskId};
use flota_api::model::{Cluster, Image, Node, Registry, Service, ServiceSpec, Stack, Task};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::version::{Timestamp, Version};

/// The tables at one moment.
pub type View = Arc<Tables>;

/// A key. It is shared, because a change to a map clones whole nodes of it with all their keys.
pub(super) type Key = Arc<str>;

/// Objects of one kind by id, and by the names that are unique among them.
#[derive(Clone, Debug, Default)]
struct Table {
    by_id: OrdMap<Key, Object>,
    by_name: OrdMap<Key, Key>,
}

impl Table {
    fn by_name(&self, name: &str) -> Option<&Object> {
        self.by_name.get(name).and_then(|id| self.by_id.get(id))
    }

    fn put(&mut self, object: Object) {
        let id = Key::from(object.id());
        for name in self.by_id.get(&id).map(Object::names).unwrap_or_default() {
            self.by_name.remove(name);
        }
        for name in object.names() {
            self.by_name.insert(name.into(), Arc::clone(&id));
        }
        self.by_id.insert(id, object);
    }

    fn remove(&mut self, id: &str) -> Option<Object> {
        let object = self.by_id.remove(id)?;
        for name in object.names() {
            self.by_name.remove(name);
        }
        Some(object)
    }
}

/// The answer to a user's request, which a retry gets again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The version that the request made.
    pub(super) version: Version,
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
    /// Each version of a service's spec that the service or one of its tasks refers to.
    pub(super) specs: OrdMap<(ServiceId, u64), Arc<ServiceSpec>>,
    tasks_by_service: OrdMap<ServiceId, OrdSet<TaskId>>,
    tasks_by_node: OrdMap<NodeId, OrdSet<TaskId>>,
    /// Tasks that may run and have no node yet.
    tasks_waiting: OrdSet<TaskId>,
    /// Answers by the id of their request.
    pub(super) answers: OrdMap<Key, Answer>,
    /// The keys of `answers`, oldest first.
    pub(super) answers_by_age: OrdSet<(Version, Key)>,
}

/// Typed access to the tables, by the names that readers use.
macro_rules! accessors {
    ($($kind:ident: $get:ident, $all:ident $(, $named:ident)?;)*) => { $(
        #[doc = concat!("The ", stringify!($kind), " with this id.")]
        pub fn $get(&self, id: &str) -> Option<&Arc<$kind>> { self.get(id) }
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
    }

    fn table(&self, kind: Kind) -> &Table {
        &self.objects[kind as usize]
    }

    fn table_mut(&mut self, kind: Kind) -> &mut Table {
        &mut self.objects[kind as usize]
    }

    /// The object of this kind with this id.
    pub fn get<T: StoreObject>(&self, id: &str) -> Option<&Arc<T>> {
        self.table(T::KIND).by_id.get(id).and_then(T::from_object)
    }

    /// Every object of this kind, by id.
    pub fn all<T: StoreObject>(&self) -> impl Iterator<Item = &Arc<T>> {
        self.table(T::KIND).by_id.values().filter_map(T::from_object)
    }

    fn by_name<T: StoreObject>(&self, name: &str) -> Option<&Arc<T>> {
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

    /// Whether the user's request with this id has been carried out. It is not carried out again.
    pub fn answered(&self, request_id: &str) -> bool {
        !request_id.is_empty() && self.answers.contains_key(request_id)
    }

    /// Digest of the tables as the last entry left them.
    pub fn digest(&self) -> Digest {
        self.digest.at(self.time)
    }

    /// The cluster object; `None` before the first entry.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.all().next()
    }

    /// Tasks of a service, in the order of their ids.
    pub fn tasks_of_service(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.tasks_by_service.get(id);
        ids.into_iter().flatten().filter_map(|id| self.task(id.as_str()))
    }

    /// Tasks that were given to a node, in the order of their ids.
    pub fn tasks_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.tasks_by_node.get(id);
        ids.into_iter().flatten().filter_map(|id| self.task(id.as_str()))
    }

    /// Tasks that may run and have no node yet, in the order of their ids.
    pub fn tasks_waiting(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_waiting.iter().filter_map(|id| self.task(id.as_str()))
    }

    /// The node that a task was given to; `None` if it has no node yet or the node was removed.
    pub fn node_of(&self, task: &Task) -> Option<&Arc<Node>> {
        self.node(task.node_id.as_ref()?.as_str())
    }

    /// The spec that a task was made from.
    pub fn spec_of(&self, task: &Task) -> Option<&Arc<ServiceSpec>> {
        self.specs.get(&(task.service_id.clone(), task.spec_version))
    }

    /// A certain version of a service's spec; kept as long as a task refers to it.
    pub fn spec_version(&self, service: &ServiceId, version: u64) -> Option<&Arc<ServiceSpec>> {
        self.specs.get(&(service.clone(), version))
    }

    /// The image with this digest; if there are several, one that has a name.
    pub fn image_by_digest(&self, digest: &str) -> Option<&Arc<Image>> {
        let found = || self.images().filter(|image| image.digest == digest);
        found().find(|image| !image.references.is_empty()).or_else(|| found().next())
    }

    /// The object of this kind and id.
    pub fn object(&self, kind: Kind, id: &str) -> Option<&Object> {
        self.table(kind).by_id.get(id)
    }

    /// The object's version; `None` if there is no such object.
    pub fn version_of(&self, kind: Kind, id: &str) -> Option<Version> {
        self.object(kind, id).map(|object| object.meta().version)
    }

    /// Inserts or replaces an object and updates all indices. Planners use it for their overlays; the tables of the store
    /// change only through `apply`.
    pub fn put(&mut self, object: Object) {
        match &object {
            Object::Service(service) => {
                self.specs.insert((service.id.clone(), service.spec_version), Arc::clone(&service.spec));
            }
            Object::Task(task) => self.index_task(task),
            Object::Cluster(_) | Object::Node(_) | Object::Image(_) | Object::Stack(_) | Object::Registry(_) => {}
        }
        self.table_mut(object.kind()).put(object.clone());
        if let Object::Service(service) = object {
            self.drop_unused_specs(&service.id);
        }
    }

    fn index_task(&mut self, task: &Task) {
        self.tasks_by_service.entry(task.service_id.clone()).or_default().insert(task.id.clone());
        if task.is_waiting() {
            self.tasks_waiting.insert(task.id.clone());
        } else {
            self.tasks_waiting.remove(&task.id);
        }
        if let Some(node) = &task.node_id {
            self.tasks_by_node.entry(node.clone()).or_default().insert(task.id.clone());
        }
    }

    /// Removes an object and updates all indices.
    pub fn remove(&mut self, kind: Kind, id: &str) -> Option<Object> {
        let removed = self.table_mut(kind).remove(id)?;
        match &removed {
            Object::Service(service) => self.drop_unused_specs(&service.id),
            Object::Task(task) => {
                remove_from(&mut self.tasks_by_service, &task.service_id, &task.id);
                if let Some(node) = &task.node_id {
                    remove_from(&mut self.tasks_by_node, node, &task.id);
                }
                self.tasks_waiting.remove(&task.id);
                self.drop_unused_specs(&task.service_id);
            }
            Object::Cluster(_) | Object::Node(_) | Object::Image(_) | Object::Stack(_) | Object::Registry(_) => {}
        }
        Some(removed)
    }

    /// Drops specs that are neither the newest of their service nor that of a task.
    fn drop_unused_specs(&mut self, service: &ServiceId) {
        let versions: Vec<u64> = self
            .specs
            .range((service.clone(), 0)..=(service.clone(), u64::MAX))
            .map(|((_, version), _)| *version)
            .collect();
        if versions.len() < 2 && self.service(service.as_str()).is_some() {
            return;
        }
        let newest = self.service(service.as_str()).map(|service| service.spec_version);
        for version in versions {
            if newest != Some(version) && !self.tasks_of_service(service).any(|task| task.spec_version == version) {
                self.specs.remove(&(service.clone(), version));
            }
        }
    }

    /// Every object, in the order of the kinds, then by id.
    pub fn objects(&self) -> impl Iterator<Item = Object> + Send + use<> {
        // The clone is cheap and does not change while the caller iterates.
        self.objects.clone().into_iter().flat_map(|table| table.by_id.into_iter().map(|(_, object)| object))
    }
}

fn remove_from<K: Ord + Clone>(index: &mut OrdMap<K, OrdSet<TaskId>>, key: &K, id: &TaskId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
