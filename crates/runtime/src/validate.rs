//! Validation of configurations. Code that loads a configuration or a process checks it here before anything is
//! created; an error names the field.

use std::path::Path;

use crate::error::StepError;
use crate::oci::{Linux, Namespace, NamespaceKind, Process, Spec, read_json};
use crate::process::{hooks, labels, settings, sysctl};
use crate::rootfs::options::Options;

fn refuse(field: &str, why: impl Into<String>) -> StepError {
    StepError::refuse(format!("read {field}"), why)
}

/// Longest host name that the kernel accepts (sethostname(2)).
const NAME_BOUND: usize = 64;

impl Spec {
    /// Reads a `config.json` and checks it.
    ///
    /// # Errors
    /// The file can't be read, or a field is invalid; the error names the field.
    pub fn load(path: &Path) -> Result<Self, StepError> {
        let spec: Self = read_json(path)?;
        validate(&spec)?;
        Ok(spec)
    }
}

/// Checks a whole configuration.
///
/// # Errors
/// A field is invalid; the error names the first one.
pub fn validate(spec: &Spec) -> Result<(), StepError> {
    check_version(&spec.oci_version)?;
    // A configuration without a process can be created but not started.
    spec.process.as_ref().map_or(Ok(()), check_process)?;
    let root = spec.root.as_ref().ok_or_else(|| refuse("root", "it is missing"))?;
    if root.path.as_os_str().is_empty() {
        return Err(refuse("root.path", "it is missing"));
    }
    let linux = spec.linux();
    check_names(spec, linux)?;
    check_namespaces(linux)?;
    check_mounts(spec, linux)?;
    sysctl::check(linux)?;
    check_rest(linux)?;
    let Some(all) = &spec.hooks else { return Ok(()) };
    let kinds = [
        ("prestart", &all.prestart),
        ("createRuntime", &all.create_runtime),
        ("createContainer", &all.create_container),
        ("startContainer", &all.start_container),
        ("poststart", &all.poststart),
        ("poststop", &all.poststop),
    ];
    kinds.into_iter().try_for_each(|(kind, list)| hooks::check(kind, list))
}

/// Checks that the version has the form of SemVer and the major version 1.
fn check_version(version: &str) -> Result<(), StepError> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<Option<u32>> = core.split('.').map(|it| it.parse().ok()).collect();
    match parts.as_slice() {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => {
            Err(refuse("ociVersion", format!("`{version}` is not supported; versions 1.x.y are")))
        }
        _ => Err(refuse("ociVersion", format!("`{version}` is not a version"))),
    }
}

/// Checks a process of a configuration or for `exec`.
///
/// # Errors
/// A field is invalid; the error names the first one.
pub fn check_process(process: &Process) -> Result<(), StepError> {
    if process.args.is_empty() {
        return Err(refuse("process.args", "there is no program"));
    }
    if !process.cwd.is_absolute() {
        return Err(refuse("process.cwd", format!("`{}` is not absolute", process.cwd.display())));
    }
    let odd = process.env.iter().find(|it| it.contains('\0') || it.starts_with('=') || !it.contains('='));
    if let Some(odd) = odd {
        return Err(refuse("process.env", format!("`{}` is not a variable", odd.escape_debug())));
    }
    if process.args.iter().any(|it| it.contains('\0')) {
        return Err(refuse("process.args", "an argument holds a NUL byte"));
    }
    settings::check(process)?;
    labels::check(process)
}

fn has(linux: &Linux, kind: NamespaceKind) -> bool {
    linux.namespaces.iter().any(|it| it.kind == kind)
}

fn check_names(spec: &Spec, linux: &Linux) -> Result<(), StepError> {
    for (field, name) in [("hostname", &spec.hostname), ("domainname", &spec.domainname)] {
        let Some(name) = name.as_deref().filter(|it| !it.is_empty()) else { continue };
        if !has(linux, NamespaceKind::Uts) {
            return Err(refuse(field, "it needs a UTS namespace"));
        }
        if name.len() > NAME_BOUND {
            return Err(refuse(field, format!("it is longer than {NAME_BOUND} bytes")));
        }
    }
    Ok(())
}

fn check_namespaces(linux: &Linux) -> Result<(), StepError> {
    for (index, Namespace { kind, path }) in linux.namespaces.iter().enumerate() {
        if linux.namespaces[..index].iter().any(|other| other.kind == *kind) {
            let why = format!("there are two {} namespaces", kind.file());
            return Err(refuse(&format!("linux.namespaces[{index}]"), why));
        }
        if !path.as_os_str().is_empty() && !path.is_absolute() {
            return Err(refuse(&format!("linux.namespaces[{index}].path"), "it is not absolute"));
        }
        // All other kinds are older than the kernels that this runtime supports.
        if *kind == NamespaceKind::Time && !Path::new("/proc/self/ns/time").exists() {
            let why = format!("this kernel has no {} namespaces", kind.file());
            return Err(refuse(&format!("linux.namespaces[{index}]"), why));
        }
    }
    let new = |kind| linux.namespaces.iter().any(|it| it.kind == kind && it.is_new());
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if mapped && !has(linux, NamespaceKind::User) {
        return Err(refuse("linux.uidMappings", "ids can be mapped in a new user namespace only"));
    }
    if !linux.time_offsets.is_empty() && !new(NamespaceKind::Time) {
        return Err(refuse("linux.timeOffsets", "they need a new time namespace"));
    }
    for (clock, offset) in &linux.time_offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(refuse(&format!("linux.timeOffsets.{clock}"), "there is no such clock"));
        }
        if offset.nanosecs >= 1_000_000_000 {
            return Err(refuse(&format!("linux.timeOffsets.{clock}.nanosecs"), "it is a second or more"));
        }
    }
    Ok(())
}

