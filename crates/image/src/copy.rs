//! An unpacked layer onto a folder, where overlayfs can't be used: the same result as mounting it on top.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, mknod};

/// Puts everything of `layer` onto `root`, obeying its whiteouts.
///
/// # Errors
/// The machine would not; what was copied stays.
pub fn copy_layer(layer: &Path, root: &Path) -> io::Result<()> {
    for entry in fs_err::read_dir(layer)? {
        let entry = entry?;
        let (from, to) = (entry.path(), root.join(entry.file_name()));
        let about = fs_err::symlink_metadata(&from)?;
        let old = fs::symlink_metadata(&to).ok();
        // A whiteout is a 0:0 device (overlayfs documentation).
        let whiteout = about.file_type().is_char_device() && about.rdev() == 0;
        let opaque = about.is_dir() && matches!(xattr::get(&from, "trusted.overlay.opaque"), Ok(Some(_)));
        let keeps = about.is_dir() && old.as_ref().is_some_and(fs::Metadata::is_dir) && !opaque;
        match old {
            Some(old) if old.is_dir() && !keeps => fs_err::remove_dir_all(&to)?,
            Some(old) if !old.is_dir() => fs_err::remove_file(&to)?,
            _ => {}
        }
        if whiteout {
            continue;
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
