//! An unpacked layer onto a folder, where overlayfs can't be used: the same result as mounting it on top.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, mknod};

/// What begins with it takes something away (OCI image specification, "Whiteouts").
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Puts everything of `layer`, which was unpacked with its whiteouts as files, onto `root`, obeying them.
///
/// # Errors
/// The machine would not; what was copied stays.
pub fn copy_layer(layer: &Path, root: &Path) -> io::Result<()> {
    let mut entries = fs_err::read_dir(layer)?.collect::<io::Result<Vec<_>>>()?;
    // What takes away first: it is about the layers below, and not about what this one adds.
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
            // Sockets and devices: an unpacked layer has none.
            continue;
        }
        attributes(&from, &to, &about)?;
    }
    Ok(())
}

/// Whatever is there goes; nothing is fine.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// Owner first: changing it clears set-user-id bits and file capabilities (chown(2)).
fn attributes(from: &Path, to: &Path, about: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(about.uid()), Some(about.gid()))?;
    if about.is_symlink() {
        return Ok(());
    }
    for name in xattr::list(from)? {
        if !name.to_string_lossy().starts_with("trusted.")
            && let Some(value) = xattr::get(from, &name)?
        {
            // A file system may not know an attribute that the other one does.
            let _ = xattr::set(to, &name, &value);
        }
    }
    fs_err::set_permissions(to, fs::Permissions::from_mode(about.mode()))
}
