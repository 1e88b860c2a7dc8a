//! Unpacks one layer from its tar archive into a folder. Whiteouts become overlayfs's own marks or, where overlayfs is
//! unavailable, stay files.
//!
//! The kernel resolves every path inside the folder (openat2(2), RESOLVE_IN_ROOT), so neither `..` nor a link from an
//! earlier entry leads out of it. A path that contains `..` or begins with `/` is refused.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, unlinkat};

pub(crate) use guard::Guard;

/// Bytes that every layer may unpack to. A larger layer is refused if it exceeds [`RATIO`] times its packed size.
const FREE_BYTES: u64 = 256 << 20;
const RATIO: u64 = 200;
const ENTRIES: u64 = 2_000_000;
const OPAQUE: &str = ".wh..wh..opq";

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is truncated or is not a tar archive.
    #[error("it is cut off or not a tar archive: {0}")]
    Tar(io::Error),
    /// The archive has an illegal entry.
    #[error("`{path}` {why}")]
    Entry {
        /// Path of the entry.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The unpacked layer is larger than the limit.
    #[error("it unpacks to more than {0} bytes, far more than its size")]
    Bomb(u64),
    /// A system call failed.
    #[error("failed to unpack `{path}`: {errno}", errno = errno.desc())]
    Kernel {
        /// Path of the entry.
        path: String,
        /// The cause.
        errno: Errno,
    },
}

/// The form in which whiteouts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// Overlayfs's own marks.
    Overlay,
    /// Files with their names from the archive.
    Plain,
}

/// Unpacks `blob` (tar, gzip or zstd) into the empty folder `dir`.
pub(crate) fn unpack(mut blob: File, dir: &Path, whiteouts: Whiteouts) -> Result<(), UnpackError> {
    let packed = blob.metadata().map_err(UnpackError::Tar)?.len();
    let mut magic = [0; 4];
    let count = blob.read(&mut magic).map_err(UnpackError::Tar)?;
    blob.rewind().map_err(UnpackError::Tar)?;
    let blob = BufReader::new(blob);
    let most = FREE_BYTES.max(packed.saturating_mul(RATIO));
    match &magic[..count] {
        [0x1f, 0x8b, ..] => entries(flate2::bufread::MultiGzDecoder::new(blob), dir, whiteouts, most),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            entries(zstd::stream::Decoder::with_buffer(blob).map_err(UnpackError::Tar)?, dir, whiteouts, most)
        }
        _ => entries(blob, dir, whiteouts, most),
    }
}

fn entries(reader: impl Read, dir: &Path, whiteouts: Whiteouts, most: u64) -> Result<(), UnpackError> {
    let root = File::open(dir).map_err(UnpackError::Tar)?;
    let mut layer = Layer { root: root.into(), whiteouts, times: Vec::new() };
    let mut archive = tar::Archive::new(Guard::new(reader.take(most.saturating_mul(2))));
    let (mut bytes, mut count) = (0u64, 0u64);
    for entry in archive.entries().map_err(UnpackError::Tar)? {
        let mut entry = entry.map_err(UnpackError::Tar)?;
        bytes = bytes.saturating_add(entry.size());
        count += 1;
        if bytes > most || count > ENTRIES {
            return Err(UnpackError::Bomb(most));
        }
        layer.entry(&mut entry)?;
    }
    layer.finish()
}

/// The open parent folder and the last part of a path inside the layer.
type Place = (OwnedFd, OsString);

struct Layer {
    root: OwnedFd,
    whiteouts: Whiteouts,
    /// Modification times of folders, which are set after the last entry.
    times: Vec<(PathBuf, i64)>,
}

