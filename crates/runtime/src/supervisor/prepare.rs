//! The preparations before a runtime creates the container: mounts its root and the images in it, writes its names, resolves
//! its user.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{UnlinkatFlags, chdir, unlinkat};

use super::order::{ImageFiles, ImageMount, Order, RootSource};
use super::user;
use crate::error::{Act, StepError};
use crate::oci::{self, Process, Spec};
use crate::rootfs::RootDir;
use crate::security::Filter;
use crate::state;
use crate::syscall::mounts as kernel;

/// Returns the bundle in a supervisor's folder.
pub(crate) fn bundle(dir: &Path) -> PathBuf {
    dir.join("bundle")
}

/// Mounts the root, the sources that are pinned, and images, in a mount namespace that ends with this process. Returns the
/// path of the root.
pub(super) fn mount_root(dir: &Path, order: &Order) -> Result<PathBuf, StepError> {
    unshare(CloneFlags::CLONE_NEWNS).act(|| "make a mount namespace".into())?;
    // They are opened before they are cut off, because a mount may be shared with the machine.
    let pinned = order.pinned.iter().map(|path| open_pinned(path)).collect::<Result<Vec<_>, _>>()?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).act(|| "cut off the mounts of the machine".into())?;
    for (index, source) in pinned.iter().enumerate() {
        attach(source, &pinned_path(dir, index))?;
    }
    for (index, image) in order.images.iter().enumerate() {
        mount_image(dir, index, image)?;
    }
    let RootSource::Overlay { lower, upper, work } = &order.root else {
        let RootSource::Folder(path) = &order.root else { unreachable!("there are two") };
        return Ok(path.clone());
    };
    let merged = bundle(dir).join("rootfs");
    fs::create_dir_all(&merged).act(|| format!("make {}", merged.display()))?;
    mount_layers(lower, &format!(",upperdir={},workdir={}", upper.display(), work.display()), &merged)?;
    Ok(merged)
}

/// Mounts layers, topmost first. `rest` follows them in the options of the mount.
fn mount_layers(layers: &[PathBuf], rest: &str, at: &Path) -> Result<(), StepError> {
    // Relative paths keep the options within a page even for many layers (overlayfs documentation).
    let common = common_parent(layers);
    chdir(&common).act(|| format!("enter {}", common.display()))?;
    let names: Vec<String> =
        layers.iter().map(|it| it.strip_prefix(&common).unwrap_or(it).display().to_string()).collect();
    let options = format!("lowerdir={}{rest}", names.join(":"));
    let mounted = mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    chdir("/").act(|| "leave the layers".into())?;
    mounted.act(|| "mount the layers".into())
}

/// Mounts an image, or the part of it that is wanted, at its path in the bundle.
fn mount_image(dir: &Path, index: usize, image: &ImageMount) -> Result<(), StepError> {
    let act = || match &image.subpath {
        None => format!("mount the image at `{}`", image.target.display()),
        Some(part) => format!("mount `{}` of the image at `{}`", part.display(), image.target.display()),
    };
    let whole = match &image.files {
        ImageFiles::Folder(folder) => folder.clone(),
        ImageFiles::Layers(layers) => {
            let folder = images(dir).join(index.to_string());
            let (merged, empty) = (folder.join("merged"), folder.join("empty"));
            for folder in [&merged, &empty] {
                fs::create_dir_all(folder).act(|| format!("make {}", folder.display()))?;
            }
            if layers.is_empty() {
                empty
            } else {
                // Without a writable layer overlayfs wants two others. One that is empty and lies below adds nothing.
                mount_layers(layers, &format!(":{}", empty.display()), &merged).map_err(|error| error.within(act()))?;
                merged
            }
        }
    };
    let part = image.subpath.as_deref().unwrap_or(Path::new(""));
    let place = match RootDir::open(&whole)?.find_beneath(part, libc::O_PATH) {
        Err(Errno::EXDEV) => return Err(StepError::refuse(act(), "it leads out of the image")),
        found => found.act(act)?,
    };
    attach(&kernel::open_tree(place.as_fd(), Path::new(""), true).act(act)?, &image_path(dir, index))
}

fn images(dir: &Path) -> PathBuf {
    bundle(dir).join("images")
}

/// Returns where the part of an image that the container sees is mounted.
fn image_path(dir: &Path, index: usize) -> PathBuf {
    images(dir).join(index.to_string()).join("part")
}

/// Opens a path without links as a mount of its own, with the mounts below it.
fn open_pinned(path: &Path) -> Result<OwnedFd, StepError> {
    let act = || format!("open `{}`, the source of a mount", path.display());
    let place = RootDir::open(Path::new("/"))?.find_without_links(path, libc::O_PATH).act(act)?;
    kernel::open_tree(place.as_fd(), Path::new(""), true).act(act)
}

/// Returns where a pinned source is mounted.
fn pinned_path(dir: &Path, index: usize) -> PathBuf {
    bundle(dir).join("pinned").join(index.to_string())
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

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let parent = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/"));
    let shared = parent.ancestors().find(|ancestor| paths.iter().all(|path| path.starts_with(ancestor)));
    shared.unwrap_or(Path::new("/")).to_owned()
}

