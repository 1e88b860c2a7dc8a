//! The layout of the data folder, and the lock that keeps a second daemon out.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use flota_api::seal::Sealer;

/// The data folder: `identity/`, `raft/`, `worker/`, `data.key`, `address`, `raft-id`, `lock`.
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    pub(crate) sealer: Sealer,
    _lock: Flock<File>,
}

impl StateDir {
    /// Opens the folder for this process alone, and creates it if it does not exist.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        for name in ["identity", "worker"] {
            fs_err::create_dir_all(root.join(name)).context("failed to create the data folder")?;
        }
        use std::os::unix::fs::PermissionsExt;
        // Containers' files are below it, and may be set-user-id programs: no other user may reach them (CVE-2021-41091).
        fs_err::set_permissions(root, std::fs::Permissions::from_mode(0o700))?;
        let lock = File::create(root.join("lock")).context("failed to lock the data folder")?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!("another flotad uses the data folder {}", root.display());
        };
        let sealer = flota_identity::sealer(&root.join("data.key")).context("failed to read the data key")?;
        Ok(Self { root: root.to_owned(), sealer, _lock: lock })
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    pub(crate) fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    pub(crate) fn worker(&self) -> PathBuf {
        self.root.join("worker")
    }

    /// Reads a small file of the folder, without surrounding white space. `None` if it is missing or empty.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(name))
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    }

    /// Replaces a small file atomically and durably.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.root.join(name);
        let temporary = path.with_extension("new");
        fs_err::write(&temporary, text)?;
        File::open(&temporary)?.sync_all()?;
        fs_err::rename(&temporary, &path)?;
        File::open(&self.root)?.sync_all()?;
        Ok(())
    }

    /// Renames the damaged Raft folder, so that it can be inspected. Returns the new path.
    pub(crate) fn put_raft_aside(&self) -> anyhow::Result<PathBuf> {
        let aside = (1..).map(|number| self.root.join(format!("raft.damaged.{number}"))).find(|path| !path.exists());
        let aside = aside.context("failed to find a free name for the damaged Raft folder")?;
        fs_err::rename(self.raft(), &aside)?;
        Ok(aside)
    }

    /// Removes everything that belongs to a cluster, except the images.
    pub(crate) fn forget_cluster(&self) -> anyhow::Result<()> {
        // The identity first: if the rest is left after a crash, it is ignored without it.
        flota_identity::remove(&self.identity())?;
        for name in ["raft", "worker/task-db", "worker/tasks"] {
            let path = self.root.join(name);
            if path.exists() {
                fs_err::remove_dir_all(path)?;
            }
        }
        for name in ["address", "raft-id", "worker/managers", "worker/newest"] {
            let _ = std::fs::remove_file(self.root.join(name));
        }
        Ok(())
    }
}
