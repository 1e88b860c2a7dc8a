//! Devices: those that a spec names by path, and those that nodes hand out by id.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::cdi::{CdiName, CdiNameError};
use crate::naming::{self, PathError};

/// Permissions of a mapping that gives none: read, write and mknod.
pub const DEVICE_PERMISSIONS: &str = "rwm";

/// A device of the node, by path, and its path in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceMapping {
    /// Path on the node.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Permissions, each of `r`, `w` and `m` at most once.
    pub permissions: String,
}

/// Why a device mapping is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The text does not have the form of a device mapping.
    #[error("`{0}`: a device has the form SOURCE[:TARGET[:PERMISSIONS]]")]
    Form(String),
    /// The path on the node or the path in the container is illegal.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The permissions contain something other than `r`, `w` and `m`.
    #[error("`{0}`: permissions are some of the letters r, w and m, each once")]
    Permissions(String),
}

impl DeviceMapping {
    /// Fills in omitted parts: the target defaults to the source, and the permissions to all.
    #[must_use]
    pub fn complete(mut self) -> Self {
        if self.target.is_empty() {
            self.target.clone_from(&self.source);
        }
        if self.permissions.is_empty() {
            DEVICE_PERMISSIONS.clone_into(&mut self.permissions);
        }
        self
    }

    /// Checks the paths and permissions.
    ///
    /// # Errors
    /// A rule is broken; the error names it.
    pub fn check(&self) -> Result<(), DeviceError> {
        naming::check_path(&self.source)?;
        naming::check_path(&self.target)?;
        if !are_permissions(&self.permissions) {
            return Err(DeviceError::Permissions(self.permissions.escape_debug().to_string()));
        }
        Ok(())
    }
}

impl FromStr for DeviceMapping {
    type Err = DeviceError;

    /// Parses Docker's `--device` grammar, in which a second part that has the form of permissions is taken as such.
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, permissions) = match parts.as_slice() {
            [source] => (*source, "", ""),
            [source, permissions] if are_permissions(permissions) => (*source, "", *permissions),
            [source, target] => (*source, *target, ""),
            [source, target, permissions] if !permissions.is_empty() => (*source, *target, *permissions),
            _ => return Err(DeviceError::Form(text.escape_debug().to_string())),
        };
        if parts.len() > 1 && parts[1].is_empty() {
            return Err(DeviceError::Form(text.escape_debug().to_string()));
        }
        let mapping =
            Self { source: source.to_owned(), target: target.to_owned(), permissions: permissions.to_owned() }
                .complete();
        mapping.check().map(|()| mapping)
    }
}

fn are_permissions(text: &str) -> bool {
    let once = |(index, letter): (usize, char)| DEVICE_PERMISSIONS.contains(letter) && !text[..index].contains(letter);
    !text.is_empty() && text.char_indices().all(once)
}

/// A device as users name it where Docker has one flag for both: by a path, or by the name of a CDI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedDevice {
    /// By a path of the node.
    Path(DeviceMapping),
    /// By the name of a CDI device.
    Cdi(CdiName),
}

/// Why a [`NamedDevice`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NamedDeviceError {
    /// It is a path.
    #[error(transparent)]
    Path(#[from] DeviceError),
    /// It is a name.
    #[error(transparent)]
    Cdi(#[from] CdiNameError),
}

impl FromStr for NamedDevice {
    type Err = NamedDeviceError;

    /// Parses Docker's `--device` grammar. A path of a node begins with a slash, and the name of a CDI device does not.
    fn from_str(text: &str) -> Result<Self, NamedDeviceError> {
        if text.contains('=') && !text.starts_with('/') {
            return Ok(Self::Cdi(text.parse()?));
        }
        Ok(Self::Path(text.parse()?))
    }
}

/// A number of devices of one kind that a task needs; the scheduler chooses which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GenericResource {
    /// Kind of the devices, such as `gpu`.
    pub kind: String,
    /// Number of devices, at least one.
    pub count: u64,
}

/// Why a generic resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenericResourceError {
    /// The text does not have the form of a generic resource.
    #[error("`{0}`: a generic resource has the form KIND=COUNT")]
    Form(String),
    /// The kind is illegal.
    #[error(transparent)]
    Kind(#[from] naming::NameError),
    /// The count is zero.
    #[error("the count of `{0}` is 0")]
    Zero(String),
}

