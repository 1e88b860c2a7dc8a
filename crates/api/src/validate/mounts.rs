//! The rules for volumes, and for mounts: each by itself, and that no two have one target.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use crate::model::{FileSystem, MountSource, NOT_PER_SLOT, ServiceSpec, VolumeMount, VolumeSpec, check_volume_name};

/// The memory that programs of a task share (shm_overview(7)).
const SHARED_MEMORY: &str = "/dev/shm";

/// Largest number of mounts of a service.
const MOUNTS_BOUND: usize = 100;

/// Returns every rule that the spec of a volume breaks.
pub fn volume_violations(spec: &VolumeSpec) -> Vec<Violation> {
    let name = check_volume_name(&spec.name).err().map(|error| ("name", error.to_string()));
    let file_system = spec.file_system.as_ref().and_then(|it| it.check().err()).map(|why| ("options", why));
    let is_divided = spec.file_system.is_some() && spec.per_slot;
    let per_slot = is_divided.then(|| ("perSlot", NOT_PER_SLOT.to_owned()));
    let found = name.into_iter().chain(file_system).chain(per_slot);
    found.map(|(field, why)| Violation { field: field.to_owned(), why }).collect()
}

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    if spec.mounts.len() > MOUNTS_BOUND {
        check("mounts", Err(format!("{} are over the bound of {MOUNTS_BOUND}", spec.mounts.len())));
    }
    let (mut targets, mut volumes) = (BTreeSet::new(), BTreeMap::<_, &VolumeMount>::new());
    for (index, mount) in spec.mounts.iter().enumerate() {
        for (field, why) in mount.violations() {
            check(&format!("mounts[{index}].{field}"), Err(why));
        }
        if !targets.insert(&mount.target) {
            check(&format!("mounts[{index}].target"), Err(format!("`{}` is there twice", mount.target)));
        }
        if let MountSource::Volume(it) = &mount.source
            && let Some(name) = &it.name
        {
            let first = *volumes.entry(name).or_insert(it);
            if first.per_slot != it.per_slot {
                let why = format!("volume `{name}` has one set of data, or one for each slot, at all its mounts");
                check(&format!("mounts[{index}].source"), Err(why));
            }
            if !it.labels.is_empty() && first.labels != it.labels {
                let why = format!("volume `{name}` has the labels of its first mount: leave them out here");
                check(&format!("mounts[{index}].volume_label"), Err(why));
            }
        }
        if let MountSource::Volume(it) = &mount.source
            && it.file_system.is_some()
            && let Some(name) = &it.name
            && volumes.get(name).is_some_and(|first| first.file_system != it.file_system)
        {
            let why = format!("volume `{name}` has the options of its first mount: leave them out here");
            check(&format!("mounts[{index}].volume_opt"), Err(why));
        }
        if mount.target == SHARED_MEMORY && spec.shm_size.is_some() {
            let why = format!("the size of {SHARED_MEMORY} is that of the mount: leave `shm_size` out");
            check(&format!("mounts[{index}].target"), Err(why));
        }
    }
}

