//! Stacks: deploys all services of a file in one transaction.

use std::collections::BTreeSet;
use std::sync::Arc;

use flota_api::id::{ServiceId, StackId};
use flota_api::model::{Service, Stack, StackSpec};
use flota_api::naming;
use flota_api::object::Kind;
use flota_raft_store::{Tables, Transaction, View, WriteTx};

use super::error::{ControlError, Violation};
use super::filter::{self, Field, Filter};
use super::pins::{Pins, ResolveImage, Warned};
use super::reference::resolve;
use super::services::{new_service, with_spec};
use super::{Control, Freshness, Listing, Member, validate};

/// A stack with its current services.
#[derive(Clone, Debug)]
pub(crate) struct StackSummary {
    /// The stack as the store holds it.
    pub(crate) stack: Arc<Stack>,
    /// Id and name of each service.
    pub(crate) services: Vec<(ServiceId, String)>,
}

const FIELDS: &[Field<StackSummary>] = &[
    ("id", |row| Some(row.stack.id.to_string())),
    ("name", |row| Some(row.stack.spec.name.clone())),
    ("services", |row| Some(row.stack.spec.services.len().to_string())),
];

fn summary(stack: &Arc<Stack>, view: &Tables) -> StackSummary {
    let services = view.services().filter(|service| service.stack_id.as_ref() == Some(&stack.id));
    let services = services.map(|service| (service.id.clone(), service.spec.name.clone())).collect();
    StackSummary { stack: Arc::clone(stack), services }
}

fn check(spec: &StackSpec) -> Result<(), ControlError> {
    naming::check(&spec.name).map_err(|error| ControlError::invalid("name", error))?;
    let mut found = Vec::new();
    for service in &spec.services {
        let within = |it: Violation| Violation { field: format!("services.{}.{}", service.name, it.field), ..it };
        found.extend(validate::violations(service).into_iter().map(within));
    }
    if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
}

impl<M: Member> Control<M> {
    /// Returns the stack that `reference` identifies.
    pub(crate) async fn get_stack(&self, reference: &str) -> Result<StackSummary, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, reference).map(|stack| summary(stack, &view))
    }

    /// Returns the stacks that pass every filter.
    pub(crate) async fn list_stacks(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<StackSummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        let rows = view.stacks().map(|stack| summary(stack, &view)).collect();
        Ok(Listing { rows: filter::keep(rows, filters, FIELDS)?, age })
    }

    /// Makes the stack match `spec`: creates it if it does not exist, and creates, changes and removes services.
    pub(crate) async fn deploy_stack(
        &self,
        request_id: &str,
        spec: &StackSpec,
        resolve_image: ResolveImage,
    ) -> Result<Warned<StackSummary>, ControlError> {
        check(spec)?;
        let pins = self.pins(request_id, &spec.services, resolve_image).await;
        let new_id = self.random.draw(StackId::random);
        let deployed =
            self.write_once(request_id, |view| Ok((self.deployment(&view, request_id, spec, &pins, &new_id)?, ())));
        deployed.await?;
        let removed = || ControlError::RemovedMeanwhile { kind: Kind::Stack, reference: spec.name.clone() };
        let look = |view: &View| view.stack_by_name(&spec.name).map(|stack| summary(stack, view)).ok_or_else(removed);
        Ok(Warned { changed: self.read(look).await?, warnings: pins.warnings })
    }

    fn deployment(
        &self,
        view: &View,
        request_id: &str,
        spec: &StackSpec,
        pins: &Pins,
        new_id: &StackId,
    ) -> Result<Transaction, ControlError> {
        let mut tx = WriteTx::new(view.clone(), request_id);
        let known = view.stack_by_name(&spec.name);
        let id = known.map_or(new_id, |stack| &stack.id);
        match known {
            Some(stack) => tx.update(Stack { spec: spec.clone(), ..stack.as_ref().clone() }),
            None => tx.create(Stack { id: id.clone(), spec: spec.clone(), ..Stack::default() }),
        }
        for service in &spec.services {
            let before = view.service_by_name(&service.name);
            if before.is_some_and(|it| it.stack_id.as_ref() != Some(id)) {
                return Err(ControlError::NotOfStack { service: service.name.clone() });
            }
            let image_digest = pins.of(service, before.map(AsRef::as_ref), view)?;
            match before {
                Some(it) if *it.spec == *service && it.image_digest == image_digest => {}
                Some(it) => tx.update(with_spec(it, service.clone(), image_digest)),
                None => {
                    let new = new_service(service.clone(), Some(id.clone()), &self.random);
                    tx.create(Service { image_digest, ..new });
                }
            }
        }
        let names: BTreeSet<&str> = spec.services.iter().map(|it| it.name.as_str()).collect();
        let of_stack = view.services().filter(|it| it.stack_id.as_ref() == Some(id));
        for service in of_stack.filter(|it| !names.contains(it.spec.name.as_str())) {
            tx.remove(Kind::Service, service.id.as_str());
        }
        Ok(tx.finish())
    }

    /// Removes the stack and its services.
    pub(crate) async fn remove_stack(&self, request_id: &str, reference: &str) -> Result<(), ControlError> {
        let removed = self.write_once(request_id, |view| {
            let id = resolve::<Stack>(&view, reference)?.id.clone();
            let mut tx = WriteTx::new(view.clone(), request_id);
            for service in view.services().filter(|service| service.stack_id.as_ref() == Some(&id)) {
                tx.remove(Kind::Service, service.id.as_str());
            }
            tx.remove(Kind::Stack, id.as_str());
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}
