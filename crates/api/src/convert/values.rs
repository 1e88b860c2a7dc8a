//! Conversion of secrets and configs.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;

use super::{Malformed, filled, require};
use crate::model::{
    PinnedValue, StackValue, StoredValue, TaskValue, ValueBytes, ValueData, ValueKind, ValueSpec, ValueUse,
    ValueVersion,
};
use crate::proto::{control as pc, dispatcher as pd, objects as po, specs as ps};

impl From<&ValueSpec> for ps::ValueSpec {
    fn from(it: &ValueSpec) -> Self {
        Self { name: it.name.clone(), labels: it.labels.clone().into_iter().collect(), template: it.template }
    }
}

impl From<ps::ValueSpec> for ValueSpec {
    fn from(it: ps::ValueSpec) -> Self {
        Self { name: it.name, labels: it.labels.into_iter().collect(), template: it.template }
    }
}

impl<K> From<&StoredValue<K>> for po::Value {
    fn from(it: &StoredValue<K>) -> Self {
        let version =
            |it: &ValueVersion| po::ValueVersion { number: it.number, size: it.size, data_id: it.data.clone().into() };
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            spec: Some((&it.spec).into()),
            versions: it.versions.iter().map(version).collect(),
            stack_id: it.stack_id.clone().map(Into::into),
        }
    }
}

impl<K> TryFrom<po::Value> for StoredValue<K> {
    type Error = Malformed;
    fn try_from(it: po::Value) -> Result<Self, Malformed> {
        let version = |it: po::ValueVersion| ValueVersion { number: it.number, size: it.size, data: it.data_id.into() };
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            spec: require(it.spec, "value.spec")?.into(),
            versions: it.versions.into_iter().map(version).collect(),
            stack_id: it.stack_id.map(Into::into),
            marker: PhantomData,
        })
    }
}

impl From<&ValueData> for po::ValueData {
    fn from(it: &ValueData) -> Self {
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            of: it.of.clone().into(),
            bytes: it.bytes.0.to_vec().into(),
        }
    }
}

impl From<po::ValueData> for ValueData {
    fn from(it: po::ValueData) -> Self {
        let bytes = ValueBytes(it.bytes.as_ref().into());
        Self { id: it.id.into(), meta: it.meta.into(), of: it.of.into(), bytes }
    }
}

impl From<&ValueUse> for ps::ValueUse {
    fn from(it: &ValueUse) -> Self {
        Self {
            source: it.source.clone(),
            target: it.target.clone().unwrap_or_default(),
            env: it.env.clone().unwrap_or_default(),
            uid: it.uid,
            gid: it.gid,
            mode: it.mode,
            version: it.version.map_or(0, NonZeroU64::get),
            signal: it.signal.clone().unwrap_or_default(),
        }
    }
}

impl From<ps::ValueUse> for ValueUse {
    fn from(it: ps::ValueUse) -> Self {
        Self {
            source: it.source,
            target: filled(it.target),
            env: filled(it.env),
            uid: it.uid,
            gid: it.gid,
            mode: it.mode,
            version: NonZeroU64::new(it.version),
            signal: filled(it.signal),
        }
    }
}

impl From<&PinnedValue> for po::PinnedValue {
    fn from(it: &PinnedValue) -> Self {
        Self { value_id: it.value.clone().into(), version: it.version, data_id: it.data.clone().into() }
    }
}

impl From<po::PinnedValue> for PinnedValue {
    fn from(it: po::PinnedValue) -> Self {
        Self { value: it.value_id.into(), version: it.version, data: it.data_id.into() }
    }
}

impl From<&TaskValue> for pd::TaskValue {
    /// The bytes stay behind: they are sent beside the tasks, and are in no record on disk.
    fn from(it: &TaskValue) -> Self {
        Self { version: it.version, data_id: it.data.clone().into(), template: it.template }
    }
}

impl From<pd::TaskValue> for TaskValue {
    fn from(it: pd::TaskValue) -> Self {
        Self { version: it.version, data: it.data_id.into(), template: it.template, bytes: None }
    }
}

impl fmt::Debug for pd::ValueChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueChunk").field("data_id", &self.data_id).finish_non_exhaustive()
    }
}

impl From<&StackValue> for pc::StackValue {
    fn from(it: &StackValue) -> Self {
        Self { kind: it.kind.to_wire(), spec: Some((&it.spec).into()), bytes: it.bytes.0.to_vec().into() }
    }
}

impl TryFrom<pc::StackValue> for StackValue {
    type Error = Malformed;
    fn try_from(it: pc::StackValue) -> Result<Self, Malformed> {
        let spec = require(it.spec, "values.spec")?.into();
        Ok(Self { kind: ValueKind::from_wire(it.kind)?, spec, bytes: it.bytes.as_ref().to_vec().into() })
    }
}

impl fmt::Debug for pc::StackValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackValue").field("kind", &self.kind).field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl fmt::Debug for pc::UpdateValueRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateValueRequest").field("kind", &self.kind).field("name", &self.name).finish_non_exhaustive()
    }
}

impl ValueKind {
    /// Returns the kind with this number on the wire.
    ///
    /// # Errors
    /// No kind has this number.
    pub fn from_wire(number: i32) -> Result<Self, Malformed> {
        super::FromNumber::from_number(number)
    }

    /// Returns its number on the wire.
    pub fn to_wire(self) -> i32 {
        super::FromNumber::number(self)
    }
}

impl fmt::Debug for po::ValueData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueData").field("id", &self.id).field("of", &self.of).finish_non_exhaustive()
    }
}

impl fmt::Debug for pc::CreateValueRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateValueRequest").field("kind", &self.kind).field("spec", &self.spec).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StoredSecret;

    #[test]
    fn a_secret_and_its_bytes_survive_the_wire_and_no_message_shows_the_bytes() {
        let spec = ValueSpec { name: "db".into(), labels: [("a".to_owned(), "b".to_owned())].into(), template: true };
        let secret = StoredSecret { id: "s".into(), spec, stack_id: Some("k".into()), ..StoredSecret::default() };
        let (secret, data) = secret.with_version("d".into(), b"hunter2\xff".to_vec().into());
        assert_eq!(StoredSecret::try_from(po::Value::from(&secret)), Ok(secret));
        let wire = po::ValueData::from(&data);
        let request = pc::CreateValueRequest { bytes: wire.bytes.clone(), ..pc::CreateValueRequest::default() };
        let shown = format!("{wire:?} {request:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(ValueData::from(wire), data);
    }
}
