//! The tables, their indices, and what can be asked of them. Persistent maps: a clone costs nothing and never
//! changes. Only `apply` and `snapshot` beside this file put something in.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::digest::Digest;
use flota_api::id::{NodeId, ServiceId, TaskId};
use flota_api::model::{Cluster, Image, Node, Registry, Service, ServiceSpec, Stack, Task};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::version::{Timestamp, Version};

/// The tables at one moment; whoever holds it may keep it.
pub type View = Arc<Tables>;

/// Shared, for a change clones a map's nodes with all their keys.
pub(super) type Key = Arc<str>;

/// Objects of one kind by id, and by the name that is unique among them.
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
        if let Some(name) = self.by_id.get(&id).and_then(Object::name) {
            self.by_name.remove(name);
        }
        if let Some(name) = object.name() {
            self.by_name.insert(name.into(), Arc::clone(&id));
        }
        self.by_id.insert(id, object);
    }

    fn remove(&mut self, id: &str) -> Option<Object> {
        let object = self.by_id.remove(id)?;
        if let Some(name) = object.name() {
            self.by_name.remove(name);
        }
        Some(object)
    }
}

/// The first answer to a user's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The version that it made.
    pub(super) version: Version,
    /// The entry's time; only entries of the old format look at it.
    pub(super) at: Timestamp,
}

/// Everything that the cluster knows.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Index of the last entry that was applied.
    pub version: Version,
    /// Of all objects and answers; kept by `apply` and `snapshot`, so an overlay's is that of its base.
    pub(super) digest: Digest,
    /// The time of the last entry that was applied. Never falls; zero before the first entry of the present format.
    pub time: Timestamp,
    /// One table for each kind, at the kind's place in [`Kind::ALL`].
    objects: [Table; Kind::ALL.len()],
    /// Each version of a service's spec that a task or the service itself still names, once.
    pub(super) specs: OrdMap<(ServiceId, u64), Arc<ServiceSpec>>,
    tasks_by_service: OrdMap<ServiceId, OrdSet<TaskId>>,
    tasks_by_node: OrdMap<NodeId, OrdSet<TaskId>>,
    /// Those that may run and have no node yet.
    tasks_waiting: OrdSet<TaskId>,
    /// By the request's id.
    pub(super) answers: OrdMap<Key, Answer>,
    /// The same, oldest first.
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

    fn get<T: StoreObject>(&self, id: &str) -> Option<&Arc<T>> {
        self.table(T::KIND).by_id.get(id).and_then(T::from_object)
    }

    fn all<T: StoreObject>(&self) -> impl Iterator<Item = &Arc<T>> {
        self.table(T::KIND).by_id.values().filter_map(T::from_object)
    }

    fn by_name<T: StoreObject>(&self, name: &str) -> Option<&Arc<T>> {
        self.table(T::KIND).by_name(name).and_then(T::from_object)
    }

    /// Whether another object of its kind has this object's name.
    pub(super) fn is_name_taken(&self, object: &Object) -> bool {
        let holder = object.name().and_then(|name| self.table(object.kind()).by_name(name));
        holder.is_some_and(|holder| holder.id() != object.id())
    }

    /// Whether the user's request with this id was done: then it is not done again.
    pub fn answered(&self, request_id: &str) -> bool {
        !request_id.is_empty() && self.answers.contains_key(request_id)
    }

    /// What the tables digest to, as the last entry left them.
    pub fn digest(&self) -> Digest {
        self.digest.at(self.time)
    }

    /// The cluster object; absent before the first entry.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.all().next()
    }

    /// Tasks of a service, by id.
    pub fn tasks_of_service(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.tasks_by_service.get(id);
        ids.into_iter().flatten().filter_map(|id| self.task(id.as_str()))
    }

    /// Tasks that were given to a node, by id.
    pub fn tasks_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.tasks_by_node.get(id);
        ids.into_iter().flatten().filter_map(|id| self.task(id.as_str()))
    }

    /// Tasks that may run and have no node yet, by id.
    pub fn tasks_waiting(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_waiting.iter().filter_map(|id| self.task(id.as_str()))
    }

    /// What a task was made from.
    pub fn spec_of(&self, task: &Task) -> Option<&Arc<ServiceSpec>> {
        self.specs.get(&(task.service_id.clone(), task.spec_version))
    }

    /// What a certain spec of a service said; kept as long as a task names it.
    pub fn spec_version(&self, service: &ServiceId, version: u64) -> Option<&Arc<ServiceSpec>> {
        self.specs.get(&(service.clone(), version))
    }

    /// The image object with this digest; a named one before one that lost its name.
    pub fn image_by_digest(&self, digest: &str) -> Option<&Arc<Image>> {
        let found = || self.images().filter(|image| image.digest == digest);
        found().find(|image| !image.reference.is_empty()).or_else(|| found().next())
    }

    /// The object of this kind and id.
    pub fn object(&self, kind: Kind, id: &str) -> Option<&Object> {
        self.table(kind).by_id.get(id)
    }

    /// The object's version; 0 when it is absent.
    pub fn version_of(&self, kind: Kind, id: &str) -> Version {
        self.object(kind, id).map_or(0, |object| object.meta().version)
    }

    /// Puts an object in or in place of its former self, with all indices. A plan's overlay is built with it;
    /// the store's own tables change by `apply` alone.
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
        if task.node_id.is_empty() && task.is_live() {
            self.tasks_waiting.insert(task.id.clone());
        } else {
            self.tasks_waiting.remove(&task.id);
        }
        if !task.node_id.is_empty() {
            self.tasks_by_node.entry(task.node_id.clone()).or_default().insert(task.id.clone());
        }
    }

    /// Takes an object out, with all indices.
    pub fn remove(&mut self, kind: Kind, id: &str) -> Option<Object> {
        let removed = self.table_mut(kind).remove(id)?;
        match &removed {
            Object::Service(service) => self.drop_unused_specs(&service.id),
            Object::Task(task) => {
                remove_from(&mut self.tasks_by_service, &task.service_id, &task.id);
                remove_from(&mut self.tasks_by_node, &task.node_id, &task.id);
                self.tasks_waiting.remove(&task.id);
                self.drop_unused_specs(&task.service_id);
            }
            Object::Cluster(_) | Object::Node(_) | Object::Image(_) | Object::Stack(_) | Object::Registry(_) => {}
        }
        Some(removed)
    }

    /// A spec lives as long as its service's newest, or a task that was made from it.
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
        // Persistent maps: the copy costs nothing, and what it holds stays as it is.
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
