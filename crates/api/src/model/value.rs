//! Secrets and configs: values that users store once, and that tasks get as files in memory or as variables.
//!
//! Both are the same but for who may see them. The object of a secret or config describes its versions, and the bytes
//! of each version are an object of their own ([`ValueData`]), so that no list, event or answer about a secret has
//! them.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;

use super::text_or_empty;
use crate::id::{StackId, ValueDataId, ValueId};
use crate::naming::{self, NameError};
use crate::version::Meta;

/// Largest size of a value in bytes.
pub const VALUE_BOUND: usize = 500 << 10;

/// Whether a value is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ValueKind {
    /// Nobody reads it but the tasks that use it.
    Secret,
    /// Users can read it.
    Config,
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

/// The bytes of one version. `Debug` does not print them. Clones share them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ValueBytes(pub Arc<[u8]>);

impl fmt::Debug for ValueBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl From<Vec<u8>> for ValueBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// What users say about a secret or config besides its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValueSpec {
    /// Name, unique among the secrets or configs of the cluster.
    pub name: String,
    /// Labels, for people and tools.
    pub labels: BTreeMap<String, String>,
    /// Whether its bytes are a text with templates ([`crate::template::fill_file`]), which are filled in for each task. It
    /// never changes.
    pub template: bool,
}

impl ValueSpec {
    /// Checks the name, which is also that of a file.
    ///
    /// # Errors
    /// A rule is broken; the error names it.
    pub fn check(&self) -> Result<(), NameError> {
        naming::check(&self.name)
    }
}

/// One version of a secret or config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValueVersion {
    /// Its number; they count from 1.
    pub number: u64,
    /// Number of bytes.
    pub size: u64,
    /// The object that has the bytes.
    #[serde(skip)]
    pub data: ValueDataId,
}

/// Marks secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecretMarker;

/// Marks configs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigMarker;

/// A secret or config as the store holds it, without its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredValue<K> {
    /// Identifier of the secret or config.
    pub id: ValueId,
    /// Times and version.
    pub meta: Meta,
    /// What the user has said.
    pub spec: ValueSpec,
    /// The versions whose bytes are kept, the newest last.
    pub versions: Vec<ValueVersion>,
    /// The stack that declares it, if any.
    #[serde(serialize_with = "text_or_empty")]
    pub stack_id: Option<StackId>,
    /// Tells secrets from configs.
    #[serde(skip)]
    pub marker: PhantomData<K>,
}

/// A secret as the store holds it.
pub type StoredSecret = StoredValue<SecretMarker>;
/// A config as the store holds it.
pub type StoredConfig = StoredValue<ConfigMarker>;

/// A secret or config, where its type does not matter.
pub type AnyValue = StoredValue<()>;

impl<K> StoredValue<K> {
    /// Returns the same as a secret, a config, or either.
    pub fn with_marker<L>(self) -> StoredValue<L> {
        let Self { id, meta, spec, versions, stack_id, .. } = self;
        StoredValue { id, meta, spec, versions, stack_id, marker: PhantomData }
    }
}

impl<K: Clone> StoredValue<K> {
    /// Returns its newest version; `None` only for a damaged object.
    pub fn newest(&self) -> Option<&ValueVersion> {
        self.versions.last()
    }

    /// Returns the version with this number, if its bytes are kept.
    pub fn version(&self, number: u64) -> Option<&ValueVersion> {
        self.versions.iter().find(|it| it.number == number)
    }

    /// Returns it with another version, and that version's bytes.
    #[must_use]
    pub fn with_version(&self, data: ValueDataId, bytes: ValueBytes) -> (Self, ValueData) {
        let number = self.newest().map_or(0, |it| it.number) + 1;
        let mut next = self.clone();
        next.versions.push(ValueVersion { number, size: bytes.0.len() as u64, data: data.clone() });
        (next, ValueData { id: data, meta: Meta::default(), of: self.id.clone(), bytes })
    }
}

/// A secret or config that a stack file declares, with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackValue {
    /// Whether it is a secret.
    pub kind: ValueKind,
    /// Its full name and its labels.
    pub spec: ValueSpec,
    /// The bytes.
    pub bytes: ValueBytes,
}

/// The bytes of one version of a secret or config. No request of users returns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueData {
    /// Identifier of this object.
    pub id: ValueDataId,
    /// Times and version.
    pub meta: Meta,
    /// The secret or config.
    pub of: ValueId,
    /// The bytes.
    pub bytes: ValueBytes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::StoreObject;

    #[test]
    fn no_form_for_people_shows_the_bytes() {
        let secret = StoredSecret { id: "s".into(), ..StoredSecret::default() };
        let (secret, data) = secret.with_version("d".into(), b"hunter2".to_vec().into());
        let shown = format!("{secret:?} {data:?} {:?}", data.clone().into_object());
        assert!(shown.contains("[redacted]") && !shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
        let json = serde_json::to_string(&secret).expect("it can be written");
        assert!(json.contains("\"size\":7") && !json.contains("hunter2"), "{json}");
    }

    #[test]
    fn versions_count_on_although_older_ones_are_dropped() {
        let config = StoredConfig::default();
        let (mut config, _) = config.with_version("a".into(), ValueBytes::default());
        config = config.with_version("b".into(), ValueBytes::default()).0;
        config.versions.remove(0);
        config = config.with_version("c".into(), ValueBytes::default()).0;
        let versions: Vec<_> = config.versions.iter().map(|it| (it.number, it.data.as_str())).collect();
        assert_eq!(versions, [(2, "b"), (3, "c")]);
        assert_eq!(config.newest().map(|it| it.number), Some(3));
        assert_eq!(config.version(1), None);
    }
}
