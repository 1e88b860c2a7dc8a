//! The mount calls that work on descriptors (fsopen(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2)), so
//! that a link can't change source or target of a mount between check and use.
#![expect(unsafe_code, reason = "raw system calls")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;

use super::files::text;

// Constants of <linux/mount.h> that the crate `libc` does not have.
pub(crate) const RDONLY: u64 = 0x1;
pub(crate) const NOSUID: u64 = 0x2;
pub(crate) const NODEV: u64 = 0x4;
pub(crate) const NOEXEC: u64 = 0x8;
pub(crate) const ATIME: u64 = 0x70;
pub(crate) const NOATIME: u64 = 0x10;
pub(crate) const STRICTATIME: u64 = 0x20;
pub(crate) const NODIRATIME: u64 = 0x80;
const IDMAP: u64 = 0x0010_0000;
pub(crate) const NOSYMFOLLOW: u64 = 0x0020_0000;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const OPEN_TREE_CLONE: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn own(result: i64) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the callers pass the result of a system call that returns a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors fit")) })
}

fn c(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

/// A file system that is being configured.
pub(crate) struct FileSystem(OwnedFd);

impl FileSystem {
    pub(crate) fn open(kind: &str) -> Result<Self, Errno> {
        let kind = c(kind)?;
        // SAFETY: `kind` lives through the call.
        own(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    fn configure(&self, command: u32, key: Option<&str>, value: Option<&str>) -> Result<(), Errno> {
        let (key, value) = (key.map(c).transpose()?, value.map(c).transpose()?);
        let pointer = |it: &Option<CString>| it.as_ref().map_or(std::ptr::null(), |it| it.as_ptr());
        // SAFETY: key and value are null or live through the call.
        let result = unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(&key), pointer(&value), 0)
        };
        Errno::result(result).map(drop)
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), Errno> {
        self.configure(FSCONFIG_SET_STRING, Some(key), Some(value))
    }

    pub(crate) fn set_flag(&self, key: &str) -> Result<(), Errno> {
        self.configure(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Creates the file system; the mount is not attached yet. `attributes` are `MOUNT_ATTR_…`.
    pub(crate) fn mount(&self, attributes: u64) -> Result<OwnedFd, Errno> {
        self.configure(FSCONFIG_CMD_CREATE, None, None)?;
        let attributes = u32::try_from(attributes).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the call takes integers.
        own(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
    }

    /// Returns the kernel's message about the last failure, if there is one.
    pub(crate) fn complaint(&self) -> Option<String> {
        let mut buffer = [0; 512];
        let count = nix::unistd::read(&self.0, &mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..count]);
        Some(text.trim().trim_start_matches("e ").to_owned())
    }
}

/// Returns an unattached copy of the mount at `path`, relative to `dir`; an empty path stands for `dir` itself.
pub(crate) fn open_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    flags |= libc::AT_EMPTY_PATH.cast_unsigned();
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    let path = text(path)?;
    // SAFETY: `path` lives through the call.
    own(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches an unattached mount to an open folder or file.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are empty strings.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), c"".as_ptr(), target.as_raw_fd(), c"".as_ptr(), flags)
    };
    Errno::result(result).map(drop)
}

/// The changes of mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Attributes to set, as `MOUNT_ATTR_…`.
    pub(crate) set: u64,
    /// Attributes to clear, as `MOUNT_ATTR_…`.
    pub(crate) clear: u64,
    /// Propagation type, such as `MS_SHARED`; 0 leaves it unchanged.
    pub(crate) propagation: u64,
}

/// Changes the mount at this descriptor, and those below it if `recursive`. The mount shows the ids of
/// `user_namespace`, if given (`MOUNT_ATTR_IDMAP`).
pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    change: Change,
    recursive: bool,
    user_namespace: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attributes =
        MountAttributes { set: change.set, clear: change.clear, propagation: change.propagation, user_namespace: 0 };
    if let Some(namespace) = user_namespace {
        attributes.set |= IDMAP;
        attributes.user_namespace = u64::try_from(namespace.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string, and `attributes` lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    Errno::result(result).map(drop)
}
