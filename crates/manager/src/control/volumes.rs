//! Volumes: how users create and remove them, and how the specs of services name them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::Violation;
use flota_api::clock::Random;
use flota_api::id::{StackId, VolumeId};
use flota_api::model::{MountSource, ServiceSpec, Stack, StackSpec, Volume, VolumeMount, VolumeSpec};
use flota_api::object::Kind;
use flota_api::validate::volume_violations;
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};
use crate::level;

/// A volume with what uses it.
#[derive(Clone, Debug)]
pub(crate) struct VolumeSummary {
    /// The volume as the store holds it.
    pub(crate) volume: Arc<Volume>,
    /// Hostnames of the nodes that have its data; the id of one that was removed from the cluster.
    pub(crate) nodes: BTreeSet<String>,
    /// Names of the services that use it.
    pub(crate) services: BTreeSet<String>,
}

const FIELDS: &[Field<VolumeSummary>] = &[
    ("id", |row| Some(row.volume.id.to_string())),
    ("name", |row| Some(row.volume.spec.name.clone())),
    ("perSlot", |row| Some(row.volume.spec.per_slot.to_string())),
];

/// The names of services by the volumes that they use.
type Users = BTreeMap<String, BTreeSet<String>>;

fn summary(volume: &Arc<Volume>, users: &mut Users, view: &Tables) -> VolumeSummary {
    let hostname = |place: &flota_api::model::VolumePlace| match view.node(&place.node_id) {
        Some(node) => node.description.hostname.clone(),
        None => place.node_id.to_string(),
    };
    VolumeSummary {
        volume: Arc::clone(volume),
        nodes: volume.places.iter().map(hostname).collect(),
        services: users.remove(&volume.spec.name).unwrap_or_default(),
    }
}

/// Returns the services that use volumes: by their newest specs, or with a live task of another one.
fn users(view: &Tables) -> Users {
    let mut users = Users::new();
    let mut add = |spec: &ServiceSpec| {
        for volume in spec.volumes() {
            users.entry(volume.to_owned()).or_default().insert(spec.name.clone());
        }
    };
    view.services().for_each(|service| add(&service.spec));
    for (service, version, spec) in view.specs().filter(|(_, _, spec)| !spec.mounts.is_empty()) {
        if view.tasks_of_service(service).any(|task| task.spec_version == version && task.is_live()) {
            add(spec);
        }
    }
    users
}

/// Refuses a spec that breaks a rule.
fn check(spec: &VolumeSpec) -> Result<(), ControlError> {
    let found = volume_violations(spec);
    if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
}

/// Returns the volume that `reference` identifies, unless a user has removed it.
fn find<'a>(view: &'a Tables, reference: &str) -> Result<&'a Arc<Volume>, ControlError> {
    let volume = resolve::<Volume>(view, reference)?;
    match volume.is_removed {
        true => Err(ControlError::NotFound { kind: Kind::Volume, reference: reference.to_owned() }),
        false => Ok(volume),
    }
}

/// Removes the volume. While nodes may have data of it, the object stays, without its name, and names them.
fn remove(tx: &mut WriteTx, volume: &Volume) {
    if volume.places.is_empty() {
        tx.remove(Kind::Volume, volume.id.as_str());
    } else {
        tx.update(Volume { is_removed: true, ..volume.clone() });
    }
}

/// Makes the volumes of a service exist when its spec is set, and the transaction fail if one of them is removed
/// meanwhile. `before` is the spec that the service has. A volume that is missing is created; for a service of a stack
/// `declared` has those of the stack, and others must exist.
///
/// # Errors
/// A volume does not exist, or the service can't use it in this way.
pub(super) fn claim(
    tx: &mut WriteTx,
    spec: &ServiceSpec,
    before: Option<&ServiceSpec>,
    declared: Option<&BTreeMap<String, Volume>>,
    random: &Random,
) -> Result<(), ControlError> {
    let view = Arc::clone(tx.view());
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    let is_global = spec.mode.replicas().is_none();
    for (index, mount) in spec.mounts.iter().enumerate() {
        let MountSource::Volume(VolumeMount { name: Some(name), per_slot, labels, file_system, .. }) = &mount.source
        else {
            continue;
        };
        let known = declared.and_then(|it| it.get(name)).or_else(|| view.volume_by_name(name).map(AsRef::as_ref));
        if let Some(volume) = known {
            let mut refuse = |why: &str| {
                let why = format!("volume `{name}` {why}");
                found.push(Violation { field: format!("mounts[{index}].source"), why });
            };
            if is_global && !volume.spec.per_slot && volume.spec.file_system.is_none() {
                let why = "has one set of data, on one node, and the tasks of a global service are on different nodes: \
                           create it with --per-slot";
                refuse(why);
            }
            if *per_slot && !volume.spec.per_slot {
                refuse("exists, and has one set of data for all slots");
            }
            if file_system.is_some() && volume.spec.file_system != *file_system {
                refuse("exists, and has other options");
            }
        }
        if !seen.insert(name) {
            continue;
        }
        match known {
            // It is new in this transaction.
            Some(volume) if view.volume(&volume.id).is_none() => {}
            Some(volume) if before.is_some_and(|it| it.volumes().any(|it| it == name)) => {
                tx.expect(Kind::Volume, &volume.id);
            }
            // The volume changes, so a removal that was planned before fails.
            Some(volume) => tx.update(volume.clone()),
            None if declared.is_some() => {
                return Err(ControlError::NotFound { kind: Kind::Volume, reference: name.clone() });
            }
            None => {
                let (name, labels, file_system) = (name.clone(), labels.clone(), file_system.clone());
                let per_slot = *per_slot || is_global && file_system.is_none();
                let spec = VolumeSpec { name, labels, per_slot, file_system };
                tx.create(Volume { id: random.draw(VolumeId::random), spec, ..Volume::default() });
            }
        }
    }
    if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
}

