//! Devices of a task: those that its service names, and those that were handed to it by their ids.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use flota_api::model::{DeviceId, DeviceMapping, ServiceSpec};
use flota_api::proto::dispatcher::TaskAssignment;
use flota_runtime::oci::{Device, DeviceRule};

use crate::offers::NodeOffers;

/// A device node in the container, and what may be done with it.
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

/// All devices of a task, each target once.
pub(crate) fn of_task(
    assignment: &TaskAssignment,
    spec: &ServiceSpec,
    offers: &NodeOffers,
) -> Result<Vec<Given>, DeviceError> {
    let mut given: Vec<Given> = Vec::new();
    let mut add = |it: Given| {
        // GPUs share their driver's nodes.
        if !given.iter().any(|other| other.device.path == it.device.path) {
            given.push(it);
        }
    };
    for id in &assignment.device_ids {
        let id = DeviceId::from(id.clone());
        let unknown = || DeviceError::Unknown { kind: id.kind.clone(), id: id.id.clone() };
        for path in &offers.device(&id).ok_or_else(unknown)?.paths {
            add(open(&DeviceMapping { source: path.clone(), target: path.clone(), permissions: "rwm".into() })?);
        }
    }
    for mapping in &spec.devices {
        check_target(mapping, offers, spec.privileged)?;
        add(open(mapping)?);
    }
    Ok(given)
}

/// What a link leads to has to be allowed as well: the owner named paths, and not what somebody puts there.
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
        _ => return Err(unusable("it is no device".to_owned())),
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
    use flota_api::model::{Allowance, NodeDevice};

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

    fn mapping(source: &str) -> ServiceSpec {
        let device = DeviceMapping { source: source.into(), target: "/dev/x".into(), permissions: "r".into() };
        ServiceSpec { devices: vec![device], ..ServiceSpec::default() }
    }

    #[test]
    fn named_devices_come_with_their_numbers_and_permissions() {
        let given =
            of_task(&TaskAssignment::default(), &mapping("/dev/null"), &offers(&["/dev/null"])).expect("allowed");
        assert_eq!((given[0].device.major, given[0].device.minor), (1, 3));
        assert_eq!((given[0].rule.allow, given[0].rule.access.as_str()), (true, "r"));
    }

    #[test]
    fn links_to_what_is_not_allowed_and_ordinary_files_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/full", &link).expect("a link");
        let link = link.display().to_string();
        let error =
            of_task(&TaskAssignment::default(), &mapping(&link), &offers(&[&link])).expect_err("not its target");
        assert!(error.to_string().ends_with("it is a link to `/dev/full`, which this node does not allow"), "{error}");
        let error = of_task(&TaskAssignment::default(), &mapping("/etc/passwd"), &offers(&["/etc/passwd"]));
        assert!(error.expect_err("a file").to_string().ends_with("it is no device"));
    }

    #[test]
    fn devices_by_id_bring_all_their_nodes_once() {
        let id = |id: &str| flota_api::proto::types::DeviceId { kind: "gpu".into(), id: id.into() };
        let both = TaskAssignment { device_ids: vec![id("a"), id("b")], ..TaskAssignment::default() };
        let given = of_task(&both, &ServiceSpec::default(), &offers(&[])).expect("its own devices");
        let paths: Vec<String> = given.iter().map(|it| it.device.path.display().to_string()).collect();
        assert_eq!(paths, ["/dev/full", "/dev/zero", "/dev/random"]);
        let gone = TaskAssignment { device_ids: vec![id("c")], ..TaskAssignment::default() };
        let error = of_task(&gone, &ServiceSpec::default(), &offers(&[])).expect_err("unplugged");
        assert_eq!(error.to_string(), "this node has no gpu `c`");
    }
}
