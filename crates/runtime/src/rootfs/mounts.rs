//! The configuration's mounts, in order (config.md, "Mounts").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::options::Options;
use super::{Plan, RootDir, copy_up, sources};
use crate::error::{Act, StepError};
use crate::oci::Mount;
use crate::syscall::files::{NO_LINKS, open_at};
use crate::syscall::mounts::{self as kernel, Change, FileSystem};

/// Longest string option of fsconfig(2) in bytes; longer ones go through mount(2).
const STRING_BOUND: usize = 255;

/// Creates all mounts. Returns those that become read-only after everything below them is created.
pub(super) fn all(root: &RootDir, plan: &mut Plan<'_>) -> Result<Vec<OwnedFd>, StepError> {
    let mut late = Vec::new();
    let spec = plan.spec;
    for (index, mount) in spec.mounts.iter().enumerate() {
        let source = plan.sources.mounts.get_mut(index).and_then(Option::take);
        let one = One { root, mount, options: Options::parse(&mount.options), destination: destination(mount) };
        let made = one.make(plan, source);
        let made =
            made.map_err(|error| error.within(format!("mount mounts[{index}] at `{}`", one.destination.display())))?;
        late.extend(made);
    }
    Ok(late)
}

/// Returns the destination. Relative ones are deprecated and are below the root, too.
fn destination(mount: &Mount) -> PathBuf {
    Path::new("/").join(&mount.destination)
}

struct One<'a> {
    root: &'a RootDir,
    mount: &'a Mount,
    options: Options,
    destination: PathBuf,
}