/// Returns the texts of these fields, which count towards the size of a spec.
pub(super) fn texts(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    spec.mounts.iter().flat_map(|it| {
        let (subpath, volume) = match &it.source {
            MountSource::Image { subpath, .. } => (subpath.as_deref(), None),
            MountSource::Volume(it) => (it.subpath.as_deref(), Some(it)),
            MountSource::Bind(_) | MountSource::Tmpfs(_) => (None, None),
        };
        let labels = volume.into_iter().flat_map(|it| &it.labels).flat_map(|(key, value)| [key.as_str(), value]);
        let file_system = volume.and_then(|it| it.file_system.as_ref()).into_iter().flat_map(FileSystem::texts);
        let paths = [Some(it.target.as_str()), it.volume(), it.bind_source(), it.image(), subpath];
        paths.into_iter().flatten().chain(labels).chain(file_system)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mount;
    use crate::validate::violations;

    fn volume(name: &str, target: &str) -> Mount {
        let source = MountSource::Volume(VolumeMount { name: Some(name.into()), ..VolumeMount::default() });
        Mount { target: target.into(), read_only: false, source }
    }

    fn found(mounts: Vec<Mount>) -> Vec<String> {
        let spec = ServiceSpec { name: "web".into(), image: "web".into(), mounts, ..ServiceSpec::default() };
        violations(&spec).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_may_be_mounted_twice_but_nothing_twice_at_one_target() {
        assert_eq!(found(vec![volume("db", "/a"), volume("db", "/a/b")]), [] as [&str; 0]);
        let bad = found(vec![volume("db", "/a"), volume("..", "/"), volume("other", "/a")]);
        assert_eq!(bad.len(), 3, "{bad:?}");
        assert_eq!(bad[0], "mounts[1].target: a mount can't hide the whole root");
        assert!(bad[1].starts_with("mounts[1].source: `..`: the name of a volume"), "{}", bad[1]);
        assert_eq!(bad[2], "mounts[2].target: `/a` is there twice");
    }

    #[test]
    fn mounts_that_contradict_each_other_or_the_settings_are_refused() {
        let per_slot = |target: &str| {
            let source =
                MountSource::Volume(VolumeMount { name: Some("db".into()), per_slot: true, ..VolumeMount::default() });
            Mount { source, ..volume("db", target) }
        };
        assert_eq!(found(vec![per_slot("/a"), per_slot("/b")]), [] as [&str; 0]);
        let bad = found(vec![volume("db", "/a"), per_slot("/b")]);
        assert_eq!(bad, ["mounts[1].source: volume `db` has one set of data, or one for each slot, at all its mounts"]);
        let labelled = |target: &str, key: &str| {
            let labels = [(key.to_owned(), String::new())].into();
            let source = VolumeMount { name: Some("db".into()), labels, ..VolumeMount::default() };
            Mount { source: MountSource::Volume(source), ..volume("db", target) }
        };
        assert_eq!(found(vec![labelled("/a", "x"), labelled("/b", "x"), volume("db", "/c")]), [] as [&str; 0]);
        for first in [labelled("/a", "y"), volume("db", "/a")] {
            let bad = found(vec![first, labelled("/b", "x")]);
            assert_eq!(
                bad,
                ["mounts[1].volume_label: volume `db` has the labels of its first mount: leave them out here"]
            );
        }
        let share = |target: &str, o: &str| {
            let file_system = Some(FileSystem::of("nfs", "nas:/srv", o).expect("a good one"));
            let source = VolumeMount { name: Some("db".into()), file_system, ..VolumeMount::default() };
            Mount { source: MountSource::Volume(source), ..volume("db", target) }
        };
        assert_eq!(found(vec![share("/a", "ro"), share("/b", "ro"), volume("db", "/c")]), [] as [&str; 0]);
        for first in [share("/a", ""), volume("db", "/a")] {
            let bad = found(vec![first, share("/b", "ro")]);
            assert_eq!(
                bad,
                ["mounts[1].volume_opt: volume `db` has the options of its first mount: leave them out here"]
            );
        }
        assert_eq!(found(vec![share("/a", "remount")]).len(), 1);
        let mounts = vec![volume("db", SHARED_MEMORY)];
        let spec = ServiceSpec { name: "web".into(), image: "web".into(), mounts, ..ServiceSpec::default() };
        assert_eq!(violations(&spec), []);
        let sized = ServiceSpec { shm_size: std::num::NonZeroU64::new(1 << 20), ..spec };
        assert_eq!(violations(&sized)[0].field, "mounts[0].target");
    }

    #[test]
    fn a_mount_of_an_image_is_read_only_and_stays_in_the_image() {
        let image = |target: &str, reference: &str, subpath: Option<&str>| {
            let (reference, subpath) = (reference.to_owned(), subpath.map(str::to_owned));
            Mount { target: target.into(), read_only: true, source: MountSource::Image { reference, subpath } }
        };
        assert_eq!(found(vec![image("/a", "data:1", None), image("/b", "data:1", Some("x/y"))]), [] as [&str; 0]);
        let writable = Mount { read_only: false, ..image("/a", "data:1", Some("../etc")) };
        let bad = found(vec![writable, image("/b", "Data", None)]);
        assert_eq!(bad.len(), 3, "{bad:?}");
        assert_eq!(bad[0], "mounts[0].read_only: an image is always mounted read-only");
        assert!(bad[1].starts_with("mounts[0].image_subpath: `../etc`: a path has neither"), "{}", bad[1]);
        assert!(bad[2].starts_with("mounts[1].source: `Data` is not an image reference"), "{}", bad[2]);
    }

    #[test]
    fn a_volume_is_divided_among_slots_or_a_file_system() {
        let nothing = VolumeSpec { name: "db".into(), ..VolumeSpec::default() };
        assert_eq!(volume_violations(&nothing), []);
        let file_system = Some(FileSystem::of("ext4", "/dev/../sda", "").expect("read"));
        let bad = VolumeSpec { name: "..".into(), file_system, per_slot: true, ..nothing };
        let fields: Vec<_> = volume_violations(&bad).into_iter().map(|it| it.field).collect();
        assert_eq!(fields, ["name", "options", "perSlot"]);
        let file_system = Some(FileSystem::of("tmpfs", "", "").expect("read"));
        let source = VolumeMount { name: Some("db".into()), file_system, per_slot: true, ..VolumeMount::default() };
        let mount = Mount { source: MountSource::Volume(source), ..volume("db", "/a") };
        assert_eq!(found(vec![mount]), [format!("mounts[0].volume_per_slot: {NOT_PER_SLOT}")]);
    }

    #[test]
    fn a_spec_has_a_bounded_number_of_mounts() {
        let many = (0..=MOUNTS_BOUND).map(|number| volume("db", &format!("/x{number}"))).collect();
        assert_eq!(found(many), ["mounts: 101 are over the bound of 100"]);
    }
}
