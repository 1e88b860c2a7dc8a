//! Chooses the control groups of a new container, and their limits.

use crate::cgroup::{self, Groups, Scope};
use crate::error::{Act, StepError};
use crate::oci::{Resources, Spec};

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
    /// them.
    pub(super) fn resources(&self, spec: &Spec) -> Resources {
        if matches!(self, Self::None) {
            return Resources::default();
        }
        let mut resources = spec.linux().resources.clone().unwrap_or_default();
        if !resources.devices.is_empty() {
            resources.devices.extend(cgroup::default_device_rules());
        }
        resources
    }
}