impl Layer {
    fn entry(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let path = clean(&entry.path().map_err(UnpackError::Tar)?)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else { return Ok(()) };
        let text = path.display().to_string();
        let kernel = |errno| UnpackError::Kernel { path: text.clone(), errno };
        let (parent, _) = self.place(&path).map_err(kernel)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, &name, OsStr::from_bytes(hidden)).map_err(kernel);
        }
        let header = entry.header().clone();
        let kind = header.entry_type();
        let mode = Mode::from_bits_truncate(header.mode().map_err(UnpackError::Tar)? & 0o7777);
        let target = through(&parent, &name);
        if !kind.is_dir() {
            remove(&parent, &name).map_err(kernel)?;
        }
        match kind {
            tar::EntryType::Directory => make_folder(&parent, &name).map_err(kernel)?,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let mut file = File::options()
                    .write(true)
                    .create_new(true)
                    .open(&target)
                    .map_err(|error| kernel(errno(&error)))?;
                io::copy(entry, &mut file).map_err(UnpackError::Tar)?;
            }
            tar::EntryType::Symlink => {
                let to = entry.link_name().map_err(UnpackError::Tar)?.unwrap_or_default();
                symlink(to, &target).map_err(|error| kernel(errno(&error)))?;
            }
            tar::EntryType::Link => {
                let to = clean(&entry.link_name().map_err(UnpackError::Tar)?.unwrap_or_default())?;
                let (folder, link) = self.place(&to).map_err(kernel)?;
                linkat(&folder, link.as_os_str(), &parent, name.as_os_str(), AtFlags::empty()).map_err(kernel)?;
                return Ok(());
            }
            tar::EntryType::Fifo => mknod(&target, SFlag::S_IFIFO, mode, 0).map_err(kernel)?,
            tar::EntryType::Char | tar::EntryType::Block => {
                // A container gets its own /dev, so the image's files there are never visible.
                if path.starts_with("dev") {
                    return Ok(());
                }
                return Err(UnpackError::Entry { path: text, why: "is a device, and images may have none".into() });
            }
            tar::EntryType::XGlobalHeader => return Ok(()),
            other => return Err(UnpackError::Entry { path: text, why: format!("has an unknown type {other:?}") }),
        }
        self.attributes(entry, &parent, &name, &header, mode, kind).map_err(kernel)?;
        if kind.is_dir() {
            self.times.push((path, i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0)));
        }
        Ok(())
    }

    /// Sets owner, extended attributes, mode and time, in this order, because changing the owner clears set-user-id
    /// bits and file capabilities (chown(2)).
    fn attributes(
        &self,
        entry: &mut tar::Entry<'_, impl Read>,
        parent: &OwnedFd,
        name: &OsStr,
        header: &tar::Header,
        mode: Mode,
        kind: tar::EntryType,
    ) -> Result<(), Errno> {
        let number = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let (uid, gid) = (Uid::from_raw(number(header.uid())), Gid::from_raw(number(header.gid())));
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let target = through(parent, name);
        for (key, value) in extended_attributes(entry) {
            // A layer must not set overlayfs's own marks. Other attributes are optional, because a file system may not
            // support them.
            if !key.starts_with("trusted.") {
                let _ = xattr::set(&target, &key, &value);
            }
        }
        if !kind.is_symlink() {
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        let at = TimeSpec::new(i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0);
        utimensat(parent, name, &at, &at, UtimensatFlags::NoFollowSymlink)
    }

    /// Opens the parent of `path` inside the layer, creating missing folders, and returns it with the last part of the
    /// path.
    fn place(&self, path: &Path) -> Result<Place, Errno> {
        let name = path.file_name().ok_or(Errno::EINVAL)?.to_owned();
        let mut folder = self.open(Path::new("."))?;
        let mut so_far = PathBuf::from(".");
        for part in path.parent().unwrap_or(Path::new("")).components() {
            so_far.push(part);
            folder = match self.open(&so_far) {
                Err(Errno::ENOENT) => {
                    mkdirat(&folder, part.as_os_str(), Mode::from_bits_truncate(0o755))?;
                    self.open(&so_far)?
                }
                other => other?,
            };
        }
        Ok((folder, name))
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(&self.root, path, how)
    }

    /// Applies a whiteout (OCI image specification, "Whiteouts") as overlayfs's mark: a device 0:0, or an attribute of
    /// the folder.
    fn whiteout(&self, parent: &OwnedFd, name: &OsStr, hidden: &OsStr) -> Result<(), Errno> {
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(Errno::EINVAL);
        }
        if self.whiteouts == Whiteouts::Plain {
            remove(parent, name)?;
            return mknod(&through(parent, name), SFlag::S_IFREG, Mode::empty(), 0);
        }
        if name == OPAQUE {
            let folder = format!("/proc/self/fd/{}", parent.as_raw_fd());
            return xattr::set_deref(folder, "trusted.overlay.opaque", b"y").map_err(|error| errno(&error));
        }
        remove(parent, hidden)?;
        mknod(&through(parent, hidden), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))
    }

    fn finish(self) -> Result<(), UnpackError> {
        for (path, seconds) in self.times.iter().rev() {
            let at = TimeSpec::new(*seconds, 0);
            // A later entry may have replaced the folder.
            if let Ok((parent, name)) = self.place(path) {
                let _ = utimensat(&parent, name.as_os_str(), &at, &at, UtimensatFlags::NoFollowSymlink);
            }
        }
        Ok(())
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Returns a path through the open parent folder, no part of which can be replaced to lead elsewhere.
fn through(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name)
}

fn make_folder(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match fs::symlink_metadata(through(parent, name)) {
        Ok(about) if about.is_dir() => return Ok(()),
        Ok(_) => remove(parent, name)?,
        Err(_) => {}
    }
    mkdirat(parent, name, Mode::from_bits_truncate(0o755))
}

/// Removes what an earlier entry of the same name created, if anything.
fn remove(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => fs::remove_dir_all(through(parent, name)).map_err(|error| errno(&error)),
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(other) => Err(other),
    }
}

/// Returns the `SCHILY.xattr.` records of the PAX header.
fn extended_attributes(entry: &mut tar::Entry<'_, impl Read>) -> HashMap<String, Vec<u8>> {
    let mut found = HashMap::new();
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) {
                found.insert(name.to_owned(), extension.value_bytes().to_vec());
            }
        }
    }
    found
}

/// Returns the path without `.` parts. A path that is absolute or contains `..` is an error.
fn clean(path: &Path) -> Result<PathBuf, UnpackError> {
    let refuse = |why: &str| UnpackError::Entry { path: path.display().to_string(), why: why.into() };
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(refuse("leads out of its folder")),
            Component::RootDir | Component::Prefix(_) => return Err(refuse("is an absolute path")),
        }
    }
    Ok(clean)
}

mod guard;
#[cfg(test)]
mod tests;
