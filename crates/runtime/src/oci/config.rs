//! The top of `config.json` (config.md).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{IdMapping, Linux, Process, or_default};

/// A container as its bundle describes it. Unknown keys are ignored, as the specification asks ("Extensibility").
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Of the specification, as SemVer.
    pub oci_version: String,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Host name; needs a UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Mounted in this order.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Programs that are run at certain points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// For others.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What is Linux's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

impl Spec {
    /// The Linux section; an empty one where there is none.
    pub fn linux(&self) -> &Linux {
        static NONE: std::sync::LazyLock<Linux> = std::sync::LazyLock::new(Linux::default);
        self.linux.as_ref().unwrap_or(&NONE)
    }
}

/// config.md, "Root".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether it is mounted read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub readonly: bool,
}

/// config.md, "Mounts".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// In the container.
    pub destination: PathBuf,
    /// File system; unused for a bind mount.
    #[serde(rename = "type", deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Device, or what is bound (absolute, or relative to the bundle).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// As for mount(8).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// For an id-mapped mount.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// Likewise.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
}

/// config.md, "POSIX-platform Hooks".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Deprecated; runs before `createRuntime`, in the runtime's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// Namespaces are made, the root is not yet changed; in the runtime's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// Likewise, in the container's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// Before the program, in the container's root.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// The program runs; in the runtime's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// The container is deleted; likewise.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// One program. It gets the container's state on standard input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    /// Absolute.
    pub path: PathBuf,
    /// With the program's name first.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds; above zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}
