//! The part of the tables that a user sees who is limited to names. What is left out does not exist for whoever reads it, so
//! no lookup, list or error can tell of it.

use std::sync::Arc;

use flota_api::id::ServiceId;
use flota_api::model::{
    ANOTHER_TASK, Cluster, INGRESS, Image, NetworkDriver, NetworkSpec, Node, Service, StoredConfig, StoredSecret,
    StoredValue, Task, ValueData,
};
use flota_api::object::{Object, StoreObject};

use super::Tables;

impl Tables {
    /// Returns tables with the objects whose names `is_seen` accepts: services with their tasks, stacks, networks, volumes,
    /// secrets and configs. The cluster, its nodes and images, and the networks `ingress` and `none` are there too, and no
    /// users, registries or records. They have no digest and no answers, and nothing is to be planned from them.
    #[must_use]
    pub fn limited(&self, is_seen: impl Fn(&str) -> bool) -> Self {
        let mut seen = Self { version: self.version, time: self.time, ..Self::default() };
        seen.take(self.all::<Cluster>());
        seen.take(self.all::<Node>());
        seen.take(self.all::<Image>());
        for service in self.services().filter(|it| is_seen(&it.spec.name)) {
            self.put_service(&mut seen, service);
        }
        let is_removed = |id: &&_| self.service(*id).is_none();
        for id in self.services_with_tasks().filter(is_removed) {
            let mut tasks = self.tasks_of_service(id);
            if tasks.next().and_then(|task| self.spec_of(task)).is_some_and(|spec| is_seen(&spec.name)) {
                self.put_tasks(&mut seen, id);
            }
        }
        // Not even the name of the task that took the place of another one is told, if it is not seen.
        let foreign = |task: &&Arc<Task>| task.preempted_by.as_ref().is_some_and(|by| !is_seen(by));
        let preempted: Vec<Task> = seen.all::<Task>().filter(foreign).map(|task| task.as_ref().clone()).collect();
        for task in preempted {
            seen.put(Task { preempted_by: Some(ANOTHER_TASK.into()), ..task }.into_object());
        }
        let is_everyones = |name: &str, driver| name == INGRESS || driver == NetworkDriver::None;
        seen.take(self.stacks().filter(|it| is_seen(&it.spec.name)));
        // The nodes' own network belongs to no user, even if its name begins with a prefix.
        let is_theirs = |it: &NetworkSpec| it.driver != NetworkDriver::Host && is_seen(&it.name);
        seen.take(self.networks().filter(|it| is_everyones(&it.spec.name, it.spec.driver) || is_theirs(&it.spec)));
        seen.take(self.volumes().filter(|it| is_seen(&it.spec.name)));
        let secrets: Vec<_> = self.all::<StoredSecret>().filter(|it| is_seen(&it.spec.name)).collect();
        let configs: Vec<_> = self.all::<StoredConfig>().filter(|it| is_seen(&it.spec.name)).collect();
        self.put_bytes(&mut seen, configs.iter().copied());
        seen.take(secrets.into_iter());
        seen.take(configs.into_iter());
        seen
    }

