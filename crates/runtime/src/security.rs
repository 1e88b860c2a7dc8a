//! What a container's processes may do: capabilities, no new privileges, a seccomp filter. The same defaults as
//! Docker's.

mod seccomp;

pub(crate) use seccomp::Filter;

use caps::{CapSet, Capability, CapsHashSet};

use crate::error::{Act, StepError};

/// What Docker leaves to a container's root.
const KEPT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_MKNOD,
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_SETFCAP,
];

/// Device nodes may be made only where a cgroup decides which of them can be opened.
fn kept(guarded_devices: bool) -> CapsHashSet {
    KEPT.into_iter().filter(|it| guarded_devices || *it != Capability::CAP_MKNOD).collect()
}

fn failed(error: caps::errors::CapsError) -> std::io::Error {
    std::io::Error::other(error.to_string())
}

/// Takes the rest out of the bounding set: no program can ever get it back. While still privileged.
pub(crate) fn limit_capabilities(guarded_devices: bool) -> Result<(), StepError> {
    let kept = kept(guarded_devices);
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed).act(|| format!("give up {capability}"))?;
        }
    }
    Ok(())
}

/// Root keeps the kept ones; any other user has none.
pub(crate) fn keep_capabilities(root: bool, guarded_devices: bool) -> Result<(), StepError> {
    let kept = if root { kept(guarded_devices) } else { CapsHashSet::new() };
    // Nothing is inheritable: an unprivileged program that root starts gets nothing by file capabilities.
    let sets = [(CapSet::Effective, &kept), (CapSet::Permitted, &kept), (CapSet::Inheritable, &CapsHashSet::new())];
    sets.into_iter().try_for_each(|(set, wanted)| {
        caps::set(None, set, wanted).map_err(failed).act(|| "set the capabilities".into())
    })
}

/// execve(2) gives no new rights from here on (prctl(2), PR_SET_NO_NEW_PRIVS).
pub(crate) fn forbid_new_privileges() -> Result<(), StepError> {
    nix::sys::prctl::set_no_new_privs().act(|| "forbid new privileges".into())
}
