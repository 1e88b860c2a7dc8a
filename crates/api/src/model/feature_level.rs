//! The feature levels that specs and descriptions of nodes need.

use crate::{LEVEL_OF_FILE_SYSTEMS, LEVEL_OF_TMPFS_OWNERS, LEVEL_OF_USER_NAMESPACES};

use super::{LogSpec, Mount, MountSource, NodeDescription, ServiceSpec, StackSpec, VolumeSpec};

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
        let has_file_system = |mount: &Mount| match &mount.source {
            MountSource::Volume(it) => it.file_system.is_some(),
            MountSource::Bind(_) | MountSource::Tmpfs(_) | MountSource::Image { .. } => false,
        };
        match () {
            () if self.mounts.iter().any(has_file_system) => LEVEL_OF_FILE_SYSTEMS,
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

impl NodeDescription {
    /// The lowest feature level of managers that store all of the description.
    pub fn needed_level(&self) -> u32 {
        if self.allow.file_systems.is_empty() { 0 } else { LEVEL_OF_FILE_SYSTEMS }
    }

    /// Returns the description without what managers of this level do not store.
    pub fn at_level(mut self, level: u32) -> Self {
        if level < LEVEL_OF_FILE_SYSTEMS {
            self.allow.file_systems.clear();
        }
        self
    }
}

impl VolumeSpec {
    /// The lowest feature level of a node that knows all of the spec. An older one would take it for a folder.
    pub fn feature_level(&self) -> u32 {
        if self.file_system.is_some() { LEVEL_OF_FILE_SYSTEMS } else { 0 }
    }
}

impl StackSpec {
    /// The lowest feature level at which all of the spec is known.
    pub fn feature_level(&self) -> u32 {
        let of_services = self.services.iter().map(ServiceSpec::feature_level);
        of_services.chain(self.volumes.iter().map(VolumeSpec::feature_level)).max().unwrap_or_default()
    }
}
