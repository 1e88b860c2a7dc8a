//! Secrets and configs: how users create, update and remove them, and how the specs of services name them. No answer
//! has the bytes of a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::Violation;
use flota_api::clock::Random;
use flota_api::id::{StackId, ValueDataId, ValueId};
use flota_api::model::{
    AnyValue, ConfigMarker, PinnedValue, SecretMarker, Service, ServiceSpec, StackSpec, StackValue, StoredConfig,
    StoredSecret, StoredValue, UserRole, VALUE_BOUND, ValueBytes, ValueData, ValueKind, ValueSpec, ValueVersion,
};
use flota_api::object::Kind;
use flota_api::template;
use flota_raft_store::{Tables, View, WriteTx};

use super::error::ControlError;
use super::faults::Faults;
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};
use crate::pin::SpecImages;
use crate::revisions::with_spec;
use crate::values::{self, Unusable};

/// Largest total size of the labels of a secret or config, in bytes.
const LABELS_BOUND: usize = 16 << 10;

/// A secret or config with what uses it.
#[derive(Clone, Debug)]
pub(crate) struct ValueSummary {
    /// The secret or config itself.
    pub(crate) value: AnyValue,
    /// Names of the services that use it.
    pub(crate) services: BTreeSet<String>,
    /// The bytes of its newest version, if it is a config and they were asked for.
    pub(crate) bytes: Option<ValueBytes>,
}

const FIELDS: &[Field<ValueSummary>] = &[
    ("id", |row| Some(row.value.id.to_string())),
    ("name", |row| Some(row.value.spec.name.clone())),
    ("version", |row| row.value.newest().map(|it| it.number.to_string())),
    ("stackId", |row| row.value.stack_id.as_ref().map(ToString::to_string)),
];

/// Returns the secret or config with this name.
pub(super) fn named(view: &Tables, kind: ValueKind, name: &str) -> Option<AnyValue> {
    match kind {
        ValueKind::Secret => view.by_name::<StoredSecret>(name).map(|it| it.as_ref().clone().with_marker()),
        ValueKind::Config => view.by_name::<StoredConfig>(name).map(|it| it.as_ref().clone().with_marker()),
    }
}

/// Returns the secret or config that `reference` identifies.
fn find(view: &Tables, kind: ValueKind, reference: &str) -> Result<AnyValue, ControlError> {
    Ok(match kind {
        ValueKind::Secret => resolve::<StoredSecret>(view, reference)?.as_ref().clone().with_marker(),
        ValueKind::Config => resolve::<StoredConfig>(view, reference)?.as_ref().clone().with_marker(),
    })
}

fn all(view: &Tables, kind: ValueKind) -> Vec<AnyValue> {
    fn erased<K: Clone>(it: &std::sync::Arc<StoredValue<K>>) -> AnyValue {
        it.as_ref().clone().with_marker()
    }
    match kind {
        ValueKind::Secret => view.all::<StoredSecret>().map(erased).collect(),
        ValueKind::Config => view.all::<StoredConfig>().map(erased).collect(),
    }
}

fn summary(value: AnyValue, users: &mut BTreeMap<ValueId, BTreeSet<String>>) -> ValueSummary {
    let services = users.remove(&value.id).unwrap_or_default();
    ValueSummary { value, services, bytes: None }
}

fn update(tx: &mut WriteTx, kind: ValueKind, value: AnyValue) {
    match kind {
        ValueKind::Secret => tx.update(value.with_marker::<SecretMarker>()),
        ValueKind::Config => tx.update(value.with_marker::<ConfigMarker>()),
    }
}

/// The secrets and configs that a stack file declares, as the transaction leaves them.
#[derive(Debug, Default)]
pub(super) struct Declared {
    values: BTreeMap<(ValueKind, String), AnyValue>,
    /// Those that the transaction creates or updates.
    changed: BTreeSet<(ValueKind, String)>,
    /// Those that have a new version.
    renewed: Vec<AnyValue>,
}

