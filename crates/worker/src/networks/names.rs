//! The names of services and tasks in their networks, as entries of the DNS directory. Pure.
//!
//! A service's name stands for its virtual IPs or, if it has none, for its serving tasks. `tasks.NAME` always stands for
//! the serving tasks. A task has the names `web.1` and `web.1.ID`. A task that does not serve has no name.

use std::net::IpAddr;

use flota_api::model::{Endpoint, NetworkService};
use flota_network::dns::Entry;

/// An entry and the key under which the directory keeps it.
pub(super) type Keyed = (String, Entry);

/// Returns the entries of a service.
pub(super) fn of_service(service: &NetworkService) -> [Keyed; 2] {
    let id = &service.service;
    let own = entry(names(service), &service.virtual_ips);
    // Without addresses, so that the name is known while no task serves.
    let tasks = entry(vec![tasks_name(service)], &[]);
    [(format!("service {id}"), own), (format!("tasks {id}"), tasks)]
}

/// Returns the entry of a task, of whose service the network knows this.
pub(super) fn of_endpoint(endpoint: &Endpoint, service: Option<&NetworkService>) -> Keyed {
    let mut all = vec![endpoint.name.clone(), format!("{}.{}", endpoint.name, endpoint.task)];
    if let Some(service) = service {
        all.push(tasks_name(service));
        if service.virtual_ips.is_empty() {
            all.extend(names(service));
        }
    }
    let addresses = if endpoint.serving { endpoint.addresses.as_slice() } else { &[] };
    (endpoint_key(&endpoint.task), if endpoint.serving { entry(all, addresses) } else { Entry::default() })
}

/// Returns the key of a task's entry.
pub(super) fn endpoint_key(task: &flota_api::id::TaskId) -> String {
    format!("task {task}")
}

/// Returns the keys of a service's entries.
pub(super) fn service_keys(service: &flota_api::id::ServiceId) -> [String; 2] {
    [format!("service {service}"), format!("tasks {service}")]
}

fn names(service: &NetworkService) -> Vec<String> {
    std::iter::once(&service.name).chain(&service.aliases).cloned().collect()
}

fn tasks_name(service: &NetworkService) -> String {
    format!("tasks.{}", service.name)
}

fn entry(names: Vec<String>, addresses: &[IpAddr]) -> Entry {
    Entry { names, addresses: addresses.to_vec(), ports: Vec::new() }
}
