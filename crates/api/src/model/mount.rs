//! Mounts: what of a node, or of memory, the tasks of a service see at a path of their own.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use serde::Serialize;

use super::{FileSystem, volume};
use crate::image_ref::ImageRef;
use crate::naming::{self, PathError};
use crate::state::states;

/// Bits of a mode that a tmpfs may have: permissions, set-id bits and the sticky bit.
const MODE_BITS: u32 = 0o7777;

states! {
    /// Whether mounts that are made below a bind mount later appear on its other side (mount_namespaces(7)).
    #[derive(Default)]
    Propagation {
        /// On neither side, for all mounts in the source.
        #[default]
        Rprivate = "rprivate",
        /// On neither side, for the source itself.
        Private = "private",
        /// On both sides, for all mounts in the source.
        Rshared = "rshared",
        /// On both sides, for the source itself.
        Shared = "shared",
        /// In the container, for all mounts in the source.
        Rslave = "rslave",
        /// In the container, for the source itself.
        Slave = "slave",
    }
}

/// A mount of the tasks of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Path in the container; one mount of a service has it.
    pub target: String,
    /// Whether programs can't write to it. It is always set for an image.
    pub read_only: bool,
    /// What is mounted.
    #[serde(flatten)]
    pub source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum MountSource {
    /// A file or folder of the node.
    Bind(BindMount),
    /// A folder that the cluster keeps for the service.
    Volume(VolumeMount),
    /// Memory.
    Tmpfs(TmpfsMount),
    /// The files of an image.
    Image {
        /// Reference of the image, as that of a service's own image.
        reference: String,
        /// The file or folder of the image that is mounted, as a path without a leading `/`; all of it if `None`.
        subpath: Option<String>,
    },
}

/// A mount of memory (tmpfs(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TmpfsMount {
    /// Most bytes that it can hold; half of the node's memory if `None`.
    pub size: Option<NonZeroU64>,
    /// Mode of its root; 1777 if `None`.
    pub mode: Option<u32>,
    /// User that owns its root, as the container sees it; root if `None`.
    pub uid: Option<u32>,
    /// Group of its root, as the container sees it; root's if `None`.
    pub gid: Option<u32>,
    /// Whether programs on it can be executed.
    pub exec: bool,
}

/// A mount of a file or folder of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BindMount {
    /// Path on the node.
    pub source: String,
    /// Whether later mounts below it appear on the other side.
    pub propagation: Propagation,
    /// Whether file systems that are mounted in the source stay out.
    pub non_recursive: bool,
    /// Whether a source that is missing is made, as an empty folder of the node's root user.
    pub create_source: bool,
}

/// A mount of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of the volume; without one, the folder belongs to one start of one task.
    pub name: Option<String>,
    /// Whether a new volume stays empty, instead of getting what the image has at the target.
    pub no_copy: bool,
    /// Whether a volume that does not exist yet is created with data of its own for each slot.
    pub per_slot: bool,
    /// Labels of a volume that does not exist yet.
    pub labels: BTreeMap<String, String>,
    /// The file system that a volume is which does not exist yet.
    pub file_system: Option<FileSystem>,
    /// The file or folder of the volume that is mounted, as a path without a leading `/`; all of it if `None`.
    pub subpath: Option<String>,
}