impl Declared {
    fn is_changed(&self, kind: ValueKind, name: &str) -> bool {
        self.changed.contains(&(kind, name.to_owned()))
    }

    /// Returns the service with the new versions of those that it follows.
    fn updates(&self, service: &Service) -> Service {
        Service {
            values: followed(service, &self.renewed).unwrap_or_else(|| service.values.clone()),
            ..service.clone()
        }
    }
}

/// Returns the pins of the service with the newest versions of these where it follows them; `None` if nothing changes.
fn followed(service: &Service, values: &[AnyValue]) -> Option<Vec<PinnedValue>> {
    let mut next = service.clone();
    for value in values {
        next.values = values::with_newest(&next, value).unwrap_or(next.values);
    }
    (next.values != service.values).then_some(next.values)
}

/// Creates the secrets and configs of a stack that are not there, and makes new versions of those whose bytes are others.
/// Services that are not in the file and follow those get them too.
///
/// # Errors
/// One belongs to something else, or is declared twice.
pub(super) fn add_declared(
    tx: &mut WriteTx,
    (spec, wanted): (&StackSpec, &[StackValue]),
    stack: &StackId,
    random: &Random,
) -> Result<Declared, ControlError> {
    let view = Arc::clone(tx.view());
    let mut declared = Declared::default();
    for it in wanted {
        let (kind, key) = (it.kind, (it.kind, it.spec.name.clone()));
        let refuse = |why: &str| Err(ControlError::invalid(format!("{kind}s.{}", it.spec.name), why));
        if declared.values.contains_key(&key) {
            return refuse("it is declared twice");
        }
        let new_id = || random.draw(ValueDataId::random);
        let value = match named(&view, kind, &it.spec.name) {
            None => {
                let (id, spec, stack_id) = (random.draw(ValueId::random), it.spec.clone(), Some(stack.clone()));
                let bare = AnyValue { id, spec, stack_id, ..AnyValue::default() };
                let (value, data) = bare.with_version(new_id(), it.bytes.clone());
                create(tx, kind, value.clone());
                tx.create(data);
                declared.changed.insert(key.clone());
                value
            }
            Some(known)
                if known.stack_id.as_ref().is_none_or(|id| id != stack && view.stack(id.as_str()).is_some()) =>
            {
                return refuse("it exists already and does not belong to this stack: declare it as `external`");
            }
            Some(known) if known.spec.template != it.spec.template => {
                return refuse("whether its templates are filled in can't be changed: declare it with another name");
            }
            Some(known) => {
                let newest = known.newest().and_then(|version| view.get::<ValueData>(version.data.as_str()));
                let is_same = newest.is_some_and(|newest| newest.bytes == it.bytes);
                let next = if is_same { known.clone() } else { add_version(tx, &known, new_id(), it.bytes.clone()) };
                // A stack of the same name that was removed may have left it to its last tasks.
                let next = AnyValue { spec: it.spec.clone(), stack_id: Some(stack.clone()), ..next };
                if next != known {
                    update(tx, kind, next.clone());
                    declared.changed.insert(key.clone());
                }
                if !is_same {
                    declared.renewed.push(next.clone());
                }
                next
            }
        };
        declared.values.insert(key, value);
    }
    let is_other = |it: &&Arc<Service>| !spec.services.iter().any(|service| service.name == it.spec.name);
    roll(tx, &declared.renewed, is_other);
    Ok(declared)
}

/// Checks that nobody else uses the secrets and configs of a stack, which is removed with its services in the same
/// transaction. They go when the last task that uses them has ended (`stack_values.rs`).
///
/// # Errors
/// Another service uses one of them.
pub(super) fn leave_of_stack(tx: &mut WriteTx, stack: &StackId) -> Result<(), ControlError> {
    let view = Arc::clone(tx.view());
    for kind in [ValueKind::Secret, ValueKind::Config] {
        for value in all(&view, kind).into_iter().filter(|it| it.stack_id.as_ref() == Some(stack)) {
            let others = view.services().filter(|it| it.stack_id.as_ref() != Some(stack));
            let users = others.filter(|it| it.values.iter().any(|pin| pin.value == value.id));
            let users: Vec<String> = users.map(|it| it.spec.name.clone()).collect();
            if !users.is_empty() {
                return Err(ControlError::ValueInUse { kind: kind.into(), name: value.spec.name, users });
            }
            // It changes, so that a service which begins to use it meanwhile fails.
            update(tx, kind, value);
        }
    }
    Ok(())
}

