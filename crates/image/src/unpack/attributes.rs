//! Owner, mode, extended attributes and time of a file in a layer: from an archive's entry or from a lower layer.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

use super::errno;
use crate::tar::Entry;

/// Prefix of overlayfs's own marks, which an archive must not set.
const OVERLAY: &[u8] = b"trusted.overlay.";

pub(super) struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    xattrs: Vec<(OsString, Vec<u8>)>,
    pub(super) mtime: (i64, i64),
}

impl Attributes {
    /// Returns those of an entry; `None` if the kernel has no such owner.
    pub(super) fn from_entry(entry: &Entry) -> Option<Self> {
        Some(Self {
            uid: Uid::from_raw(entry.uid.try_into().ok()?),
            gid: Gid::from_raw(entry.gid.try_into().ok()?),
            mode: Mode::from_bits_truncate(entry.mode),
            xattrs: entry.xattrs.clone(),
            mtime: entry.mtime,
        })
    }

    /// Reads those of a folder in a lower layer.
    pub(super) fn of(folder: &Path) -> Result<Self, Errno> {
        let about = fs::symlink_metadata(folder).map_err(|error| errno(&error))?;
        let names = xattr::list(folder).map_err(|error| errno(&error))?;
        let xattrs = names.filter_map(|name| Some((name.clone(), xattr::get(folder, &name).ok()??)));
        Ok(Self {
            uid: Uid::from_raw(about.uid()),
            gid: Gid::from_raw(about.gid()),
            mode: Mode::from_bits_truncate(about.mode() & 0o7777),
            xattrs: xattrs.collect(),
            mtime: (about.mtime(), about.mtime_nsec()),
        })
    }

    /// Sets owner, extended attributes, mode and time of a file, in this order, because changing the owner clears
    /// set-user-id bits and file capabilities (chown(2)).
    pub(super) fn set(&self, parent: &OwnedFd, name: &OsStr, is_symlink: bool) -> Result<(), Errno> {
        fchownat(parent, name, Some(self.uid), Some(self.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let target = Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        for (key, value) in self.xattrs.iter().filter(|(key, _)| !key.as_encoded_bytes().starts_with(OVERLAY)) {
            match xattr::set(&target, key, value).map_err(|error| errno(&error)) {
                // A file system need not support attributes, and only files and folders can have those of users
                // (xattr(7)).
                Ok(()) | Err(Errno::ENOTSUP | Errno::EPERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        if !is_symlink {
            fchmodat(parent, name, self.mode, FchmodatFlags::FollowSymlink)?;
        }
        set_time(parent, name, self.mtime)
    }
}

/// Sets the times of a file, and of a link itself.
pub(super) fn set_time(parent: &OwnedFd, name: &OsStr, (seconds, nanoseconds): (i64, i64)) -> Result<(), Errno> {
    let at = TimeSpec::new(seconds, nanoseconds);
    utimensat(parent, name, &at, &at, UtimensatFlags::NoFollowSymlink)
}
