//! The mounts that a supervisor makes before a runtime creates the container: its root, the images and file systems in it,
//! and the sources of its bind mounts. They are in a mount namespace that ends with the supervisor.
//!
//! If the container has ids of its own ([`Order::ids`]), all of them show the ids on disk as the container's: what belongs
//! to root on disk belongs to the container's root, and what that root writes belongs to root on disk (mount_setattr(2),
//! "ID-mapped mounts"). An overlay can't be mapped, so its layers are.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::chdir;

use super::apart::apart;
use super::order::{FileSystemMount, ImageFiles, ImageMount, Order, RootSource};
use crate::error::{Act, RunError, StepError};
use crate::ids::{IdRange, as_root_of};
use crate::process::user_namespace;
use crate::rootfs::RootDir;
use crate::rootfs::options::Options;
use crate::syscall::mounts as kernel;

/// Returns the bundle in a supervisor's folder.
pub(crate) fn bundle(dir: &Path) -> PathBuf {
    dir.join("bundle")
}

/// Mounts the root, the sources that are pinned or mapped, images and file systems. Returns the path of the root.
/// What is not done at the time `until` fails.
pub(super) fn mount_all(dir: &Path, order: &Order, until: Instant) -> Result<PathBuf, RunError> {
    let mounts = Mounts::new(dir, order.ids)?;
    if !order.pinned.is_empty() || !order.mapped.is_empty() {
        // A server that does not answer holds up whoever opens its files.
        apart("open the sources of mounts", until, || Ok(mounts.sources(order).map(|_| 0)?))?;
    }
    // They are opened before they are cut off, because a mount may be shared with the machine.
    let sources = mounts.sources(order)?;
    begin()?;
    for (index, source) in sources.iter().enumerate() {
        attach(source, &source_path(dir, index))?;
    }
    for (index, image) in order.images.iter().enumerate() {
        mounts.mount_image(index, image)?;
    }
    for (index, system) in order.file_systems.iter().enumerate() {
        // A server that does not answer holds up whoever mounts its files.
        apart(&format!("mount {}", system.device), until, || {
            Ok(mounts.mount_file_system(index, system).map(|()| 0)?)
        })?;
    }
    Ok(mounts.mount_root(&order.root)?)
}

/// Gives this process mounts of its own.
fn begin() -> Result<(), StepError> {
    unshare(CloneFlags::CLONE_NEWNS).act(|| "make a mount namespace".into())?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).act(|| "cut off the mounts of the machine".into())
}

/// Mounts a root for a container with these ids, below the folder `dir`, in this process's own mounts.
pub(crate) fn try_ids(dir: &Path, root: &RootSource, ids: IdRange) -> Result<(), StepError> {
    let mounts = Mounts::new(dir, Some(ids))?;
    begin()?;
    mounts.mount_root(root).map(drop)
}

/// The places of the mounts of one container.
struct Mounts<'a> {
    dir: &'a Path,
    /// The ids of the container, and a user namespace with them.
    ids: Option<(IdRange, OwnedFd)>,
}

impl<'a> Mounts<'a> {
    fn new(dir: &'a Path, ids: Option<IdRange>) -> Result<Self, StepError> {
        let with_namespace = |it: IdRange| Ok((it, user_namespace::mapped(&[it.mapping()], &[it.mapping()])?));
        Ok(Self { dir, ids: ids.map(with_namespace).transpose()? })
    }

    /// Opens the sources that the bind mounts of the configuration show in place of what is at their paths.
    fn sources(&self, order: &Order) -> Result<Vec<OwnedFd>, StepError> {
        let pinned = order.pinned.iter().map(|path| open_pinned(path).and_then(|tree| self.map(tree, path)));
        let mapped = order.mapped.iter().map(|path| self.map(open(path, true)?, path));
        pinned.chain(mapped).collect()
    }

    /// Shows the ids of a tree that is not attached yet as the container's.
    fn map(&self, tree: OwnedFd, path: &Path) -> Result<OwnedFd, StepError> {
        if let Some((_, ids)) = &self.ids {
            let mapped = kernel::set_attributes(tree.as_fd(), kernel::Change::default(), true, Some(ids.as_fd()));
            mapped.act(|| format!("show the ids in `{}` as the container's", path.display()))?;
        }
        Ok(tree)
    }

    /// Returns a path at which the folder has the ids of the container: its own if those are the machine's.
    fn with_ids(&self, folder: &Path, name: &str) -> Result<PathBuf, StepError> {
        if self.ids.is_none() {
            return Ok(folder.to_owned());
        }
        let place = bundle(self.dir).join("ids").join(name);
        attach(&self.map(open(folder, false)?, folder)?, &place)?;
        Ok(place)
    }

