//! The rights that a node's owner allows to tasks. The scheduler uses them to choose a node, and the worker checks them
//! again, because it does not rely on the scheduler.

use serde::Serialize;

use super::cdi::CdiName;
use super::file_system::{self, FileSystem};
use super::mount::Mount;
use super::service::ServiceSpec;
use crate::{capability, naming};

/// The privileges that tasks may have beyond Docker's default capabilities; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Allowance {
    /// Whether tasks may be privileged, with all devices and capabilities.
    pub privileged: bool,
    /// Paths that specs may map; one that ends in `*` covers every path with that prefix. Also CDI devices that specs may
    /// name; `vendor.com/class=*` covers every one of its kind.
    pub devices: Vec<String>,
    /// Capabilities that specs may add; `ALL` covers every one.
    pub capabilities: Vec<String>,
    /// Paths that specs may bind, with everything below them; `/` covers all.
    pub bind_mounts: Vec<String>,
    /// File systems that volumes may be: `TYPE` for every one of it, or `TYPE:DEVICE`, where a device that ends in `*` covers
    /// all with that prefix. A tmpfs is always allowed.
    pub file_systems: Vec<String>,
}

/// A right that a spec requests although the node does not allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A privileged task.
    #[error("this node allows no privileged tasks")]
    Privileged,
    /// A capability.
    #[error("this node does not allow the capability {0}")]
    Capability(String),
    /// The device at this path.
    #[error("this node does not allow the device {0}")]
    Device(String),
    /// A bind mount of this path, or one that leads to this path.
    #[error("this node does not allow bind mounts of {0}")]
    BindMount(String),
    /// A file system, as `TYPE:DEVICE`.
    #[error("this node does not allow the file system {0}")]
    FileSystem(String),
}

impl Allowance {
    /// Returns whether specs may map the device at `path`.
    pub fn has_device(&self, path: &str) -> bool {
        // Without this check, `/dev/snd/../mem` matches `/dev/snd*`.
        naming::check_path(path).is_ok() && self.devices.iter().any(|allowed| covers(allowed, path))
    }

    /// Returns whether specs may name the CDI device.
    pub fn has_cdi_device(&self, name: &CdiName) -> bool {
        self.devices.iter().any(|allowed| covers(allowed, name.text()))
    }

    /// Returns whether tasks may have this capability.
    pub fn has_capability(&self, name: &str) -> bool {
        let listed = |it: &String| it == name || it == capability::ALL;
        capability::DEFAULT.contains(&name) || self.capabilities.iter().any(listed)
    }

    /// Returns whether specs may bind the file or folder at `path`, as far as the path says where it leads: the worker
    /// also looks at the links in it.
    pub fn has_bind_mount(&self, path: &str) -> bool {
        let covers = |allowed: &String| is_within(path, allowed);
        // Without this check, `/srv/../etc` begins with `/srv/`.
        (path == "/" || naming::check_path(path).is_ok()) && self.bind_mounts.iter().any(covers)
    }

    /// Returns what of a volume that is a file system is not allowed here.
    pub fn refusal_of_volume(&self, volume: &FileSystem) -> Option<Refusal> {
        if let Some(path) = volume.bound_path() {
            return (!self.has_bind_mount(path)).then(|| Refusal::BindMount(path.to_owned()));
        }
        let FileSystem { kind, device, .. } = volume;
        // A node does not rely on the rules by which a manager has taken the volume.
        if let Err(why) = volume.check() {
            return Some(Refusal::FileSystem(format!("{kind}:{device}: {why}")));
        }
        let allows = |entry: &String| match entry.split_once(':') {
            Some((of, devices)) => of == kind && covers(devices, device) && !volume.has_path_option(),
            None => entry == kind,
        };
        let is_allowed = !volume.needs_permission() || self.file_systems.iter().any(allows);
        (!is_allowed).then(|| Refusal::FileSystem(format!("{kind}:{device}")))
    }

