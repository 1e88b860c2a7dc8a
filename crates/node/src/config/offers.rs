//! Settings for what tasks may use on this node: `[runtimes]`, `[[devices]]` and `[allow]`. Devices need not exist yet:
//! they are looked up when a task gets them, because they may be plugged in later.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use flota_api::capability::normalise;
use flota_api::defaults::EMBEDDED_RUNTIME;
use flota_api::model::{Allowance, NodeDescription, NodeDevice};
use flota_api::naming;
use flota_worker::{NodeOffers, bind_roots};

/// `[[devices]]`: a device that the node hands out by id.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Device {
    kind: String,
    id: String,
    /// May be absent if the id is the name of a CDI device.
    #[serde(default)]
    paths: Vec<String>,
}

/// `[allow]`: what tasks may have beyond the defaults; nothing unless it is listed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Allow {
    privileged: bool,
    devices: Vec<String>,
    capabilities: Vec<String>,
    #[serde(alias = "bind_mounts")]
    bind_mounts: Vec<String>,
    file_systems: Vec<String>,
}

/// Checks the settings. Errors name the entry.
pub(super) fn resolve(
    runtimes: BTreeMap<String, PathBuf>,
    devices: Vec<Device>,
    allow: Allow,
    no_new_privileges: Option<bool>,
    labels: BTreeMap<String, String>,
) -> anyhow::Result<NodeOffers> {
    for (name, program) in &runtimes {
        check_runtime(name, program).with_context(|| format!("runtimes.{name}"))?;
    }
    let device = |it: Device| NodeDevice { kind: it.kind, id: it.id, paths: it.paths };
    let capabilities = allow.capabilities.iter().map(|name| normalise(name)).collect();
    let offers = NodeOffers {
        runtimes,
        devices: devices.into_iter().map(device).collect(),
        cdi_folders: Vec::new(),
        bind_roots: bind_roots(&allow.bind_mounts),
        allow: Allowance {
            privileged: allow.privileged,
            devices: allow.devices,
            capabilities,
            bind_mounts: allow.bind_mounts,
            file_systems: allow.file_systems,
        },
        no_new_privileges,
        app_armor: None,
        data_address: None,
        balancer: None,
        tunnel_key_life: None,
        labels,
    };
    // The leader checks the node's description by the same rules, and would refuse its session.
    let description = NodeDescription {
        runtimes: offers.runtime_names(),
        devices: offers.devices.clone(),
        allow: offers.allow.clone(),
        labels: offers.labels.clone(),
        ..NodeDescription::default()
    };
    description.check_offers().map_err(anyhow::Error::msg)?;
    Ok(offers)
}