impl GenericResource {
    /// Checks kind and count.
    ///
    /// # Errors
    /// A rule is broken; the error names it.
    pub fn check(&self) -> Result<(), GenericResourceError> {
        naming::check(&self.kind)?;
        if self.count == 0 { Err(GenericResourceError::Zero(self.kind.clone())) } else { Ok(()) }
    }
}

impl FromStr for GenericResource {
    type Err = GenericResourceError;

    /// Parses `KIND=COUNT`, such as `gpu=2`. Docker also accepts a name in place of the count, but refuses it for
    /// services.
    fn from_str(text: &str) -> Result<Self, GenericResourceError> {
        let form = || GenericResourceError::Form(text.escape_debug().to_string());
        let (kind, count) = text.split_once('=').ok_or_else(form)?;
        let resource = Self { kind: kind.to_owned(), count: count.parse().map_err(|_| form())? };
        resource.check().map(|()| resource)
    }
}

/// A device that a node gives to one task at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDevice {
    /// Kind that specs request, such as `gpu`.
    pub kind: String,
    /// Identifier, unique among the node's devices of its kind. If it is the name of a CDI device, a task gets that device.
    pub id: String,
    /// Paths that a task gets with the device; several devices may share a path.
    pub paths: Vec<String>,
}

/// The identity of one device of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceId {
    /// Kind of the device.
    pub kind: String,
    /// Identifier among the devices of that kind.
    pub id: String,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.id)
    }
}

impl NodeDevice {
    /// Returns the identity of the device.
    pub fn device_id(&self) -> DeviceId {
        DeviceId { kind: self.kind.clone(), id: self.id.clone() }
    }

    /// Returns the CDI device that a task gets with this one, if the id is the name of one.
    pub fn cdi_name(&self) -> Option<CdiName> {
        self.id.parse().ok()
    }

    /// Returns whether `device` identifies this device.
    pub fn is(&self, device: &DeviceId) -> bool {
        self.kind == device.kind && self.id == device.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_mappings_are_read_as_docker_reads_them() {
        let parts = |text: &str| {
            let it: DeviceMapping = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            format!("{} {} {}", it.source, it.target, it.permissions)
        };
        assert_eq!(parts("/dev/fuse"), "/dev/fuse /dev/fuse rwm");
        assert_eq!(parts("/dev/fuse:/dev/x"), "/dev/fuse /dev/x rwm");
        assert_eq!(parts("/dev/fuse:r"), "/dev/fuse /dev/fuse r");
        assert_eq!(parts("/dev/fuse:/dev/x:mr"), "/dev/fuse /dev/x mr");
        for bad in [
            "",
            ":",
            "dev/fuse",
            "/dev/fuse:x",
            "/dev/fuse:",
            "/dev/fuse::r",
            "/dev/fuse:/x:",
            "/dev/fuse:/x:rr",
            "/dev/fuse:/x:q",
            "/dev/fuse:/x:r:w",
            "/dev/../etc/shadow",
            "/dev//fuse",
            "/",
            "vendor.com/gpu=all",
        ] {
            assert!(bad.parse::<DeviceMapping>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_flag_takes_paths_and_names() {
        let parsed = |text: &str| text.parse::<NamedDevice>();
        assert_eq!(parsed("/dev/x=1"), Ok(NamedDevice::Path("/dev/x=1".parse().expect("a path"))));
        assert_eq!(parsed("v.com/c=n"), Ok(NamedDevice::Cdi("v.com/c=n".parse().expect("a name"))));
        let error = |text: &str| parsed(text).expect_err(text).to_string();
        assert_eq!(error("fuse"), "`fuse` is not an absolute path");
        assert!(error("v.com/c=").contains("the name of a CDI device"));
    }

    #[test]
    fn generic_resources_are_a_kind_and_a_count() {
        assert_eq!("gpu=2".parse(), Ok(GenericResource { kind: "gpu".into(), count: 2 }));
        for bad in ["", "gpu", "gpu=", "=1", "gpu=0", "gpu=-1", "gpu=UUID-1", "g/pu=1", "gpu=1=2"] {
            assert!(bad.parse::<GenericResource>().is_err(), "{bad}");
        }
    }
}
