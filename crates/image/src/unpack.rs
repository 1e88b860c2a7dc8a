//! Unpacks one layer from its tar archive into a folder, as the layers below it require. Whiteouts become overlayfs's own
//! marks or, where overlayfs is unavailable, stay files.
//!
//! Paths and the targets of hard links are relative to the layer's root, whether they begin with `/` or contain `..`,
//! as in all common tools. The kernel resolves them inside the folder (openat2(2), RESOLVE_IN_ROOT), so no link of an
//! earlier entry leads out of it. A folder that the archive does not list, but has files in, keeps the attributes that
//! the layers below give it.

mod attributes;
mod content;
mod stack;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, makedev, mkdirat, mknod, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use crate::copy::{OPAQUE, copy_file};
use crate::remove::remove_folder_at;
use crate::tar::{Entry, EntryType, TarError, TarReader, decompressed};
use attributes::Attributes;
use content::write;
pub(crate) use stack::Stack;

/// Bytes that every layer may unpack to. A larger layer is refused if it exceeds [`RATIO`] times its packed size.
const FREE_BYTES: u64 = 256 << 20;
/// More than gzip can pack (1032 to 1, RFC 1951), so that no layer of gzip is refused. One of zstd can exceed this.
const RATIO: u64 = 1_100;
const ENTRIES: u64 = 2_000_000;
/// Bytes of paths that are kept until the last entry.
const PATHS: usize = 64 << 20;
/// Attribute by which overlayfs hides everything which lower layers have in a folder.
const OPAQUE_MARK: &str = "trusted.overlay.opaque";

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive can't be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The archive has an illegal entry.
    #[error("`{path}` {why}")]
    Entry {
        /// Path of the entry.
        path: String,
        /// The defect.
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

/// Unpacks `blob` (tar, gzip or zstd) into the empty folder `dir`, on top of the layers `lower`, the topmost first.
pub(crate) fn unpack(blob: File, dir: &Path, lower: &[PathBuf], whiteouts: Whiteouts) -> Result<(), UnpackError> {
    let packed = blob.metadata().map_err(TarError::Read)?.len();
    let most = FREE_BYTES.max(packed.saturating_mul(RATIO));
    let reader = decompressed(BufReader::new(blob))?;
    let mut archive = TarReader::new(reader.take(most.saturating_mul(2)));
    let mut layer = Layer::new(dir, lower, whiteouts)?;
    let (mut bytes, mut count) = (0u64, 0u64);
    while let Some(entry) = archive.next()? {
        bytes = bytes.saturating_add(entry.stored);
        count += 1;
        if bytes > most || count > ENTRIES {
            return Err(UnpackError::Bomb(most));
        }
        layer.entry(&entry, &mut archive)?;
    }
    layer.finish()
}

/// The open parent folder and the last part of a path inside the layer.
type Place = (OwnedFd, OsString);

struct Layer<'a> {
    dir: &'a Path,
    root: OwnedFd,
    whiteouts: Whiteouts,
    lower: Stack,
    /// Modification times of folders, which are set after the last entry.
    times: Vec<(PathBuf, (i64, i64))>,
    /// Paths that whiteouts hide. Their marks are made after the last entry, because a whiteout hides lower layers only,
    /// whatever its place in the archive.
    hidden: BTreeSet<PathBuf>,
    /// Files of lower layers that got another name in this one.
    raised: BTreeSet<PathBuf>,
    /// Number of bytes of the paths in `times`, `hidden` and `raised`.
    kept: usize,
}

/// A failure at a path.
fn at(path: &Path) -> impl Fn(Errno) -> UnpackError {
    move |errno| UnpackError::Kernel { path: path.display().to_string(), errno }
}

fn refused(path: &Path, why: impl Into<String>) -> UnpackError {
    UnpackError::Entry { path: path.display().to_string(), why: why.into() }
}

impl<'a> Layer<'a> {
    fn new(dir: &'a Path, lower: &[PathBuf], whiteouts: Whiteouts) -> Result<Self, UnpackError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(dir, flags, Mode::empty()).map_err(at(Path::new("/")))?;
        let lower = Stack { layers: lower.to_vec(), whiteouts };
        let (hidden, raised) = Default::default();
        let mut layer = Self { dir, root, whiteouts, lower, times: Vec::new(), hidden, raised, kept: 0 };
        if let Some(below) = layer.lower.layers.first() {
            let inherited = Attributes::of(below).map_err(at(Path::new("/")))?;
            inherited.set(&layer.root, OsStr::new("."), false).map_err(at(Path::new("/")))?;
            layer.times.push((PathBuf::new(), inherited.mtime));
        }
        Ok(layer)
    }