    fn mount_root(&self, root: &RootSource) -> Result<PathBuf, StepError> {
        let RootSource::Overlay { lower, upper, work } = root else {
            let RootSource::Folder(path) = root else { unreachable!("there are two") };
            return self.with_ids(path, "root");
        };
        let merged = bundle(self.dir).join("rootfs");
        fs::create_dir_all(&merged).act(|| format!("make {}", merged.display()))?;
        // Both have to be on one mount.
        let above = common_parent(&[upper, work]);
        let shown = self.with_ids(&above, "data")?;
        let [upper, work] = [upper, work].map(|path| shown.join(path.strip_prefix(&above).unwrap_or(path)));
        let rest = format!(",upperdir={},workdir={}", upper.display(), work.display());
        self.mount_layers(lower, &rest, &merged, "layers")?;
        Ok(merged)
    }

    /// Mounts layers, topmost first. `rest` follows them in the options of the mount, and `name` is that of the place at
    /// which they have the container's ids.
    fn mount_layers(&self, layers: &[PathBuf], rest: &str, at: &Path, name: &str) -> Result<(), StepError> {
        // Relative paths keep the options within a page even for many layers (overlayfs documentation).
        let common = common_parent(layers);
        let shown = self.with_ids(&common, name)?;
        chdir(&shown).act(|| format!("enter {}", shown.display()))?;
        let names: Vec<String> =
            layers.iter().map(|it| it.strip_prefix(&common).unwrap_or(it).display().to_string()).collect();
        let options = format!("lowerdir={}{rest}", names.join(":"));
        // Whoever mounts an overlay makes the files in its writable layer.
        let mounted = as_root_of(self.ids.as_ref().map(|(ids, _)| *ids), || {
            let mounted = mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
            mounted.act(|| "mount the layers".into())
        });
        chdir("/").act(|| "leave the layers".into())?;
        mounted
    }

    /// Mounts an image, or the part of it that is wanted, at its path in the bundle.
    fn mount_image(&self, index: usize, image: &ImageMount) -> Result<(), StepError> {
        let act = || match &image.subpath {
            None => format!("mount the image at `{}`", image.target.display()),
            Some(part) => format!("mount `{}` of the image at `{}`", part.display(), image.target.display()),
        };
        let whole = match &image.files {
            ImageFiles::Folder(folder) => self.with_ids(folder, &format!("image-{index}"))?,
            ImageFiles::Layers(layers) => {
                let folder = images(self.dir).join(index.to_string());
                let (merged, empty) = (folder.join("merged"), folder.join("empty"));
                for folder in [&merged, &empty] {
                    fs::create_dir_all(folder).act(|| format!("make {}", folder.display()))?;
                }
                if layers.is_empty() {
                    empty
                } else {
                    // Without a writable layer overlayfs wants two others. One that is empty and lies below adds nothing.
                    let rest = format!(":{}", empty.display());
                    let mounted = self.mount_layers(layers, &rest, &merged, &format!("image-{index}"));
                    mounted.map_err(|error| error.within(act()))?;
                    merged
                }
            }
        };
        let part = image.subpath.as_deref();
        show_part(&RootDir::open(&whole)?, part, "the image", &image_path(self.dir, index), &act)
    }

    /// Mounts a file system, and the parts of it that are wanted at their paths in the bundle.
    fn mount_file_system(&self, index: usize, system: &FileSystemMount) -> Result<(), StepError> {
        let act = || format!("mount {} of type {}", system.device, system.kind);
        let made = make(system).map_err(|error| error.within(act()))?;
        let made = self.map(made, Path::new(&system.device)).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => StepError::refuse(act(), "its type can't show ids on disk as those of a container"),
            _ => error,
        })?;
        let whole = file_systems(self.dir).join(index.to_string());
        attach(&made, &whole)?;
        let whole = RootDir::open(&whole)?;
        for (number, part) in system.parts.iter().enumerate() {
            let act = || match &part.subpath {
                None => act(),
                Some(subpath) => format!("mount `{}` of {}", subpath.display(), system.device),
            };
            let at = part_path(self.dir, index, number);
            show_part(&whole, part.subpath.as_deref(), "the file system", &at, &act)?;
        }
        Ok(())
    }
}

