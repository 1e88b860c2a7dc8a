//! Stacks: deploys all services of a file in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::Violation;
use flota_api::id::{NetworkId, ServiceId, StackId};
use flota_api::model::{Network, NetworkSpec, PublishMode, Service, ServiceSpec, Stack, StackSpec, StackValue, Volume};
use flota_api::naming;
use flota_api::object::Kind;
use flota_api::validate::{self, meet};
use flota_raft_store::{Tables, View, WriteTx};

use super::claims::{LOOKED_UP, is_bounded};
use super::error::ControlError;
use super::faults::Faults;
use super::filter::{self, Field, Filter};
use super::networks::{self, claim, with_ids};
use super::pins::{self, Pins, ResolveImage, Warned};
use super::reference::resolve;
use super::services::{keeps_mode, new_service};
use super::values::Declared;
use super::{Control, Freshness, Listing, Member, dependencies, values, volumes};
use crate::level;
use crate::pin::SpecImages;
use crate::revisions::with_spec;

/// A stack with its current services.
#[derive(Clone, Debug)]
pub(crate) struct StackSummary {
    /// The stack as the store holds it.
    pub(crate) stack: Arc<Stack>,
    /// Id and name of each service.
    pub(crate) services: Vec<(ServiceId, String)>,
}

/// Treatment of services that the stack has and its new spec does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// They stay as they are.
    Keep,
    /// They are removed.
    Remove,
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

/// Returns every rule that the stack breaks by itself.
pub(super) fn violations(spec: &StackSpec) -> Vec<Violation> {
    let name = naming::check(&spec.name).err().map(|error| Violation { field: "name".into(), why: error.to_string() });
    let mut found = Vec::from_iter(name);
    for service in &spec.services {
        let within = |it: Violation| it.within(format_args!("services.{}", service.name));
        found.extend(validate::violations(service).into_iter().map(within));
    }
    // Each service by itself is compared with those that exist.
    let mut ports = BTreeMap::new();
    for service in &spec.services {
        for (index, port) in service.ports.iter().enumerate() {
            let Some(published) = port.published else { continue };
            let is_shared = port.mode == PublishMode::Host;
            let (other, shares) = *ports.entry((port.protocol, published)).or_insert((&service.name, is_shared));
            if *other != service.name && !(shares && is_shared) {
                let field = format!("services.{}.ports[{index}]", service.name);
                let why = format!("{published}/{} is published by service `{other}`", port.protocol);
                found.push(Violation { field, why });
            }
        }
    }
    found.extend(between(&spec.services, &Tables::default(), &|_| true));
    for network in &spec.networks {
        let within = |it: Violation| it.within(format_args!("networks.{}", network.name));
        found.extend(validate::network_violations(network).into_iter().map(within));
    }
    found.extend(overlaps(&spec.networks));
    for (index, volume) in spec.volumes.iter().enumerate() {
        let field = format!("volumes.{}", volume.name);
        let violations = validate::volume_violations(volume);
        if !violations.is_empty() {
            found.extend(violations.into_iter().map(|it| it.within(&field)));
        } else if spec.volumes[..index].iter().any(|other| other.name == volume.name) {
            found.push(Violation { field, why: "it is declared twice".into() });
        }
    }
    found
}

/// Says which subnets of the networks overlap with those of another. Each network by itself is compared with those that exist.
fn overlaps(networks: &[NetworkSpec]) -> impl Iterator<Item = Violation> {
    networks.iter().enumerate().flat_map(move |(number, network)| {
        network.subnets.iter().enumerate().filter_map(move |(index, subnet)| {
            let meets = |other: &&NetworkSpec| other.subnets.iter().any(|it| meet(&it.prefix, &subnet.prefix));
            let other = networks[..number].iter().find(meets)?;
            let field = format!("networks.{}.subnets[{index}].prefix", network.name);
            let why = format!("{} overlaps with that of network `{}`", subnet.prefix, other.name);
            Some(Violation { field, why })
        })
    })
}