impl Mount {
    /// Returns the name of its volume, if it has one.
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            MountSource::Volume(it) => it.name.as_deref(),
            MountSource::Bind(_) | MountSource::Tmpfs(_) | MountSource::Image { .. } => None,
        }
    }

    /// Returns the path on the node, if it is a bind mount.
    pub fn bind_source(&self) -> Option<&str> {
        match &self.source {
            MountSource::Bind(it) => Some(&it.source),
            MountSource::Volume(_) | MountSource::Tmpfs(_) | MountSource::Image { .. } => None,
        }
    }

    /// Returns the reference of its image, if it is a mount of one.
    pub fn image(&self) -> Option<&str> {
        match &self.source {
            MountSource::Image { reference, .. } => Some(reference),
            MountSource::Bind(_) | MountSource::Volume(_) | MountSource::Tmpfs(_) => None,
        }
    }

    /// Returns the mount without what only matters for a volume that does not exist yet.
    pub(super) fn as_tasks_see_it(&self) -> Self {
        let mut mount = self.clone();
        if let MountSource::Volume(it) = &mut mount.source {
            (it.per_slot, it.labels, it.file_system) = (false, BTreeMap::new(), None);
        }
        mount
    }

    /// Returns every rule that it breaks, as a field and what is wrong with it.
    pub fn violations(&self) -> Vec<(&'static str, String)> {
        let target = check_target(&self.target).err().map(|why| ("target", why));
        let source = match &self.source {
            MountSource::Bind(it) if it.source == "/" => None,
            MountSource::Bind(it) => naming::check_path(&it.source).err().map(|error| ("source", error.to_string())),
            MountSource::Volume(_) => None,
            MountSource::Tmpfs(TmpfsMount { mode: Some(mode), .. }) if mode & !MODE_BITS != 0 => {
                Some(("tmpfs_mode", format!("{mode:o} is not a mode such as 1777")))
            }
            // The kernel takes the last number for no owner at all.
            MountSource::Tmpfs(TmpfsMount { uid: Some(u32::MAX), .. }) => {
                Some(("tmpfs_uid", format!("{} is the number of no user", u32::MAX)))
            }
            MountSource::Tmpfs(TmpfsMount { gid: Some(u32::MAX), .. }) => {
                Some(("tmpfs_gid", format!("{} is the number of no group", u32::MAX)))
            }
            MountSource::Image { reference, .. } => {
                ImageRef::parse(reference).err().map(|error| ("source", error.to_string()))
            }
            MountSource::Tmpfs(_) => None,
        };
        let of_volume = match &self.source {
            MountSource::Volume(it) => it.violations(),
            MountSource::Bind(_) | MountSource::Tmpfs(_) | MountSource::Image { .. } => Vec::new(),
        };
        target.into_iter().chain(source).chain(of_volume).chain(self.violations_of_image()).collect()
    }

    /// Returns the rules that only a mount of an image breaks.
    fn violations_of_image(&self) -> impl Iterator<Item = (&'static str, String)> {
        let (is_writable, subpath) = match &self.source {
            MountSource::Image { subpath, .. } => (!self.read_only, subpath.as_deref()),
            MountSource::Bind(_) | MountSource::Volume(_) | MountSource::Tmpfs(_) => (false, None),
        };
        let is_writable = is_writable.then(|| ("read_only", "an image is always mounted read-only".to_owned()));
        let subpath = subpath.and_then(|it| check_subpath(it, "image").err()).map(|why| ("image_subpath", why));
        is_writable.into_iter().chain(subpath)
    }
}

impl VolumeMount {
    /// Returns every rule that it breaks, as a field and what is wrong with it.
    fn violations(&self) -> Vec<(&'static str, String)> {
        let Some(name) = &self.name else {
            let of_named = [
                ("volume_per_slot", self.per_slot),
                ("volume_label", !self.labels.is_empty()),
                ("volume_opt", self.file_system.is_some()),
                ("volume_subpath", self.subpath.is_some()),
            ];
            let why = "a volume without a name belongs to one task alone";
            return of_named
                .into_iter()
                .filter(|(_, given)| *given)
                .map(|(field, _)| (field, why.to_owned()))
                .collect();
        };
        let name = volume::check_name(name).err().map(|error| ("source", error.to_string()));
        let label = self.labels.keys().any(String::is_empty).then(|| ("volume_label", "a key is empty".to_owned()));
        let subpath = self.subpath.as_deref().and_then(|it| check_subpath(it, "volume").err());
        let file_system = self.file_system.as_ref().and_then(|it| it.check().err()).map(|why| ("volume_opt", why));
        let is_divided = self.file_system.is_some() && self.per_slot;
        let per_slot = is_divided.then(|| ("volume_per_slot", volume::NOT_PER_SLOT.to_owned()));
        let subpath = subpath.map(|why| ("volume_subpath", why));
        name.into_iter().chain(label).chain(subpath).chain(file_system).chain(per_slot).collect()
    }
}

/// Refuses a path in an image or a volume that is not one of its own files and folders.
fn check_subpath(subpath: &str, whole: &str) -> Result<(), String> {
    if subpath.starts_with('/') {
        return Err(format!("`{subpath}` begins with `/`: it is relative to the root of the {whole}"));
    }
    // The rule for absolute paths holds for the rest.
    let is_good = !subpath.is_empty() && naming::check_path(&format!("/{subpath}")).is_ok();
    is_good.then_some(()).ok_or_else(|| format!("`{subpath}`: a path has neither `.` nor `..` nor empty parts"))
}

