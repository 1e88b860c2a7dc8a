//! Kernel parameters of the container's own namespaces (config-linux.md, "Sysctl").

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Act, StepError};
use crate::oci::{Linux, Namespace, NamespaceKind};
use crate::syscall::files::{NO_LINKS, open_at};

/// Parameters of the IPC namespace, in addition to `fs.mqueue.…`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Refuses parameters that belong to the machine.
pub(crate) fn check(linux: &Linux) -> Result<(), StepError> {
    let has = |kind| linux.namespaces.iter().any(|it| it.kind == kind && !is_callers(it));
    for name in linux.sysctl.keys() {
        let refuse = |why: &str| Err(StepError::refuse(format!("set linux.sysctl `{name}`"), why));
        let dotted = name.replace('/', ".");
        if dotted.split('.').any(str::is_empty) {
            return refuse("that is not a name of a kernel parameter");
        }
        let needed = match dotted.as_str() {
            "kernel.hostname" => return refuse("the field `hostname` sets it"),
            "kernel.domainname" => NamespaceKind::Uts,
            it if IPC.contains(&it) || it.starts_with("fs.mqueue.") => NamespaceKind::Ipc,
            it if it.starts_with("net.") => NamespaceKind::Network,
            it if it.starts_with("user.") => NamespaceKind::User,
            _ => return refuse("it is not one of a namespace's, but the machine's"),
        };
        if !has(needed) {
            return refuse(&format!("it needs a {} namespace of the container's own", needed.file()));
        }
    }
    Ok(())
}

/// Whether the namespace that is joined is that of the runtime itself.
fn is_callers(namespace: &Namespace) -> bool {
    let same = |path: &Path| nix::sys::stat::stat(path).map(|it| (it.st_dev, it.st_ino));
    let own = Path::new("/proc/self/ns").join(namespace.kind.file());
    !namespace.is_new() && same(&namespace.path).is_ok_and(|it| same(&own) == Ok(it))
}

/// Writes the parameters to the machine's /proc and not to a file that is mounted over it (CVE-2025-52881). Must be
/// called before any mount of the container.
pub(super) fn write(parameters: &BTreeMap<String, String>) -> Result<(), StepError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let proc = File::open("/proc/sys").act(|| "open /proc/sys".into())?;
    if fstatfs(&proc).act(|| "look at /proc/sys".into())?.filesystem_type() != PROC_SUPER_MAGIC {
        return Err(StepError::refuse("set linux.sysctl", "/proc is something else"));
    }
    for (name, value) in parameters {
        // In a name with slashes, dots are literal (sysctl.d(5)).
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        let act = || format!("set linux.sysctl `{name}` to `{value}`");
        let file = open_at(proc.as_fd(), &PathBuf::from(path), libc::O_WRONLY, 0, NO_LINKS | libc::RESOLVE_NO_XDEV);
        File::from(file.act(act)?).write_all(value.as_bytes()).act(act)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_own_namespaces_may_be_set() {
        let check = |name: &str, kinds: &[NamespaceKind]| {
            let namespaces = kinds.iter().map(|kind| Namespace { kind: *kind, path: PathBuf::new() }).collect();
            let sysctl = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            super::check(&Linux { namespaces, sysctl, ..Linux::default() }).is_ok()
        };
        use NamespaceKind::{Ipc, Network, Uts};
        for (name, kind) in [
            ("kernel.shmmax", Ipc),
            ("fs.mqueue.msg_max", Ipc),
            ("net.ipv4.ip_forward", Network),
            ("net/ipv4/conf/eth0.1/forwarding", Network),
            ("kernel.domainname", Uts),
        ] {
            assert!(check(name, &[kind]), "{name}");
            assert!(!check(name, &[]), "{name} without its namespace");
        }
        let joined = |path: &str| {
            let sysctl = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
            let namespaces = vec![Namespace { kind: Network, path: path.into() }];
            super::check(&Linux { namespaces, sysctl, ..Linux::default() }).is_ok()
        };
        assert!(!joined("/proc/self/ns/net"), "that is the machine's");
        assert!(joined("/proc/self/ns/uts"), "that is another one, whatever it is");
        for name in ["kernel.hostname", "vm.swappiness", "kernel.core_pattern", "net..ipv4", "../etc", ""] {
            assert!(!check(name, &[Ipc, Network, Uts]), "{name}");
        }
    }
}
