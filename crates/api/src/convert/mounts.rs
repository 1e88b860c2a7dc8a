//! Conversion of mounts and volumes.

use std::num::NonZeroU64;

use super::{FromNumber, Malformed, filled, require};
use crate::model::{
    BindMount, FileSystem, Mount, MountSource, TaskVolume, TmpfsMount, Volume, VolumeAt, VolumeMount, VolumePlace,
    VolumeSpec,
};
use crate::proto::specs::mount::Source;
use crate::proto::{dispatcher as pd, objects as po, specs as ps};

impl From<&Mount> for ps::Mount {
    fn from(it: &Mount) -> Self {
        let source = match &it.source {
            MountSource::Bind(it) => Source::Bind(ps::BindMount {
                source: it.source.clone(),
                propagation: it.propagation.number(),
                non_recursive: it.non_recursive,
                create_source: it.create_source,
            }),
            MountSource::Volume(it) => Source::Volume(ps::VolumeMount {
                name: it.name.clone().unwrap_or_default(),
                no_copy: it.no_copy,
                per_slot: it.per_slot,
                labels: it.labels.clone().into_iter().collect(),
                subpath: it.subpath.clone().unwrap_or_default(),
                file_system: it.file_system.as_ref().map(Into::into),
            }),
            MountSource::Tmpfs(it) => Source::Tmpfs(ps::TmpfsMount {
                size: it.size.map_or(0, NonZeroU64::get),
                mode: it.mode,
                uid: it.uid,
                gid: it.gid,
                exec: it.exec,
            }),
            MountSource::Image { reference, subpath } => Source::Image(ps::ImageMount {
                reference: reference.clone(),
                subpath: subpath.clone().unwrap_or_default(),
            }),
        };
        Self { target: it.target.clone(), read_only: it.read_only, source: Some(source) }
    }
}

impl TryFrom<ps::Mount> for Mount {
    type Error = Malformed;
    fn try_from(it: ps::Mount) -> Result<Self, Malformed> {
        let source = match require(it.source, "mounts.source")? {
            Source::Bind(it) => MountSource::Bind(BindMount {
                source: it.source,
                propagation: FromNumber::from_number(it.propagation)?,
                non_recursive: it.non_recursive,
                create_source: it.create_source,
            }),
            Source::Volume(it) => MountSource::Volume(VolumeMount {
                name: filled(it.name),
                no_copy: it.no_copy,
                per_slot: it.per_slot,
                labels: it.labels.into_iter().collect(),
                subpath: filled(it.subpath),
                file_system: it.file_system.map(Into::into),
            }),
            Source::Tmpfs(it) => MountSource::Tmpfs(TmpfsMount {
                size: NonZeroU64::new(it.size),
                mode: it.mode,
                uid: it.uid,
                gid: it.gid,
                exec: it.exec,
            }),
            Source::Image(it) => MountSource::Image { reference: it.reference, subpath: filled(it.subpath) },
        };
        Ok(Self { target: it.target, read_only: it.read_only, source })
    }
}

impl From<&VolumeSpec> for ps::VolumeSpec {
    fn from(it: &VolumeSpec) -> Self {
        Self {
            name: it.name.clone(),
            labels: it.labels.clone().into_iter().collect(),
            per_slot: it.per_slot,
            file_system: it.file_system.as_ref().map(Into::into),
        }
    }
}

impl From<ps::VolumeSpec> for VolumeSpec {
    fn from(it: ps::VolumeSpec) -> Self {
        let ps::VolumeSpec { name, labels, per_slot, file_system } = it;
        Self { name, labels: labels.into_iter().collect(), per_slot, file_system: file_system.map(Into::into) }
    }
}

