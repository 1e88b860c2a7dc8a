//! Services: their rows, and how users create, change and remove them.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use flota_api::clock::Random;
use flota_api::id::{ServiceId, StackId};
use flota_api::model::{CronStatus, Revision, Service, ServiceSpec, Task, UpdatePhase, UpdateStatus};
use flota_api::object::Kind;
use flota_api::state::DesiredState;
use flota_api::validate::violations;
use flota_api::version::Version;
use flota_raft_store::{Tables, WriteTx};

use super::claims::Claimed;
use super::error::ControlError;
use super::faults::Faults;
use super::filter::{self, Field, Filter};
use super::networks::{claim, with_ids};
use super::pins::{self, ResolveImage, Warned};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member, dependencies, values, volumes};
use crate::dependencies::{sentence, waits};
use crate::orchestrator::refusal_of_run;
use crate::revisions::{self, with_spec};
use crate::wanted;

/// A service with the number of its tasks.
#[derive(Clone, Debug)]
pub(crate) struct ServiceSummary {
    /// The service as the store holds it.
    pub(crate) service: Arc<Service>,
    /// Number of tasks that run, are not unhealthy, and are not stopping.
    pub(crate) running: u64,
    /// Number of tasks that its spec asks for.
    pub(crate) desired: u64,
    /// Number of tasks of a job that have done their work; `None` for other services.
    pub(crate) done: Option<u64>,
    /// What it waits for because of other services, in a sentence.
    pub(crate) waits: Option<String>,
}

const FIELDS: &[Field<ServiceSummary>] = &[
    ("id", |row| Some(row.service.id.to_string())),
    ("name", |row| Some(row.service.spec.name.clone())),
    ("mode", |row| Some(row.service.spec.mode.as_str().to_owned())),
    ("image", |row| Some(row.service.spec.image.clone())),
];

fn summary(service: &Arc<Service>, view: &Tables) -> ServiceSummary {
    let running = view.tasks_of_service(&service.id).filter(|task| task.is_serving()).count() as u64;
    let done = service.spec.mode.is_job().then(|| wanted::done(service, view).count() as u64);
    let waits = sentence(&waits(service, view));
    ServiceSummary { service: Arc::clone(service), running, desired: wanted::tasks(service, view), done, waits }
}

/// Refuses another mode than the service has: its tasks have other places then.
pub(super) fn keeps_mode(service: &Service, spec: &ServiceSpec) -> Result<(), ControlError> {
    let (old, new) = (service.spec.mode.as_str(), spec.mode.as_str());
    if old == new {
        return Ok(());
    }
    let why =
        format!("service `{}` is {old}, and can't become {new}: remove it, and create it anew", service.spec.name);
    Err(ControlError::invalid("mode", why))
}

/// Refuses a number of tasks that a user sets outside of the bounds of autoscaling.
fn is_within_bounds(service: &Service, spec: &ServiceSpec, sets_replicas: bool) -> Result<(), ControlError> {
    let before = service.spec.mode.replicas();
    let set = spec.mode.replicas().filter(|set| sets_replicas || before != Some(*set));
    match (&spec.scale, set) {
        (Some(policy), Some(set)) if policy.bounded(set) != set => {
            let why = format!("{set} is outside of the bounds of autoscaling, {} to {}", policy.min, policy.max);
            Err(ControlError::invalid("replicas", why))
        }
        _ => Ok(()),
    }
}

/// Creates a service object with its first spec.
pub(super) fn new_service(spec: ServiceSpec, stack_id: Option<StackId>, random: &Random) -> Service {
    Service {
        id: random.draw(ServiceId::random),
        spec_version: 1,
        stack_id,
        job_run: spec.mode.has_numbered_runs().then_some(NonZeroU64::MIN),
        spec: Arc::new(spec),
        ..Service::default()
    }
}