/// Creates the volumes of the stack that are not there. Returns all of them by their names.
///
/// # Errors
/// A volume belongs to something else, or has another kind of data.
pub(super) fn add_declared(
    tx: &mut WriteTx,
    spec: &StackSpec,
    stack: &StackId,
    random: &Random,
) -> Result<BTreeMap<String, Volume>, ControlError> {
    let view = Arc::clone(tx.view());
    let mut declared = BTreeMap::new();
    for wanted in &spec.volumes {
        let refuse = |why: &str| Err(ControlError::invalid(format!("volumes.{}", wanted.name), why));
        let of_stack = Volume { spec: wanted.clone(), stack_id: Some(stack.clone()), ..Volume::default() };
        let volume = match view.volume_by_name(&wanted.name) {
            None => {
                let volume = Volume { id: random.draw(VolumeId::random), ..of_stack };
                tx.create(volume.clone());
                volume
            }
            // The volumes of a stack that was removed are still there.
            Some(it) if it.stack_id.as_ref().is_none_or(|id| id != stack && view.stack(id.as_str()).is_some()) => {
                return refuse("it exists already and does not belong to this stack: declare it as `external`");
            }
            Some(it) if it.spec.file_system != wanted.file_system => {
                return refuse("it exists with other options, which can't change: remove the volume first");
            }
            Some(it) if it.spec.per_slot != wanted.per_slot => {
                return refuse("its data can't be divided among slots, or joined, afterwards: remove the volume first");
            }
            Some(it) => {
                let places = it.places.clone();
                let volume = Volume { id: it.id.clone(), meta: it.meta.clone(), places, ..of_stack };
                if volume != **it {
                    tx.update(volume.clone());
                }
                volume
            }
        };
        declared.insert(wanted.name.clone(), volume);
    }
    Ok(declared)
}

/// Removes the volumes that a stack declares, whose services are removed in the same transaction. Those that its file once
/// declared and no longer does stay.
///
/// # Errors
/// Another service uses one of them.
pub(super) fn remove_of_stack(tx: &mut WriteTx, stack: &Stack) -> Result<(), ControlError> {
    let view = Arc::clone(tx.view());
    let is_other =
        |name: &String| view.service_by_name(name).is_some_and(|service| service.stack_id.as_ref() != Some(&stack.id));
    let users = users(&view);
    let declared = stack.spec.volumes.iter().filter_map(|it| view.volume_by_name(&it.name));
    for volume in declared.filter(|it| it.stack_id.as_ref() == Some(&stack.id)) {
        let others = users.get(&volume.spec.name).into_iter().flatten().filter(|name| is_other(name));
        let others: Vec<String> = others.cloned().collect();
        if !others.is_empty() {
            return Err(ControlError::VolumeInUse { volume: volume.spec.name.clone(), users: others });
        }
        remove(tx, volume);
    }
    Ok(())
}

impl<M: Member> Control<M> {
    /// Returns the volume that `reference` identifies.
    pub(crate) async fn get_volume(&self, reference: &str) -> Result<VolumeSummary, ControlError> {
        let view = self.proven_view().await?;
        find(&view, reference).map(|volume| summary(volume, &mut users(&view), &view))
    }

    /// Returns the volumes that pass every filter.
    pub(crate) async fn list_volumes(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<VolumeSummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        let mut users = users(&view);
        let rows = view.volumes().filter(|it| !it.is_removed).map(|volume| summary(volume, &mut users, &view));
        Ok(Listing { rows: filter::keep(rows, filters, FIELDS)?, age })
    }

    /// Creates a volume, which has no data yet.
    pub(crate) async fn create_volume(
        &self,
        request_id: Option<&str>,
        spec: VolumeSpec,
    ) -> Result<Arc<Volume>, ControlError> {
        check(&spec)?;
        self.check_volume_spec(&spec)?;
        let name = spec.name.clone();
        let volume = Volume { id: self.random.draw(VolumeId::random), spec, ..Volume::default() };
        let created = self.write_once(request_id, |view| {
            if view.volume_by_name(&name).is_some() {
                return Err(ControlError::AlreadyExists { kind: Kind::Volume, name: name.clone() });
            }
            let mut tx = WriteTx::new(view, request_id);
            level::claim(&mut tx, volume.spec.feature_level())?;
            tx.create(volume.clone());
            Ok((tx.finish(), ()))
        });
        created.await?;
        // Read by name, so that a retry returns the volume that the first try created.
        let removed = || ControlError::RemovedMeanwhile { kind: Kind::Volume, reference: name.clone() };
        self.read(|view| view.volume_by_name(&name).cloned().ok_or_else(removed)).await
    }

    /// Removes a volume that no service uses. The nodes that have its data drop it.
    pub(crate) async fn remove_volume(&self, request_id: Option<&str>, reference: &str) -> Result<(), ControlError> {
        let reference = &self.own::<Volume>(reference).await?;
        let removed = self.write_once(request_id, |view| {
            let volume = Arc::clone(find(&view, reference)?);
            if let Some(users) = users(&view).remove(&volume.spec.name) {
                let volume = volume.spec.name.clone();
                return Err(ControlError::VolumeInUse { volume, users: users.into_iter().collect() });
            }
            let mut tx = WriteTx::new(view, request_id);
            remove(&mut tx, &volume);
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}

#[cfg(test)]
mod tests;
