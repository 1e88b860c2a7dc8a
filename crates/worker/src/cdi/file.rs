//! One file of the Container Device Interface: its format, and the rules that it must keep. A file that breaks one is
//! refused as a whole. The format is that of the specification and of `specs-go/config.go` of
//! <https://github.com/cncf-tags/container-device-interface>.

use std::collections::BTreeMap;

use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, de::DeserializeOwned};

use flota_api::model::CdiName;

use super::yaml;

/// The versions of the interface that are read.
const VERSIONS: [&str; 7] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];
/// The points of a container's life at which a hook can run.
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// The permissions of a device node that has none.
const NO_PERMISSIONS: &str = "none";

/// The encoding of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Yaml,
}

/// A file that keeps the rules.
#[derive(Clone, Debug, Default)]
pub(super) struct CdiFile {
    /// The edits for every container that gets a device of the file.
    pub(super) edits: ContainerEdits,
    /// The edits of each device.
    pub(super) devices: BTreeMap<CdiName, ContainerEdits>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFile {
    cdi_version: String,
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    devices: Vec<RawDevice>,
    #[serde(default, deserialize_with = "or_default")]
    container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawDevice {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    container_edits: ContainerEdits,
}

/// Changes of a container's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct ContainerEdits {
    #[serde(deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "or_default")]
    pub(super) mounts: Vec<CdiMount>,
    #[serde(deserialize_with = "or_default")]
    pub(super) hooks: Vec<CdiHook>,
    /// Only whether there are settings of Intel RDT is of interest.
    pub(super) intel_rdt: Option<IgnoredAny>,
    // The specification has both spellings, and Go's reader takes both.
    #[serde(alias = "additionalGIDs", deserialize_with = "or_default")]
    pub(super) additional_gids: Vec<u32>,
}

/// A device node. What it does not say is taken from the node's own device at `host_path`, or else at `path`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) host_path: String,
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub(super) kind: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) major: i64,
    #[serde(deserialize_with = "or_default")]
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    #[serde(deserialize_with = "or_default")]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct CdiMount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub(super) kind: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct CdiHook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

/// Deserializes `null`, which Go writes for an empty list, as an absent field.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl CdiFile {
    /// Parses and checks the text of a file.
    pub(super) fn parse(text: &str, encoding: Encoding) -> Result<Self, String> {
        let raw: RawFile = match encoding {
            Encoding::Json => {
                let mut reader = serde_json::Deserializer::from_str(text);
                let raw = deserialized(&mut reader)?;
                reader.end().map_err(|error| error.to_string())?;
                raw
            }
            Encoding::Yaml => deserialized(yaml::parse(text)?)?,
        };
        raw.checked()
    }
}

fn deserialized<'de, T: DeserializeOwned, D: Deserializer<'de>>(from: D) -> Result<T, String>
where
    D::Error: std::fmt::Display,
{
    serde_path_to_error::deserialize(from).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.into_inner());
        if path == "." { error.to_string() } else { format!("{path}: {error}") }
    })
}

impl RawFile {
    fn checked(self) -> Result<CdiFile, String> {
        self.check_version()?;
        CdiName::check_kind(&self.kind).map_err(|error| format!("kind: {error}"))?;
        self.container_edits.check().map_err(|why| format!("containerEdits.{why}"))?;
        let mut devices = BTreeMap::new();
        for (index, device) in self.devices.into_iter().enumerate() {
            let at = |why: String| format!("devices[{index}].{why}");
            let name = CdiName::new(&self.kind, &device.name).map_err(|error| at(format!("name: {error}")))?;
            if device.container_edits.is_empty() {
                return Err(at("containerEdits: there are none".to_owned()));
            }
            device.container_edits.check().map_err(|why| at(format!("containerEdits.{why}")))?;
            if devices.insert(name.clone(), device.container_edits).is_some() {
                return Err(format!("devices: `{name}` is there twice"));
            }
        }
        if devices.is_empty() {
            return Err("devices: there are none".to_owned());
        }
        Ok(CdiFile { edits: self.container_edits, devices })
    }