    /// Returns the first item of `spec` that is not allowed here.
    pub fn refusal(&self, spec: &ServiceSpec) -> Option<Refusal> {
        // Also a privileged task binds only what is listed, so that a listed path says what tasks may see.
        let mut bound = spec.mounts.iter().filter_map(Mount::bind_source);
        if let Some(path) = bound.find(|path| !self.has_bind_mount(path)) {
            return Some(Refusal::BindMount(path.to_owned()));
        }
        // The same holds for what the files of CDI devices mount and run.
        if let Some(name) = spec.cdi_devices.iter().find(|name| !self.has_cdi_device(name)) {
            return Some(Refusal::Device(name.to_string()));
        }
        if spec.privileged {
            return (!self.privileged).then_some(Refusal::Privileged);
        }
        // The scheduler calls this for each node and task, and few specs add anything, so the common case comes first.
        if !spec.cap_add.is_empty() {
            let mut capabilities = capability::effective(&spec.cap_add, &spec.cap_drop).into_iter();
            if let Some(name) = capabilities.find(|name| !self.has_capability(name)) {
                return Some(Refusal::Capability(name.to_owned()));
            }
        }
        let device = spec.devices.iter().find(|device| !self.has_device(&device.source));
        device.map(|device| Refusal::Device(device.source.clone()))
    }

    /// Checks the entries of the owner's settings.
    ///
    /// # Errors
    /// An entry is invalid; the text names it and the reason.
    pub fn check(&self) -> Result<(), String> {
        if let Some(device) = self.devices.iter().find(|device| !is_device_entry(device)) {
            let shown = device.escape_debug();
            return Err(format!(
                "devices: `{shown}` is neither an absolute path nor the beginning of one and a `*`, and neither a CDI \
                 device nor VENDOR/CLASS=*"
            ));
        }
        if let Some(path) = self.bind_mounts.iter().find(|path| *path != "/" && naming::check_path(path).is_err()) {
            return Err(format!("bind-mounts: `{}` is not an absolute path without detours", path.escape_debug()));
        }
        for entry in &self.file_systems {
            check_file_system(entry).map_err(|why| format!("file-systems: {why}"))?;
        }
        let unknown = self.capabilities.iter().find(|name| !capability::is_known(name));
        unknown.map_or(Ok(()), |name| Err(format!("capabilities: `{}` is not a capability", name.escape_debug())))
    }
}

/// Returns whether an entry of the devices stands for this path or name.
fn covers(allowed: &str, device: &str) -> bool {
    allowed.strip_suffix('*').map_or(device == allowed, |beginning| device.starts_with(beginning))
}

fn check_file_system(entry: &str) -> Result<(), String> {
    let (kind, device) = entry.split_once(':').map_or((entry, None), |(kind, device)| (kind, Some(device)));
    file_system::check_kind(kind)?;
    if kind == file_system::BIND || kind == "none" {
        return Err(format!("`{}`: a folder of the node is allowed in bind-mounts", entry.escape_debug()));
    }
    match device {
        Some(device) if device.strip_suffix('*').unwrap_or(device).contains('*') || device.is_empty() => {
            Err(format!("`{}` is neither TYPE nor TYPE:DEVICE, with a `*` at its end at most", entry.escape_debug()))
        }
        Some(_) if file_system::NAMED_BY_OPTIONS.contains(&kind) => Err(format!(
            "`{}`: the options of {kind} say what is mounted: list the type alone, or not",
            entry.escape_debug()
        )),
        _ => Ok(()),
    }
}

fn is_device_entry(entry: &str) -> bool {
    if !entry.starts_with('/') && entry.contains('=') {
        let of_kind = entry.strip_suffix("=*").is_some_and(|kind| CdiName::check_kind(kind).is_ok());
        return of_kind || entry.parse::<CdiName>().is_ok();
    }
    let beginning = entry.strip_suffix('*').unwrap_or(entry);
    let whole = if beginning.ends_with('/') { format!("{beginning}x") } else { beginning.to_owned() };
    naming::check_path(&whole).is_ok() && !beginning.contains('*')
}

