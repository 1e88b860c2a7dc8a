//! Devices in /dev: config-linux.md, "Default Devices" and "Devices"; runtime-linux.md, "Dev symbolic links".

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::options::Options;
use super::{Plan, RootDir};
use crate::error::{Act, StepError};
use crate::ids;
use crate::oci::{Device, Spec};
use crate::syscall::mounts as kernel;

/// Name, major and minor number of the devices of every container.
pub(crate) const DEFAULT: [(&str, i64, i64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
];

/// Returns the default devices and the configuration's, which replace default ones with the same path.
pub(super) fn all(spec: &Spec) -> impl Iterator<Item = Device> + '_ {
    let given = &spec.linux().devices;
    let default = DEFAULT.iter().map(|(name, major, minor)| Device {
        kind: "c".into(),
        path: PathBuf::from(format!("/dev/{name}")),
        major: *major,
        minor: *minor,
        file_mode: Some(0o666),
        uid: Some(0),
        gid: Some(0),
    });
    default.filter(|it| !given.iter().any(|other| other.path == it.path)).chain(given.iter().cloned())
}

/// Creates the devices and links, unless the machine's own /dev is bound there.
pub(super) fn make(root: &RootDir, plan: &Plan<'_>) -> Result<(), StepError> {
    let is_dev = |path: &Path| path.components().eq(Path::new("/dev").components());
    let bound = |mount: &crate::oci::Mount| is_dev(&mount.destination) && Options::parse(&mount.options).bind.is_some();
    if plan.spec.mounts.iter().any(bound) {
        return Ok(());
    }
    let dev = root.make_folder(Path::new("/dev")).act(|| "make /dev".into())?;
    let mask = nix::sys::stat::umask(Mode::empty());
    let made = all(plan.spec).enumerate().try_for_each(|(index, device)| {
        let act = || format!("make the device `{}`", device.path.display());
        if plan.user_namespace { bind(root, plan, index, &device) } else { node(root, &dev, &device).act(act) }
    });
    nix::sys::stat::umask(mask);
    made?;
    for (to, name) in LINKS {
        match symlinkat(to, &dev, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).act(|| format!("make /dev/{name}")),
        }
    }
    // The image's own ptmx could give access to other containers' terminals.
    let _ = unlinkat(&dev, "ptmx", UnlinkatFlags::NoRemoveDir);
    match symlinkat("pts/ptmx", &dev, "ptmx") {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).act(|| "make /dev/ptmx".into()),
    }
}

/// Creates a device node. Most are directly in `dev`, which is already open.
fn node(root: &RootDir, dev: &OwnedFd, device: &Device) -> Result<(), Errno> {
    let (other, name);
    let parent = if device.path.parent() == Some(Path::new("/dev")) {
        name = device.path.file_name().ok_or(Errno::EINVAL)?;
        dev
    } else {
        (other, name) = root.make_parent(&device.path)?;
        &other
    };
    let kind = match device.kind.as_str() {
        "c" | "u" => SFlag::S_IFCHR,
        "b" => SFlag::S_IFBLK,
        "p" => SFlag::S_IFIFO,
        _ => return Err(Errno::EINVAL),
    };
    let number = if kind == SFlag::S_IFIFO { 0 } else { number(device)? };
    let mode = Mode::from_bits_truncate(device.file_mode.unwrap_or(0o666));
    match mknodat(parent, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let there = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let same = SFlag::from_bits_truncate(there.st_mode) & SFlag::S_IFMT == kind && there.st_rdev == number;
            if !same {
                return Err(Errno::EEXIST);
            }
        }
        Err(error) => return Err(error),
    }
    let (uid, gid) = (device.uid.map(Uid::from_raw), device.gid.map(Gid::from_raw));
    fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn number(device: &Device) -> Result<u64, Errno> {
    let part = |it: i64| u64::try_from(it).map_err(|_| Errno::EINVAL);
    Ok(makedev(part(device.major)?, part(device.minor)?))
}

/// Returns a node for a container that can't create it itself. It is created in `scratch` and opened as a mountable
/// tree. The default devices are the machine's own.
pub(super) fn outside(spec: &Spec, device: &Device, scratch: &Path) -> Result<Option<OwnedFd>, StepError> {
    let act = || format!("make the device `{}`", device.path.display());
    if device.kind == "p" {
        return Ok(None);
    }
    if !spec.linux().devices.contains(device) {
        return kernel::open_tree(nix::fcntl::AT_FDCWD, &device.path, false).act(act).map(Some);
    }
    let root = RootDir::open(scratch)?;
    let name = device.path.display().to_string().replace('/', "-");
    let linux = spec.linux();
    let local = Device {
        path: Path::new("/").join(&name),
        uid: Some(ids::outside(&linux.uid_mappings, device.uid.unwrap_or(0))),
        gid: Some(ids::outside(&linux.gid_mappings, device.gid.unwrap_or(0))),
        ..device.clone()
    };
    let mask = nix::sys::stat::umask(Mode::empty());
    let made = root.make_folder(Path::new("/")).and_then(|top| node(&root, &top, &local)).act(act);
    nix::sys::stat::umask(mask);
    made?;
    // The file stays until the container is removed, because a deleted file can't be mounted.
    let tree = kernel::open_tree(nix::fcntl::AT_FDCWD, &scratch.join(name), false).act(act)?;
    // The folder of the runtime's states is usually mounted with nodev.
    let usable = kernel::Change { clear: kernel::NODEV, ..kernel::Change::default() };
    kernel::set_attributes(tree.as_fd(), usable, false, None).act(act)?;
    Ok(Some(tree))
}

/// Binds the machine's own node, because a node that is created in a user namespace does not work (mknod(2)).
fn bind(root: &RootDir, plan: &Plan<'_>, index: usize, device: &Device) -> Result<(), StepError> {
    let act = || format!("bind the device `{}`", device.path.display());
    if device.kind == "p" {
        return root.make_folder(Path::new("/dev")).and_then(|dev| node(root, &dev, device)).act(act);
    }
    let opened;
    let tree = match plan.sources.devices.get(index).and_then(Option::as_ref) {
        Some(tree) => tree,
        None => {
            opened = kernel::open_tree(nix::fcntl::AT_FDCWD, &device.path, false).act(act)?;
            &opened
        }
    };
    if nix::sys::stat::fstat(tree).act(act)?.st_rdev != number(device).act(act)? {
        return Err(StepError::refuse(act(), "the machine has another device there"));
    }
    // A device is never a program.
    let plain = kernel::Change { set: kernel::NOSUID | kernel::NOEXEC, ..kernel::Change::default() };
    kernel::set_attributes(tree.as_fd(), plain, false, None).act(act)?;
    let target = root.make_file(&device.path).act(act)?;
    kernel::move_mount(tree.as_fd(), target.as_fd()).act(act)
}
