//! The folder in memory whose files keep network namespaces: one for each network, one for each task,
//! one for the bridge of tasks without networks, and one for the tunnels of encrypted networks. The user namespaces to which
//! networks of tasks belong are beside them.
//!
//! A supervisor has a copy of this node's mounts, and with it one of each namespace file. The folder is therefore a
//! shared mount: when a file is unmounted here, it is unmounted in all copies (mount_namespaces(7)). Otherwise the
//! namespace of a network would exist until the last task that was started before its removal ends.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use flota_api::id::{NetworkId, TaskId, is_id};

use crate::mount_point::is_mount_point;

/// The folder of namespace files.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceFolder {
    path: PathBuf,
}

impl NamespaceFolder {
    /// Returns the folder at this path. Does not check that it exists.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Creates the folder and makes it a shared mount, unless an earlier daemon has done so.
    ///
    /// # Errors
    /// The folder can't be created or mounted.
    pub(crate) fn make(&self) -> io::Result<()> {
        for name in ["networks", "tasks", "users"] {
            fs_err::create_dir_all(self.path.join(name))?;
        }
        if !is_mount_point(&self.path)? {
            mount(Some(&self.path), &self.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        mount(None::<&str>, &self.path, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
        Ok(())
    }

    /// Removes the folder, which has no namespaces any more.
    ///
    /// # Errors
    /// The kernel refuses to unmount the folder, or it can't be removed.
    pub(crate) fn remove(&self) -> io::Result<()> {
        umount2(&self.path, MntFlags::MNT_DETACH)?;
        fs_err::remove_dir_all(&self.path)
    }

    /// Returns the file of a network's namespace.
    pub(crate) fn network(&self, id: &NetworkId) -> PathBuf {
        self.path.join("networks").join(id.as_str())
    }

    /// Returns the file of a task's namespace.
    pub(crate) fn task(&self, id: &TaskId) -> PathBuf {
        self.path.join("tasks").join(id.as_str())
    }

    /// Returns the file of the user namespace of a task that has ids of its own.
    pub(crate) fn user(&self, id: &TaskId) -> PathBuf {
        self.path.join("users").join(id.as_str())
    }

    /// Returns the file of the namespace of the bridge for tasks without networks.
    pub(crate) fn bridge(&self) -> PathBuf {
        self.path.join("bridge")
    }

    /// Returns the file of the namespace of the tunnels that encrypted networks use.
    pub(crate) fn tunnels(&self) -> PathBuf {
        self.path.join("tunnels")
    }

    /// Returns the file that keeps the kernel parameters which the node had before it had networks.
    pub(crate) fn former_parameters(&self) -> PathBuf {
        self.path.join("former-parameters")
    }

    /// Returns the networks that have a file.
    pub(crate) fn networks(&self) -> BTreeSet<NetworkId> {
        self.names("networks").map(Into::into).collect()
    }

    /// Returns the tasks that have a file.
    pub(crate) fn tasks(&self) -> BTreeSet<TaskId> {
        self.names("tasks").chain(self.names("users")).map(Into::into).collect()
    }

    fn names(&self, folder: &str) -> impl Iterator<Item = String> {
        let entries = std::fs::read_dir(self.path.join(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|it| is_id(it))
    }
}
