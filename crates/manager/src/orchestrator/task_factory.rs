//! Creates new tasks for slots.

use std::sync::Arc;
use std::time::Duration;

use flota_api::defaults::RESTART_DELAY_MOST;
use flota_api::id::TaskId;
use flota_api::image_ref::ImageRef;
use flota_api::model::{RestartPolicy, Service, Task, TaskStatus};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::{Meta, Timestamp};
use flota_raft_store::Tables;

use crate::plan::PlanContext;

/// A new task in `slot`. It inherits the restarts of `before` if that was made from the same spec.
pub(super) fn make(
    service: &Service,
    slot: u64,
    before: Option<&Arc<Task>>,
    not_before: Timestamp,
    view: &Tables,
    cx: &mut PlanContext,
) -> Task {
    let same = before.filter(|task| task.spec_version == service.spec_version);
    Task {
        id: TaskId::random(&mut cx.rng),
        // Placeholders until the store sets these fields: the task is newer than everything in the view.
        meta: Meta { created_at: cx.now, updated_at: cx.now, created: view.version + 1, version: 0 },
        service_id: service.id.clone(),
        spec_version: service.spec_version,
        slot,
        desired_state: DesiredState::Running,
        status: TaskStatus { state: TaskState::Pending, at: cx.now, ..TaskStatus::default() },
        inherited_restarts: same.map_or(0, |task| task.restarts() + 1),
        moves: same.map_or(0, |task| task.moves + u64::from(!ended_by_itself(task))),
        image_digest: resolve(&service.spec.image, view),
        not_before,
        ..Task::default()
    }
}

/// Whether the replacement of the task counts against the restart limit of its slot.
fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Failed | TaskState::Rejected | TaskState::Complete)
        && !task.desired_state.is_stopping()
}

/// The digest of the cluster's image that the reference names.
fn resolve(reference: &str, view: &Tables) -> Option<String> {
    let reference = ImageRef::parse(reference).ok()?;
    let by_digest = reference.digest.as_deref().and_then(|digest| view.image_by_digest(digest));
    let image = by_digest.or_else(|| view.image_by_reference(&reference.to_string()))?;
    Some(image.digest.clone())
}

/// The delay before the next start in a slot after `restarts` restarts: none for the first, then doubled each time.
pub(super) fn backoff(policy: &RestartPolicy, restarts: u64) -> Duration {
    match u32::try_from(restarts) {
        Ok(0) => Duration::ZERO,
        Ok(restarts) => policy.delay.saturating_mul(2u32.saturating_pow(restarts - 1)).min(RESTART_DELAY_MOST),
        Err(_) => RESTART_DELAY_MOST,
    }
}
