//! Services.

use std::sync::Arc;

use tonic::Status;

use flota_api::clock::Random;
use flota_api::id::{ServiceId, StackId};
use flota_api::model::{Service, ServiceSpec};
use flota_api::object::Kind;
use flota_api::proto::control as pc;
use flota_api::state::TaskState;
use flota_raft_store::{Tables, WriteTx};

use super::find::find_service;
use super::status::{WriteFailed, gone};
use super::validate;
use crate::replica::Replica;

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
pub(super) fn new_service(spec: ServiceSpec, stack_id: StackId, random: &Random) -> Service {
    Service {
        id: random.draw(ServiceId::random),
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

pub(super) async fn create(replica: &Replica, request: pc::CreateServiceRequest) -> Result<Service, Status> {
    let spec = parse(request.spec)?;
    let service = new_service(spec, StackId::default(), &replica.random);
    let created = replica.write_once(&request.request_id, |view| {
        if view.service_by_name(&service.spec.name).is_some() {
            let text = format!("service `{}` exists already", service.spec.name);
            return Err(WriteFailed::Refused(Status::already_exists(text)));
        }
        let mut tx = WriteTx::new(view, &request.request_id);
        tx.create(service.clone());
        Ok((tx.finish(), ()))
    });
    created.await?;
    // By name: a retry of a request that was done is answered with what that one made.
    let name = &service.spec.name;
    let made = replica.read(|view| view.service_by_name(name).cloned().ok_or_else(|| gone("service", name)));
    made.await.map(|it| it.as_ref().clone()).map_err(Into::into)
}

pub(super) fn parse(spec: Option<flota_api::proto::specs::ServiceSpec>) -> Result<ServiceSpec, Status> {
    let spec = spec.ok_or_else(|| Status::invalid_argument("spec: it is missing"))?;
    let spec = ServiceSpec::try_from(spec).map_err(|error| Status::invalid_argument(error.to_string()))?;
    validate::check(&spec)?;
    Ok(spec)
}

pub(super) async fn update(replica: &Replica, request: pc::UpdateServiceRequest) -> Result<Service, Status> {
    let spec = parse(request.spec)?;
    let written = replica.write_once(&request.request_id, |view| {
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
    let id = written.await?;
    let service = replica.read(|view| match &id {
        Some(id) => view.service(id.as_str()).cloned().ok_or_else(|| gone("service", &request.service)),
        None => find_service(view, &request.service).cloned().map_err(|_| gone("service", &request.service)),
    });
    service.await.map(|it| it.as_ref().clone()).map_err(Into::into)
}

pub(super) async fn remove(replica: &Replica, request: pc::RemoveRequest) -> Result<(), Status> {
    let removed = replica.write_once(&request.request_id, |view| {
        let id = find_service(&view, &request.name)?.id.clone();
        let mut tx = WriteTx::new(view, &request.request_id);
        tx.remove(Kind::Service, id.as_str());
        Ok::<_, WriteFailed>((tx.finish(), ()))
    });
    removed.await.map(drop).map_err(Into::into)
}
