//! Conversion of secrets and configs.

use std::fmt;
use std::marker::PhantomData;

use super::{Malformed, require};
use crate::model::{StoredValue, ValueBytes, ValueData, ValueKind, ValueSpec, ValueVersion};
use crate::proto::{control as pc, objects as po, specs as ps};

impl From<&ValueSpec> for ps::ValueSpec {
    fn from(it: &ValueSpec) -> Self {
        Self { name: it.name.clone(), labels: it.labels.clone().into_iter().collect() }
    }
}

impl From<ps::ValueSpec> for ValueSpec {
    fn from(it: ps::ValueSpec) -> Self {
        Self { name: it.name, labels: it.labels.into_iter().collect() }
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

impl ValueKind {
    /// Returns the kind with this number on the wire.
    ///
    /// # Errors
    /// There is none.
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
        let spec = ValueSpec { name: "db".into(), labels: [("a".to_owned(), "b".to_owned())].into() };
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
