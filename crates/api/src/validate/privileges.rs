//! The rules for what a spec requires of its node beyond CPU and memory: runtime class, capabilities, devices. The
//! scheduler decides whether a node allows it.

use std::collections::BTreeSet;

use crate::capability;
use crate::defaults::{EMBEDDED_RUNTIME, TASK_IDS};
use crate::model::{CdiName, MountSource, ServiceSpec, ValueUse};
use crate::naming;

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    if let Some(runtime) = &spec.runtime {
        check("runtime", naming::check(runtime).map_err(|error| error.to_string()));
    }
    if spec.user_namespace {
        check("user_namespace", user_namespace(spec));
        for (field, id) in ids(spec).filter(|(_, id)| *id >= TASK_IDS) {
            let why = format!("{id} is not among the ids of a task that has its own, which are below {TASK_IDS}");
            check(&field, Err(why));
        }
    }
    for (field, names) in [("cap_add", &spec.cap_add), ("cap_drop", &spec.cap_drop)] {
        let mut known = BTreeSet::new();
        for (index, name) in names.iter().enumerate() {
            let result = match capability::is_known(name) {
                false => Err(format!("`{}` is not a capability", name.escape_debug())),
                true => once(known.insert(name), name),
            };
            check(&format!("{field}[{index}]"), result);
        }
    }
    let mut targets = BTreeSet::new();
    for (index, device) in spec.devices.iter().enumerate() {
        let result = device.check().map_err(|error| error.to_string());
        let result = result.and_then(|()| once(targets.insert(&device.target), &device.target));
        check(&format!("devices[{index}]"), result);
    }
    let mut names = BTreeSet::new();
    for (index, name) in spec.cdi_devices.iter().enumerate() {
        check(&format!("cdi_devices[{index}]"), once(names.insert(name), name.text()));
    }
    let mut kinds = BTreeSet::new();
    for (index, resource) in spec.generic_resources.iter().enumerate() {
        let result = resource.check().map_err(|error| error.to_string());
        let result = result.and_then(|()| once(kinds.insert(&resource.kind), &resource.kind));
        check(&format!("generic_resources[{index}]"), result);
    }
}

fn user_namespace(spec: &ServiceSpec) -> Result<(), String> {
    match spec.runtime.as_deref() {
        _ if spec.privileged => Err("a privileged task has the ids of the node".into()),
        Some(name) if name != EMBEDDED_RUNTIME => Err(format!("only the embedded runtime gives ids, not `{name}`")),
        _ => Ok(()),
    }
}

/// Returns the ids that the spec names, with their fields. Names of users are known to the image only.
fn ids(spec: &ServiceSpec) -> impl Iterator<Item = (String, u32)> {
    let user = spec.user.iter().flat_map(|it| it.split(':')).map(|id| ("user".to_owned(), id));
    let groups = spec.groups.iter().enumerate().map(|(index, id)| (format!("groups[{index}]"), id.as_str()));
    let numbers = user.chain(groups).filter_map(|(field, id)| Some((field, id.parse().ok()?)));
    let owners = |list: &'static str, values: &[ValueUse]| {
        let of = |(index, it): (usize, &ValueUse)| {
            [("uid", it.uid), ("gid", it.gid)].map(|(name, id)| (format!("{list}[{index}].{name}"), id))
        };
        values.iter().enumerate().flat_map(of).collect::<Vec<_>>()
    };
    let tmpfs = spec.mounts.iter().enumerate().flat_map(|(index, mount)| {
        let (uid, gid) = match &mount.source {
            MountSource::Tmpfs(it) => (it.uid, it.gid),
            MountSource::Bind(_) | MountSource::Volume(_) | MountSource::Image { .. } => (None, None),
        };
        let named = [("uid", uid), ("gid", gid)].map(|(name, id)| Some((format!("mounts[{index}].tmpfs_{name}"), id?)));
        named.into_iter().flatten()
    });
    numbers.chain(owners("secrets", &spec.secrets)).chain(owners("configs", &spec.configs)).chain(tmpfs)
}

fn once(first: bool, what: &str) -> Result<(), String> {
    if first { Ok(()) } else { Err(format!("`{what}` is there twice")) }
}

