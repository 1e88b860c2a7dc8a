//! Secrets and configs: how users create and remove them. No answer has the bytes of a secret.

use std::collections::BTreeSet;

use flota_api::id::{ValueDataId, ValueId};
use flota_api::model::{
    AnyValue, ConfigMarker, SecretMarker, StoredConfig, StoredSecret, StoredValue, VALUE_BOUND, ValueBytes, ValueData,
    ValueKind, ValueSpec,
};
use flota_api::object::Kind;
use flota_raft_store::{Tables, WriteTx};

use super::error::{ControlError, Violation};
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};

/// Largest total size of the labels of a secret or config, in bytes.
const LABELS_BOUND: usize = 16 << 10;

/// A secret or config with what uses it.
#[derive(Clone, Debug)]
pub(crate) struct ValueSummary {
    /// It, as the store holds it.
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

fn summary(value: AnyValue) -> ValueSummary {
    ValueSummary { value, services: BTreeSet::new(), bytes: None }
}

/// Creates the object of a secret or config.
pub(super) fn create(tx: &mut WriteTx, kind: ValueKind, value: AnyValue) {
    match kind {
        ValueKind::Secret => tx.create(value.with_marker::<SecretMarker>()),
        ValueKind::Config => tx.create(value.with_marker::<ConfigMarker>()),
    }
}

/// Removes a secret or config with the bytes of all its versions.
fn remove(tx: &mut WriteTx, kind: ValueKind, value: &AnyValue) {
    value.versions.iter().for_each(|version| tx.remove(Kind::ValueData, version.data.as_str()));
    tx.remove(kind.stored(), value.id.as_str());
}

/// Returns what is wrong with the bytes of a secret or config.
fn fault_of_bytes(bytes: &ValueBytes) -> Option<Violation> {
    let why = match bytes.0.len() {
        0 => "it is empty".to_owned(),
        size if size > VALUE_BOUND => format!("{size} bytes are over the bound of {VALUE_BOUND} (500 KiB)"),
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
    found.extend(fault_of_bytes(bytes));
    if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
}

impl<M: Member> Control<M> {
    /// Returns the secret or config that `reference` identifies; a config with the bytes of its newest version.
    pub(crate) async fn get_value(&self, kind: ValueKind, reference: &str) -> Result<ValueSummary, ControlError> {
        let view = self.proven_view().await?;
        let value = find(&view, kind, reference)?;
        let data = value.newest().filter(|_| kind == ValueKind::Config).map(|it| it.data.clone());
        let bytes = data.and_then(|data| view.get::<ValueData>(data.as_str())).map(|it| it.bytes.clone());
        Ok(ValueSummary { bytes, ..summary(value) })
    }

    /// Returns the secrets or configs that pass every filter.
    pub(crate) async fn list_values(
        &self,
        kind: ValueKind,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<ValueSummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        let rows = all(&view, kind).into_iter().map(summary);
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
        let name = spec.name.clone();
        let bare = AnyValue { id: self.random.draw(ValueId::random), spec, ..AnyValue::default() };
        let (value, data) = bare.with_version(self.random.draw(ValueDataId::random), bytes);
        let created = self.write_once(request_id, |view| {
            if named(&view, kind, &name).is_some() {
                return Err(ControlError::AlreadyExists { kind: kind.stored(), name: name.clone() });
            }
            let mut tx = WriteTx::new(view, request_id);
            create(&mut tx, kind, value.clone());
            tx.create(data.clone());
            Ok((tx.finish(), ()))
        });
        created.await?;
        // Read by name, so that a retry returns the one that the first try created.
        let removed = || ControlError::RemovedMeanwhile { kind: kind.stored(), reference: name.clone() };
        self.read(|view| named(view, kind, &name).map(summary).ok_or_else(removed)).await
    }

    /// Removes a secret or config with all its versions.
    pub(crate) async fn remove_value(
        &self,
        request_id: Option<&str>,
        kind: ValueKind,
        reference: &str,
    ) -> Result<(), ControlError> {
        let removed = self.write_once(request_id, |view| {
            let value = find(&view, kind, reference)?;
            let mut tx = WriteTx::new(view, request_id);
            remove(&mut tx, kind, &value);
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}
