//! The container's root: mounts it, adds what the configuration and the OCI specification require, and enters it.
//!
//! Every path inside is opened with openat2(2) below a descriptor of the root, and mounts are moved from one
//! descriptor onto another. Therefore no link that an image or another container creates can lead outside at any time
//! (CVE-2021-30465).

mod copy_up;
mod devices;
pub(crate) mod mounts;
pub(crate) mod options;
mod protect;
mod root_dir;
pub(crate) mod sources;

pub(crate) use root_dir::RootDir;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use crate::error::{Act, StepError};
use crate::oci::{NamespaceKind, Spec};
use crate::syscall::mounts as kernel;

/// The inputs besides the configuration.
pub(crate) struct Plan<'a> {
    pub(crate) spec: &'a Spec,
    /// Absolute path of the root.
    pub(crate) root: &'a Path,
    /// The folder to which relative sources refer.
    pub(crate) bundle: &'a Path,
    /// Sources of bind mounts that were opened with the runtime's rights, in the order of `spec.mounts`.
    pub(crate) sources: sources::Sources,
    /// Folders of the container's cgroups, for mounts of type `cgroup`.
    pub(crate) cgroups: &'a [crate::cgroup::Folder],
    /// Whether the namespaces belong to a user namespace of the container.
    pub(crate) user_namespace: bool,
    /// Whether to use chroot(2) instead of pivot_root(2), for a root on the machine's initial file system.
    pub(crate) no_pivot: bool,
}

/// A root that is mounted and populated but not yet entered.
pub(crate) struct Prepared {
    root: RootDir,
    /// Mounts that become read-only after the last write.
    late_read_only: Vec<OwnedFd>,
    has_namespace: bool,
}

/// Mounts everything. The caller must be in the container's mount namespace.
pub(crate) fn prepare(plan: &mut Plan<'_>) -> Result<Prepared, StepError> {
    let linux = plan.spec.linux();
    let has_namespace = linux.namespaces.iter().any(|it| it.kind == NamespaceKind::Mount);
    if has_namespace {
        cut_off(linux.rootfs_propagation.as_deref(), plan.root)?;
    }
    let tree = match plan.sources.root.take() {
        Some(tree) => tree,
        None => kernel::open_tree(nix::fcntl::AT_FDCWD, plan.root, true)
            .act(|| format!("open the root `{}`", plan.root.display()))?,
    };
    let below = place_for(plan)?;
    if !has_namespace {
        // Mounts in the root must not propagate elsewhere and must be removed with it.
        let private = kernel::Change { propagation: libc::MS_PRIVATE, ..kernel::Change::default() };
        kernel::set_attributes(tree.as_fd(), private, true, None).act(|| "make the root private".into())?;
    }
    kernel::move_mount(tree.as_fd(), below.as_fd()).act(|| format!("bind the root `{}`", plan.root.display()))?;
    let root = RootDir::new(tree);
    let late_read_only = mounts::all(&root, plan)?;
    devices::make(&root, plan)?;
    if let Some(cwd) = plan.spec.process.as_ref().map(|it| &it.cwd) {
        // The folder is created if the image lacks it. If that fails, entering it reports the error.
        let _ = root.make_folder(cwd);
    }
    Ok(Prepared { root, late_read_only, has_namespace })
}

/// Opens the folder on which the root is mounted, normally its own place. The root of a user namespace may have no right to go
/// there. Then the nearest folder above serves, as the mounts are the container's own and their sources are open already.
fn place_for(plan: &Plan<'_>) -> Result<RootDir, StepError> {
    let own = RootDir::open(plan.root);
    if own.is_ok() || !plan.user_namespace {
        return own;
    }
    plan.root.ancestors().skip(1).find_map(|above| RootDir::open(above).ok()).map_or(own, Ok)
}

impl Prepared {
    /// Returns the root, for opening files in it.
    pub(crate) fn root(&self) -> &RootDir {
        &self.root
    }

    /// Makes the root the working directory.
    pub(crate) fn stand_in_root(&self) -> Result<(), StepError> {
        fchdir(&self.root).act(|| "enter the root".into())
    }

