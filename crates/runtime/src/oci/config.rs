//! The top level of `config.json` (config.md).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{IdMapping, Linux, Process, or_default};

/// A container as its bundle describes it. Unknown keys are ignored, as the specification asks ("Extensibility").
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Version of the specification, in SemVer.
    pub oci_version: String,
    /// The program to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Host name; needs a UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name; needs a UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Mounts, in the order in which they are mounted.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Programs that run at certain points of the container's life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Annotations, which the runtime does not interpret.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Settings that are specific to Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

impl Spec {
    /// Returns the Linux section, or an empty one if there is none.
    pub fn linux(&self) -> &Linux {
        static NONE: std::sync::LazyLock<Linux> = std::sync::LazyLock::new(Linux::default);
        self.linux.as_ref().unwrap_or(&NONE)
    }
}

/// The root file system (config.md, "Root").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Root {
    /// Path, absolute or relative to the bundle.
    pub path: PathBuf,
    /// Whether it is mounted read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub readonly: bool,
}

/// A mount (config.md, "Mounts").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Path in the container.
    pub destination: PathBuf,
    /// Type of the file system; ignored for a bind mount.
    #[serde(rename = "type", deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Device, or the path to bind (absolute, or relative to the bundle).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Options as for mount(8).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// User ids of an id-mapped mount.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of an id-mapped mount.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
}

/// Hooks by the time at which they run (config.md, "POSIX-platform Hooks").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Deprecated hooks that run before `createRuntime`, in the runtime's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// Hooks that run after the namespaces are created and before the root is changed, in the runtime's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// Hooks that run after the namespaces are created and before the root is changed, in the container's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// Hooks that run before the program, in the container's root.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// Hooks that run after the start of the program, in the runtime's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// Hooks that run after the container is deleted, in the runtime's namespaces.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// A hook program. It gets the container's state on standard input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Arguments, including the program's name.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The whole environment of the program.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Timeout in seconds; above zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}
