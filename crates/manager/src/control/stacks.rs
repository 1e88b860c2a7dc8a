//! Stacks: all services of a file in one transaction.

use std::collections::BTreeSet;

use tonic::Status;

use flota_api::id::StackId;
use flota_api::model::{Stack, StackSpec};
use flota_api::naming;
use flota_api::object::Kind;
use flota_api::proto::control as pc;
use flota_raft_store::WriteTx;

use super::find::find_stack;
use super::services::{new_service, with_spec};
use super::status::{WriteFailed, gone};
use super::validate;
use crate::replica::Replica;

pub(super) async fn deploy(replica: &Replica, request: pc::DeployStackRequest) -> Result<Stack, Status> {
    let spec = request.spec.ok_or_else(|| Status::invalid_argument("spec: it is missing"))?;
    let spec = StackSpec::try_from(spec).map_err(|error| Status::invalid_argument(error.to_string()))?;
    naming::check(&spec.name).map_err(|error| Status::invalid_argument(format!("name: {error}")))?;
    let bad: Vec<String> = spec
        .services
        .iter()
        .flat_map(|service| {
            validate::violations(service).into_iter().map(|it| format!("services.{}.{it}", service.name))
        })
        .collect();
    if !bad.is_empty() {
        return Err(Status::invalid_argument(bad.join("; ")));
    }
    let new_id = replica.random.draw(StackId::random);
    let deployed = replica.write_once(&request.request_id, |view| {
        let mut tx = WriteTx::new(view.clone(), &request.request_id);
        let known = view.stack_by_name(&spec.name);
        let stack = Stack {
            id: known.map_or_else(|| new_id.clone(), |stack| stack.id.clone()),
            meta: known.map(|stack| stack.meta.clone()).unwrap_or_default(),
            spec: spec.clone(),
        };
        if known.is_some() {
            tx.update(stack.clone());
        } else {
            tx.create(stack.clone());
        }
        for service in &spec.services {
            match view.service_by_name(&service.name) {
                Some(it) if it.stack_id != stack.id => {
                    let text = format!("service `{}` exists already and is not of this stack", service.name);
                    return Err(WriteFailed::Refused(Status::already_exists(text)));
                }
                Some(it) if *it.spec == *service => {}
                Some(it) => tx.update(with_spec(it, service.clone())),
                None => tx.create(new_service(service.clone(), stack.id.clone(), &replica.random)),
            }
        }
        let names: BTreeSet<&str> = spec.services.iter().map(|it| it.name.as_str()).collect();
        for service in view.services().filter(|it| it.stack_id == stack.id && !names.contains(it.spec.name.as_str())) {
            tx.remove(Kind::Service, service.id.as_str());
        }
        Ok((tx.finish(), ()))
    });
    deployed.await?;
    let stack = replica.read(|view| view.stack_by_name(&spec.name).cloned().ok_or_else(|| gone("stack", &spec.name)));
    stack.await.map(|stack| stack.as_ref().clone()).map_err(Into::into)
}

pub(super) async fn remove(replica: &Replica, request: pc::RemoveRequest) -> Result<(), Status> {
    let removed = replica.write_once(&request.request_id, |view| {
        let id = find_stack(&view, &request.name)?.id.clone();
        let mut tx = WriteTx::new(view.clone(), &request.request_id);
        for service in view.services().filter(|service| service.stack_id == id) {
            tx.remove(Kind::Service, service.id.as_str());
        }
        tx.remove(Kind::Stack, id.as_str());
        Ok::<_, WriteFailed>((tx.finish(), ()))
    });
    removed.await.map(drop).map_err(Into::into)
}
