//! Devices of a task: those that its service names by path, and those that the scheduler chose by id. `translate.rs`
//! adds them to the container.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flota_api::model::{Assignment, DeviceMapping};
use flota_runtime::oci::{Device, DeviceRule};

use crate::offers::NodeOffers;

/// A device node in the container and the rule that allows its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) device: Device,
    pub(crate) rule: DeviceRule,
}

/// Why a device can't be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("this node has no {kind} `{id}`")]
    Unknown { kind: String, id: String },
    #[error("failed to give the device `{path}`: {why}")]
    Unusable { path: String, why: String },
}

/// Returns all devices of a task, each target once.
pub(crate) fn of_task(assignment: &Assignment, offers: &NodeOffers) -> Result<Vec<Given>, DeviceError> {
    let spec = &assignment.spec;
    let mut given: Vec<Given> = Vec::new();
    let mut add = |it: Given| {
        // GPUs share the device nodes of their driver.
        if !given.iter().any(|other| other.device.path == it.device.path) {
            given.push(it);
        }
    };
    for id in &assignment.device_ids {
        let unknown = || DeviceError::Unknown { kind: id.kind.clone(), id: id.id.clone() };
        for path in &offers.device(id).ok_or_else(unknown)?.paths {
            add(open(&DeviceMapping { source: path.clone(), target: path.clone(), permissions: "rwm".into() })?);
        }
    }
    for mapping in &spec.devices {
        check_target(mapping, offers, spec.privileged)?;
        add(open(mapping)?);
    }
    if spec.privileged {
        let same = |path: String| DeviceMapping { source: path.clone(), target: path, permissions: "rwm".into() };
        // A device may be unplugged at any time.
        nodes(Path::new("/dev")).into_iter().filter_map(|path| open(&same(path)).ok()).for_each(add);
    }
    Ok(given)
}

/// Folders in /dev that each container has for itself, and those of other tools, as in Docker.
const OWN_FOLDERS: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Returns the paths of all device nodes below a folder, without links. The console is left out, because a container
/// has its own.
fn nodes(folder: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (Ok(kind), Some(name)) = (entry.file_type(), entry.file_name().to_str().map(str::to_owned)) else {
                continue;
            };
            let path = entry.path();
            if kind.is_dir() && !OWN_FOLDERS.contains(&name.as_str()) {
                folders.push(path);
            } else if (kind.is_char_device() || kind.is_block_device()) && name != "console" {
                found.extend(path.to_str().map(str::to_owned));
            }
        }
    }
    found.sort_unstable();
    found
}

/// Checks that the target of a link is allowed as well: the node's owner allowed certain paths, and not every device
/// that a link at such a path leads to.
fn check_target(mapping: &DeviceMapping, offers: &NodeOffers, privileged: bool) -> Result<(), DeviceError> {
    let unusable = |why: String| DeviceError::Unusable { path: mapping.source.clone(), why };
    let real = std::fs::canonicalize(&mapping.source).map_err(|error| unusable(error.to_string()))?;
    let real = real.display().to_string();
    if privileged || offers.allow.has_device(&real) {
        return Ok(());
    }
    Err(unusable(format!("it is a link to `{real}`, which this node does not allow")))
}

