//! /dev: OCI runtime specification, "Default Devices" and "Dev symbolic links".

use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::error::{Act, StepError};

const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];

pub(super) fn make(root: &Path) -> Result<(), StepError> {
    let dev = root.join("dev");
    let mask = nix::sys::stat::umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&dev.join(name), SFlag::S_IFCHR, mode, makedev(major, minor)).act(|| format!("make /dev/{name}"))?;
    }
    nix::sys::stat::umask(mask);
    LINKS.iter().try_for_each(|(to, name)| symlink(to, dev.join(name)).act(|| format!("make /dev/{name}")))
}