/// Returns the services that the stack of this name has and the spec does not.
fn absent_services<'a>(spec: &'a StackSpec, view: &'a Tables) -> impl Iterator<Item = &'a Arc<Service>> {
    let names: BTreeSet<&str> = spec.services.iter().map(|it| it.name.as_str()).collect();
    let id = view.stack_by_name(&spec.name).map(|stack| &stack.id);
    let of_stack = view.services().filter(move |it| id.is_some() && it.stack_id.as_ref() == id);
    of_stack.filter(move |it| !names.contains(it.spec.name.as_str()))
}

/// Returns what is wrong with the dependencies of services between each other and those of the view.
fn between(services: &[ServiceSpec], view: &Tables, sees: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let within = |(name, it): (&str, Violation)| it.within(format_args!("services.{name}"));
    dependencies::among(services, view, sees).into_iter().map(within).collect()
}

/// What a stack has declared, by its name, in the transaction that deploys it.
struct OfStack<'a> {
    id: &'a StackId,
    networks: BTreeMap<String, NetworkId>,
    volumes: BTreeMap<String, Volume>,
    values: Declared,
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
        let rows = view.stacks().map(|stack| summary(stack, &view));
        Ok(Listing { rows: filter::keep(rows, filters, FIELDS)?, age })
    }

    /// Makes the stack match `spec`: creates it if it does not exist, creates its networks and volumes, and creates and
    /// changes services. Of those that `spec` does not have, a service goes if that is asked for, a network goes when
    /// nothing uses it, and a volume stays. If everything is as `spec` says, nothing changes.
    pub(crate) async fn deploy_stack(
        &self,
        request_id: Option<&str>,
        spec: &StackSpec,
        values: &[StackValue],
        absent: Absent,
        resolve_image: ResolveImage,
    ) -> Result<Warned<StackSummary>, ControlError> {
        self.check_stack(spec, values).await?;
        let pins = self.pins(request_id, &spec.services, resolve_image).await?;
        let new_id = self.random.draw(StackId::random);
        let deployed = self.write_once(request_id, |view| {
            let mut tx = self.deployment(&view, request_id, (spec, values), &pins, &new_id)?;
            if absent == Absent::Remove {
                let gone = absent_services(spec, &view);
                gone.for_each(|service| tx.remove(Kind::Service, service.id.as_str()));
            }
            Ok((tx.finish(), ()))
        });
        deployed.await?;
        let removed = || ControlError::RemovedMeanwhile { kind: Kind::Stack, reference: spec.name.clone() };
        let look = |view: &View| view.stack_by_name(&spec.name).map(|stack| summary(stack, view)).ok_or_else(removed);
        let changed = self.read(look).await?;
        let mut warnings = pins.warnings;
        warnings.extend(absent_services(spec, &self.store.view()).map(|it| {
            let name = &it.spec.name;
            format!("service `{name}` is not in the file any more, and stays as it is: --prune removes it")
        }));
        Ok(Warned { changed, warnings })
    }

    /// As [`Control::check_spec`], for a stack with the values that come with it.
    async fn check_stack(&self, spec: &StackSpec, values: &[StackValue]) -> Result<(), ControlError> {
        let mut faults = self.stack_beyond_limits(spec, values).await?;
        faults.extend(violations(spec));
        for it in values {
            let field = format!("{}s.{}", it.kind, it.spec.name);
            faults.note(field.clone(), values::check(&it.spec, &it.bytes).map_err(|error| error.within(&field)));
        }
        // Networks that break a rule can't be made to see what else is in their way.
        let is_sound = spec.services.len() <= LOOKED_UP
            && spec.services.iter().all(is_bounded)
            && spec.networks.iter().all(|it| validate::network_violations(it).is_empty());
        if !faults.is_empty()
            && is_sound
            && let Ok(view) = self.proven_view().await
        {
            let pins = self.pins(None, &[], ResolveImage::Never).await?;
            let new_id = self.random.draw(StackId::random);
            faults.note("services", self.deployment(&view, None, (spec, values), &pins, &new_id).map(drop));
        }
        faults.refuse()
    }

    fn deployment(
        &self,
        view: &View,
        request_id: Option<&str>,
        (spec, stack_values): (&StackSpec, &[StackValue]),
        pins: &Pins,
        new_id: &StackId,
    ) -> Result<WriteTx, ControlError> {
        let mut faults = Faults::default();
        faults.extend(between(&spec.services, view, &|name| self.caller.sees(name)));
        let mut tx = WriteTx::new(view.clone(), request_id);
        let known = view.stack_by_name(&spec.name);
        let id = known.map_or(new_id, |stack| &stack.id);
        match known {
            Some(stack) if stack.spec == *spec => tx.expect(Kind::Stack, id.as_str()),
            Some(stack) => tx.update(Stack { spec: spec.clone(), ..stack.as_ref().clone() }),
            None => tx.create(Stack { id: id.clone(), spec: spec.clone(), ..Stack::default() }),
        }
        faults.note("spec", level::claim(&mut tx, spec.feature_level()).map_err(Into::into));
        let networks = faults.note("networks", self.add_networks(&mut tx, spec, id));
        let volumes = faults.note("volumes", volumes::add_declared(&mut tx, spec, id, &self.random));
        let values = faults.note("values", values::add_declared(&mut tx, (spec, stack_values), id, &self.random));
        // Without the file's own networks, volumes and values, its services can't be checked.
        if let (Some(networks), Some(volumes), Some(values)) = (networks, volumes, values) {
            let declared = OfStack { id, networks, volumes, values };
            for service in &spec.services {
                let set = self.set_service(&mut tx, service, &declared, pins);
                let field = format!("services.{}", service.name);
                faults.note(field.clone(), set.map_err(|error| error.within(&field)));
            }
        }
        faults.refuse()?;
        // If anything changes, so does the stack, so that a removal of it that was planned before fails.
        if let Some(stack) = known.filter(|stack| stack.spec == *spec && tx.has_actions()) {
            tx.update(Stack::clone(stack));
        }
        Ok(tx)
    }

    /// Makes a service of the stack match its spec.
    ///
    /// # Errors
    /// It can't be so. The error names everything that is in its way.
    fn set_service(
        &self,
        tx: &mut WriteTx,
        spec: &ServiceSpec,
        stack: &OfStack<'_>,
        pins: &Pins,
    ) -> Result<(), ControlError> {
        let view = Arc::clone(tx.view());
        let before = view.service_by_name(&spec.name).map(AsRef::as_ref);
        if before.is_some_and(|it| it.stack_id.as_ref() != Some(stack.id)) {
            return Err(ControlError::NotOfStack { service: spec.name.clone() });
        }
        // What users have decided beside the file stays: that it is stopped, and how often they have restarted it.
        let (force, stopped) = before.map_or((0, false), |it| (it.spec.force, it.spec.stopped));
        let mut service = ServiceSpec { force, stopped, ..spec.clone() };
        // So does the number of tasks that follows their load.
        if let Some(before) = before.filter(|it| it.spec.scale.is_some() && service.scale.is_some()) {
            service.mode = before.spec.mode.clone();
        }
        let mut faults = Faults::default();
        let seen = if service.networks.is_empty() { Arc::clone(&view) } else { self.seen(Arc::clone(&view)) };
        if let Some(with_ids) = faults.note("networks", with_ids(&service, &seen, &stack.networks)) {
            service = with_ids;
        }
        let known = before.map(|it| it.spec.as_ref());
        faults.note("mounts", volumes::claim(tx, &service, known, Some(&stack.volumes), &self.random));
        // It has what it needs already if nothing changes, and asking for that again would change the network of its ports.
        let values = faults.note("values", values::claim(tx, &service, before, &stack.values)).unwrap_or_default();
        let images = pins.of(&service, before, &view)?;
        let has_images = |it: &Service| SpecImages::of_service(it) == images;
        if before.is_some_and(|it| *it.spec == service && has_images(it) && it.values == values) {
            return faults.refuse();
        }
        faults.note("ports", claim(tx, &service.name, &service, &self.caller));
        faults.note("mode", before.map_or(Ok(()), |it| keeps_mode(it, &service)));
        faults.refuse()?;
        dependencies::expect_all(tx, &service);
        pins::claim(tx, &images);
        match before {
            Some(it) => tx.update(with_spec(it, service, images, values)),
            None => {
                let new = Service { values, ..new_service(service, Some(stack.id.clone()), &self.random) };
                tx.create(images.put_on(new));
            }
        }
        Ok(())
    }

    /// Creates the networks of the stack that are not there. Returns all of them by their names.
    fn add_networks(
        &self,
        tx: &mut WriteTx,
        spec: &StackSpec,
        stack: &StackId,
    ) -> Result<BTreeMap<String, NetworkId>, ControlError> {
        let (mut ids, mut faults) = (BTreeMap::new(), Faults::default());
        for network in &spec.networks {
            let field = format!("networks.{}", network.name);
            let id = self.add_network(tx, network, stack).map_err(|error| error.within(&field));
            ids.extend(faults.note(field, id).map(|id| (network.name.clone(), id)));
        }
        faults.refuse()?;
        Ok(ids)
    }

    fn add_network(&self, tx: &mut WriteTx, spec: &NetworkSpec, stack: &StackId) -> Result<NetworkId, ControlError> {
        let view = Arc::clone(tx.view());
        let refuse = |why: &str| Err(ControlError::invalid("", why));
        match view.network_by_name(&spec.name) {
            None => {
                let (id, spec) = (self.random.draw(NetworkId::random), Arc::new(spec.clone()));
                let stack_id = Some(stack.clone());
                networks::create(tx, Network { id: id.clone(), spec, stack_id, ..Network::default() })?;
                Ok(id)
            }
            Some(it) if it.stack_id.as_ref().is_none_or(|id| id != stack && view.stack(id.as_str()).is_some()) => {
                refuse("it exists already and does not belong to this stack")
            }
            Some(it) if *it.spec != *spec => refuse("a network can't be changed; remove the stack first"),
            Some(it) => {
                // Tasks of a stack that was removed may still have it.
                if it.stack_id.as_ref() != Some(stack) {
                    tx.update(Network { stack_id: Some(stack.clone()), ..it.as_ref().clone() });
                }
                Ok(it.id.clone())
            }
        }
    }

    /// Removes the stack and its services. Its networks, secrets and configs go when the last task that uses them has ended.
    /// Its volumes stay, unless `with_volumes`. It is refused if another service uses something that would go.
    pub(crate) async fn remove_stack(
        &self,
        request_id: Option<&str>,
        reference: &str,
        with_volumes: bool,
    ) -> Result<(), ControlError> {
        let reference = &self.own::<Stack>(reference).await?;
        let removed = self.write_once(request_id, |view| {
            let stack = resolve::<Stack>(&view, reference)?;
            let id = stack.id.clone();
            let mut tx = WriteTx::new(view.clone(), request_id);
            for service in view.services().filter(|service| service.stack_id.as_ref() == Some(&id)) {
                tx.remove(Kind::Service, service.id.as_str());
            }
            if with_volumes {
                volumes::remove_of_stack(&mut tx, stack)?;
            }
            networks::leave_of_stack(&view, &id)?;
            values::leave_of_stack(&mut tx, &id)?;
            tx.remove(Kind::Stack, id.as_str());
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}