/// Makes the mount of a file system, which is not attached yet.
fn make(system: &FileSystemMount) -> Result<OwnedFd, StepError> {
    let options = Options::parse(&system.options);
    let made = kernel::FileSystem::open(&system.kind).act(|| "use a file system of this type".into())?;
    let complain = |act: String, error: Errno| {
        let why = made.complaint().unwrap_or_else(|| error.desc().to_owned());
        StepError::refuse(act, why)
    };
    made.set("source", &system.device).map_err(|error| complain("name the device".into(), error))?;
    let attributes = options.fresh() | kernel::NODEV | kernel::NOSUID;
    // The file system itself is read-only, not only the mount: its device may be.
    let read_only = (attributes & kernel::RDONLY != 0).then_some("ro");
    let flags = options.flags.iter().copied().chain(read_only);
    for option in flags.chain(options.data.iter().map(String::as_str)) {
        let set = match option.split_once('=') {
            Some((key, value)) => made.set(key, value),
            None => made.set_flag(option),
        };
        set.map_err(|error| complain(format!("use the option `{option}`"), error))?;
    }
    made.mount(attributes).map_err(|error| complain("make it".into(), error))
}

/// Attaches a part of what is mounted at `whole`, unless it leads out of that.
fn show_part(
    whole: &RootDir,
    part: Option<&Path>,
    what: &str,
    at: &Path,
    act: &dyn Fn() -> String,
) -> Result<(), StepError> {
    // A server may not let root look into the whole, which is mounted all the same.
    let Some(part) = part else {
        return attach(&kernel::open_tree(whole.as_fd(), Path::new(""), true).act(act)?, at);
    };
    let place = match whole.find_beneath(part, libc::O_PATH) {
        Err(Errno::EXDEV) => return Err(StepError::refuse(act(), format!("it leads out of {what}"))),
        found => found.act(act)?,
    };
    attach(&kernel::open_tree(place.as_fd(), Path::new(""), true).act(act)?, at)
}

fn file_systems(dir: &Path) -> PathBuf {
    bundle(dir).join("file-systems")
}

/// Returns where a part of a file system that the container sees is mounted.
pub(super) fn part_path(dir: &Path, index: usize, part: usize) -> PathBuf {
    file_systems(dir).join(format!("{index}-{part}"))
}

fn images(dir: &Path) -> PathBuf {
    bundle(dir).join("images")
}

/// Returns where the part of an image that the container sees is mounted.
pub(super) fn image_path(dir: &Path, index: usize) -> PathBuf {
    images(dir).join(index.to_string()).join("part")
}

/// Returns where a source of the order is mounted: the pinned ones first, then those that are only mapped.
pub(super) fn source_path(dir: &Path, index: usize) -> PathBuf {
    bundle(dir).join("sources").join(index.to_string())
}

/// Opens a path as a mount of its own, with or without the mounts below it.
fn open(path: &Path, recursive: bool) -> Result<OwnedFd, StepError> {
    kernel::open_tree(nix::fcntl::AT_FDCWD, path, recursive).act(|| format!("open `{}`", path.display()))
}

/// Does the same for a path without links, with the mounts below it.
fn open_pinned(path: &Path) -> Result<OwnedFd, StepError> {
    let act = || format!("open `{}`, the source of a mount", path.display());
    let place = RootDir::open(Path::new("/"))?.find_without_links(path, libc::O_PATH).act(act)?;
    kernel::open_tree(place.as_fd(), Path::new(""), true).act(act)
}

/// Attaches a mount at a path, which is made for it.
fn attach(mount: &OwnedFd, at: &Path) -> Result<(), StepError> {
    let act = || format!("mount {}", at.display());
    let kind = nix::sys::stat::fstat(mount).act(act)?.st_mode & SFlag::S_IFMT.bits();
    if kind == SFlag::S_IFDIR.bits() {
        fs::create_dir_all(at).act(act)?;
    } else {
        fs::create_dir_all(at.parent().unwrap_or(at)).act(act)?;
        fs::File::create(at).act(act)?;
    }
    let target = nix::fcntl::open(at, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).act(act)?;
    kernel::move_mount(mount.as_fd(), target.as_fd()).act(act)
}

fn common_parent(paths: &[impl AsRef<Path>]) -> PathBuf {
    let parent = paths.first().and_then(|path| path.as_ref().parent()).unwrap_or(Path::new("/"));
    let is_shared = |above: &&Path| paths.iter().all(|path| path.as_ref().starts_with(above));
    parent.ancestors().find(is_shared).unwrap_or(Path::new("/")).to_owned()
}
