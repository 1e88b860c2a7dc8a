//! The feature level that a spec needs.

use crate::{LEVEL_OF_TMPFS_OWNERS, LEVEL_OF_USER_NAMESPACES};

use super::{LogSpec, Mount, MountSource, ServiceSpec};

impl ServiceSpec {
    /// The lowest feature level of a node that knows all of the spec. An older one would start the task without the rest.
    pub fn feature_level(&self) -> u32 {
        let has_settings = self.read_only
            || self.tty
            || self.shm_size.is_some()
            || !self.ulimits.is_empty()
            || !self.sysctls.is_empty()
            || !self.groups.is_empty()
            || self.memory_swap.is_some()
            || self.oom_score_adj.is_some()
            || self.log != LogSpec::default();
        // The leader creates volumes with their labels; nodes do not know these.
        let has_part = |mount: &Mount| match &mount.source {
            MountSource::Bind(it) => it.create_source,
            MountSource::Volume(it) => it.subpath.is_some(),
            MountSource::Tmpfs(_) | MountSource::Image { .. } => false,
        };
        let has_owner = |mount: &Mount| match &mount.source {
            MountSource::Tmpfs(it) => it.uid.is_some() || it.gid.is_some() || it.exec,
            MountSource::Bind(_) | MountSource::Volume(_) | MountSource::Image { .. } => false,
        };
        match () {
            () if self.mounts.iter().any(has_owner) => LEVEL_OF_TMPFS_OWNERS,
            () if self.user_namespace => LEVEL_OF_USER_NAMESPACES,
            () if self.mounts.iter().any(has_part) => 5,
            () if self.mounts.iter().any(|it| Mount::image(it).is_some()) => 4,
            () if self.values().next().is_some() => 3,
            () if has_settings || !self.mounts.is_empty() => 2,
            () => 0,
        }
    }
}