fn check_mounts(spec: &Spec, linux: &Linux) -> Result<(), StepError> {
    for (index, mount) in spec.mounts.iter().enumerate() {
        if mount.destination.as_os_str().is_empty() {
            return Err(refuse(&format!("mounts[{index}].destination"), "it is missing"));
        }
        if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
            return Err(refuse(&format!("mounts[{index}]"), "uidMappings and gidMappings come together or not at all"));
        }
        let options = Options::parse(&mount.options);
        if options.bind.is_none() && (options.idmap.is_some() || !mount.uid_mappings.is_empty()) {
            return Err(refuse(&format!("mounts[{index}]"), "ids can be mapped for bind mounts alone"));
        }
    }
    if !has(linux, NamespaceKind::Mount) && linux.rootfs_propagation.is_some() {
        return Err(refuse("linux.rootfsPropagation", "it needs a mount namespace"));
    }
    Ok(())
}

fn check_rest(linux: &Linux) -> Result<(), StepError> {
    if let Some(kind) = linux.rootfs_propagation.as_deref().filter(|it| !it.is_empty()) {
        let known = ["shared", "slave", "private", "unbindable"];
        if !known.contains(&kind.strip_prefix('r').unwrap_or(kind)) {
            return Err(refuse("linux.rootfsPropagation", format!("`{kind}` is not known")));
        }
    }
    for (index, device) in linux.devices.iter().enumerate() {
        let field = format!("linux.devices[{index}]");
        if !matches!(device.kind.as_str(), "c" | "u" | "b" | "p") {
            return Err(refuse(&format!("{field}.type"), format!("`{}` is none of c, u, b and p", device.kind)));
        }
        if !device.path.is_absolute() {
            return Err(refuse(&format!("{field}.path"), "it is not absolute"));
        }
    }
    if linux.intel_rdt.is_some() && !Path::new("/sys/fs/resctrl/schemata").exists() {
        return Err(refuse("linux.intelRdt", "this machine has no resctrl file system mounted"));
    }
    if linux.intel_rdt.is_some() {
        return Err(refuse("linux.intelRdt", "this runtime does not set it"));
    }
    if !linux.net_devices.is_empty() {
        return Err(refuse("linux.netDevices", "this runtime does not move network devices"));
    }
    if linux.mount_label.as_deref().is_some_and(|it| !it.is_empty()) && !Path::new("/sys/fs/selinux").exists() {
        return Err(refuse("linux.mountLabel", "this kernel has no SELinux"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a small configuration, one part of which is replaced.
    fn check(change: &str) -> Result<(), String> {
        let mut config: serde_json::Value = serde_json::from_str(
            r#"{"ociVersion": "1.0.2", "root": {"path": "rootfs"},
                "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
                "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}]}}"#,
        )
        .expect("good JSON");
        let change: serde_json::Value = serde_json::from_str(change).expect("good JSON");
        merge(&mut config, change);
        let spec: Spec = serde_json::from_value(config).map_err(|error| error.to_string())?;
        validate(&spec).map_err(|error| error.to_string())
    }

    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    #[test]
    fn good_configurations_pass_and_unknown_keys_are_ignored() {
        for change in [
            "{}",
            r#"{"ociVersion": "1.2.1-dev+x"}"#,
            r#"{"novelty": {"a": 1}, "linux": {"novelty": [1]}}"#,
            r#"{"hostname": "box", "domainname": "lan"}"#,
            r#"{"mounts": null, "annotations": null, "process": {"env": null, "rlimits": null}}"#,
        ] {
            assert_eq!(check(change), Ok(()), "{change}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        for (change, field) in [
            (r#"{"ociVersion": "2.0.0"}"#, "ociVersion"),
            (r#"{"ociVersion": "one"}"#, "ociVersion"),
            (r#"{"process": {"args": []}}"#, "process.args"),
            (r#"{"process": {"cwd": "tmp"}}"#, "process.cwd"),
            (r#"{"process": {"env": ["A"]}}"#, "process.env"),
            (r#"{"root": null}"#, "root"),
            (r#"{"root": {"path": ""}}"#, "root.path"),
            (r#"{"hostname": "box", "linux": {"namespaces": [{"type": "mount"}]}}"#, "hostname"),
            (r#"{"linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}"#, "linux.namespaces[1]"),
            (r#"{"linux": {"namespaces": [{"type": "mount", "path": "x"}]}}"#, "linux.namespaces[0].path"),
            (r#"{"linux": {"uidMappings": [{"containerID": 0, "hostID": 0, "size": 1}]}}"#, "linux.uidMappings"),
            (r#"{"linux": {"timeOffsets": {"monotonic": {"secs": 1}}}}"#, "linux.timeOffsets"),
            (r#"{"linux": {"devices": [{"type": "x", "path": "/dev/x"}]}}"#, "linux.devices[0].type"),
            (r#"{"linux": {"rootfsPropagation": "sideways"}}"#, "linux.rootfsPropagation"),
            (r#"{"linux": {"namespaces": [], "rootfsPropagation": "slave"}}"#, "linux.rootfsPropagation"),
            (r#"{"mounts": [{"destination": ""}]}"#, "mounts[0].destination"),
            (r#"{"hooks": {"poststop": [{"path": "x"}]}}"#, "hooks.poststop[0].path"),
            (r#"{"hooks": {"prestart": [{"path": "/x", "timeout": 0}]}}"#, "hooks.prestart[0].timeout"),
            (r#"{"linux": {"sysctl": {"vm.swappiness": "1"}}}"#, "linux.sysctl `vm.swappiness`"),
        ] {
            let error = check(change).expect_err(change);
            assert!(error.contains(&format!(" {field}: ")), "{change}: {error}");
        }
    }
}