    /// Masks and protects the paths of the configuration.
    pub(crate) fn protect(&self, spec: &Spec) -> Result<(), StepError> {
        protect::mask(&self.root, &spec.linux().masked_paths)?;
        protect::read_only(&self.root, &spec.linux().readonly_paths)?;
        let read_only = kernel::Change { set: kernel::RDONLY, ..kernel::Change::default() };
        for mount in &self.late_read_only {
            kernel::set_attributes(mount.as_fd(), read_only, false, None).act(|| "make a mount read-only".into())?;
        }
        if spec.root.as_ref().is_some_and(|it| it.readonly) {
            kernel::set_attributes(self.root.as_fd(), read_only, false, None)
                .act(|| "make the root read-only".into())?;
        }
        Ok(())
    }

    /// Makes it this process's root. From here on every path is the container's own.
    pub(crate) fn enter(self, spec: &Spec, no_pivot: bool) -> Result<(), StepError> {
        fchdir(&self.root).act(|| "enter the root".into())?;
        if !self.has_namespace {
            return chroot(".").and_then(|()| chdir("/")).act(|| "change the root".into());
        }
        if no_pivot {
            move_root()?;
        } else {
            pivot()?;
        }
        let Some(kind) = spec.linux().rootfs_propagation.as_deref() else { return Ok(()) };
        let flags = propagation(kind)?;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).act(|| format!("make the root {kind}"))
    }
}

fn propagation(kind: &str) -> Result<MsFlags, StepError> {
    Ok(match kind.strip_prefix('r').unwrap_or(kind) {
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "private" => MsFlags::MS_PRIVATE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return Err(StepError::refuse(format!("read linux.rootfsPropagation `{kind}`"), "it is not known")),
    })
}

/// Prevents later mounts from propagating to the machine, unless the configuration wants that.
fn cut_off(wanted: Option<&str>, root: &Path) -> Result<(), StepError> {
    let flags = match wanted.map(propagation).transpose()? {
        // An unbindable mount could not be bound onto itself.
        None | Some(MsFlags::MS_UNBINDABLE) => MsFlags::MS_SLAVE,
        Some(flags) => flags,
    };
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | flags, None::<&str>)
        .act(|| "cut off the mounts of the machine".into())?;
    if flags != MsFlags::MS_SHARED {
        return Ok(());
    }
    // pivot_root(2) refuses a shared parent, and the bind of the root would propagate to the machine.
    let parent = parent_mount(root)?;
    mount(None::<&str>, &parent, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .act(|| format!("make `{}` private", parent.display()))
}

/// Returns the mount points of the wanted file systems (proc_pid_mountinfo(5)), the last mounted first.
fn mount_points(wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, StepError> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").act(|| "read the mounts".into())?;
    let point = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        wanted(right.split(' ').next()?).then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    let mut found: Vec<PathBuf> = text.lines().filter_map(point).collect();
    found.reverse();
    Ok(found)
}

/// Returns the mount point of the mount that contains `path`.
fn parent_mount(path: &Path) -> Result<PathBuf, StepError> {
    let points = mount_points(|_| true)?.into_iter().filter(|point| path.starts_with(point));
    Ok(points.max_by_key(|point| point.as_os_str().len()).unwrap_or_else(|| "/".into()))
}

/// Changes the root with pivot_root(2), as under "pivot_root(".", ".")": the old root lies on top of the new one and
/// is unmounted.
fn pivot() -> Result<(), StepError> {
    let old = File::open("/").act(|| "open the old root".into())?;
    pivot_root(".", ".").act(|| "change the root".into())?;
    fchdir(&old).act(|| "enter the old root".into())?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, ".", None::<&str>, slave, None::<&str>).act(|| "cut off the old root".into())?;
    umount2(".", MntFlags::MNT_DETACH).act(|| "take off the old root".into())?;
    chdir("/").act(|| "enter the new root".into())
}

/// Changes the root on a machine that runs from its initial file system, which pivot_root(2) refuses.
fn move_root() -> Result<(), StepError> {
    // Whole file systems would remain below the new root, where a container could find them and read everything in
    // them.
    let inside = std::env::current_dir().act(|| "find the root".into())?;
    for point in mount_points(|kind| matches!(kind, "proc" | "sysfs"))? {
        if !point.starts_with(&inside) {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, &point, None::<&str>, private, None::<&str>)
                .act(|| format!("make `{}` private", point.display()))?;
            umount2(&point, MntFlags::MNT_DETACH).act(|| format!("take off `{}`", point.display()))?;
        }
    }
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).act(|| "move the root".into())?;
    chroot(".").and_then(|()| chdir("/")).act(|| "change the root".into())
}
