//! Edits of a container's configuration: found out for the devices of a task, and made. The rules are those of
//! `pkg/cdi/container-edits.go` of <https://github.com/cncf-tags/container-device-interface>, in which the edits of several
//! devices are joined and then made kind by kind.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use flota_runtime::oci::{Device, DeviceRule, Hook, Mount, Spec};

use super::file::{CdiHook, CdiMount, ContainerEdits, DeviceNode};

/// The edits for one container, with what they need of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Injection {
    env: Vec<String>,
    devices: Vec<Device>,
    rules: Vec<DeviceRule>,
    mounts: Vec<Mount>,
    /// By the name of the point at which they run.
    hooks: Vec<(String, Hook)>,
    groups: Vec<u32>,
}

impl Injection {
    /// Adds the edits of a file or of a device.
    pub(super) fn add(&mut self, edits: &ContainerEdits) -> Result<(), String> {
        if edits.intel_rdt.is_some() {
            return Err("it sets `intelRdt`, which is not supported".to_owned());
        }
        self.env.extend(edits.env.iter().cloned());
        for node in &edits.device_nodes {
            let (device, rule) = open(node)?;
            self.devices.push(device);
            self.rules.extend(rule);
        }
        for mount in &edits.mounts {
            self.mounts.push(mounted(mount)?);
        }
        self.hooks.extend(edits.hooks.iter().map(|it| (it.hook_name.clone(), hook(it))));
        // Go's implementation ignores the group 0.
        self.groups.extend(edits.additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }

    /// Returns the groups that the container's processes get, as texts that a supervisor resolves.
    pub(crate) fn groups(&self) -> impl Iterator<Item = String> + '_ {
        self.groups.iter().map(ToString::to_string)
    }

    /// Makes the edits, except for the groups.
    pub(crate) fn apply(self, result: &mut Spec) {
        let process = result.process.get_or_insert_default();
        for variable in self.env {
            set_variable(&mut process.env, variable);
        }
        let linux = result.linux.get_or_insert_default();
        for device in self.devices {
            linux.devices.retain(|it| it.path != device.path);
            linux.devices.push(device);
        }
        linux.resources.get_or_insert_default().devices.extend(self.rules);
        let mut mounts = self.mounts;
        mounts.sort_by_key(|mount| mount.destination.components().count());
        for mount in mounts {
            result.mounts.retain(|it| it.destination != mount.destination);
            result.mounts.insert(position(&result.mounts, &mount.destination), mount);
        }
        for (name, hook) in self.hooks {
            let hooks = result.hooks.get_or_insert_default();
            let list = match name.as_str() {
                "prestart" => &mut hooks.prestart,
                "createRuntime" => &mut hooks.create_runtime,
                "createContainer" => &mut hooks.create_container,
                "startContainer" => &mut hooks.start_container,
                "poststart" => &mut hooks.poststart,
                // The file was checked: there are no others.
                _ => &mut hooks.poststop,
            };
            list.push(hook);
        }
    }
}

/// Sets a variable in place of the one with its name, if there is one.
fn set_variable(env: &mut Vec<String>, variable: String) {
    let name = |it: &str| it.split('=').next().unwrap_or_default().to_owned();
    match env.iter_mut().find(|it| name(it) == name(&variable)) {
        Some(other) => *other = variable,
        None => env.push(variable),
    }
}

/// Returns where a mount is put, so that it hides neither a mount below it nor is hidden by one above it.
fn position(mounts: &[Mount], destination: &Path) -> usize {
    let above = mounts.iter().rposition(|it| destination.starts_with(&it.destination)).map_or(0, |last| last + 1);
    let below = mounts.iter().position(|it| it.destination.starts_with(destination)).unwrap_or(mounts.len());
    above.max(below)
}

/// Completes a device node by the device of the node itself. One that has a type and a number need not be there.
fn open(node: &DeviceNode) -> Result<(Device, Option<DeviceRule>), String> {
    let host_path = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let is_whole = !node.kind.is_empty() && (node.major != 0 || node.kind == "p");
    let mut device = Device {
        kind: node.kind.clone(),
        path: node.path.clone().into(),
        major: node.major,
        minor: node.minor,
        file_mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
    };
    match std::fs::metadata(host_path) {
        Ok(about) => {
            device.file_mode = device.file_mode.or(Some(about.mode() & 0o777));
            if !is_whole {
                take_numbers(&mut device, &about).map_err(|why| format!("`{host_path}` {why}"))?;
            }
        }
        Err(error) if !is_whole => return Err(format!("failed to find the device `{host_path}`: {error}")),
        Err(_) => {}
    }
    // The control group knows no other kinds.
    let kind = if device.kind == "b" { "b" } else { "c" };
    let access = node.access();
    let rule = (device.kind != "p" && !access.is_empty()).then(|| DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major: Some(device.major),
        minor: Some(device.minor),
        access: access.to_owned(),
    });
    Ok((device, rule))
}

/// Takes over the kind and the numbers of a device of this node, as far as they are not given.
fn take_numbers(device: &mut Device, about: &std::fs::Metadata) -> Result<(), &'static str> {
    let kind = match about.file_type() {
        it if it.is_char_device() => "c",
        it if it.is_block_device() => "b",
        it if it.is_fifo() => "p",
        _ => return Err("is not a device"),
    };
    // `u` is another name of `c`.
    let is_same = device.kind == kind || (device.kind == "u" && kind == "c");
    if device.kind.is_empty() {
        kind.clone_into(&mut device.kind);
    } else if !is_same {
        return Err("is a device of another type");
    }
    if kind != "p" && device.major == 0 {
        let number = |it: u64| i64::try_from(it).unwrap_or(-1);
        device.major = number(nix::sys::stat::major(about.rdev()));
        device.minor = number(nix::sys::stat::minor(about.rdev()));
    }
    Ok(())
}

fn mounted(mount: &CdiMount) -> Result<Mount, String> {
    let mut options = mount.options.clone();
    let has_bind = options.iter().any(|it| it == "bind" || it == "rbind");
    let is_bind = has_bind || ["", "none", "bind"].contains(&mount.kind.as_str());
    if is_bind {
        if !mount.host_path.starts_with('/') {
            return Err(format!(
                "`{}`, the source of a mount, is not an absolute path",
                mount.host_path.escape_debug()
            ));
        }
        // The runtime would say it too, but its error does not name the CDI device.
        let failed = |error| format!("failed to find `{}`, the source of a mount: {error}", mount.host_path);
        std::fs::metadata(&mount.host_path).map_err(failed)?;
        // A mount without any option can mean nothing else.
        if !has_bind {
            options.push("rbind".to_owned());
        }
    }
    Ok(Mount {
        destination: mount.container_path.clone().into(),
        kind: if is_bind { "bind".to_owned() } else { mount.kind.clone() },
        source: mount.host_path.clone(),
        options,
        ..Mount::default()
    })
}

fn hook(it: &CdiHook) -> Hook {
    Hook { path: it.path.clone().into(), args: it.args.clone(), env: it.env.clone(), timeout: it.timeout }
}

#[cfg(test)]
mod tests;