impl<M: Member> Control<M> {
    /// Returns the service that `reference` identifies.
    pub(crate) async fn get_service(&self, reference: &str) -> Result<ServiceSummary, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, reference).map(|service| summary(service, &view))
    }

    /// Returns the services that pass every filter.
    pub(crate) async fn list_services(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<ServiceSummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        let rows = view.services().map(|service| summary(service, &view));
        Ok(Listing { rows: filter::keep(rows, filters, FIELDS)?, age })
    }

    /// Creates a service.
    pub(crate) async fn create_service(
        &self,
        request_id: Option<&str>,
        spec: ServiceSpec,
        resolve_image: ResolveImage,
    ) -> Result<Warned<Arc<Service>>, ControlError> {
        self.check_spec(&spec, None).await?;
        // A service of this name that is there now may be gone when this one is made.
        let resolve_image =
            if resolve_image == ResolveImage::Never { ResolveImage::Never } else { ResolveImage::Always };
        let pins = self.pins(request_id, std::slice::from_ref(&spec), resolve_image).await?;
        let service = new_service(spec, None, &self.random);
        let name = &service.spec.name;
        let created = self.write_once(request_id, |view| {
            if view.service_by_name(name).is_some() {
                return Err(ControlError::AlreadyExists { kind: Kind::Service, name: name.clone() });
            }
            let mut tx = WriteTx::new(Arc::clone(&view), request_id);
            let Claimed { spec, values } = self.claimed(&mut tx, &service.spec, None)?;
            let images = pins.of(&spec, None, &view)?;
            pins::claim(&mut tx, &images);
            tx.create(images.put_on(Service { spec: Arc::new(spec), values, ..service.clone() }));
            Ok((tx.finish(), ()))
        });
        created.await?;
        // Read by name, so that a retry returns the service that the first try created.
        let removed = || ControlError::RemovedMeanwhile { kind: Kind::Service, reference: name.clone() };
        let changed = self.read(|view| view.service_by_name(name).cloned().ok_or_else(removed)).await?;
        let warnings = pins.warnings.into_iter().chain(dependencies::warnings(&service.spec, &self.store.view()));
        Ok(Warned { changed, warnings: warnings.collect() })
    }

    /// Replaces the service's spec. With a version, it fails if the service has another one. If a user has said the
    /// number of tasks, also the same one again, that takes the place of the one that their load has led to.
    pub(crate) async fn update_service(
        &self,
        request_id: Option<&str>,
        reference: &str,
        version: Option<Version>,
        spec: &ServiceSpec,
        resolve_image: ResolveImage,
        sets_replicas: bool,
    ) -> Result<Warned<Arc<Service>>, ControlError> {
        let reference = &self.own::<Service>(reference).await?;
        self.check_spec(spec, Some(reference)).await?;
        let pins = self.pins(request_id, std::slice::from_ref(spec), resolve_image).await?;
        let written = self.write_once(request_id, |view| {
            let service: &Arc<Service> = resolve(&view, reference)?;
            let name = &service.spec.name;
            if version.is_some_and(|version| version != service.meta.version) {
                return Err(ControlError::ChangedMeanwhile { kind: Kind::Service, name: name.clone() });
            }
            let mut faults = Faults::default();
            if spec.name != *name {
                faults.note::<()>("name", Err(ControlError::invalid("name", "a service keeps its name")));
            }
            faults.note("mode", keeps_mode(service, spec));
            faults.note("replicas", is_within_bounds(service, spec, sets_replicas));
            let mut tx = WriteTx::new(Arc::clone(&view), request_id);
            let claimed = faults.note("spec", self.claimed(&mut tx, spec, Some(service)));
            faults.refuse()?;
            let Claimed { spec, values } = claimed.unwrap_or_default();
            let images = pins.of(&spec, Some(service), &view)?;
            pins::claim(&mut tx, &images);
            let mut new = with_spec(service, spec, images, values);
            if sets_replicas {
                new.scale = new.scale.set_by_user();
            }
            let id = service.id.clone();
            tx.update(new);
            Ok((tx.finish(), id))
        });
        let id = written.await?;
        let changed = self.changed(reference, id.as_ref().map(|id| id.as_str())).await?;
        let warnings = pins.warnings.into_iter().chain(dependencies::warnings(spec, &self.store.view()));
        Ok(Warned { changed, warnings: warnings.collect() })
    }

    /// Brings the service back to the earlier spec with this number, or to the one that was in place last.
    pub(crate) async fn rollback_service(
        &self,
        request_id: Option<&str>,
        reference: &str,
        version: Option<u64>,
    ) -> Result<Arc<Service>, ControlError> {
        let change = |service: &Service, view: &Tables| {
            let name = &service.spec.name;
            let none = || match service.update.phase {
                UpdatePhase::RollingBack | UpdatePhase::RollbackPaused | UpdatePhase::RolledBack => {
                    format!("service `{name}` is back at spec {} already: say which other one", service.spec_version)
                }
                _ if service.revisions.is_empty() => format!("service `{name}` has no earlier spec"),
                _ => format!("service `{name}` has no spec before spec {}: say which one", service.spec_version),
            };
            // The one before the update, also if that has taken the place of another that had not ended.
            let last = service.update.previous_version;
            let version = version.or(last).ok_or_else(|| ControlError::WrongState(none()))?;
            if version == service.spec_version {
                return Err(ControlError::WrongState(format!("service `{name}` has spec {version} now")));
            }
            let kept = || service.revisions.iter().map(|it| it.version.to_string()).collect::<Vec<_>>().join(", ");
            let unknown = || {
                let why = format!("there is no spec {version} of service `{name}` any more: there are {}", kept());
                ControlError::invalid("version", why)
            };
            let restored = revisions::restored(service, version, view).ok_or_else(unknown)?;
            // It was set when other rules may have held, and other networks may have been there.
            let mut faults = Faults::default();
            faults.extend(violations(&restored.spec));
            faults.refuse()?;
            let spec = with_ids(&restored.spec, view, &BTreeMap::new())?;
            let update = match spec.mode.is_job() {
                true => restored.update,
                false => UpdateStatus { phase: UpdatePhase::RollingBack, ..UpdateStatus::default() },
            };
            Ok(Service { spec: Arc::new(spec), update, ..restored })
        };
        self.change_service(request_id, reference, change).await
    }

    /// Begins a run of a service of the mode cron.
    pub(crate) async fn run_service(
        &self,
        request_id: Option<&str>,
        reference: &str,
    ) -> Result<Arc<Service>, ControlError> {
        let change = |service: &Service, _: &Tables| {
            if let Some(why) = refusal_of_run(service) {
                return Err(ControlError::WrongState(why.to_string()));
            }
            let cron = CronStatus { requested: true, ..service.cron.clone() };
            Ok(Service { cron, ..service.clone() })
        };
        self.change_service(request_id, reference, change).await
    }

    /// Pauses the update of a service, or lets it go on.
    pub(crate) async fn pause_update(
        &self,
        request_id: Option<&str>,
        reference: &str,
        paused: bool,
    ) -> Result<Arc<Service>, ControlError> {
        let change = |service: &Service, view: &Tables| {
            let update = &service.update;
            let fails = |task: &Task| task.status.attempt > 1 || task.status.is_unhealthy();
            let stays = |task: &Task| {
                task.is_live()
                    && task.desired_state == DesiredState::Running
                    && task.spec_version == service.spec_version
                    && fails(task)
            };
            let name = &service.spec.name;
            let update = match paused {
                true if update.is_active() => update.paused("a user has paused it".into()),
                false if update.is_paused() => {
                    let tasks = view.tasks_of_service(&service.id);
                    update.resumed(tasks.filter(|task| stays(task)).map(|task| task.slot).collect())
                }
                true => return Err(ControlError::WrongState(format!("service `{name}` is not being updated"))),
                false => return Err(ControlError::WrongState(format!("the update of service `{name}` is not paused"))),
            };
            Ok(Service { update, ..service.clone() })
        };
        self.change_service(request_id, reference, change).await
    }

    async fn change_service(
        &self,
        request_id: Option<&str>,
        reference: &str,
        change: impl Fn(&Service, &Tables) -> Result<Service, ControlError>,
    ) -> Result<Arc<Service>, ControlError> {
        let reference = &self.own::<Service>(reference).await?;
        let written = self.write_once(request_id, |view| {
            let service: &Arc<Service> = resolve(&view, reference)?;
            let (new, id) = (change(service, &view)?, service.id.clone());
            let mut tx = WriteTx::new(Arc::clone(&view), request_id);
            claim(&mut tx, &new.spec.name, &new.spec, &self.caller)?;
            if new.values != service.values {
                values::claim_restored(&mut tx, &new)?;
            }
            if new.spec != service.spec {
                dependencies::claim(&mut tx, &new.spec, &|name| self.caller.sees(name))?;
            }
            volumes::claim(&mut tx, &new.spec, Some(&service.spec), None, &self.random)?;
            tx.update(new);
            Ok((tx.finish(), id))
        });
        let id = written.await?;
        self.changed(reference, id.as_ref().map(|id| id.as_str())).await
    }

    /// Returns the specs of the service: the present one, then the others from the newest on.
    pub(crate) async fn service_history(
        &self,
        reference: &str,
    ) -> Result<Vec<(Revision, Arc<ServiceSpec>)>, ControlError> {
        let view = self.proven_view().await?;
        let service: &Arc<Service> = resolve(&view, reference)?;
        let present = Revision {
            version: service.spec_version,
            image_digest: service.image_digest.clone(),
            image_platforms: service.image_platforms.clone(),
            mounted_images: service.mounted_images.clone(),
            values: service.values.clone(),
            set_at: service.spec_set_at,
        };
        let all = std::iter::once(&present).chain(service.revisions.iter().rev());
        Ok(all.filter_map(|it| Some((it.clone(), view.spec_version(&service.id, it.version)?.clone()))).collect())
    }

    /// Removes the service; its tasks are stopped and then removed.
    pub(crate) async fn remove_service(&self, request_id: Option<&str>, reference: &str) -> Result<(), ControlError> {
        let reference = &self.own::<Service>(reference).await?;
        let removed = self.write_once(request_id, |view| {
            let id = resolve::<Service>(&view, reference)?.id.clone();
            let mut tx = WriteTx::new(view, request_id);
            tx.remove(Kind::Service, id.as_str());
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}
