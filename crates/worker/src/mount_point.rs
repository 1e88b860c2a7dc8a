//! Whether a folder is a mount point, without the text of the mounts: there, a path is written with other characters and
//! without links.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Returns whether the folder is on another mount than the one that contains it.
///
/// # Errors
/// It can't be opened.
pub(crate) fn is_mount_point(folder: &Path) -> io::Result<bool> {
    Ok(mount_of(folder)? != mount_of(&folder.join(".."))?)
}

/// Returns the id of the mount that a folder is on (proc_pid_fdinfo(5)).
fn mount_of(folder: &Path) -> io::Result<u64> {
    let descriptor = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let text = fs_err::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel does not say which mount a folder is on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_told_from_a_folder_also_by_a_link() {
        assert!(is_mount_point(Path::new("/proc")).expect("it is there"));
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert!(!is_mount_point(dir.path()).expect("it is there"));
        let link = dir.path().join("a link");
        std::os::unix::fs::symlink("/proc", &link).expect("a folder of its own");
        assert!(is_mount_point(&link).expect("it is there"));
        assert!(is_mount_point(&dir.path().join("none")).is_err());
    }
}
