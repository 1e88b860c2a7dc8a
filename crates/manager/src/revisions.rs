//! The specs that a service has had: how a new one takes the place of another, and how an earlier one comes back.
//!
//! An earlier spec has its earlier number again, so that tasks which still have it are not replaced.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;

use flota_api::defaults::REVISIONS_KEPT;
use flota_api::id::ValueId;
use flota_api::model::{
    Network, PinnedValue, PublishMode, PublishedPort, Revision, ScaleStatus, Service, ServiceSpec, StoredConfig,
    StoredSecret, UpdatePhase, UpdateStatus, Volume,
};
use flota_api::object::Kind;
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use crate::dependencies::circles;
use crate::pin::SpecImages;
use crate::plan::Plan;
use crate::values::{missing, same_tasks};

/// Returns the service with another spec and what its images stand for. Its tasks are replaced only if that changes them;
/// otherwise, an update goes on or stays paused as before.
pub(crate) fn with_spec(service: &Service, spec: ServiceSpec, images: SpecImages, values: Vec<PinnedValue>) -> Service {
    let spec = Arc::new(spec);
    let has_same_images = SpecImages::of_service(service).is_same(&images);
    let is_same = service.spec.same_task(&spec) && !faults::is_on(Fault::LabelUpdate);
    if is_same && has_same_images && same_tasks(&spec, &service.values, &values) {
        // What an update was rolled back to is now what a user has set.
        let is_accepted = service.update.phase == UpdatePhase::RolledBack;
        let update = if is_accepted { UpdateStatus::default() } else { service.update.clone() };
        let scale = scale(service, &spec);
        // The platforms of the same image may be known only now.
        return images.put_on(Service { scale, spec, update, values, ..service.clone() });
    }
    let newest = service.revisions.iter().map(|it| it.version).fold(service.spec_version, u64::max);
    replaced(service, spec, (images, values), newest + 1)
}

/// Returns the service with an earlier spec; `None` if that is not kept. It has as many tasks as before, and their number
/// follows their load as before.
pub(crate) fn restored(service: &Service, version: u64, view: &Tables) -> Option<Service> {
    let revision = service.revisions.iter().find(|it| it.version == version)?;
    let kept = view.spec_version(&service.id, version)?;
    let ServiceSpec { mode, stopped, scale, .. } = service.spec.as_ref().clone();
    let spec = ServiceSpec { mode, stopped, scale, ..kept.as_ref().clone() };
    let pins = (SpecImages::of_revision(revision), revision.values.clone());
    Some(replaced(service, Arc::new(spec), pins, version))
}

/// Returns the service after its update has failed for this reason: with the spec before the update, if that is kept, its
/// networks and volumes are still there, it publishes no port that another service may have taken, and nothing on which it
/// depended depends on it by now. The plan then fails if any of that has changed, and what it needs gets another version, so
/// that a removal which was planned before meets a conflict.
pub(crate) fn rolled_back(service: &Service, reason: String, view: &Tables, plan: &mut Plan) -> Option<Service> {
    let restored = restored(service, service.update.previous_version?, view)?;
    let is_ingress = |port: &PublishedPort| port.mode == PublishMode::Ingress;
    let is_taken = |port: &PublishedPort| {
        let is_same =
            |it: &PublishedPort| is_ingress(it) && (it.published, it.protocol) == (port.published, port.protocol);
        view.services().any(|other| other.id != service.id && other.spec.ports.iter().any(is_same))
    };
    let has_new_port =
        |port: &PublishedPort| !service.spec.ports.contains(port) && (is_ingress(port) || is_taken(port));
    if restored.spec.ports.iter().any(has_new_port) {
        return None;
    }
    for network in &restored.spec.networks {
        plan.touch(Network::clone(view.network(network.network.as_str())?));
    }
    for name in restored.spec.volumes() {
        plan.touch(Volume::clone(view.volume_by_name(name)?));
    }
    if missing(&restored.values, view).is_some() {
        return None;
    }
    let ids: BTreeSet<&ValueId> = restored.values.iter().map(|pin| &pin.value).collect();
    for id in ids {
        if let Some(secret) = view.get::<StoredSecret>(id.as_str()) {
            plan.touch(StoredSecret::clone(secret));
        } else if let Some(config) = view.get::<StoredConfig>(id.as_str()) {
            plan.touch(StoredConfig::clone(config));
        }
    }
    // What it depended on may have come to depend on it.
    let way = RefCell::new(Vec::new());
    let spec_of = |name: &str| {
        let other = view.service_by_name(name)?;
        way.borrow_mut().push(other.id.clone());
        Some(other.spec.as_ref())
    };
    if circles(&restored.spec, spec_of).next().is_some() {
        return None;
    }
    way.into_inner().iter().filter(|id| **id != service.id).for_each(|id| plan.expect(Kind::Service, id));
    let phase = UpdatePhase::RollingBack;
    let update = UpdateStatus { phase, rollback_cause: Some(reason), ..UpdateStatus::default() };
    Some(Service { update, ..restored })
}

fn replaced(
    service: &Service,
    spec: Arc<ServiceSpec>,
    (images, values): (SpecImages, Vec<PinnedValue>),
    version: u64,
) -> Service {
    let last = Revision {
        version: service.spec_version,
        image_digest: service.image_digest.clone(),
        image_platforms: service.image_platforms.clone(),
        mounted_images: service.mounted_images.clone(),
        values: service.values.clone(),
        set_at: service.spec_set_at,
    };
    // An update that has not ended has proved nothing, so a failure of this one goes back to what was there before both.
    let previous = match service.update.phase {
        UpdatePhase::Updating | UpdatePhase::Paused => service.update.previous_version.filter(|it| *it != version),
        _ => Some(service.spec_version),
    };
    let earlier = service.revisions.iter().filter(|it| it.version != version).cloned();
    let mut revisions: Vec<Revision> = earlier.chain([last]).collect();
    while revisions.len() > REVISIONS_KEPT
        && let Some(oldest) = revisions.iter().position(|it| Some(it.version) != previous)
    {
        revisions.remove(oldest);
    }
    let update = UpdateStatus { previous_version: previous, ..UpdateStatus::begun(service.spec_version) };
    // A new run of a job replaces the one before at once.
    let update = if spec.mode.is_job() { update.completed() } else { update };
    let scale = scale(service, &spec);
    let next_run = service.job_run.map_or(NonZeroU64::MIN, |run| run.saturating_add(1));
    let job_run = spec.mode.has_numbered_runs().then_some(next_run);
    images.put_on(Service { spec, spec_version: version, revisions, update, job_run, scale, values, ..service.clone() })
}

/// Returns the status of autoscaling with another spec: a number of tasks that a user sets takes the place of what the load
/// has led to.
fn scale(service: &Service, spec: &ServiceSpec) -> ScaleStatus {
    let is_same =
        service.spec.mode.replicas() == spec.mode.replicas() && service.spec.scale.is_some() == spec.scale.is_some();
    if is_same { service.scale.clone() } else { service.scale.set_by_user() }
}
