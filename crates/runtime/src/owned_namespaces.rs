//! The namespaces of a container with ids of its own that have to exist before it: a user namespace, and a network namespace
//! that belongs to it, so that the container's root may do in its network what root does in a network.
//!
//! Each is kept by a file, as network namespaces are (network_namespaces(7)).

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Act, StepError};
use crate::ids::IdRange;
use crate::process::user_namespace::within;
use crate::supervisor::{RootSource, try_ids};

/// Makes a user namespace with these ids, kept by the file `user`, and a network namespace that belongs to it, kept by the
/// file `network`. The folders of the files must exist. Replaces what a crash has left there.
///
/// # Errors
/// The kernel refuses, or a file can't be made.
pub fn make(ids: IdRange, user: &Path, network: &Path) -> Result<(), StepError> {
    for path in [user, network] {
        remove(path)?;
    }
    let map = [ids.mapping()];
    within(libc::CLONE_NEWUSER | libc::CLONE_NEWNET, &map, &map, |pid| {
        for (path, kind) in [(user, "user"), (network, "net")] {
            let act = || format!("keep a namespace at {}", path.display());
            fs::File::create(path).act(act)?;
            let source = format!("/proc/{pid}/ns/{kind}");
            mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).act(act)?;
        }
        Ok(())
    })
}

/// Removes the file of a namespace, which ends when nothing else is in it or belongs to it. Does nothing if there is none.
///
/// # Errors
/// The file is in use for another reason.
pub fn remove(path: &Path) -> Result<(), StepError> {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(path) {
        Err(error) if error.raw_os_error() != Some(Errno::ENOENT as i32) => {
            Err(error).act(|| format!("remove the namespace at {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Finds out whether containers with ids of their own can have their files in this folder. `overlay` says whether their root
/// is an overlay.
///
/// # Errors
/// They can't: the kernel has no user namespaces, or its file system can't show other ids.
pub fn try_in(folder: &Path, overlay: bool) -> Result<(), StepError> {
    let probe = folder.join("ids-probe");
    let path = |name: &str| probe.join(name);
    let tried = (|| {
        for name in ["lower", "upper", "work"] {
            fs::create_dir_all(path(name)).act(|| format!("make {}", path(name).display()))?;
        }
        let root = if overlay {
            RootSource::Overlay { lower: vec![path("lower")], upper: path("upper"), work: path("work") }
        } else {
            RootSource::Folder(path("lower"))
        };
        try_ids(&probe, &root, IdRange { first: 1 << 30, count: 1 << 16 })
    })();
    let _ = fs::remove_dir_all(&probe);
    tried
}