/// Returns the versions for a spec, and makes the transaction fail if one of its secrets or configs is removed or updated
/// meanwhile. `before` is the service as it is.
///
/// # Errors
/// A secret, config or version does not exist.
pub(super) fn claim(
    tx: &mut WriteTx,
    spec: &ServiceSpec,
    before: Option<&Service>,
    declared: &Declared,
) -> Result<Vec<PinnedValue>, ControlError> {
    let view = Arc::clone(tx.view());
    let known = |kind, name: &str| match declared.values.get(&(kind, name.to_owned())) {
        Some(value) => Some(value.clone()),
        None => named(&view, kind, name),
    };
    let updated = before.map(|it| declared.updates(it));
    let pins = values::pins(spec, updated.as_ref(), &known).or_else(|unusable| {
        let mut faults = Faults::default();
        for it in unusable {
            faults.note("values", Err::<(), _>(refusal(it)));
        }
        faults.refuse().map(|()| Vec::new())
    })?;
    let mut seen = BTreeSet::new();
    for ((kind, it), pin) in spec.values().zip(&pins) {
        // The transaction changes those of the stack anyway.
        if !seen.insert(&pin.value) || declared.is_changed(kind, &it.source) {
            continue;
        }
        if before.is_some_and(|it| it.values.iter().any(|old| old.value == pin.value)) {
            tx.expect(kind.into(), pin.value.as_str());
        } else if let Some(value) = named(&view, kind, &it.source) {
            // It changes, so a removal that was planned before fails.
            update(tx, kind, value);
        }
    }
    Ok(pins)
}

fn refusal(unusable: Unusable) -> ControlError {
    match unusable {
        Unusable::Unknown(kind, reference) => ControlError::NotFound { kind: kind.into(), reference },
        Unusable::Version { field, name, version, kept } => {
            let kept = kept.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            ControlError::invalid(field, format!("`{name}` has no version {version}: it has {kept}"))
        }
    }
}

/// Makes the transaction fail if a secret or config that a restored spec uses is removed meanwhile.
///
/// # Errors
/// One of its versions is not there any more.
pub(super) fn claim_restored(tx: &mut WriteTx, service: &Service) -> Result<(), ControlError> {
    let view = Arc::clone(tx.view());
    if let Some(gone) = values::missing(&service.values, &view) {
        let uses = service.spec.values().zip(&service.values);
        let name = uses.into_iter().find(|(_, pin)| *pin == gone).map_or("", |((_, it), _)| &it.source);
        let why = format!("version {} of `{name}`, which that spec uses, has been removed", gone.version);
        return Err(ControlError::invalid("version", why));
    }
    let mut seen = BTreeSet::new();
    for ((kind, it), pin) in service.spec.values().zip(&service.values) {
        // It changes, so a removal that was planned before fails.
        let value = named(&view, kind, &it.source).filter(|value| value.id == pin.value && seen.insert(&pin.value));
        value.into_iter().for_each(|value| update(tx, kind, value));
    }
    Ok(())
}

/// Creates the object of a secret or config.
pub(super) fn create(tx: &mut WriteTx, kind: ValueKind, value: AnyValue) {
    match kind {
        ValueKind::Secret => tx.create(value.with_marker::<SecretMarker>()),
        ValueKind::Config => tx.create(value.with_marker::<ConfigMarker>()),
    }
}

/// Removes a secret or config with the bytes of all its versions.
pub(super) fn remove(tx: &mut WriteTx, kind: ValueKind, value: &AnyValue) {
    value.versions.iter().for_each(|version| tx.remove(Kind::ValueData, version.data.as_str()));
    tx.remove(kind.into(), value.id.as_str());
}

