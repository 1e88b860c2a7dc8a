//! Services.

use std::sync::Arc;

use tonic::Status;

use flota_api::id::{ServiceId, StackId};
use flota_api::model::{Service, ServiceSpec};
use flota_api::object::Kind;
use flota_api::proto::control as pc;
use flota_api::state::TaskState;
use flota_raft_store::{Tables, WriteTx};

use super::find::find_service;
use super::status::WriteFailed;
use super::validate;
use crate::manager::Manager;

pub(super) fn list(view: &Tables) -> Vec<pc::ServiceRow> {
    let row = |service: &Arc<Service>| {
        let running = |task: &&Arc<_>| is_running(task);
        pc::ServiceRow {
            service: Some(service.as_ref().into()),
            running: view.tasks_of_service(&service.id).filter(running).count() as u64,
            desired: service.spec.replicas,
        }
    };
    view.services().map(row).collect()
}

pub(super) fn is_running(task: &flota_api::model::Task) -> bool {
    task.status.state == TaskState::Running && task.is_live()
}

/// A service that is new, with its first spec.
pub(super) fn new_service(spec: ServiceSpec, stack_id: StackId) -> Service {
    Service {
        id: ServiceId::random(&mut rand::rng()),
        spec: Arc::new(spec),
        spec_version: 1,
        stack_id,
        ..Service::default()
    }
}

/// The service with another spec; its tasks are replaced only where the new spec makes others of them.
pub(super) fn with_spec(service: &Service, spec: ServiceSpec) -> Service {
    let same = service.spec.same_task(&spec);
    Service {
        spec: Arc::new(spec),
        spec_version: service.spec_version + u64::from(!same),
        update_paused: String::new(),
        ..service.clone()
    }
}

pub(super) async fn create(manager: &Manager, request: pc::CreateServiceRequest) -> Result<Service, Status> {
    let spec = parse(request.spec)?;
    let service = new_service(spec, StackId::default());
    let created = manager.write(|view| {
        let taken = view.service_by_name(&service.spec.name).filter(|_| !view.answered(&request.request_id));
        if taken.is_some() {
            let text = format!("service `{}` exists already", service.spec.name);
            return Err(WriteFailed::Refused(Status::already_exists(text)));
        }
        let mut tx = WriteTx::new(view, &request.request_id);
        tx.create(service.clone());
        Ok((tx.finish(), service.spec.name.clone()))
    });
    // A retry of a request that was done is answered with what that one made.
    match created.await {
        Ok(name) => manager.store.view().service_by_name(&name).map(|it| it.as_ref().clone()).ok_or_else(gone),
        Err(error) => Err(error.into()),
    }
}

fn gone() -> Status {
    Status::not_found("the service has been removed meanwhile")
}

pub(super) fn parse(spec: Option<flota_api::proto::specs::ServiceSpec>) -> Result<ServiceSpec, Status> {
    let spec = spec.ok_or_else(|| Status::invalid_argument("spec: it is missing"))?;
    let spec = ServiceSpec::try_from(spec).map_err(|error| Status::invalid_argument(error.to_string()))?;
    validate::check(&spec)?;
    Ok(spec)
}

pub(super) async fn update(manager: &Manager, request: pc::UpdateServiceRequest) -> Result<Service, Status> {
    let spec = parse(request.spec)?;
    if manager.done_before(&request.request_id) {
        return find_service(&manager.store.view(), &request.service).map(|it| it.as_ref().clone());
    }
    let id = manager.write(|view| {
        let service = find_service(&view, &request.service)?;
        if request.version != 0 && request.version != service.meta.version {
            return Err(WriteFailed::Refused(Status::aborted(format!(
                "service `{}` has changed meanwhile",
                service.spec.name
            ))));
        }
        if spec.name != service.spec.name {
            return Err(WriteFailed::Refused(Status::invalid_argument("name: a service keeps its name")));
        }
        let id = service.id.clone();
        let new = with_spec(service, spec.clone());
        let mut tx = WriteTx::new(view, &request.request_id);
        tx.update(new);
        Ok((tx.finish(), id))
    });
    let id = id.await?;
    manager.store.view().service(id.as_str()).map(|it| it.as_ref().clone()).ok_or_else(gone)
}

pub(super) async fn remove(manager: &Manager, request: pc::RemoveRequest) -> Result<(), Status> {
    if manager.done_before(&request.request_id) {
        return Ok(());
    }
    let removed = manager.write(|view| {
        let id = find_service(&view, &request.name)?.id.clone();
        let mut tx = WriteTx::new(view, &request.request_id);
        tx.remove(Kind::Service, id.as_str());
        Ok::<_, WriteFailed>((tx.finish(), ()))
    });
    removed.await.map_err(Into::into)
}