    fn entry(&mut self, entry: &Entry, archive: &mut TarReader<impl Read>) -> Result<(), UnpackError> {
        let path = clean(Path::new(&entry.path));
        let Some(name) = path.file_name() else { return self.root_entry(entry, &path) };
        let meta = |part: &OsStr| part.as_bytes().starts_with(b".wh..wh.");
        if path.iter().any(meta) && name != OPAQUE {
            // Files of AUFS that old versions of Docker packed.
            return Ok(());
        }
        // Whoever copies the layer would take the folder for a whiteout, and what it hides may be above the root.
        let is_whiteout = |part: &OsStr| part.as_bytes().starts_with(b".wh.");
        if path.parent().is_some_and(|above| above.iter().any(is_whiteout)) {
            return Err(refused(&path, "is in a folder with the name of a whiteout"));
        }
        let (parent, _) = self.place(&path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&path, &parent, OsStr::from_bytes(hidden));
        }
        self.create(entry, &path, &parent, name, archive)?;
        if entry.kind == EntryType::Link {
            return Ok(());
        }
        let attributes = Attributes::from_entry(entry).ok_or_else(|| refused(&path, "has an owner above 2^32"))?;
        attributes.set(&parent, name, entry.kind == EntryType::Symlink).map_err(at(&path))?;
        if entry.kind == EntryType::Directory {
            self.keep(&path)?;
            self.times.push((path, entry.mtime));
        }
        Ok(())
    }

    /// Sets the attributes of the layer's root.
    fn root_entry(&mut self, entry: &Entry, path: &Path) -> Result<(), UnpackError> {
        if entry.kind != EntryType::Directory {
            return Err(refused(path, "is the root and not a folder"));
        }
        let attributes = Attributes::from_entry(entry).ok_or_else(|| refused(path, "has an owner above 2^32"))?;
        attributes.set(&self.root, OsStr::new("."), false).map_err(at(path))?;
        self.times.push((PathBuf::new(), entry.mtime));
        Ok(())
    }

    fn create(
        &mut self,
        entry: &Entry,
        path: &Path,
        parent: &OwnedFd,
        name: &OsStr,
        archive: &mut TarReader<impl Read>,
    ) -> Result<(), UnpackError> {
        let fail = at(path);
        if entry.kind == EntryType::Directory {
            return make_folder(parent, name).map_err(fail);
        }
        remove(parent, name).map_err(&fail)?;
        let node = |kind| {
            let (major, minor) = entry.device;
            mknodat(parent, name, kind, Mode::S_IRUSR, makedev(major.into(), minor.into())).map_err(&fail)
        };
        match entry.kind {
            EntryType::Regular => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let file = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(fail)?;
                write(entry, path, archive, file.into())
            }
            EntryType::Symlink => symlinkat(entry.link.as_os_str(), parent, name).map_err(fail),
            EntryType::Link => {
                let target = clean(Path::new(&entry.link));
                self.raise(&target)?;
                let (folder, link) = self.existing(&target).map_err(&fail)?;
                linkat(folder, link.as_os_str(), parent, name, AtFlags::empty()).map_err(fail)
            }
            EntryType::Fifo => mknodat(parent, name, SFlag::S_IFIFO, Mode::S_IRUSR, 0).map_err(fail),
            EntryType::Char => node(SFlag::S_IFCHR),
            EntryType::Block => node(SFlag::S_IFBLK),
            other => Err(refused(path, format!("has the unknown type {other:?}"))),
        }
    }

    /// Opens the parent of `path` inside the layer, creating missing folders, and returns it with the last part of the
    /// path.
    fn place(&mut self, path: &Path) -> Result<Place, UnpackError> {
        match self.existing(path) {
            Err(Errno::ENOENT) => {}
            other => return other.map_err(at(path)),
        }
        let mut so_far = PathBuf::new();
        for part in path.parent().unwrap_or(Path::new("")) {
            let above = self.open(&so_far).map_err(at(path))?;
            so_far.push(part);
            match mkdirat(&above, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) => self.inherit(&so_far, &above, part)?,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(at(path)(errno)),
            }
        }
        self.existing(path).map_err(at(path))
    }

    /// Gives a folder that the archive does not list the attributes that it has in the layers below.
    fn inherit(&mut self, path: &Path, above: &OwnedFd, name: &OsStr) -> Result<(), UnpackError> {
        let below = self.lower.find(path).map_err(|error| at(path)(errno(&error)))?;
        let Some(below) = below.filter(|it| it.is_dir() && !it.is_symlink()) else { return Ok(()) };
        let inherited = Attributes::of(&below).map_err(at(path))?;
        inherited.set(above, name, false).map_err(at(path))?;
        self.keep(path)?;
        self.times.push((path.to_owned(), inherited.mtime));
        Ok(())
    }

    /// Copies a file that only lower layers have into this one, as overlayfs does before it links one.
    fn raise(&mut self, path: &Path) -> Result<(), UnpackError> {
        if let Ok((parent, name)) = self.existing(path)
            && fstatat(&parent, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
        {
            return Ok(());
        }
        let fail = |error: io::Error| at(path)(errno(&error));
        let Some(below) = self.lower.find(path).map_err(fail)? else { return Ok(()) };
        let about = below.symlink_metadata().map_err(fail)?;
        if about.is_dir() {
            return Ok(());
        }
        let (parent, name) = self.place(path)?;
        let to = Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        copy_file(&below, &to, &about).map_err(fail)?;
        self.keep(path)?;
        self.raised.insert(path.to_owned());
        Ok(())
    }

    /// Opens the parent of `path` inside the layer and returns it with the last part of the path.
    fn existing(&self, path: &Path) -> Result<Place, Errno> {
        let name = path.file_name().ok_or(Errno::EINVAL)?.to_owned();
        Ok((self.open(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(&self.root, &Path::new(".").join(path), how)
    }

    /// Notes a whiteout (OCI image specification, "Whiteouts").
    fn whiteout(&mut self, path: &Path, parent: &OwnedFd, hidden: &OsStr) -> Result<(), UnpackError> {
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(refused(path, "hides no file"));
        }
        let name = path.file_name().unwrap_or_default();
        if name != OPAQUE {
            self.keep(path)?;
            self.hidden.insert(path.with_file_name(hidden));
        }
        if self.whiteouts == Whiteouts::Plain {
            remove(parent, name).map_err(at(path))?;
            return mknodat(parent, name, SFlag::S_IFREG, Mode::empty(), 0).map_err(at(path));
        }
        if name == OPAQUE {
            let folder = format!("/proc/self/fd/{}", parent.as_raw_fd());
            return xattr::set_deref(folder, OPAQUE_MARK, b"y").map_err(|error| at(path)(errno(&error)));
        }
        Ok(())
    }

    fn keep(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.kept += path.as_os_str().len();
        if self.kept > PATHS { Err(refused(path, "is one of too many folders and whiteouts")) } else { Ok(()) }
    }

    fn finish(self) -> Result<(), UnpackError> {
        for path in self.hidden.intersection(&self.raised) {
            let (parent, name) = self.existing(path).map_err(at(path))?;
            remove(&parent, &name).map_err(at(path))?;
        }
        if self.whiteouts == Whiteouts::Overlay {
            self.mark_hidden()?;
        }
        // In the order of the archive, because the last entry of a folder counts.
        for (path, mtime) in &self.times {
            let is_root = path.as_os_str().is_empty();
            let folder = if is_root { self.root.try_clone().map_err(|error| errno(&error)) } else { self.open(path) };
            // A later entry may have replaced the folder.
            if let Ok(folder) = folder {
                attributes::set_time(&folder, OsStr::new("."), *mtime).map_err(at(path))?;
            }
        }
        Ok(())
    }

    /// Makes overlayfs's marks for what is hidden.
    fn mark_hidden(&self) -> Result<(), UnpackError> {
        let layers = std::iter::once(self.dir.to_owned()).chain(self.lower.layers.iter().cloned()).collect();
        let view = Stack { layers, whiteouts: self.whiteouts };
        for path in &self.hidden {
            let own = self.dir.join(path);
            let fail = |error: io::Error| at(path)(errno(&error));
            match view.find(path).map_err(fail)? {
                // Nothing is to be hidden. A mark would be visible if no lower layer had the folder.
                None => {}
                Some(found) if found != own => {
                    mknod(&own, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).map_err(at(path))?;
                }
                Some(_) if own.is_dir() && !own.is_symlink() => {
                    xattr::set(&own, OPAQUE_MARK, b"y").map_err(fail)?;
                }
                // The layer's own file hides those below.
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Returns whether overlayfs's mark on this folder hides what lower layers have in it.
pub(crate) fn is_opaque(folder: &Path) -> io::Result<bool> {
    Ok(xattr::get(folder, OPAQUE_MARK)?.is_some_and(|value| value == b"y"))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn kind(about: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT
}

fn make_folder(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(about) if kind(&about) == SFlag::S_IFDIR => return Ok(()),
        Ok(_) => remove(parent, name)?,
        Err(_) => {}
    }
    mkdirat(parent, name, Mode::from_bits_truncate(0o755))
}

/// Removes what an earlier entry of the same name created, if anything.
fn remove(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => remove_folder_at(parent, &CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?),
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(other) => Err(other),
    }
}

/// Returns the path relative to the root, without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}