/// Returns the configuration, completed with the settings of the image.
pub(super) fn complete(dir: &Path, order: &Order, rootfs: &Path) -> Result<Spec, StepError> {
    let mut spec: Spec = oci::read_json(&bundle(dir).join("config.json"))?;
    let root = RootDir::open(rootfs)?;
    write_network_files(&root, order)?;
    if let Some(it) = &mut spec.root {
        it.path = rootfs.to_owned();
    }
    for mount in spec.mounts.iter_mut().filter(|mount| mount.kind == "bind") {
        if let Some(index) = order.pinned.iter().position(|path| *path == Path::new(&mount.source)) {
            mount.source = pinned_path(dir, index).display().to_string();
        }
    }
    for (index, image) in order.images.iter().enumerate() {
        let is_of_image = |mount: &&mut oci::Mount| {
            mount.kind == "bind" && mount.source.is_empty() && mount.destination == image.target
        };
        for mount in spec.mounts.iter_mut().filter(is_of_image) {
            mount.source = image_path(dir, index).display().to_string();
        }
    }
    let user = user::find(&root, &order.user, &order.extra_groups)?;
    take_user(spec.process.get_or_insert_default(), &user);
    // A device for which no owner is given belongs to the container's user, as the Container Device Interface has it.
    for device in spec.linux.iter_mut().flat_map(|linux| &mut linux.devices) {
        device.uid = device.uid.or(Some(user.uid));
        device.gid = device.gid.or(Some(user.gid));
    }
    Ok(spec)
}

/// Writes the configuration for a runtime that reads it, and for processes that are started in the container later.
pub(super) fn write(dir: &Path, spec: &Spec) -> Result<(), StepError> {
    state::write_volatile(&bundle(dir).join("config.json"), spec).act(|| "write the configuration".into())
}

/// Loads the filter that was compiled for the container; its configuration no longer contains the rules.
pub(super) fn filter(dir: &Path) -> Result<Filter, StepError> {
    let path = bundle(dir).join("seccomp");
    Filter::load(&path)?.ok_or_else(|| StepError::refuse(format!("read {}", path.display()), "it is not there"))
}

/// Sets the process's user. Root gets all capabilities of the container and other users get none, as in Docker.
pub(super) fn take_user(process: &mut Process, user: &user::ContainerUser) {
    process.user.uid = user.uid;
    process.user.gid = user.gid;
    process.user.additional_gids.clone_from(&user.groups);
    if let Some(capabilities) = &mut process.capabilities {
        let held = if user.uid == 0 { capabilities.bounding.clone() } else { Vec::new() };
        capabilities.effective.clone_from(&held);
        capabilities.permitted = held;
        capabilities.ambient.clear();
    }
    if !process.env.iter().any(|it| it.starts_with("HOME=")) {
        process.env.push(format!("HOME={}", user.home));
    }
}

/// Where the machine's name servers are.
const RESOLVER: &str = "/etc/resolv.conf";

/// Largest resolv.conf in bytes; one of the machine that is longer is cut.
const RESOLVER_BOUND: u64 = 1 << 20;

/// Returns the machine's resolv.conf, or `None` if it has no name servers.
fn machines_resolver() -> Result<Option<Vec<u8>>, StepError> {
    let mut text = Vec::new();
    match fs::File::open(RESOLVER).and_then(|file| file.take(RESOLVER_BOUND).read_to_end(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).act(|| format!("read {RESOLVER}")),
    }
}

/// Writes /etc/hostname, /etc/hosts and /etc/resolv.conf. They replace the image's files, as Docker's mounts hide them.
fn write_network_files(root: &RootDir, order: &Order) -> Result<(), StepError> {
    let etc = root.make_folder(Path::new("/etc")).act(|| "make /etc".into())?;
    let hostname = format!("{}\n", order.hostname).into_bytes();
    let mut files = vec![("hostname", hostname), ("hosts", order.hosts.clone().into_bytes())];
    let resolver = match &order.resolver {
        Some(text) => Some(text.clone().into_bytes()),
        None => machines_resolver()?,
    };
    files.extend(resolver.map(|text| ("resolv.conf", text)));
    for (name, text) in files {
        let act = || format!("write /etc/{name}");
        // The file is written beside it and renamed, because the image may have a pipe there, which would block the
        // open for ever.
        let new = format!(".{name}.flota");
        match unlinkat(&etc, new.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error).act(act),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&etc, new.as_str(), flags, Mode::from_bits_truncate(0o644)).act(act)?;
        nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(0o644)).act(act)?;
        fs::File::from(file).write_all(&text).act(act)?;
        renameat(&etc, new.as_str(), &etc, name).act(act)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Capabilities;

    #[test]
    fn root_has_what_the_container_may_have_and_others_nothing() {
        let bounding = vec!["CAP_CHOWN".to_owned()];
        let capabilities = Capabilities { bounding: bounding.clone(), ..Capabilities::default() };
        let mut process = Process { capabilities: Some(capabilities), ..Process::default() };
        // The user changes back and forth: a process is started as root in a container of another user, and the other
        // way round.
        for (uid, held) in [(0, &bounding), (7, &Vec::new()), (0, &bounding)] {
            take_user(&mut process, &user::ContainerUser { uid, gid: 1, groups: vec![1], home: "/".into() });
            let has = process.capabilities.as_ref().expect("given");
            assert_eq!((&has.effective, &has.permitted, &has.bounding), (held, held, &bounding), "user {uid}");
        }
    }
}