/// Returns whether `path` is `folder` or something below it.
fn is_within(path: &str, folder: &str) -> bool {
    let below = path.strip_prefix(folder);
    folder == "/" || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BindMount, MountSource};

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|it| (*it).to_owned()).collect()
    }

    fn spec(add: &[&str], devices: &[&str]) -> ServiceSpec {
        let devices = devices.iter().map(|it| it.parse().expect(it)).collect();
        ServiceSpec { cap_add: list(add), devices, ..ServiceSpec::default() }
    }

    #[test]
    fn a_privileged_task_gets_only_the_cdi_devices_that_are_listed() {
        let cdi_devices = vec!["v.com/gpu=0".parse().expect("a name")];
        let spec = ServiceSpec { privileged: true, cdi_devices, ..ServiceSpec::default() };
        let refusal = |devices: &[&str]| {
            Allowance { privileged: true, devices: list(devices), ..Allowance::default() }.refusal(&spec)
        };
        assert_eq!(
            refusal(&["/dev/*"]),
            Some(Refusal::Device("v.com/gpu=0".into())),
            "its file may mount and run things"
        );
        assert_eq!(refusal(&["v.com/gpu=*"]), None);
    }

    #[test]
    fn a_node_refuses_all_that_it_does_not_allow() {
        let nothing = Allowance::default();
        let some = Allowance {
            devices: list(&["/dev/fuse", "/dev/snd/*", "/dev/ttyUSB*"]),
            capabilities: list(&["NET_ADMIN"]),
            ..Allowance::default()
        };
        let all =
            Allowance { privileged: true, capabilities: list(&["ALL"]), devices: list(&["/dev/*"]), ..some.clone() };
        let refuses = |allowance: &Allowance, add: &[&str], devices: &[&str]| {
            allowance.refusal(&spec(add, devices)).map(|it| it.to_string()).unwrap_or_default()
        };
        for (allowance, add, devices, expected) in [
            (&nothing, &[][..], &[][..], ""),
            (&nothing, &["CHOWN"], &[], ""),
            (&nothing, &["NET_ADMIN"], &[], "this node does not allow the capability NET_ADMIN"),
            (&nothing, &[], &["/dev/fuse"], "this node does not allow the device /dev/fuse"),
            (&some, &["NET_ADMIN"], &["/dev/fuse", "/dev/snd/seq", "/dev/ttyUSB10"], ""),
            (&some, &["ALL"], &[], "this node does not allow the capability AUDIT_CONTROL"),
            (&some, &[], &["/dev/fuse2"], "this node does not allow the device /dev/fuse2"),
            (&some, &[], &["/dev/snd"], "this node does not allow the device /dev/snd"),
            (&all, &["ALL"], &["/dev/mem"], ""),
        ] {
            assert_eq!(refuses(allowance, add, devices), expected, "{add:?} {devices:?}");
        }
        assert!(!some.has_device("/dev/snd/../mem"));
        let mut privileged = spec(&["SYS_ADMIN"], &["/dev/mem"]);
        privileged.privileged = true;
        assert_eq!(some.refusal(&privileged), Some(Refusal::Privileged));
        assert_eq!(Allowance { privileged: true, ..nothing.clone() }.refusal(&privileged), None, "it has them all");
        // A capability that is dropped again need not be allowed.
        let dropped = ServiceSpec { cap_drop: list(&["CHOWN"]), ..spec(&[], &[]) };
        assert_eq!(nothing.refusal(&dropped), None);
    }

    #[test]
    fn cdi_devices_are_allowed_by_name_or_by_kind() {
        let named = |name: &str| ServiceSpec { cdi_devices: vec![name.parse().expect(name)], ..ServiceSpec::default() };
        for (allowed, name, is_allowed) in [
            (&["v.com/gpu=0"][..], "v.com/gpu=0", true),
            (&["v.com/gpu=0"], "v.com/gpu=01", false),
            (&["/dev/*", "v.com/gpu=*"], "v.com/gpu=all", true),
            (&["v.com/gpu=*"], "v.com/gpus=all", false),
            (&["/*"], "v.com/gpu=all", false),
            (&[], "v.com/gpu=all", false),
        ] {
            let node = Allowance { devices: list(allowed), ..Allowance::default() };
            let refused = (!is_allowed).then(|| Refusal::Device(name.into()));
            assert_eq!(node.refusal(&named(name)), refused, "{allowed:?} {name}");
        }
    }

    #[test]
    fn bind_mounts_are_allowed_below_the_listed_paths_alone() {
        let bound = |source: &str| {
            let source = source.to_owned();
            let source = MountSource::Bind(BindMount { source, ..BindMount::default() });
            let mounts = vec![Mount { target: "/x".into(), read_only: true, source }];
            ServiceSpec { mounts, ..ServiceSpec::default() }
        };
        let allowance = |paths: &[&str]| Allowance { bind_mounts: list(paths), ..Allowance::default() };
        for (allowed, source, is_allowed) in [
            (&["/srv"][..], "/srv", true),
            (&["/srv"], "/srv/a/b", true),
            (&["/srv"], "/srvx", false),
            (&["/srv"], "/", false),
            (&["/srv"], "/srv/../etc", false),
            (&["/opt", "/srv/a"], "/srv/a", true),
            (&["/opt", "/srv/a"], "/srv", false),
            (&["/"], "/etc/shadow", true),
            (&["/"], "/", true),
            (&[], "/srv", false),
        ] {
            let refusal = allowance(allowed).refusal(&bound(source));
            assert_eq!(refusal.is_none(), is_allowed, "{allowed:?} {source}");
        }
        let privileged = ServiceSpec { privileged: true, ..bound("/etc") };
        let node = Allowance { privileged: true, ..allowance(&["/srv"]) };
        assert_eq!(node.refusal(&privileged), Some(Refusal::BindMount("/etc".into())));
        for bad in ["", "srv", "/srv/", "/srv/.."] {
            assert!(allowance(&[bad]).check().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_volume_may_be_what_is_listed_by_type_or_device() {
        let refusal = |allowed: &[&str], kind: &str, device: &str, o: &str| {
            let node = Allowance { file_systems: list(allowed), bind_mounts: list(&["/srv"]), ..Allowance::default() };
            node.check().expect("good entries");
            let volume = FileSystem::of(kind, device, o).expect("a good one");
            node.refusal_of_volume(&volume).map(|it| it.to_string()).unwrap_or_default()
        };
        for (allowed, kind, device, o, expected) in [
            (&[][..], "tmpfs", "", "size=1m", ""),
            (&[], "none", "/srv/a", "bind", ""),
            (&[], "none", "/etc", "bind", "this node does not allow bind mounts of /etc"),
            (&["nfs"], "nfs", ":/srv", "addr=nas", ""),
            (&["nfs"], "nfs4", "nas:/srv", "", "this node does not allow the file system nfs4:nas:/srv"),
            (&["nfs:nas:/srv/*"], "nfs", ":/srv/a", "addr=nas", ""),
            (&["nfs:nas:/srv/*"], "nfs", "evil:/srv/a", "", "this node does not allow the file system nfs:evil:/srv/a"),
            (&["nfs:nas:/srv"], "nfs", "nas:/srv/a", "", "this node does not allow the file system nfs:nas:/srv/a"),
            (&["ext4:/dev/sdb1", "xfs"], "ext4", "/dev/sdb1", "", ""),
            (
                &["xfs:/dev/sdb1"],
                "xfs",
                "/dev/sdb1",
                "logdev=/dev/sda1",
                "this node does not allow the file system xfs:/dev/sdb1",
            ),
            (&["xfs"], "xfs", "/dev/sdb1", "logdev=/dev/sdc1", ""),
            (
                &["nfs"],
                "nfs",
                "nas:/srv/..",
                "",
                "this node does not allow the file system nfs:nas:/srv/..: device: `nas:/srv/..` has the part `..`",
            ),
            (
                &["nfs"],
                "nfs",
                "nas:/srv",
                "mountaddr=b",
                "this node does not allow the file system nfs:nas:/srv: o: `mountaddr=b`: the server is that of the device",
            ),
            (
                &["ext4:/dev/sdb1", "xfs"],
                "ext4",
                "/dev/sda1",
                "",
                "this node does not allow the file system ext4:/dev/sda1",
            ),
        ] {
            assert_eq!(refusal(allowed, kind, device, o), expected, "{allowed:?} {kind} {device}");
        }
        for bad in ["", "Ext4", "nfs:", "nfs:*/a", "bind", "none:/srv", "overlay:x"] {
            assert!(Allowance { file_systems: list(&[bad]), ..Allowance::default() }.check().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_owners_words_are_judged() {
        let devices = |path: &str| Allowance { devices: list(&[path]), ..Allowance::default() }.check();
        for good in ["/dev/fuse", "/dev/snd/*", "/dev/tty*", "/*", "v.com/gpu=all", "v.com/gpu=*"] {
            assert_eq!(devices(good), Ok(()), "{good}");
        }
        for bad in
            ["", "*", "dev/fuse", "/dev/*/x", "/dev/../x", "/dev/tty**", "v.com/gpu", "v.com/*", "v/gpu=a*", "=*"]
        {
            assert!(devices(bad).is_err(), "{bad}");
        }
        assert!(Allowance { capabilities: list(&["net_admin"]), ..Allowance::default() }.check().is_err());
    }
}