/// Adds a version, and drops those that nothing has.
fn add_version(tx: &mut WriteTx, value: &AnyValue, id: ValueDataId, bytes: ValueBytes) -> AnyValue {
    let held = values::held(tx.view());
    let (mut next, data) = value.with_version(id, bytes);
    let is_kept = |it: &ValueVersion| it.data == data.id || held.contains(&it.data);
    for version in next.versions.iter().filter(|it| !is_kept(it)) {
        tx.remove(Kind::ValueData, version.data.as_str());
    }
    next.versions.retain(is_kept);
    tx.create(data);
    next
}

/// Gives the services that follow the newest versions of these those versions. Returns their names.
fn roll(tx: &mut WriteTx, values: &[AnyValue], concerns: impl Fn(&&Arc<Service>) -> bool) -> Vec<String> {
    let view = Arc::clone(tx.view());
    let mut names = Vec::new();
    for service in view.services().filter(|it| concerns(it)) {
        let Some(pins) = followed(service, values) else { continue };
        tx.update(with_spec(service, service.spec.as_ref().clone(), SpecImages::of_service(service), pins));
        names.push(service.spec.name.clone());
    }
    names
}

/// Returns what is wrong with the bytes of a secret or config.
fn fault_of_bytes(spec: &ValueSpec, bytes: &ValueBytes) -> Option<Violation> {
    let why = match bytes.0.len() {
        0 => "it is empty".to_owned(),
        size if size > VALUE_BOUND => format!("{size} bytes are over the bound of {VALUE_BOUND} (500 KiB)"),
        _ if spec.template => match std::str::from_utf8(&bytes.0) {
            Ok(text) => template::check_file(text).err()?.to_string(),
            Err(_) => "it is to have templates, and is not UTF-8 text".to_owned(),
        },
        _ => return None,
    };
    Some(Violation { field: "value".into(), why })
}

/// Refuses a secret or config that breaks rules.
pub(super) fn check(spec: &ValueSpec, bytes: &ValueBytes) -> Result<(), ControlError> {
    let mut found = Vec::new();
    if let Err(error) = spec.check() {
        found.push(Violation { field: "name".into(), why: error.to_string() });
    }
    let labels: usize = spec.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if labels > LABELS_BOUND {
        found.push(Violation {
            field: "labels".into(),
            why: format!("{labels} bytes are over the bound of {LABELS_BOUND}"),
        });
    }
    found.extend(fault_of_bytes(spec, bytes));
    if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
}

impl<M: Member> Control<M> {
    fn may_see_values(&self, kind: ValueKind) -> Result<(), ControlError> {
        match kind {
            ValueKind::Secret => self.needs(UserRole::Operator),
            ValueKind::Config => Ok(()),
        }
    }

    /// Returns the secret or config that `reference` identifies; a config with the bytes of its newest version.
    pub(crate) async fn get_value(&self, kind: ValueKind, reference: &str) -> Result<ValueSummary, ControlError> {
        self.may_see_values(kind)?;
        let view = self.proven_view().await?;
        let value = find(&view, kind, reference)?;
        let data = value.newest().filter(|_| kind == ValueKind::Config).map(|it| it.data.clone());
        let bytes = data.and_then(|data| view.get::<ValueData>(data.as_str())).map(|it| it.bytes.clone());
        Ok(ValueSummary { bytes, ..summary(value, &mut values::users(&view)) })
    }

