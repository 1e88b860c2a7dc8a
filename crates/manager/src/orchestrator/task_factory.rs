//! Creates new tasks for slots.

use std::sync::Arc;

use flota_api::id::TaskId;
use flota_api::image_ref::ImageRef;
use flota_api::model::{PinnedImage, Service, Task, TaskStatus};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::{Meta, Timestamp};
use flota_raft_store::Tables;

use super::after_end::is_of_earlier_run;
use super::credentials;
use crate::plan::PlanContext;

/// A task in a slot that the service has not had. While an update is paused, it has the spec of the tasks that serve: the
/// present one may be what has failed.
pub(super) fn make_first(service: &Service, slot: u64, view: &Tables, cx: &mut PlanContext) -> Task {
    make_like(serving(service, view), service, (slot, None, None), view, cx)
}

/// A new task in `slot`, on the node of that slot if it has one of its own. It inherits the restarts of `before` if that
/// was made from the same spec. While an update is paused, a slot keeps the spec that it has.
pub(super) fn make(
    service: &Service,
    slot: u64,
    before: Option<&Arc<Task>>,
    not_before: Option<Timestamp>,
    view: &Tables,
    cx: &mut PlanContext,
) -> Task {
    make_like(before, service, (slot, before, not_before), view, cx)
}

/// A new task, whose spec is that of `model` if that is kept.
fn make_like(
    model: Option<&Arc<Task>>,
    service: &Service,
    (slot, before, not_before): (u64, Option<&Arc<Task>>, Option<Timestamp>),
    view: &Tables,
    cx: &mut PlanContext,
) -> Task {
    let kept = model.filter(|task| {
        service.update.is_paused()
            && task.spec_version != service.spec_version
            && view.spec_version(&service.id, task.spec_version).is_some()
    });
    let spec_version = kept.map_or(service.spec_version, |task| task.spec_version);
    let (image_digest, mounted_images) = match kept {
        Some(task) => (task.image_digest.clone(), task.mounted_images.clone()),
        None => (
            service.image_digest.clone().or_else(|| resolve(&service.spec.image, view)),
            service.spec.mounted_images().into_iter().filter_map(|it| mounted(it, service, view)).collect(),
        ),
    };
    let values = kept.map_or(&service.values, |task| &task.values).clone();
    let same = before.filter(|task| task.spec_version == spec_version && !is_of_earlier_run(service, task));
    // What failed for the lack of credentials says nothing about the task once there are others.
    let counts = same.filter(|task| !credentials::have_changed_for(task, view));
    let mut restart_history = counts.map(|task| task.restarts_so_far()).unwrap_or_default();
    if let Some(ended) = counts.filter(|task| ended_by_itself(task)) {
        service.spec.restart.restart(&mut restart_history, ended.meta.updated_at);
    }
    Task {
        id: TaskId::random(&mut cx.rng),
        // Placeholders until the store sets these fields: the task is newer than everything in the view.
        meta: Meta { created_at: cx.now, updated_at: cx.now, created: view.version + 1, version: 0 },
        service_id: service.id.clone(),
        spec_version,
        slot,
        // The run of a service of the mode cron is known to whoever calls.
        run: if service.spec.mode.has_numbered_runs() { service.job_run } else { before.and_then(|task| task.run) },
        pinned_to: view.tasks_of_slot(&service.id, slot).find_map(|task| task.pinned_to.clone()),
        desired_state: DesiredState::Running,
        status: TaskStatus { state: TaskState::Pending, at: cx.now, ..TaskStatus::default() },
        inherited_restarts: same.map_or(0, |task| task.starts_before() + 1),
        moves: same.map_or(0, |task| task.moves + u64::from(!ended_by_itself(task))),
        restart_history,
        image_digest,
        mounted_images,
        values,
        not_before,
        ..Task::default()
    }
}

/// Returns the newest of the service's serving tasks with an earlier spec than the present one.
fn serving<'a>(service: &Service, view: &'a Tables) -> Option<&'a Arc<Task>> {
    let is_older = |task: &&Arc<Task>| task.spec_version != service.spec_version && task.is_serving();
    let tasks = service.update.is_paused().then(|| view.tasks_of_service(&service.id));
    tasks?.filter(is_older).max_by_key(|task| task.meta.order())
}

/// Whether the replacement of the task counts as a restart of its slot.
fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Failed | TaskState::Rejected | TaskState::Complete)
        && !task.desired_state.is_stopping()
}

/// What the reference of an image that the tasks of the service mount stands for; `None` if it is not known.
fn mounted(reference: &str, service: &Service, view: &Tables) -> Option<PinnedImage> {
    let pinned = service.mounted_images.iter().find(|it| it.reference == reference).cloned();
    let of_cluster = || {
        let digest = resolve(reference, view)?;
        Some(PinnedImage { reference: reference.to_owned(), digest, platforms: Vec::new() })
    };
    pinned.or_else(of_cluster)
}

/// The digest of the cluster's image that the reference names. A reference that carries a digest means that digest.
fn resolve(reference: &str, view: &Tables) -> Option<String> {
    let reference = ImageRef::parse(reference).ok()?;
    let image = match &reference.digest {
        Some(digest) => view.image_by_digest(digest),
        None => view.image_by_reference(&reference.to_string()),
    };
    Some(image?.digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::Image;
    use flota_api::object::StoreObject;

    #[test]
    fn a_reference_with_a_digest_means_that_digest_alone() {
        let [held, other] = ['1', '2'].map(|digit| format!("sha256:{}", digit.to_string().repeat(64)));
        let references = ["docker.io/library/app:1".to_owned(), format!("docker.io/library/app@{other}")].into();
        let mut view = Tables::default();
        view.put(Image { id: "i".into(), references, digest: held.clone(), ..Image::default() }.into_object());
        assert_eq!(resolve("app:1", &view), Some(held.clone()));
        assert_eq!(resolve(&format!("any/name:2@{held}"), &view), Some(held));
        assert_eq!(resolve(&format!("app@{other}"), &view), None, "whatever has that name");
        assert_eq!(resolve("app:2", &view), None);
    }

    #[test]
    fn a_mount_has_the_image_of_its_service_or_else_that_of_the_cluster() {
        let mut view = Tables::default();
        let references = ["docker.io/library/app:1".to_owned()].into();
        view.put(Image { id: "i".into(), references, digest: "sha256:1".into(), ..Image::default() }.into_object());
        let pinned = PinnedImage { reference: "app:2".into(), digest: "sha256:2".into(), platforms: Vec::new() };
        let service = Service { mounted_images: vec![pinned], ..Service::default() };
        let digest = |reference| mounted(reference, &service, &view).map(|it| it.digest);
        assert_eq!(digest("app:1").as_deref(), Some("sha256:1"));
        assert_eq!(digest("app:2").as_deref(), Some("sha256:2"));
        assert_eq!(digest("app:3"), None, "the worker asks the registry");
    }
}
