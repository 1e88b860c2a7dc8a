//! Copies an unpacked layer onto a folder, with the same result as mounting it on top. Used where overlayfs is
//! unavailable.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, mknod};

/// Prefix of entries that remove something (OCI image specification, "Whiteouts").
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Copies all of `layer`, which was unpacked with its whiteouts as files, onto `root`, and applies the whiteouts.
///
/// # Errors
/// An I/O error; files that were already copied stay.
pub fn copy_layer(layer: &Path, root: &Path) -> io::Result<()> {
    let mut entries = fs_err::read_dir(layer)?.collect::<io::Result<Vec<_>>>()?;
    // Whiteouts are applied first, because they hide files of lower layers and not files that this layer adds.
    entries.sort_by_key(|entry| !entry.file_name().as_encoded_bytes().starts_with(WHITEOUT.as_bytes()));
    if layer.join(OPAQUE).exists() {
        for below in fs_err::read_dir(root)? {
            clear(&below?.path())?;
        }
    }
    for entry in entries {
        let (name, from) = (entry.file_name(), entry.path());
        if let Some(hidden) = name.as_encoded_bytes().strip_prefix(WHITEOUT.as_bytes()) {
            if name != OPAQUE {
                clear(&root.join(OsStr::from_bytes(hidden)))?;
            }
            continue;
        }
        let to = root.join(&name);
        let about = fs_err::symlink_metadata(&from)?;
        let keeps = about.is_dir() && fs::symlink_metadata(&to).is_ok_and(|old| old.is_dir());
        if !keeps {
            clear(&to)?;
        }
        if about.is_dir() {
            if !keeps {
                fs_err::create_dir(&to)?;
            }
            copy_layer(&from, &to)?;
        } else if about.is_symlink() {
            symlink(fs_err::read_link(&from)?, &to)?;
        } else if about.is_file() {
            fs_err::copy(&from, &to)?;
        } else if about.file_type().is_fifo() {
            mknod(&to, SFlag::S_IFIFO, Mode::from_bits_truncate(about.mode() & 0o7777), 0)?;
        } else {
            // An unpacked layer has no sockets or devices.
            continue;
        }
        attributes(&from, &to, &about)?;
    }
    Ok(())
}

/// Removes the file or folder at the path, if there is one.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// Copies the attributes, the owner first, because changing the owner clears set-user-id bits and file capabilities
/// (chown(2)).
fn attributes(from: &Path, to: &Path, about: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(about.uid()), Some(about.gid()))?;
    if about.is_symlink() {
        return Ok(());
    }
    for name in xattr::list(from)? {
        if !name.to_string_lossy().starts_with("trusted.")
            && let Some(value) = xattr::get(from, &name)?
        {
            // The target's file system may not support an attribute that the source's does.
            let _ = xattr::set(to, &name, &value);
        }
    }
    fs_err::set_permissions(to, fs::Permissions::from_mode(about.mode()))
}
