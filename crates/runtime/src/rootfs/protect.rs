//! Paths that are masked or made read-only (config-linux.md, "Masked Paths", "Readonly Paths").

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat, makedev};

use super::RootDir;
use crate::error::{Act, StepError};
use crate::syscall::mounts::{self as kernel, FileSystem};

/// Opens a path; `None` if it does not exist or can't be reached, because it then needs no protection.
fn find(root: &RootDir, path: &str) -> Result<Option<OwnedFd>, StepError> {
    match root.find(Path::new(path), libc::O_PATH) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
        Err(error) => Err(error).act(|| format!("open `{path}`")),
    }
}

/// Covers files with the machine's /dev/null and folders with an empty one.
///
/// The container's own /dev/null is not used, because an image or another container could have replaced it by a link
/// (CVE-2025-31133).
pub(super) fn mask(root: &RootDir, paths: &[String]) -> Result<(), StepError> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = find(root, path)? else { continue };
        let act = || format!("hide `{path}`");
        let kind = SFlag::from_bits_truncate(fstat(&target).act(act)?.st_mode) & SFlag::S_IFMT;
        let cover = match &empty {
            _ if kind != SFlag::S_IFDIR => device_null()?,
            // An attached mount can be copied on every kernel, a detached one only on the newest.
            Some(mounted) => kernel::open_tree(mounted.as_fd(), Path::new(""), false).act(act)?,
            None => empty_folder()?,
        };
        kernel::move_mount(cover.as_fd(), target.as_fd()).act(act)?;
        if kind == SFlag::S_IFDIR {
            empty.get_or_insert(cover);
        }
    }
    Ok(())
}

fn empty_folder() -> Result<OwnedFd, StepError> {
    let system = FileSystem::open("tmpfs").act(|| "use the file system `tmpfs`".into())?;
    system.set("source", "tmpfs").act(|| "make an empty folder".into())?;
    system.set("nr_inodes", "2").act(|| "make an empty folder".into())?;
    system.mount(kernel::RDONLY).act(|| "make an empty folder".into())
}

fn device_null() -> Result<OwnedFd, StepError> {
    let tree = kernel::open_tree(nix::fcntl::AT_FDCWD, Path::new("/dev/null"), false);
    let tree = tree.act(|| "open the machine's /dev/null".into())?;
    let about = fstat(&tree).act(|| "look at /dev/null".into())?;
    let is_null = about.st_rdev == makedev(1, 3) && about.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    if !is_null {
        return Err(StepError::refuse("use the machine's /dev/null", "it is something else"));
    }
    Ok(tree)
}

/// Binds each path onto itself, read-only.
pub(super) fn read_only(root: &RootDir, paths: &[String]) -> Result<(), StepError> {
    for path in paths {
        let Some(target) = find(root, path)? else { continue };
        let act = || format!("make `{path}` read-only");
        let tree = kernel::open_tree(target.as_fd(), Path::new(""), true).act(act)?;
        let change = kernel::Change { set: kernel::RDONLY, ..kernel::Change::default() };
        kernel::set_attributes(tree.as_fd(), change, true, None).act(act)?;
        kernel::move_mount(tree.as_fd(), target.as_fd()).act(act)?;
    }
    Ok(())
}
