//! The identity and rights of a process: changes them from the runtime's own to those of the configuration.

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid};

use crate::error::{Act, StepError};
use crate::ids;
use crate::oci::{Linux, Process};
use crate::security::capabilities::Sets;
use crate::syscall::{files, process as kernel};

/// Sets identity and capabilities. `filter` is called when a seccomp filter can be installed: while the process still
/// has the necessary rights or, under `noNewPrivileges`, which requires none, at the end.
pub(crate) fn assume(
    process: &Process,
    supervised: bool,
    mut filter: impl FnMut() -> Result<(), StepError>,
) -> Result<(), StepError> {
    let user = &process.user;
    let sets = Sets::new(process.capabilities.as_ref());
    own_stdio(user.uid, user.gid, |_| true);
    let mask = user.umask.map_or(Mode::from_bits_truncate(0o022), Mode::from_bits_truncate);
    nix::sys::stat::umask(mask);
    if !process.no_new_privileges {
        filter()?;
    }
    sets.limit()?;
    kernel::keep_capabilities(true).act(|| "keep the capabilities".into())?;
    match kernel::set_groups(&user.additional_gids) {
        // If an unprivileged user created the user namespace, processes in it can't change groups
        // (user_namespaces(7)).
        Err(Errno::EPERM) if user.additional_gids.is_empty() && groups_are_fixed() => {}
        other => other.act(|| "set process.user.additionalGids".into())?,
    }
    kernel::become_user(user.uid, user.gid).act(|| format!("become user {} and group {}", user.uid, user.gid))?;
    kernel::keep_capabilities(false).act(|| "no longer keep the capabilities".into())?;
    sets.set()?;
    if supervised {
        // A change of user resets the setting (PR_SET_PDEATHSIG(2const)).
        kernel::die_with_parent().act(|| "tie the container to its supervisor".into())?;
    }
    if process.no_new_privileges {
        kernel::forbid_new_privileges().act(|| "forbid new privileges".into())?;
        filter()?;
    }
    Ok(())
}

fn groups_are_fixed() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|it| it.trim() == "deny")
        // Without /proc this can't be determined, and the kernel has refused.
        || !std::path::Path::new("/proc/self/setgroups").exists()
}

/// Makes this user of a container with a user namespace own the files behind the standard descriptors, as [`own_stdio`]
/// does. In the namespace it can't be done if they belong to a user who is not in it.
pub(crate) fn own_stdio_outside(process: &Process, linux: &Linux) {
    if Uid::effective().is_root() && !linux.uid_mappings.is_empty() {
        let user = &process.user;
        let (uid, gid) = (ids::outside(&linux.uid_mappings, user.uid), ids::outside(&linux.gid_mappings, user.gid));
        // A caller's terminal, files and devices stay its own.
        own_stdio(uid, gid, |kind| matches!(kind, SFlag::S_IFIFO | SFlag::S_IFSOCK));
    }
}

/// Makes the process own the files behind its standard descriptors, except the machine's devices, because it must be
/// able to open /dev/stdout.
fn own_stdio(uid: u32, gid: u32, is_meant: impl Fn(SFlag) -> bool) {
    let null = nix::sys::stat::makedev(1, 3);
    let own = |fd: std::os::fd::BorrowedFd<'_>| {
        let Ok(about) = fstat(fd) else { return };
        let kind = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
        // The group of a terminal is the one for terminals.
        let gid = (kind != SFlag::S_IFCHR).then(|| Gid::from_raw(gid));
        if is_meant(kind) && about.st_uid != uid && !(kind == SFlag::S_IFCHR && about.st_rdev == null) {
            // A file whose owner can't be changed (on a read-only file system, or with an unmapped id) stays as it is.
            let _ = nix::unistd::fchown(fd, Some(Uid::from_raw(uid)), gid);
        }
    };
    files::standard().into_iter().for_each(own);
}
