//! Credentials that have changed since a registry did not send the image of a task. Such a task is replaced at once, also if its
//! slot was given up or waits for the delay of its restart policy. Tasks that have their image are left alone.

use std::sync::Arc;

use flota_api::image_ref::ImageRef;
use flota_api::model::{Registry, Service, ServiceSpec, Task};
use flota_api::object::Object;
use flota_api::state::TaskState;
use flota_raft_store::{Event, Tables};

use super::slot::Slot;
use crate::control_loop::Key;

/// Whether the task was rejected because it lacks an image, and the credentials of one of its registries have changed since it
/// was made. A task that was made later has tried them. The order is that of the log, and no clock counts.
pub(super) fn have_changed_for(task: &Task, view: &Tables) -> bool {
    let is_newer = |registry: &Arc<Registry>| registry.meta.version > task.meta.created;
    task.status.state == TaskState::Rejected && task.status.lacks_image && registries_of(task, view).any(is_newer)
}

/// Returns the task of the slot that waits to be started after one which lacked its image, although the credentials have changed
/// since.
pub(super) fn waits_in_vain<'a>(slot: &'a Slot, view: &Tables) -> Option<&'a Arc<Task>> {
    let waiting = slot.current().filter(|task| task.not_before.is_some() && task.status.state < TaskState::Starting)?;
    let before = slot.tasks.iter().rev().skip_while(|task| task.id != waiting.id).nth(1)?;
    // It is made with the credentials that there are then.
    let is_older = registries_of(before, view).any(|registry| registry.meta.version > waiting.meta.created);
    (is_older && have_changed_for(before, view)).then_some(waiting)
}

/// Returns the keys of the services whose images come from the registry that has other credentials.
pub(super) fn concerned(event: &Event, view: &Tables) -> Vec<Key> {
    let (Event::Created(Object::Registry(registry)) | Event::Updated { new: Object::Registry(registry), .. }) = event
    else {
        return Vec::new();
    };
    let uses = |service: &&Arc<Service>| registries(&service.spec).any(|host| host == registry.host);
    view.services().filter(uses).map(|service| Key::of(&service.id)).collect()
}

fn registries_of<'a>(task: &Task, view: &'a Tables) -> impl Iterator<Item = &'a Arc<Registry>> {
    let spec = view.spec_of(task);
    spec.into_iter().flat_map(|spec| registries(spec)).filter_map(move |host| view.registry_by_host(&host))
}

/// The hosts of the registries of the images that tasks of this spec need.
fn registries(spec: &ServiceSpec) -> impl Iterator<Item = String> {
    let references = spec.mounted_images().into_iter().chain([spec.image.as_str()]);
    references.filter_map(|it| Some(ImageRef::parse(it).ok()?.registry))
}