fn check_runtime(name: &str, program: &Path) -> anyhow::Result<()> {
    naming::check(name)?;
    if name == EMBEDDED_RUNTIME {
        bail!("`{EMBEDDED_RUNTIME}` is the embedded runtime; choose another name");
    }
    let path = program.to_str().context("the path is not valid UTF-8")?;
    naming::check_path(path)?;
    let about = std::fs::metadata(program).with_context(|| format!("failed to find the program {path}"))?;
    if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
        bail!("{path} is not an executable file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;

    fn offers(text: &str) -> anyhow::Result<NodeOffers> {
        let file: File = toml::from_str(text)?;
        resolve(file.runtimes, file.devices, file.allow, file.no_new_privileges, file.labels)
    }

    #[test]
    fn a_settings_file_lists_runtimes_devices_and_allowances() {
        let offers = offers(
            r#"
            log = "info"
            no-new-privileges = true
            [runtimes]
            sh = "/bin/sh"
            [[devices]]
            kind = "gpu"
            id = "left"
            paths = ["/dev/nvidia0", "/dev/nvidiactl"]
            [[devices]]
            kind = "gpu"
            id = "v.com/gpu=0"
            [[devices]]
            kind = "fpga"
            id = "left"
            paths = ["/dev/fpga0"]
            [allow]
            privileged = true
            devices = ["/dev/fuse", "/dev/snd/*", "v.com/gpu=*"]
            capabilities = ["cap_net_admin", "SYS_PTRACE"]
            bind-mounts = ["/srv", "/opt/data"]
            file-systems = ["ext4:/dev/sdb*", "nfs"]
            [labels]
            disk = "120"
            "#,
        )
        .expect("a good file");
        assert_eq!(offers.runtime_names(), ["flota", "sh"]);
        assert_eq!(offers.runtimes["sh"], Path::new("/bin/sh"));
        let devices: Vec<String> = offers.devices.iter().map(|it| it.device_id().to_string()).collect();
        assert_eq!(devices, ["gpu=left", "gpu=v.com/gpu=0", "fpga=left"]);
        assert!(
            offers.no_new_privileges == Some(true)
                && offers.allow.privileged
                && offers.allow.has_device("/dev/snd/seq")
        );
        assert_eq!(offers.allow.capabilities, ["NET_ADMIN", "SYS_PTRACE"]);
        assert_eq!(offers.allow.bind_mounts, ["/srv", "/opt/data"]);
        assert_eq!(offers.allow.file_systems, ["ext4:/dev/sdb*", "nfs"]);
        assert_eq!(offers.labels, [("disk".to_owned(), "120".to_owned())].into());
        let same = self::offers("[allow]\nbind_mounts = ['/srv']").expect("a good file");
        assert_eq!(same.allow.bind_mounts, ["/srv"]);
    }

    #[test]
    fn an_empty_file_offers_nothing() {
        assert_eq!(offers("").expect("an empty file"), NodeOffers::default());
    }

    #[test]
    fn a_wrong_entry_is_an_error_that_names_it() {
        let device = |fields: &str| format!("[[devices]]\n{fields}");
        let gpu = device("kind = 'gpu'\nid = 'a'\npaths = ['/dev/x']\n");
        for (text, expected) in [
            ("[runtimes]\nflota = '/bin/sh'", "runtimes.flota: `flota` is the embedded runtime"),
            ("[runtimes]\n'a b' = '/bin/sh'", "runtimes.a b: `a b`: a name has"),
            ("[runtimes]\nsh = 'bin/sh'", "runtimes.sh: `bin/sh` is not an absolute path"),
            ("[runtimes]\nsh = '/bin/../bin/sh'", "runtimes.sh: `/bin/../bin/sh`: a path has neither"),
            ("[runtimes]\nsh = '/nowhere/sh'", "runtimes.sh: failed to find the program /nowhere/sh"),
            ("[runtimes]\nsh = '/etc'", "runtimes.sh: /etc is not an executable file"),
            ("[runtimes]\nsh = '/etc/passwd'", "runtimes.sh: /etc/passwd is not an executable file"),
            (&format!("{gpu}{gpu}"), "devices: gpu=a: it is there twice"),
            (&device("kind = 'gpu'\nid = 'a'\npaths = []"), "devices: gpu=a: it has no paths"),
            (&device("kind = 'gpu'\nid = 'a'\npaths = ['x']"), "devices: gpu=a: `x` is not an absolute path"),
            (&device("kind = ''\nid = 'a'\npaths = ['/x']"), "devices: kind: a name is needed"),
            (&device("kind = 'gpu'\nid = 'a/b'\npaths = ['/x']"), "devices: id: `a/b`: a name has"),
            (&device("kind = 'gpu'\nid = 'a'"), "devices: gpu=a: it has no paths"),
            (&device("kind = 'gpu'\nid = 'v.com/gpu='"), "devices: id: `v.com/gpu=`: a name has"),
            (&device("kind = 'gpu'\nid = 'a'\npaths = ['/x']\ncolour = 1"), "unknown field `colour`"),
            ("[allow]\ndevices = ['dev/x']", "allow.devices: `dev/x` is neither an absolute path"),
            (
                "[allow]\ndevices = ['/dev/*/x']",
                "allow.devices: `/dev/*/x` is neither an absolute path nor the beginning",
            ),
            ("[allow]\nbind-mounts = ['srv']", "allow.bind-mounts: `srv` is not an absolute path"),
            (
                "[allow]\nfile-systems = ['none:/srv']",
                "allow.file-systems: `none:/srv`: a folder of the node is allowed in",
            ),
            ("[labels]\n'a b' = 'c'", "labels: `a b`"),
            ("[labels]\na = \"\\u001b\"", "labels: a: the value has at most 4096 bytes and no control characters"),
            ("[allow]\ncapabilities = ['root']", "allow.capabilities: `ROOT` is not a capability"),
            ("[allow]\nprivileged = 'yes'", "invalid type"),
        ] {
            let error = format!("{:#}", offers(text).expect_err(text));
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