    /// Checks that the version is known, and that every part of the file is known to that version.
    fn check_version(&self) -> Result<(), String> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let rank = |text: &str| VERSIONS.iter().position(|it| *it == text);
        let given = rank(version).ok_or_else(|| {
            format!("cdiVersion: `{}` is none of {}", self.cdi_version.escape_debug(), VERSIONS.join(", "))
        })?;
        let (needed, part) = self.needed_version();
        if rank(needed).is_some_and(|needed| given < needed) {
            return Err(format!("cdiVersion: it is {version}, and {part} needs at least {needed}"));
        }
        Ok(())
    }

    /// Returns the lowest version that knows every part of the file, and the part that needs it.
    fn needed_version(&self) -> (&'static str, &'static str) {
        let all = || std::iter::once(&self.container_edits).chain(self.devices.iter().map(|it| &it.container_edits));
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let is_annotated = !self.annotations.is_empty() || self.devices.iter().any(|it| !it.annotations.is_empty());
        let has_digit_first = |it: &RawDevice| it.name.starts_with(|it: char| it.is_ascii_digit());
        let uses = [
            ("0.7.0", "intelRdt", all().any(|it| it.intel_rdt.is_some())),
            ("0.7.0", "additionalGids", all().any(|it| !it.additional_gids.is_empty())),
            ("0.6.0", "annotations", is_annotated),
            ("0.6.0", "a dot in the class", class.contains('.')),
            ("0.5.0", "a name that begins with a digit", self.devices.iter().any(has_digit_first)),
            (
                "0.5.0",
                "hostPath of a device node",
                all().flat_map(|it| &it.device_nodes).any(|it| !it.host_path.is_empty()),
            ),
            ("0.4.0", "type of a mount", all().flat_map(|it| &it.mounts).any(|it| !it.kind.is_empty())),
        ];
        let first = uses.into_iter().find(|(_, _, is_used)| *is_used);
        first.map_or((VERSIONS[0], "it"), |(version, part, _)| (version, part))
    }
}

impl ContainerEdits {
    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.mounts.is_empty()
            && self.hooks.is_empty()
            && self.intel_rdt.is_none()
            && self.additional_gids.is_empty()
    }

    fn check(&self) -> Result<(), String> {
        check_env(&self.env)?;
        for (index, node) in self.device_nodes.iter().enumerate() {
            node.check().map_err(|why| format!("deviceNodes[{index}].{why}"))?;
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            mount.check().map_err(|why| format!("mounts[{index}].{why}"))?;
        }
        for (index, hook) in self.hooks.iter().enumerate() {
            hook.check().map_err(|why| format!("hooks[{index}].{why}"))?;
        }
        Ok(())
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        check_path("path", &self.path)?;
        if !self.host_path.is_empty() {
            check_path("hostPath", &self.host_path)?;
        }
        if !["", "b", "c", "u", "p"].contains(&self.kind.as_str()) {
            return Err(format!("type: `{}` is none of b, c, u and p", self.kind.escape_debug()));
        }
        if self.permissions != NO_PERMISSIONS && self.permissions.chars().any(|it| !"rwm".contains(it)) {
            return Err(format!("permissions: `{}` has others than r, w and m", self.permissions.escape_debug()));
        }
        Ok(())
    }

    /// Returns what a container may do with the device: letters of `rwm`, none of them if nothing.
    pub(super) fn access(&self) -> &str {
        match self.permissions.as_str() {
            "" => "rwm",
            NO_PERMISSIONS => "",
            given => given,
        }
    }
}

impl CdiMount {
    fn check(&self) -> Result<(), String> {
        if self.host_path.is_empty() {
            return Err("hostPath: it is missing".to_owned());
        }
        check_path("containerPath", &self.container_path)
    }
}

impl CdiHook {
    fn check(&self) -> Result<(), String> {
        if !HOOKS.contains(&self.hook_name.as_str()) {
            return Err(format!("hookName: `{}` is none of {}", self.hook_name.escape_debug(), HOOKS.join(", ")));
        }
        check_path("path", &self.path)?;
        if self.timeout.is_some_and(|it| it <= 0) {
            return Err("timeout: it is not above zero".to_owned());
        }
        check_env(&self.env)
    }
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    match path {
        "" => Err(format!("{field}: it is missing")),
        path if path.starts_with('/') && !path.contains('\0') => Ok(()),
        path => Err(format!("{field}: `{}` is not an absolute path", path.escape_debug())),
    }
}

fn check_env(env: &[String]) -> Result<(), String> {
    let is_wrong = |(_, it): &(usize, &String)| it.find('=').is_none_or(|at| at == 0) || it.contains('\0');
    let wrong = env.iter().enumerate().find(is_wrong);
    let why = |(index, it): (usize, &String)| format!("env[{index}]: `{}` is not NAME=VALUE", it.escape_debug());
    wrong.map_or(Ok(()), |it| Err(why(it)))
}

#[cfg(test)]
mod tests;