impl One<'_> {
    fn make(&self, plan: &Plan<'_>, source: Option<OwnedFd>) -> Result<Option<OwnedFd>, StepError> {
        if self.options.remount {
            let target = self.root.find(&self.destination, libc::O_PATH).act(|| "open it".into())?;
            return self.attributes(target.as_fd()).map(|()| None);
        }
        if self.options.bind.is_some() || source.is_some() {
            return self.bind(plan, source).map(|()| None);
        }
        match self.mount.kind.as_str() {
            "cgroup" | "cgroup2" => self.cgroups(plan).map(|()| None),
            "" => Err(StepError::refuse("mount it", "it has no type, and no option `bind`")),
            _ => self.file_system(),
        }
    }

    fn bind(&self, plan: &Plan<'_>, source: Option<OwnedFd>) -> Result<(), StepError> {
        let tree = match source {
            Some(tree) => tree,
            None => {
                let path = sources::source_path(&self.mount.source, plan.bundle);
                kernel::open_tree(nix::fcntl::AT_FDCWD, &path, self.options.bind == Some(true))
                    .act(|| format!("open its source `{}`", path.display()))?
            }
        };
        self.attach(&tree)?;
        Ok(())
    }

    /// Sets the attributes and attaches the mount, so that it is never visible without them.
    fn attach(&self, tree: &OwnedFd) -> Result<(), StepError> {
        self.attributes(tree.as_fd())?;
        let target = self.target(tree.as_fd())?;
        kernel::move_mount(tree.as_fd(), target.as_fd()).act(|| "mount it".into())?;
        self.propagate(tree.as_fd())
    }

    fn attributes(&self, mount: BorrowedFd<'_>) -> Result<(), StepError> {
        for (change, recursive) in [(self.options.below, true), (self.options.own, false)] {
            if change == Change::default() {
                continue;
            }
            let result = match kernel::set_attributes(mount, change, recursive, None) {
                // In a user namespace, flags that the machine's root has set can't be cleared (mount_namespaces(7)).
                Err(Errno::EPERM) if change.clear != 0 && change.set & kernel::ATIME == 0 => {
                    kernel::set_attributes(mount, Change { clear: 0, ..change }, recursive, None)
                }
                other => other,
            };
            result.act(|| "set its options".into())?;
        }
        Ok(())
    }

    fn propagate(&self, mount: BorrowedFd<'_>) -> Result<(), StepError> {
        for (propagation, recursive) in &self.options.propagation {
            let change = Change { propagation: *propagation, ..Change::default() };
            kernel::set_attributes(mount, change, *recursive, None).act(|| "set its propagation".into())?;
        }
        Ok(())
    }

    /// Opens the destination, and creates it as a folder or an empty file like the source if it is missing.
    fn target(&self, mount: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
        let kind = fstat(mount).act(|| "look at its source".into())?.st_mode & SFlag::S_IFMT.bits();
        if kind == SFlag::S_IFDIR.bits() {
            self.folder()
        } else {
            self.root.make_file(&self.destination).act(|| "make a file to mount on".into())
        }
    }

    fn folder(&self) -> Result<OwnedFd, StepError> {
        self.root.make_folder(&self.destination).act(|| "make a folder to mount on".into())
    }

    fn file_system(&self) -> Result<Option<OwnedFd>, StepError> {
        let kind = self.mount.kind.as_str();
        let target = match kind {
            // With a link here, the real /proc would stay without its masks (CVE-2023-27561, CVE-2019-19921).
            "proc" | "sysfs" => {
                self.folder()?;
                self.root.find_without_links(&self.destination, libc::O_PATH | libc::O_DIRECTORY).map_err(|_| {
                    StepError::refuse(format!("mount {kind}"), "it must be mounted on ordinary directory, not a link")
                })?
            }
            _ => self.folder()?,
        };
        if self.options.data.iter().any(|it| it.len() > STRING_BOUND) {
            return self.by_path(&target).map(|()| None);
        }
        let system = FileSystem::open(kind).act(|| format!("use the file system `{kind}`"))?;
        self.configure(&system)?;
        let tmpfs = kind == "tmpfs";
        // The content of a tmpfs is written later.
        let attributes = self.options.fresh();
        let late = tmpfs && attributes & kernel::RDONLY != 0;
        let mounted = system.mount(if late { attributes & !kernel::RDONLY } else { attributes });
        let mounted = match mounted {
            Ok(mounted) => mounted,
            Err(error) => return Err(complain(&system, error)),
        };
        if tmpfs {
            self.like_the_image(&target, &mounted)?;
        }
        kernel::move_mount(mounted.as_fd(), target.as_fd()).act(|| "mount it".into())?;
        self.propagate(mounted.as_fd())?;
        Ok(late.then_some(mounted))
    }

    fn configure(&self, system: &FileSystem) -> Result<(), StepError> {
        let kind = self.mount.kind.as_str();
        let source = if self.mount.source.is_empty() { kind } else { &self.mount.source };
        // Some file systems have no source.
        let _ = system.set("source", source);
        for flag in &self.options.flags {
            system.set_flag(flag).map_err(|error| option_error(system, flag, error))?;
        }
        for option in &self.options.data {
            let set = match option.split_once('=') {
                Some((key, value)) => system.set(key, value),
                None => system.set_flag(option),
            };
            set.map_err(|error| option_error(system, option, error))?;
        }
        Ok(())
    }

    /// Gives a tmpfs without a mode of its own the mode of the folder that it covers and, with `tmpcopyup`, a copy of
    /// that folder's content.
    fn like_the_image(&self, target: &OwnedFd, mounted: &OwnedFd) -> Result<(), StepError> {
        if !self.options.data.iter().any(|it| it.starts_with("mode=")) {
            let mode = fstat(target).act(|| "look at what it covers".into())?.st_mode & 0o7777;
            let mode = Mode::from_bits_truncate(mode);
            nix::sys::stat::fchmod(mounted, mode)
                .or_else(|error| {
                    // A mount that is not attached yet is only open with O_PATH.
                    if error == Errno::EBADF { copy_up::set_mode(mounted, mode) } else { Err(error) }
                })
                .act(|| "set its mode".into())?;
        }
        if self.options.copy_up {
            copy_up::copy(target, mounted).act(|| "copy what the image has there".into())?;
        }
        Ok(())
    }

    fn by_path(&self, target: &OwnedFd) -> Result<(), StepError> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", target.as_raw_fd());
        let data = self.options.data.join(",");
        let kind = Some(self.mount.kind.as_str());
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(self.mount.source.as_str()), path.as_str(), kind, flags, Some(data.as_str()))
            .act(|| "mount it".into())?;
        let mounted = self.root.find(&self.destination, libc::O_PATH).act(|| "open it".into())?;
        self.attributes(mounted.as_fd())
    }

    /// Mounts the container's own groups; on v1 one folder for each hierarchy in a tmpfs, as on a machine.
    fn cgroups(&self, plan: &Plan<'_>) -> Result<(), StepError> {
        let below = |path: &Path| kernel::open_tree(nix::fcntl::AT_FDCWD, path, false);
        if let [only] = plan.cgroups
            && only.v2
        {
            let tree = below(&only.path).act(|| format!("open {}", only.path.display()))?;
            return self.attach(&tree);
        }
        if plan.cgroups.is_empty() {
            let tree = kernel::open_tree(nix::fcntl::AT_FDCWD, Path::new("/sys/fs/cgroup"), true);
            let tree = tree.act(|| "open /sys/fs/cgroup".into())?;
            self.attach(&tree)?;
            // All of it is the machine's, whatever the options are (CVE-2023-25809).
            let fixed = kernel::RDONLY | kernel::NOSUID | kernel::NODEV | kernel::NOEXEC;
            let change = Change { set: fixed, ..Change::default() };
            return kernel::set_attributes(tree.as_fd(), change, true, None).act(|| "make it read-only".into());
        }
        let system = FileSystem::open("tmpfs").act(|| "use the file system `tmpfs`".into())?;
        system.set("source", "cgroup").act(|| "name it".into())?;
        system.set("mode", "755").act(|| "set the mode".into())?;
        let fixed = kernel::NOSUID | kernel::NODEV | kernel::NOEXEC;
        let tmpfs = system.mount(fixed).act(|| "make a tmpfs".into())?;
        let target = self.folder()?;
        kernel::move_mount(tmpfs.as_fd(), target.as_fd()).act(|| "mount it".into())?;
        for folder in plan.cgroups {
            let name = hierarchy_name(folder);
            let act = || format!("mount `{name}`");
            let tree = below(&folder.path).act(|| format!("open {}", folder.path.display()))?;
            self.attributes(tree.as_fd())?;
            mkdirat(&tmpfs, name.as_str(), Mode::from_bits_truncate(0o755)).act(act)?;
            let place = open_at(tmpfs.as_fd(), Path::new(&name), libc::O_PATH, 0, NO_LINKS).act(act)?;
            kernel::move_mount(tree.as_fd(), place.as_fd()).act(act)?;
            for link in folder.controllers.iter().filter(|it| !folder.v2 && **it != name) {
                nix::unistd::symlinkat(name.as_str(), &tmpfs, link.as_str()).act(|| format!("make `{link}`"))?;
            }
        }
        self.attributes(tmpfs.as_fd())?;
        self.propagate(tmpfs.as_fd())
    }
}

/// Returns the name of a hierarchy's mount point on the machine, where programs expect it.
fn hierarchy_name(folder: &crate::cgroup::Folder) -> String {
    folder.point.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn complain(system: &FileSystem, error: Errno) -> StepError {
    let why = system.complaint().unwrap_or_else(|| error.desc().to_owned());
    StepError::refuse("make the file system", why)
}

fn option_error(system: &FileSystem, option: &str, error: Errno) -> StepError {
    let why = system.complaint().unwrap_or_else(|| error.desc().to_owned());
    StepError::refuse(format!("use the option `{option}`"), why)
}
