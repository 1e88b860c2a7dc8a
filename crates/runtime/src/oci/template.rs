//! A default configuration, which `spec` writes and an embedding program adapts.

use std::path::PathBuf;

use super::{
    Capabilities, DeviceRule, IdMapping, Linux, Mount, Namespace, NamespaceKind, Process, Resources, Rlimit, Root,
    Spec, VERSION,
};

/// Masked paths, the same as Docker's.
const HIDDEN: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Default mounts, as destination, type, source and options.
const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
];

/// Returns a mount from a row whose options are separated by commas.
pub(crate) fn mount((destination, kind, source, options): (&str, &str, &str, &str)) -> Mount {
    Mount {
        destination: PathBuf::from(destination),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect(),
        ..Mount::default()
    }
}

/// Returns a configuration that runs `sh` in `rootfs`, at a terminal, with three capabilities.
pub fn template() -> Spec {
    let kept = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"].map(str::to_owned).to_vec();
    let capabilities =
        Capabilities { bounding: kept.clone(), effective: kept.clone(), permitted: kept, ..Capabilities::default() };
    let process = Process {
        terminal: true,
        args: vec!["sh".into()],
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(), "TERM=xterm".into()],
        cwd: "/".into(),
        capabilities: Some(capabilities),
        rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".into(), hard: 1024, soft: 1024 }],
        no_new_privileges: true,
        ..Process::default()
    };
    use NamespaceKind::{Cgroup, Ipc, Mount as Mounts, Network, Pid, Uts};
    let namespaces = [Pid, Network, Ipc, Uts, Mounts, Cgroup];
    let deny = DeviceRule { access: "rwm".into(), ..DeviceRule::default() };
    let linux = Linux {
        resources: Some(Resources { devices: vec![deny], ..Resources::default() }),
        namespaces: namespaces.into_iter().map(|kind| Namespace { kind, path: PathBuf::new() }).collect(),
        masked_paths: HIDDEN.map(str::to_owned).to_vec(),
        readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
        ..Linux::default()
    };
    Spec {
        oci_version: VERSION.into(),
        process: Some(process),
        root: Some(Root { path: "rootfs".into(), readonly: true }),
        hostname: Some("flota".into()),
        mounts: MOUNTS.into_iter().map(mount).collect(),
        linux: Some(linux),
        ..Spec::default()
    }
}

/// Returns the configuration for an unprivileged user, whose own ids become the container's root.
pub fn rootless(uid: u32, gid: u32) -> Spec {
    let mut spec = template();
    for mount in &mut spec.mounts {
        // Groups that are not mapped can't be used in options.
        mount.options.retain(|it| !it.starts_with("gid="));
    }
    if let Some(linux) = &mut spec.linux {
        linux.namespaces.retain(|it| it.kind != NamespaceKind::Network);
        linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: PathBuf::new() });
        linux.uid_mappings = vec![IdMapping { container_id: 0, host_id: uid, size: 1 }];
        linux.gid_mappings = vec![IdMapping { container_id: 0, host_id: gid, size: 1 }];
        linux.resources = None;
    }
    // A new sysfs needs a new network namespace (sysfs(5)).
    for it in spec.mounts.iter_mut().filter(|it| it.kind == "sysfs") {
        *it = mount(("/sys", "none", "/sys", "rbind,nosuid,noexec,nodev,ro"));
    }
    spec.mounts.retain(|it| it.kind != "cgroup");
    spec
}
