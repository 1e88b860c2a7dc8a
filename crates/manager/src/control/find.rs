//! From what a user typed (a name, an id, or an unambiguous beginning of an id) to the one object.

use std::sync::Arc;

use tonic::Status;

use flota_api::model::{Image, Node, Service, Stack, Task};
use flota_api::naming::task_name;
use flota_api::object::StoreObject;
use flota_raft_store::Tables;

/// Shorter beginnings would be ambiguous tomorrow.
const SHORTEST_PREFIX: usize = 3;

fn find<'a, T: StoreObject>(
    text: &str,
    all: impl Iterator<Item = &'a Arc<T>>,
    is_named: impl Fn(&T) -> bool,
) -> Result<&'a Arc<T>, Status> {
    let (mut named, mut by_prefix) = (Vec::new(), Vec::new());
    for object in all {
        if object.id() == text {
            return Ok(object);
        }
        if is_named(object) {
            named.push(object);
        } else if text.len() >= SHORTEST_PREFIX && object.id().starts_with(text) {
            by_prefix.push(object);
        }
    }
    let found = if named.is_empty() { by_prefix } else { named };
    match found.as_slice() {
        [] => Err(Status::not_found(format!("there is no {} `{text}`", T::KIND))),
        [one] => Ok(one),
        many => {
            let ids: Vec<&str> = many.iter().take(10).map(|it| it.id()).collect();
            Err(Status::invalid_argument(format!("`{text}` may be any of these {}s: {}", T::KIND, ids.join(", "))))
        }
    }
}

pub(super) fn find_service<'a>(view: &'a Tables, text: &str) -> Result<&'a Arc<Service>, Status> {
    find(text, view.services(), |service| service.spec.name == text)
}

pub(super) fn find_node<'a>(view: &'a Tables, text: &str) -> Result<&'a Arc<Node>, Status> {
    find(text, view.nodes(), |node| node.description.hostname == text)
}

pub(super) fn find_stack<'a>(view: &'a Tables, text: &str) -> Result<&'a Arc<Stack>, Status> {
    find(text, view.stacks(), |stack| stack.spec.name == text)
}

pub(super) fn find_image<'a>(view: &'a Tables, text: &str) -> Result<&'a Arc<Image>, Status> {
    let whole = flota_api::image_ref::ImageRef::parse(text).map(|it| it.to_string()).unwrap_or_default();
    find(text, view.images(), |image| image.reference == whole || image.digest == text)
}

/// A task by id, by `service.slot` (the one that counts in the slot), or, for a service, its first that runs.
pub(super) fn find_task<'a>(view: &'a Tables, text: &str) -> Result<&'a Arc<Task>, Status> {
    let furthest = |task: &&Arc<Task>| (task.is_live(), task.status.state, task.meta.order());
    if let Some(service) = view.service_by_name(text) {
        let first = view.tasks_of_service(&service.id).max_by_key(|task| {
            let running = task.status.state == flota_api::state::TaskState::Running;
            (running && task.is_live(), std::cmp::Reverse(task.slot))
        });
        return first.ok_or_else(|| Status::not_found(format!("service `{text}` has no task")));
    }
    let service =
        text.rsplit_once('.').and_then(|(name, slot)| Some((view.service_by_name(name)?, slot.parse().ok()?)));
    if let Some((service, slot)) = service {
        let in_slot = view.tasks_of_service(&service.id).filter(|task| task.slot == slot);
        let name = task_name(&service.spec.name, slot);
        return in_slot.max_by_key(furthest).ok_or_else(|| Status::not_found(format!("there is no task `{name}`")));
    }
    find(text, view.tasks(), |_| false)
}