impl From<&FileSystem> for ps::FileSystem {
    fn from(it: &FileSystem) -> Self {
        Self { r#type: it.kind.clone(), device: it.device.clone(), options: it.options.clone() }
    }
}

impl From<ps::FileSystem> for FileSystem {
    fn from(it: ps::FileSystem) -> Self {
        Self { kind: it.r#type, device: it.device, options: it.options }
    }
}

impl From<&Volume> for po::Volume {
    fn from(it: &Volume) -> Self {
        let place = |it: &VolumePlace| po::VolumePlace { slot: it.slot, node_id: it.node_id.clone().into() };
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            spec: Some((&it.spec).into()),
            places: it.places.iter().map(place).collect(),
            stack_id: it.stack_id.clone().map(Into::into),
            removed: it.is_removed,
        }
    }
}

impl TryFrom<po::Volume> for Volume {
    type Error = Malformed;
    fn try_from(it: po::Volume) -> Result<Self, Malformed> {
        let place = |it: po::VolumePlace| VolumePlace { slot: it.slot, node_id: it.node_id.into() };
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            spec: require(it.spec, "volume.spec")?.into(),
            places: it.places.into_iter().map(place).collect(),
            stack_id: it.stack_id.map(Into::into),
            is_removed: it.removed,
        })
    }
}

impl From<&TaskVolume> for pd::TaskVolume {
    fn from(it: &TaskVolume) -> Self {
        let file_system = it.file_system.as_ref().map(Into::into);
        Self { name: it.name.clone(), id: it.id.clone().into(), slot: it.slot, file_system }
    }
}

impl From<pd::TaskVolume> for TaskVolume {
    fn from(it: pd::TaskVolume) -> Self {
        Self { name: it.name, id: it.id.into(), slot: it.slot, file_system: it.file_system.map(Into::into) }
    }
}

impl From<&VolumeAt> for po::VolumeAt {
    fn from(it: &VolumeAt) -> Self {
        Self { volume: it.volume.clone(), node: it.node.clone(), gone: it.is_gone }
    }
}

impl From<po::VolumeAt> for VolumeAt {
    fn from(it: po::VolumeAt) -> Self {
        Self { volume: it.volume, node: it.node, is_gone: it.gone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Propagation;

    #[test]
    fn mounts_survive_the_way_to_the_wire_and_back() {
        let bind = |propagation| {
            MountSource::Bind(BindMount {
                source: "/srv".into(),
                propagation,
                non_recursive: true,
                create_source: propagation == Propagation::Shared,
            })
        };
        let volume = |name: Option<&str>| {
            MountSource::Volume(VolumeMount {
                name: name.map(str::to_owned),
                no_copy: name.is_some(),
                per_slot: name.is_some(),
                labels: name.map(|it| (it.to_owned(), "b".to_owned())).into_iter().collect(),
                subpath: name.map(|it| format!("{it}/c")),
                file_system: name.map(|it| FileSystem::of("nfs", ":/srv", &format!("addr={it},ro")).expect("good")),
            })
        };
        let tmpfs = |size, mode: Option<u32>| {
            let (uid, gid, exec) = (mode, mode.map(|it| it + 1), mode.is_some());
            MountSource::Tmpfs(TmpfsMount { size: NonZeroU64::new(size), mode, uid, gid, exec })
        };
        let image = |subpath: Option<&str>| MountSource::Image {
            reference: "data:1".into(),
            subpath: subpath.map(str::to_owned),
        };
        let mut sources: Vec<MountSource> = Propagation::ALL.iter().copied().map(bind).collect();
        sources.extend([
            volume(Some("db")),
            volume(None),
            tmpfs(0, None),
            tmpfs(7, Some(0)),
            image(None),
            image(Some("a/b")),
        ]);
        for source in sources {
            let mount = Mount { target: "/x".into(), read_only: true, source };
            assert_eq!(Mount::try_from(ps::Mount::from(&mount)), Ok(mount));
        }
        let none = ps::Mount { target: "/x".into(), ..ps::Mount::default() };
        assert_eq!(Mount::try_from(none).expect_err("no source").field, "mounts.source");
    }
}
