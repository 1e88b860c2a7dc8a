//! Copies an unpacked layer onto a folder, with the same result as mounting it on top. Used where overlayfs is
//! unavailable.
//!
//! Nothing else writes to either folder meanwhile, and a folder is entered only after a look at it, so no symbolic link
//! is followed. The walk has a list and no recursion, because a layer decides how deep its folders are.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};

use crate::remove::remove_folder;

/// Prefix of entries that remove something (OCI image specification, "Whiteouts").
const WHITEOUT: &str = ".wh.";
/// Name of the whiteout that hides everything which lower layers have in a folder.
pub(crate) const OPAQUE: &str = ".wh..wh..opq";

/// Prefix of overlayfs's own marks, which belong to a layer and not to its files.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Copies all of `layer`, which was unpacked with its whiteouts as files, onto `root`, and applies the whiteouts.
///
/// # Errors
/// An I/O error; files that were already copied stay.
pub fn copy_layer(layer: &Path, root: &Path) -> io::Result<()> {
    let mut copy = Copy { layer, root, links: HashMap::new(), left: vec![PathBuf::new()] };
    let mut copied = Vec::new();
    while let Some(folder) = copy.left.pop() {
        copy.folder(&folder)?;
        copied.push(folder);
    }
    // Copying into a folder changes its time, and so does removing what a whiteout hides.
    for folder in copied.iter().rev() {
        let about = fs_err::symlink_metadata(layer.join(folder))?;
        attributes(&layer.join(folder), &root.join(folder), &about)?;
    }
    Ok(())
}

struct Copy<'a> {
    layer: &'a Path,
    root: &'a Path,
    /// Where the files with more than one name were copied to, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Folders that exist in the root and whose content is still to be copied.
    left: Vec<PathBuf>,
}

impl Copy<'_> {
    fn folder(&mut self, folder: &Path) -> io::Result<()> {
        let (from, to) = (self.layer.join(folder), self.root.join(folder));
        let mut entries = fs_err::read_dir(&from)?.collect::<io::Result<Vec<_>>>()?;
        // Whiteouts are applied first, because they hide files of lower layers and not files that this layer adds.
        entries.sort_by_key(|entry| !entry.file_name().as_encoded_bytes().starts_with(WHITEOUT.as_bytes()));
        if from.join(OPAQUE).exists() {
            for below in fs_err::read_dir(&to)? {
                clear(&below?.path())?;
            }
        }
        for entry in entries {
            let name = entry.file_name();
            match name.as_encoded_bytes().strip_prefix(WHITEOUT.as_bytes()) {
                Some(_) if name == OPAQUE => {}
                Some(hidden) => clear(&to.join(OsStr::from_bytes(hidden)))?,
                None => self.file(&folder.join(name))?,
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        let (from, to) = (self.layer.join(path), self.root.join(path));
        let about = fs_err::symlink_metadata(&from)?;
        if about.is_dir() {
            self.left.push(path.to_owned());
            if fs::symlink_metadata(&to).is_ok_and(|old| old.is_dir()) {
                return Ok(());
            }
            clear(&to)?;
            return fs_err::create_dir(&to);
        }
        clear(&to)?;
        if about.nlink() > 1 {
            let first = self.links.entry((about.dev(), about.ino())).or_insert_with(|| to.clone());
            if *first != to {
                return fs_err::hard_link(first, &to);
            }
        }
        copy_file(&from, &to, &about)
    }
}

/// Copies anything but a folder to a path where nothing is. `about` is the metadata of `from`.
pub(crate) fn copy_file(from: &Path, to: &Path, about: &Metadata) -> io::Result<()> {
    if about.is_symlink() {
        symlink(fs_err::read_link(from)?, to)?;
    } else if about.is_file() {
        copy_content(from, to)?;
    } else {
        let kind = SFlag::from_bits_truncate(about.mode()) & SFlag::S_IFMT;
        mknod(to, kind, Mode::S_IRUSR, about.rdev())?;
    }
    attributes(from, to, about)
}

/// Removes the file or folder at the path, if there is one.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => remove_folder(path),
        Ok(_) => fs_err::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Copies what the file holds. Its holes stay holes.
fn copy_content(from: &Path, to: &Path) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut end = 0;
    loop {
        let start = match lseek(&from, end, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(()),
            start => start?,
        };
        end = lseek(&from, start, Whence::SeekHole)?;
        from.seek(SeekFrom::Start(start.cast_unsigned()))?;
        to.seek(SeekFrom::Start(start.cast_unsigned()))?;
        io::copy(&mut (&from).take((end - start).cast_unsigned()), &mut to)?;
    }
}

/// Copies the attributes, the owner first, because changing the owner clears set-user-id bits and file capabilities
/// (chown(2)), and the time last.
pub(crate) fn attributes(from: &Path, to: &Path, about: &Metadata) -> io::Result<()> {
    lchown(to, Some(about.uid()), Some(about.gid()))?;
    // A folder that a lower layer made may have attributes that this layer does not give it.
    for name in xattr::list(to)? {
        if xattr::get(from, &name)?.is_none() {
            let _ = xattr::remove(to, &name);
        }
    }
    for name in xattr::list(from)?.filter(|name| !name.as_bytes().starts_with(OVERLAY)) {
        if let Some(value) = xattr::get(from, &name)? {
            // The target's file system may not support an attribute that the source's does.
            let _ = xattr::set(to, &name, &value);
        }
    }
    if !about.is_symlink() {
        fs_err::set_permissions(to, fs::Permissions::from_mode(about.mode() & 0o7777))?;
    }
    let (accessed, modified) =
        (TimeSpec::new(about.atime(), about.atime_nsec()), TimeSpec::new(about.mtime(), about.mtime_nsec()));
    Ok(utimensat(AT_FDCWD, to, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?)
}