/// Refuses targets that lead elsewhere than they look, and those without which no program runs.
fn check_target(target: &str) -> Result<(), String> {
    match target {
        "/" => return Err("a mount can't hide the whole root".into()),
        "/proc" | "/sys" | "/dev" => return Err(format!("`{target}` belongs to the runtime")),
        _ if target.starts_with("/proc/") => return Err("no mount can be below `/proc`".into()),
        _ => {}
    }
    naming::check_path(target).map_err(|error: PathError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceSpec;

    fn mount(target: &str, source: MountSource) -> Mount {
        Mount { target: target.into(), read_only: false, source }
    }

    fn bind(source: &str) -> MountSource {
        MountSource::Bind(BindMount { source: source.into(), ..BindMount::default() })
    }

    fn volume(name: Option<&str>, per_slot: bool) -> MountSource {
        MountSource::Volume(VolumeMount { name: name.map(str::to_owned), per_slot, ..VolumeMount::default() })
    }

    fn tmpfs(mode: u32) -> MountSource {
        MountSource::Tmpfs(TmpfsMount { mode: Some(mode), ..TmpfsMount::default() })
    }

    fn image(reference: &str, subpath: Option<&str>) -> Mount {
        let source = MountSource::Image { reference: reference.into(), subpath: subpath.map(str::to_owned) };
        Mount { read_only: true, ..mount("/x", source) }
    }

    #[test]
    fn what_is_said_of_a_volume_that_is_new_is_no_matter_of_tasks() {
        let spec = |labels: &[&str], subpath: Option<&str>| {
            let labels = labels.iter().map(|key| ((*key).to_owned(), String::new())).collect();
            let (name, subpath) = (Some("db".to_owned()), subpath.map(str::to_owned));
            let source = MountSource::Volume(VolumeMount { name, labels, subpath, ..VolumeMount::default() });
            ServiceSpec { mounts: vec![mount("/x", source)], ..ServiceSpec::default() }
        };
        assert!(spec(&["a"], None).same_task(&spec(&["b"], None)));
        assert!(!spec(&["a"], None).same_task(&spec(&["a"], Some("c"))));
    }

    #[test]
    fn mounts_that_can_be_meant_are_accepted() {
        for good in [
            mount("/data", volume(Some("db"), false)),
            mount("/data", volume(Some("shop_db.1-a"), true)),
            mount("/data", volume(None, false)),
            mount("/dev/shm", tmpfs(0o1777)),
            mount("/etc/hosts", bind("/srv/hosts")),
            mount("/sys/fs/cgroup", bind("/")),
            image("data", None),
            image("example.org/team/data:1", Some("models/small")),
        ] {
            assert_eq!(good.violations(), [], "{good:?}");
        }
    }

    #[test]
    fn every_violation_of_a_mount_is_named_with_its_field() {
        let nobodys = MountSource::Tmpfs(TmpfsMount { gid: Some(u32::MAX), ..TmpfsMount::default() });
        for (bad, expected) in [
            (mount("/", volume(Some("db"), false)), "target: a mount can't hide the whole root"),
            (mount("", tmpfs(0)), "target: `` is not an absolute path"),
            (mount("data", tmpfs(0)), "target: `data` is not an absolute path"),
            (mount("/a/../b", tmpfs(0)), "target: `/a/../b`: a path has neither `.` nor `..` nor empty parts"),
            (mount("/a/", tmpfs(0)), "target: `/a/`: a path has neither `.` nor `..` nor empty parts"),
            (mount("/proc", tmpfs(0)), "target: `/proc` belongs to the runtime"),
            (mount("/proc/sys", tmpfs(0)), "target: no mount can be below `/proc`"),
            (mount("/x", tmpfs(0o10_000)), "tmpfs_mode: 10000 is not a mode such as 1777"),
            (mount("/x", nobodys), "tmpfs_gid: 4294967295 is the number of no group"),
            (mount("/x", bind("srv")), "source: `srv` is not an absolute path"),
            (
                mount("/x", bind("/srv/../etc")),
                "source: `/srv/../etc`: a path has neither `.` nor `..` nor empty parts",
            ),
            (mount("/x", volume(None, true)), "volume_per_slot: a volume without a name belongs to one task alone"),
            (Mount { read_only: false, ..image("data", None) }, "read_only: an image is always mounted read-only"),
            (
                image("data", Some("/models")),
                "image_subpath: `/models` begins with `/`: it is relative to the root of the image",
            ),
            (
                image("data", Some("a/../../b")),
                "image_subpath: `a/../../b`: a path has neither `.` nor `..` nor empty parts",
            ),
            (image("data", Some("")), "image_subpath: ``: a path has neither `.` nor `..` nor empty parts"),
        ] {
            let found: Vec<String> = bad.violations().iter().map(|(field, why)| format!("{field}: {why}")).collect();
            assert_eq!(found, [expected], "{bad:?}");
        }
        assert_eq!(mount("x", volume(Some(".."), false)).violations().len(), 2, "both are named");
        let fields = |it: &Mount| it.violations().into_iter().map(|(field, _)| field).collect::<Vec<_>>();
        assert_eq!(fields(&image("Bad Name", Some("/"))), ["source", "image_subpath"]);
    }
}