fn open(mapping: &DeviceMapping) -> Result<Given, DeviceError> {
    let unusable = |why: String| DeviceError::Unusable { path: mapping.source.clone(), why };
    let about = std::fs::metadata(&mapping.source).map_err(|error| unusable(error.to_string()))?;
    let kind = match about.file_type() {
        it if it.is_char_device() => "c",
        it if it.is_block_device() => "b",
        _ => return Err(unusable("it is not a device".to_owned())),
    };
    let number = |it: u64| i64::try_from(it).unwrap_or(-1);
    let (major, minor) = (nix::sys::stat::major(about.rdev()), nix::sys::stat::minor(about.rdev()));
    let device = Device {
        kind: kind.to_owned(),
        path: PathBuf::from(&mapping.target),
        major: number(major),
        minor: number(minor),
        file_mode: Some(about.mode() & 0o777),
        uid: Some(about.uid()),
        gid: Some(about.gid()),
    };
    let rule = DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major: Some(number(major)),
        minor: Some(number(minor)),
        access: mapping.permissions.clone(),
    };
    Ok(Given { device, rule })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Allowance, DeviceId, NodeDevice, ServiceSpec};

    fn offers(allowed: &[&str]) -> NodeOffers {
        let devices = allowed.iter().map(|it| (*it).to_owned()).collect();
        let gpu = |id: &str, path: &str| NodeDevice {
            kind: "gpu".into(),
            id: id.into(),
            paths: vec![path.into(), "/dev/zero".into()],
        };
        NodeOffers {
            devices: vec![gpu("a", "/dev/full"), gpu("b", "/dev/random")],
            allow: Allowance { devices, ..Allowance::default() },
            ..NodeOffers::default()
        }
    }

    fn mapping(source: &str) -> Assignment {
        let device = DeviceMapping { source: source.into(), target: "/dev/x".into(), permissions: "r".into() };
        let spec = ServiceSpec { devices: vec![device], ..ServiceSpec::default() };
        Assignment { spec: spec.into(), ..Assignment::default() }
    }

    #[test]
    fn named_devices_come_with_their_numbers_and_permissions() {
        let given = of_task(&mapping("/dev/null"), &offers(&["/dev/null"])).expect("allowed");
        assert_eq!((given[0].device.major, given[0].device.minor), (1, 3));
        assert_eq!((given[0].rule.allow, given[0].rule.access.as_str()), (true, "r"));
    }

    #[test]
    fn links_to_what_is_not_allowed_and_ordinary_files_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/full", &link).expect("a link");
        let link = link.display().to_string();
        let error = of_task(&mapping(&link), &offers(&[&link])).expect_err("not its target");
        assert!(error.to_string().ends_with("it is a link to `/dev/full`, which this node does not allow"), "{error}");
        let error = of_task(&mapping("/etc/passwd"), &offers(&["/etc/passwd"]));
        assert!(error.expect_err("a file").to_string().ends_with("it is not a device"));
    }

    #[test]
    fn devices_by_id_bring_all_their_nodes_once() {
        let id = |id: &str| DeviceId { kind: "gpu".into(), id: id.into() };
        let both = Assignment { device_ids: vec![id("a"), id("b")], ..Assignment::default() };
        let given = of_task(&both, &offers(&[])).expect("its own devices");
        let paths: Vec<String> = given.iter().map(|it| it.device.path.display().to_string()).collect();
        assert_eq!(paths, ["/dev/full", "/dev/zero", "/dev/random"]);
        let gone = Assignment { device_ids: vec![id("c")], ..Assignment::default() };
        let error = of_task(&gone, &offers(&[])).expect_err("unplugged");
        assert_eq!(error.to_string(), "this node has no gpu `c`");
    }

    #[test]
    fn privileged_task_has_every_device_of_the_node_and_each_path_once() {
        let spec = ServiceSpec {
            privileged: true,
            devices: vec!["/dev/zero:/dev/full".parse().expect("a device")],
            ..ServiceSpec::default()
        };
        let task = Assignment { spec: spec.into(), ..Assignment::default() };
        let given = of_task(&task, &offers(&[])).expect("devices of this machine");
        let number = |path: &str| {
            let found: Vec<_> = given.iter().filter(|it| it.device.path == Path::new(path)).collect();
            assert!(found.len() <= 1, "{path} is given twice");
            found.first().map(|it| (it.device.kind.as_str(), it.device.major, it.device.minor))
        };
        assert_eq!((number("/dev/null"), number("/dev/urandom")), (Some(("c", 1, 3)), Some(("c", 1, 9))));
        assert_eq!(number("/dev/full"), Some(("c", 1, 5)), "the service's own choice");
        // A container's terminals, console and shared memory are its own.
        let own = |it: &Given| it.device.path.starts_with("/dev/pts") || it.device.path == Path::new("/dev/console");
        assert!(!given.iter().any(own));
        assert!(of_task(&Assignment::default(), &offers(&[])).expect("nothing is asked").is_empty());
    }
}
