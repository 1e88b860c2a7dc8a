//! The tables, their indices, and what can be asked of them. Persistent maps: a clone costs nothing and never
//! changes. Only `apply` and `snapshot` beside this file put something in.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::digest::Digest;
use flota_api::id::{NodeId, ServiceId, TaskId};
use flota_api::model::{Cluster, Image, Node, Registry, Service, ServiceSpec, Stack, Task};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::version::{Timestamp, Version};

/// The tables at one moment; whoever holds it may keep it.
pub type View = Arc<Tables>;

/// Shared, for a change clones a map's nodes with all their keys.
pub(super) type Key = Arc<str>;

/// Objects of one kind by id, and by the name that is unique among them.
#[derive(Clone, Debug)]
pub(super) struct Table<T: StoreObject> {
    by_id: OrdMap<Key, Arc<T>>,
    by_name: OrdMap<Key, Key>,
}

impl<T: StoreObject> Default for Table<T> {
    fn default() -> Self {
        Self { by_id: OrdMap::new(), by_name: OrdMap::new() }
    }
}

impl<T: StoreObject> Table<T> {
    pub(super) fn get(&self, id: &str) -> Option<&Arc<T>> {
        self.by_id.get(id)
    }

    fn by_name(&self, name: &str) -> Option<&Arc<T>> {
        self.by_name.get(name).and_then(|id| self.by_id.get(id))
    }

    /// The id of another object that has this one's name.
    pub(super) fn name_taken(&self, object: &T) -> Option<&str> {
        let holder = self.by_name.get(object.name()?)?;
        (&**holder != object.id()).then_some(&**holder)
    }

    fn put(&mut self, object: Arc<T>) {
        if let Some(old) = self.by_id.get(object.id())
            && let Some(name) = old.name()
        {
            let name = Key::from(name);
            self.by_name.remove(&name);
        }
        if let Some(name) = object.name() {
            self.by_name.insert(name.into(), object.id().into());
        }
        self.by_id.insert(object.id().into(), object);
    }