/// Returns the texts of these fields, which count towards the size of a spec.
pub(super) fn texts(spec: &ServiceSpec) -> impl Iterator<Item = &String> {
    let devices = spec.devices.iter().flat_map(|it| [&it.source, &it.target, &it.permissions]);
    let kinds = spec.generic_resources.iter().map(|it| &it.kind);
    let cdi = spec.cdi_devices.iter().map(CdiName::text);
    spec.runtime.iter().chain(&spec.cap_add).chain(&spec.cap_drop).chain(devices).chain(cdi).chain(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceMapping, GenericResource, Mount, TmpfsMount};
    use crate::validate::violations;

    fn spec() -> ServiceSpec {
        ServiceSpec { name: "web".into(), image: "web".into(), ..ServiceSpec::default() }
    }

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn cdi(text: &str) -> Vec<CdiName> {
        text.split_whitespace().map(|it| it.parse().expect(it)).collect()
    }

    fn device(source: &str, target: &str, permissions: &str) -> DeviceMapping {
        DeviceMapping { source: source.into(), target: target.into(), permissions: permissions.into() }
    }

    fn resource(kind: &str, count: u64) -> GenericResource {
        GenericResource { kind: kind.into(), count }
    }

    #[test]
    fn what_docker_takes_is_taken() {
        for good in [
            ServiceSpec { runtime: Some("io.containerd.runsc.v1".into()), init: true, ..spec() },
            ServiceSpec { cap_add: list("NET_ADMIN"), cap_drop: list("ALL"), ..spec() },
            // Docker accepts both, and gives the task every capability.
            ServiceSpec { privileged: true, cap_drop: list("CHOWN"), cap_add: list("ALL BPF"), ..spec() },
            ServiceSpec { devices: vec![device("/dev/a", "/dev/x", "r"), device("/dev/a", "/dev/y", "rw")], ..spec() },
            ServiceSpec { cdi_devices: cdi("v.com/gpu=0 v.com/gpu=1"), ..spec() },
            ServiceSpec { generic_resources: vec![resource("gpu", 2), resource("fpga", 1)], ..spec() },
            ServiceSpec { user_namespace: true, user: Some("65535:web".into()), groups: list("0 mail"), ..spec() },
        ] {
            assert_eq!(violations(&good), []);
        }
    }

    #[test]
    fn what_can_not_be_meant_is_refused_by_field() {
        let bad = ServiceSpec {
            runtime: Some("/bin/sh".into()),
            cap_add: list("NET_ADMIN NOT_KNOWN"),
            cap_drop: list("CHOWN CHOWN"),
            devices: vec![
                device("/dev/../etc", "/dev/x", "r"),
                device("/dev/x", "/dev/x", "rr"),
                device("/dev/x", "/dev/y", "r"),
                device("/dev/z", "/dev/y", "r"),
            ],
            cdi_devices: cdi("v.com/gpu=0 v.com/gpu=0"),
            generic_resources: vec![resource("g pu", 1), resource("gpu", 0), resource("x", 1), resource("x", 2)],
            ..spec()
        };
        let found: Vec<String> = violations(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "runtime: `/bin/sh`: a name has letters, digits, `-`, `_` and `.`, and begins and ends with a letter \
                 or digit",
                "cap_add[1]: `NOT_KNOWN` is not a capability",
                "cap_drop[1]: `CHOWN` is there twice",
                "devices[0]: `/dev/../etc`: a path has neither `.` nor `..` nor empty parts",
                "devices[1]: `rr`: permissions are some of the letters r, w and m, each once",
                "devices[3]: `/dev/y` is there twice",
                "cdi_devices[1]: `v.com/gpu=0` is there twice",
                "generic_resources[0]: `g pu`: a name has letters, digits, `-`, `_` and `.`, and begins and ends with \
                 a letter or digit",
                "generic_resources[1]: the count of `gpu` is 0",
                "generic_resources[3]: `x` is there twice",
            ]
        );
    }

    #[test]
    fn a_task_with_ids_of_its_own_has_no_others() {
        let value = ValueUse { uid: 65_536, gid: 7, ..ValueUse::of("key") };
        let (user, groups) = (Some("70000:65536".into()), list("mail 65536"));
        let tmpfs = TmpfsMount { uid: Some(1), gid: Some(65_536), ..TmpfsMount::default() };
        let mounts = vec![Mount { target: "/x".into(), read_only: false, source: MountSource::Tmpfs(tmpfs) }];
        let mut bad = ServiceSpec { privileged: true, user, groups, secrets: vec![value], mounts, ..spec() };
        assert_eq!(violations(&bad), [], "without them it is all the node's");
        bad.user_namespace = true;
        let found: Vec<String> = violations(&bad).iter().map(|it| it.field.clone()).collect();
        assert_eq!(found, ["user_namespace", "user", "user", "groups[1]", "secrets[0].uid", "mounts[0].tmpfs_gid"]);
        let other = |runtime: &str| {
            violations(&ServiceSpec { user_namespace: true, runtime: Some(runtime.into()), ..spec() }).len()
        };
        assert_eq!([other("flota"), other("crun")], [0, 1]);
    }

    #[test]
    fn a_spec_that_is_too_large_by_its_devices_is_refused() {
        let many = (0..1_000).map(|number| device(&format!("/dev/{}", "x".repeat(300)), &format!("/x{number}"), "r"));
        let large = ServiceSpec { devices: many.collect(), ..spec() };
        assert!(violations(&large).iter().any(|it| it.field == "spec"));
    }
}
