//! How the indices of services by name are read: which have a name, and which depend on it. They follow the versions of
//! specs, so that they also know a service that was removed as long as it has tasks.

use super::Tables;
use flota_api::id::ServiceId;

impl Tables {
    /// Services with this name: the present one, and those that were removed and still have tasks.
    pub fn services_named(&self, name: &str) -> impl Iterator<Item = &ServiceId> {
        distinct(self.indices.named.of(name))
    }

    /// Services of which a spec depends on the service with this name: the present spec, an earlier one that is kept, or
    /// that of the tasks which a removed service still has.
    pub fn dependents(&self, name: &str) -> impl Iterator<Item = &ServiceId> {
        distinct(self.indices.dependents.of(name))
    }

    /// Whether any service depends on another one.
    pub fn has_dependents(&self) -> bool {
        self.indices.dependents.keys().next().is_some()
    }
}

/// Returns the services of versions that are in their order.
fn distinct<'a>(versions: impl Iterator<Item = &'a (ServiceId, u64)>) -> impl Iterator<Item = &'a ServiceId> {
    let mut last = None;
    versions.map(|(service, _)| service).filter(move |service| last.replace(*service) != Some(*service))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use flota_api::model::{Dependency, DependencyCondition, Service, ServiceSpec, Task};
    use flota_api::object::{Kind, StoreObject};

    fn service(id: &str, name: &str, version: u64, depends_on: &[&str]) -> Service {
        let condition = DependencyCondition::Started;
        let depends_on = depends_on.iter().map(|it| Dependency { service: (*it).into(), condition, required: true });
        let spec = ServiceSpec { name: name.into(), depends_on: depends_on.collect(), ..ServiceSpec::default() };
        Service { id: id.into(), spec: Arc::new(spec), spec_version: version, ..Service::default() }
    }

    fn found(tables: &Tables) -> [String; 3] {
        let shown = |ids: Vec<&ServiceId>| ids.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let [on_db, on_queue] = ["db", "queue"].map(|name| shown(tables.dependents(name).collect()));
        [shown(tables.services_named("web").collect()), on_db, on_queue]
    }

    #[test]
    fn services_are_found_by_what_they_depend_on_as_long_as_they_have_tasks() {
        let mut tables = Tables::default();
        tables.put(service("a", "web", 1, &["db"]).into_object());
        tables.put(service("b", "job", 1, &["db", "queue"]).into_object());
        assert_eq!(found(&tables), ["a", "a b", "b"]);
        // The same version of the spec depends on something else.
        tables.put(service("b", "job", 1, &["queue"]).into_object());
        assert_eq!(found(&tables), ["a", "a", "b"]);
        let task = Task { id: "t".into(), service_id: "a".into(), spec_version: 1, ..Task::default() };
        tables.put(task.into_object());
        tables.remove(Kind::Service, "a");
        tables.put(service("c", "web", 1, &[]).into_object());
        let records: Vec<Vec<u8>> = tables.records().collect();
        let read = Tables::from_records(records.iter().map(Vec::as_slice)).expect("they are its own");
        for tables in [&tables, &read] {
            assert_eq!(found(tables), ["a c", "a", "b"]);
        }
        tables.remove(Kind::Task, "t");
        tables.remove(Kind::Service, "b");
        assert_eq!(found(&tables), ["c", "", ""]);
        assert!(!tables.has_dependents());
    }
}