    fn remove(&mut self, id: &str) -> Option<Arc<T>> {
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
    pub(super) clusters: Table<Cluster>,
    pub(super) nodes: Table<Node>,
    pub(super) services: Table<Service>,
    pub(super) tasks: Table<Task>,
    pub(super) images: Table<Image>,
    pub(super) stacks: Table<Stack>,
    pub(super) registries: Table<Registry>,
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

macro_rules! accessors {
    ($($table:ident: $type:ident, $get:ident, $all:ident, $named:ident;)*) => { $(
        #[doc = concat!("The ", stringify!($type), " with this id.")]
        pub fn $get(&self, id: &str) -> Option<&Arc<$type>> { self.$table.get(id) }
        #[doc = concat!("Every ", stringify!($type), ", by id.")]
        pub fn $all(&self) -> impl Iterator<Item = &Arc<$type>> { self.$table.by_id.values() }
        #[doc = concat!("The ", stringify!($type), " with this unique name.")]
        pub fn $named(&self, name: &str) -> Option<&Arc<$type>> { self.$table.by_name(name) }
    )* };
}

impl Tables {
    accessors! {
        clusters: Cluster, cluster_by_id, clusters, cluster_by_name;
        nodes: Node, node, nodes, node_by_name;
        services: Service, service, services, service_by_name;
        tasks: Task, task, tasks, task_by_name;
        images: Image, image, images, image_by_reference;
        stacks: Stack, stack, stacks, stack_by_name;
        registries: Registry, registry, registries, registry_by_host;
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
        self.clusters().next()
    }

    /// Tasks of a service, by id.
    pub fn tasks_of_service(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.tasks_by_service.get(id);
        ids.into_iter().flatten().filter_map(|id| self.tasks.get(id.as_str()))
    }

    /// Tasks that were given to a node, by id.
    pub fn tasks_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.tasks_by_node.get(id);
        ids.into_iter().flatten().filter_map(|id| self.tasks.get(id.as_str()))
    }

    /// Tasks that may run and have no node yet, by id.
    pub fn tasks_waiting(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_waiting.iter().filter_map(|id| self.tasks.get(id.as_str()))
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
    pub fn object(&self, kind: Kind, id: &str) -> Option<Object> {
        match kind {
            Kind::Cluster => self.clusters.get(id).cloned().map(Object::Cluster),
            Kind::Node => self.nodes.get(id).cloned().map(Object::Node),
            Kind::Service => self.services.get(id).cloned().map(Object::Service),
            Kind::Task => self.tasks.get(id).cloned().map(Object::Task),
            Kind::Image => self.images.get(id).cloned().map(Object::Image),
            Kind::Stack => self.stacks.get(id).cloned().map(Object::Stack),
            Kind::Registry => self.registries.get(id).cloned().map(Object::Registry),
        }
    }

    /// The object's version; 0 when it is absent.
    pub fn version_of(&self, kind: Kind, id: &str) -> Version {
        self.object(kind, id).map_or(0, |object| object.meta().version)
    }

    /// Puts an object in or in place of its former self, with all indices. A plan's overlay is built with it;
    /// the store's own tables change by `apply` alone.
    pub fn put(&mut self, object: Object) {
        match object {
            Object::Cluster(object) => self.clusters.put(object),
            Object::Node(object) => self.nodes.put(object),
            Object::Service(object) => {
                self.specs.insert((object.id.clone(), object.spec_version), Arc::clone(&object.spec));
                let id = object.id.clone();
                self.services.put(object);
                self.drop_unused_specs(&id);
            }
            Object::Task(object) => self.put_task(object),
            Object::Image(object) => self.images.put(object),
            Object::Stack(object) => self.stacks.put(object),
            Object::Registry(object) => self.registries.put(object),
        }
    }

    fn put_task(&mut self, task: Arc<Task>) {
        self.tasks_by_service.entry(task.service_id.clone()).or_default().insert(task.id.clone());
        if task.node_id.is_empty() && task.is_live() {
            self.tasks_waiting.insert(task.id.clone());
        } else {
            self.tasks_waiting.remove(&task.id);
        }
        if !task.node_id.is_empty() {
            self.tasks_by_node.entry(task.node_id.clone()).or_default().insert(task.id.clone());
        }
        self.tasks.put(task);
    }

    /// Takes an object out, with all indices.
    pub fn remove(&mut self, kind: Kind, id: &str) -> Option<Object> {
        match kind {
            Kind::Cluster => self.clusters.remove(id).map(Object::Cluster),
            Kind::Node => self.nodes.remove(id).map(Object::Node),
            Kind::Service => {
                let service = self.services.remove(id)?;
                self.drop_unused_specs(&service.id);
                Some(Object::Service(service))
            }
            Kind::Task => {
                let task = self.tasks.remove(id)?;
                remove_from(&mut self.tasks_by_service, &task.service_id, &task.id);
                remove_from(&mut self.tasks_by_node, &task.node_id, &task.id);
                self.tasks_waiting.remove(&task.id);
                self.drop_unused_specs(&task.service_id);
                Some(Object::Task(task))
            }
            Kind::Image => self.images.remove(id).map(Object::Image),
            Kind::Stack => self.stacks.remove(id).map(Object::Stack),
            Kind::Registry => self.registries.remove(id).map(Object::Registry),
        }
    }

    /// A spec lives as long as its service's newest, or a task that was made from it.
    fn drop_unused_specs(&mut self, service: &ServiceId) {
        let versions: Vec<u64> = self
            .specs
            .range((service.clone(), 0)..=(service.clone(), u64::MAX))
            .map(|((_, version), _)| *version)
            .collect();
        if versions.len() < 2 && self.services.get(service.as_str()).is_some() {
            return;
        }
        let newest = self.services.get(service.as_str()).map(|service| service.spec_version);
        for version in versions {
            if newest != Some(version) && !self.tasks_of_service(service).any(|task| task.spec_version == version) {
                self.specs.remove(&(service.clone(), version));
            }
        }
    }

    /// Every object, in the order of the kinds.
    pub fn objects(&self) -> impl Iterator<Item = Object> + Send + 'static {
        self.clone().into_objects()
    }

    /// Every object, in the order of the kinds.
    pub(super) fn into_objects(self) -> impl Iterator<Item = Object> + Send + 'static {
        fn all<T: StoreObject>(table: Table<T>, object: fn(Arc<T>) -> Object) -> impl Iterator<Item = Object> + Send {
            table.by_id.into_iter().map(move |(_, it)| object(it))
        }
        all(self.clusters, Object::Cluster)
            .chain(all(self.nodes, Object::Node))
            .chain(all(self.services, Object::Service))
            .chain(all(self.tasks, Object::Task))
            .chain(all(self.images, Object::Image))
            .chain(all(self.stacks, Object::Stack))
            .chain(all(self.registries, Object::Registry))
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