    fn take<'a, T: StoreObject>(&mut self, objects: impl Iterator<Item = &'a Arc<T>>) {
        objects.for_each(|object| self.put(object.as_ref().clone().into_object()));
    }

    fn put_service(&self, seen: &mut Self, service: &Arc<Service>) {
        seen.put(Object::Service(Arc::clone(service)));
        self.put_tasks(seen, &service.id);
    }

    /// The specs of the service come before the tasks that were made from them.
    fn put_tasks(&self, seen: &mut Self, service: &ServiceId) {
        let versions = self.specs.range((service.clone(), 0)..=(service.clone(), u64::MAX));
        versions.for_each(|(version, spec)| seen.hold_spec(version.clone(), Arc::clone(spec)));
        self.tasks_of_service(service).for_each(|task| seen.put(Object::Task(Arc::clone(task))));
    }

    fn put_bytes<'a, K: 'a>(&self, seen: &mut Self, values: impl Iterator<Item = &'a Arc<StoredValue<K>>>) {
        let ids = values.flat_map(|value| value.versions.iter().map(|version| &version.data));
        let data: Vec<_> = ids.filter_map(|id| self.get::<ValueData>(id.as_str())).collect();
        seen.take(data.into_iter());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Network, ServiceSpec, Stack, StackSpec, User, Volume, VolumeSpec};
    use flota_api::object::Kind;

    #[test]
    fn only_what_has_a_seen_name_is_there_with_its_tasks_specs_and_bytes() {
        let mut whole = Tables { version: 9, ..Tables::default() };
        whole.put(Cluster::default().into_object());
        whole.put(Node { id: "n".into(), ..Node::default() }.into_object());
        whole.put(User { id: "u".into(), name: "a-user".into(), ..User::default() }.into_object());
        for team in ["a", "b"] {
            let id = |kind: &str| format!("{team}-{kind}");
            let spec =
                |image: &str| Arc::new(ServiceSpec { name: id("web"), image: image.into(), ..ServiceSpec::default() });
            let service = Service { id: id("s").into(), spec: spec("new"), spec_version: 2, ..Service::default() };
            whole.put(service.into_object());
            whole.hold_spec((id("s").into(), 1), spec("old"));
            for version in [1, 2] {
                let task = Task {
                    id: format!("{team}-t{version}").into(),
                    service_id: id("s").into(),
                    spec_version: version,
                    ..Task::default()
                };
                whole.put(task.into_object());
            }
            // Of a service that was removed.
            let gone = Arc::new(ServiceSpec { name: id("gone"), ..ServiceSpec::default() });
            whole.hold_spec((id("g").into(), 1), gone);
            whole.put(
                Task { id: id("left").into(), service_id: id("g").into(), spec_version: 1, ..Task::default() }
                    .into_object(),
            );
            let spec = StackSpec { name: id("stack"), ..StackSpec::default() };
            whole.put(Stack { id: id("k").into(), spec, ..Stack::default() }.into_object());
            let spec = Arc::new(NetworkSpec { name: id("net"), ..NetworkSpec::default() });
            whole.put(Network { id: id("net").into(), spec, ..Network::default() }.into_object());
            let spec = VolumeSpec { name: id("data"), ..VolumeSpec::default() };
            whole.put(Volume { id: id("v").into(), spec, ..Volume::default() }.into_object());
            let mut config = StoredConfig { id: id("c").into(), ..StoredConfig::default() };
            config.spec.name = id("conf");
            let (config, data) = config.with_version(id("d").into(), b"x".to_vec().into());
            whole.put(config.into_object());
            whole.put(data.into_object());
        }
        let seen = whole.limited(|name| name.starts_with("a-"));
        let names: Vec<_> = seen
            .objects()
            .filter(|it| it.kind() != Kind::Task)
            .flat_map(|it| it.names().iter().map(ToString::to_string).collect::<Vec<_>>())
            .collect();
        assert_eq!(names, ["cluster", "a-web", "a-stack", "a-net", "a-data", "a-conf"]);
        let tasks: Vec<_> = seen.tasks().map(|task| (task.id.as_str(), seen.spec_of(task).is_some())).collect();
        assert_eq!(tasks, [("a-left", true), ("a-t1", true), ("a-t2", true)]);
        assert_eq!((seen.version, seen.count(Kind::Node), seen.count(Kind::ValueData)), (9, 1, 1));
        assert!(seen.object(Kind::StoredConfig, "b-c").is_none() && seen.object(Kind::User, "u").is_none());
    }

    #[test]
    fn the_network_of_the_nodes_belongs_to_no_prefix() {
        let mut whole = Tables::default();
        let network = |name: &str, driver| {
            let spec = Arc::new(NetworkSpec { name: name.into(), driver, ..NetworkSpec::default() });
            Network { id: name.into(), spec, ..Network::default() }.into_object()
        };
        whole.put(network("host", NetworkDriver::Host));
        whole.put(network("hosts", NetworkDriver::Overlay));
        let seen = whole.limited(|name| name.starts_with("ho"));
        assert_eq!(seen.networks().map(|it| it.spec.name.as_str()).collect::<Vec<_>>(), ["hosts"]);
    }

    #[test]
    fn a_task_that_another_has_displaced_does_not_tell_whose_that_was() {
        let mut whole = Tables::default();
        let spec = Arc::new(ServiceSpec { name: "a-web".into(), ..ServiceSpec::default() });
        whole.put(Service { id: "s".into(), spec, spec_version: 1, ..Service::default() }.into_object());
        for (id, by) in [("own", "a-db.1"), ("foreign", "b-db.1")] {
            let preempted_by = Some(by.to_owned());
            let task = Task { id: id.into(), service_id: "s".into(), spec_version: 1, preempted_by, ..Task::default() };
            whole.put(task.into_object());
        }
        let seen = whole.limited(|name| name.starts_with("a-"));
        let by = |id: &str| seen.task(id).expect("it is seen").preempted_by.clone();
        assert_eq!((by("own").as_deref(), by("foreign").as_deref()), (Some("a-db.1"), Some("another task")));
    }
}