    /// Returns the secrets or configs that pass every filter.
    pub(crate) async fn list_values(
        &self,
        kind: ValueKind,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<ValueSummary>, ControlError> {
        self.may_see_values(kind)?;
        let (view, age) = self.view(freshness).await?;
        let mut users = values::users(&view);
        let rows = all(&view, kind).into_iter().map(|value| summary(value, &mut users));
        Ok(Listing { rows: filter::keep(rows, filters, FIELDS)?, age })
    }

    /// Creates a secret or config with its first version.
    pub(crate) async fn create_value(
        &self,
        request_id: Option<&str>,
        kind: ValueKind,
        spec: ValueSpec,
        bytes: ValueBytes,
    ) -> Result<ValueSummary, ControlError> {
        check(&spec, &bytes)?;
        self.check_name("name", &spec.name)?;
        let name = spec.name.clone();
        let bare = AnyValue { id: self.random.draw(ValueId::random), spec, ..AnyValue::default() };
        let (value, data) = bare.with_version(self.random.draw(ValueDataId::random), bytes);
        let created = self.write_once(request_id, |view| {
            if named(&view, kind, &name).is_some() {
                return Err(ControlError::AlreadyExists { kind: kind.into(), name: name.clone() });
            }
            let mut tx = WriteTx::new(view, request_id);
            create(&mut tx, kind, value.clone());
            tx.create(data.clone());
            Ok((tx.finish(), ()))
        });
        created.await?;
        // Read by name, so that a retry returns the one that the first try created.
        let removed = || ControlError::RemovedMeanwhile { kind: kind.into(), reference: name.clone() };
        let found = |view: &View| {
            let value = named(view, kind, &name).ok_or_else(removed)?;
            Ok(summary(value, &mut values::users(view)))
        };
        self.read(found).await
    }

    /// Makes a new version of a secret or config, unless it is the same as the newest one. The services that follow the
    /// newest version get it in the same transaction, unless `no_roll`; their names are returned. Versions that nothing
    /// has any more go.
    pub(crate) async fn update_value(
        &self,
        request_id: Option<&str>,
        kind: ValueKind,
        reference: &str,
        bytes: ValueBytes,
        no_roll: bool,
    ) -> Result<(ValueSummary, Vec<String>), ControlError> {
        let new_id = self.random.draw(ValueDataId::random);
        let reference = &self.own_value(kind, reference).await?;
        let written = self.write_once(request_id, |view| {
            let value = find(&view, kind, reference)?;
            if let Some(fault) = fault_of_bytes(&value.spec, &bytes) {
                return Err(ControlError::Invalid(vec![fault]));
            }
            let mut tx = WriteTx::new(Arc::clone(&view), request_id);
            let newest = value.newest().and_then(|it| view.get::<ValueData>(it.data.as_str()));
            let next = if newest.is_some_and(|it| it.bytes == bytes) {
                value
            } else {
                add_version(&mut tx, &value, new_id.clone(), bytes.clone())
            };
            let rolled = if no_roll { Vec::new() } else { roll(&mut tx, std::slice::from_ref(&next), |_| true) };
            let (id, names) = (next.id.clone(), rolled);
            update(&mut tx, kind, next);
            Ok((tx.finish(), (id, names)))
        });
        let (id, names) = written.await?.map_or((None, Vec::new()), |(id, names)| (Some(id), names));
        let reference = id.as_ref().map_or(reference.as_str(), |id| id.as_str());
        let removed = || ControlError::RemovedMeanwhile { kind: kind.into(), reference: reference.to_owned() };
        let found = |view: &View| {
            let value = find(view, kind, reference).map_err(|_| removed())?;
            Ok((summary(value, &mut values::users(view)), names.clone()))
        };
        self.read(found).await
    }

    /// Removes a secret or config with all its versions.
    pub(crate) async fn remove_value(
        &self,
        request_id: Option<&str>,
        kind: ValueKind,
        reference: &str,
    ) -> Result<(), ControlError> {
        let reference = &self.own_value(kind, reference).await?;
        let removed = self.write_once(request_id, |view| {
            let value = find(&view, kind, reference)?;
            if let Some(users) = values::users(&view).remove(&value.id) {
                let (name, users) = (value.spec.name, users.into_iter().collect());
                return Err(ControlError::ValueInUse { kind: kind.into(), name, users });
            }
            let mut tx = WriteTx::new(view, request_id);
            remove(&mut tx, kind, &value);
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}

#[cfg(test)]
mod tests;
