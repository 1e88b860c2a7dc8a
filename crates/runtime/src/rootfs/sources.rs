//! The sources of bind mounts, opened before the process gives up its rights: a container in a user namespace can't
//! access files that its ids may not access, and only the machine's root may map the ids of a mount.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::options::Options;
use crate::error::{Act, StepError};
use crate::oci::{IdMapping, Spec};
use crate::syscall::mounts as kernel;

/// Trees that are not attached yet.
#[derive(Default)]
pub(crate) struct Sources {
    pub(crate) root: Option<OwnedFd>,
    /// Sources of the configuration's mounts, by index.
    pub(crate) mounts: Vec<Option<OwnedFd>>,
    /// Sources of the devices, by index, the default ones first.
    pub(crate) devices: Vec<Option<OwnedFd>>,
}

/// Returns the source of a bind mount; a relative path is relative to the bundle.
pub(crate) fn source_path(source: &str, bundle: &Path) -> PathBuf {
    bundle.join(source)
}

/// Creates a user namespace that maps these user and group ids, for a mount that maps ids.
type MakeNamespace = fn(&[IdMapping], &[IdMapping]) -> Result<OwnedFd, StepError>;

/// Opens the sources of the bind mounts. The runtime calls this with all its rights, if the container has its own user
/// namespace or a mount maps ids. `scratch` is a folder of the runtime's own.
pub(crate) fn open(
    spec: &Spec,
    root: &Path,
    bundle: &Path,
    scratch: &Path,
    user_namespace: bool,
    make_namespace: MakeNamespace,
) -> Result<Sources, StepError> {
    let mut sources = Sources::default();
    if user_namespace {
        let tree = kernel::open_tree(nix::fcntl::AT_FDCWD, root, true);
        let tree = tree.act(|| format!("open the root `{}`", root.display()))?;
        cut_off(spec, &tree)?;
        sources.root = Some(tree);
        let device = |it: crate::oci::Device| super::devices::outside(spec, &it, scratch);
        sources.devices = super::devices::all(spec).map(device).collect::<Result<_, _>>()?;
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let options = Options::parse(&mount.options);
        let mapped = options.idmap.is_some() || !mount.uid_mappings.is_empty();
        let wanted = options.bind.is_some() && (user_namespace || mapped);
        sources.mounts.push(if wanted { Some(open_one(spec, index, &options, bundle, make_namespace)?) } else { None });
    }
    Ok(sources)
}

fn open_one(
    spec: &Spec,
    index: usize,
    options: &Options,
    bundle: &Path,
    make_namespace: MakeNamespace,
) -> Result<OwnedFd, StepError> {
    let mount = &spec.mounts[index];
    let path = source_path(&mount.source, bundle);
    let tree = kernel::open_tree(nix::fcntl::AT_FDCWD, &path, options.bind == Some(true))
        .act(|| format!("open `{}`, the source of mounts[{index}]", path.display()))?;
    cut_off(spec, &tree)?;
    let recursive = options.idmap.unwrap_or(false);
    let (uids, gids) = if mount.uid_mappings.is_empty() && options.idmap.is_some() {
        (&spec.linux().uid_mappings, &spec.linux().gid_mappings)
    } else {
        (&mount.uid_mappings, &mount.gid_mappings)
    };
    if options.idmap.is_some() || !uids.is_empty() {
        let namespace = make_namespace(uids, gids)?;
        kernel::set_attributes(tree.as_fd(), kernel::Change::default(), recursive, Some(namespace.as_fd()))
            .act(|| format!("map the ids of mounts[{index}] (`{}`)", mount.destination.display()))?;
    }
    Ok(tree)
}

/// Separates a tree from the machine's mounts, so that mounts in it do not propagate to the machine.
fn cut_off(spec: &Spec, tree: &OwnedFd) -> Result<(), StepError> {
    if spec.linux().rootfs_propagation.as_deref().is_some_and(|it| it.ends_with("shared")) {
        return Ok(());
    }
    let slave = kernel::Change { propagation: libc::MS_SLAVE, ..kernel::Change::default() };
    kernel::set_attributes(tree.as_fd(), slave, true, None).act(|| "cut off the mounts of the machine".into())
}
