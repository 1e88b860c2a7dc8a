//! Chooses the control groups of a new container, and their limits.

use crate::cgroup::{self, Groups, Scope};
use crate::error::{Act, StepError};
use crate::oci::{DeviceRule, Resources, Spec};

/// How a container's control groups are chosen.
#[derive(Clone, Debug)]
pub enum GroupChoice {
    /// They are those of `linux.cgroupsPath`.
    Configured,
    /// They are those of a scope of systemd that `linux.cgroupsPath` describes.
    Systemd,
    /// They are these, whatever the configuration says.
    Given(Groups),
    /// There are none: the container stays in the caller's groups, without limits.
    None,
}

impl GroupChoice {
    /// Returns the groups of the container with this configuration and id, and the scope that systemd starts for them.
    pub(super) fn choose(&self, spec: &Spec, id: &str) -> Result<(Groups, Option<Scope>), StepError> {
        let hierarchies = || cgroup::hierarchies().act(|| "read the cgroup hierarchies".into());
        let path = spec.linux().cgroups_path.as_deref();
        Ok(match self {
            Self::Given(groups) => (groups.clone(), None),
            Self::None => (Groups::default(), None),
            Self::Configured => (Groups::new(&hierarchies()?, path, id)?, None),
            Self::Systemd => {
                let scope = Scope::new(path, id)?;
                (scope.groups(&hierarchies()?), Some(scope))
            }
        })
    }

    /// Returns the container's limits. The default devices are always allowed, because a container can't work without
    /// them. Without rules of its own it has no others, unless a user runs it, who can't set any and reaches no device by it.
    pub(super) fn resources(&self, spec: &Spec) -> Resources {
        if matches!(self, Self::None) {
            return Resources::default();
        }
        let mut resources = spec.linux().resources.clone().unwrap_or_default();
        if resources.devices.is_empty() && is_machines_root() {
            resources.devices.push(DeviceRule { access: "rwm".into(), ..DeviceRule::default() });
        }
        if !resources.devices.is_empty() {
            resources.devices.extend(cgroup::default_device_rules());
        }
        resources
    }
}

/// Whether this process is root, and not that of a user namespace.
fn is_machines_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    nix::unistd::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}
