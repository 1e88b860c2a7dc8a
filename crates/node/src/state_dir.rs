//! The layout of the data folder, and the lock that keeps a second daemon out.

mod keys;
mod switch;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use flota_api::seal::Sealer;

pub(crate) use self::keys::Keys;
use self::keys::{DATA_KEY, STORE_KEY};

/// Beginning of the names of damaged Raft folders.
const DAMAGED: &str = "raft.damaged.";

/// The data folder: `identity/`, `raft/`, `worker/`, `data.key`, `raft.key`, `locked`, `address`, `raft-id`, `lock`; and of
/// earlier logs `raft.damaged.N/` and `raft.before.N/` (see [`switch`]).
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    keys: Keys,
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
        // Keys that were being written when the machine failed. Nothing was sealed with them.
        for name in ["raft.new", "data.new", "locked.new"] {
            remove(&root.join(name))?;
        }
        Ok(Self { root: root.to_owned(), keys: Keys::open(root)?, _lock: lock })
    }

    /// Returns the node's keys.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns whether the node belongs to a cluster.
    pub(crate) fn is_member(&self) -> bool {
        flota_identity::is_present(&self.root.join("identity"))
    }

    /// Returns a sealer with the membership's data key, which is made on first use.
    pub(crate) fn sealer(&self) -> anyhow::Result<Sealer> {
        self.keys.sealer(DATA_KEY).context("failed to read the data key")
    }

    /// Returns a sealer with the key of the manager's copy of the store, which is made with the first one. It is another than
    /// the data key, because a demoted manager keeps its tasks and nothing of the store.
    pub(crate) fn store_sealer(&self) -> anyhow::Result<Sealer> {
        // A build that knew one key for everything has made the copy.
        if self.raft().exists() && !self.root.join(STORE_KEY).exists() {
            return self.sealer();
        }
        self.keys.sealer(STORE_KEY).context("failed to read the key of the store")
    }

    pub(crate) fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    pub(crate) fn worker(&self) -> PathBuf {
        self.root.join("worker")
    }

    /// The file with the addresses of the managers, which the worker writes.
    pub(crate) fn managers_file(&self) -> PathBuf {
        self.worker().join("managers")
    }

    /// Returns the addresses of the managers that the worker knows; none if it knows none.
    pub(crate) fn known_managers(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.managers_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
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

    /// Renames the Raft folder, if there is one, because it is damaged, so that it can be inspected. Returns the new path.
    pub(crate) fn put_raft_aside(&self) -> anyhow::Result<Option<PathBuf>> {
        self.put_raft_aside_as(DAMAGED)
    }

    /// Renames the Raft folder, if there is one, to a name that begins with `prefix`. Returns the new path.
    fn put_raft_aside_as(&self, prefix: &str) -> anyhow::Result<Option<PathBuf>> {
        if !self.raft().exists() {
            return Ok(None);
        }
        let aside = (1..).map(|number| self.root.join(format!("{prefix}{number}"))).find(|path| !path.exists());
        let aside = aside.context("failed to find a free name for the old Raft folder")?;
        fs_err::rename(self.raft(), &aside)?;
        File::open(&self.root)?.sync_all()?;
        Ok(Some(aside))
    }

    /// Removes everything that belongs to a cluster, except the images.
    pub(crate) fn forget_cluster(&self) -> anyhow::Result<()> {
        // The identity first: if the rest is left after a crash, it is ignored without it. Then the keys, without which
        // the rest can't be read. A manager's store has the key of the cluster's CA.
        self.keys.forget_all()?;
        let tunnel_keys = self.root.join("worker/tunnel-keys");
        if tunnel_keys.exists() {
            remove(&tunnel_keys)?;
        }
        self.forget_store()?;
        for path in ["worker/task-db", "worker/tasks"].map(|name| self.root.join(name)) {
            if path.exists() {
                fs_err::remove_dir_all(path)?;
            }
        }
        for name in ["managers", "newest", "epoch", "settled", "lost", "networks"].map(|name| format!("worker/{name}"))
        {
            let _ = std::fs::remove_file(self.root.join(name));
        }
        for name in ["address", "address-home", "address-is-given"] {
            let _ = std::fs::remove_file(self.root.join(name));
        }
        Ok(())
    }

    /// Removes what only a manager has: its copy of the store, with that of every earlier Raft id, and the key to it. Does
    /// nothing on a worker.
    pub(crate) fn forget_store(&self) -> anyhow::Result<()> {
        // The key first: the rest can't be read without it.
        self.keys.forget(STORE_KEY)?;
        remove(&self.root.join("raft-id"))?;
        remove(&self.root.join("raft-next"))?;
        // Damaged folders, and those from before the cluster began anew.
        let is_old = |path: &PathBuf| path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"raft."));
        let old = fs_err::read_dir(&self.root)?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_old);
        for path in old.chain([self.raft()].into_iter().filter(|path| path.exists())) {
            // A key that was being replaced when the machine failed is a file.
            if path.is_dir() { fs_err::remove_dir_all(path)? } else { fs_err::remove_file(path)? }
        }
        Ok(())
    }
}

/// Removes a file, if it exists, and makes that durable.
fn remove(path: &Path) -> anyhow::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Ok(File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demoted_manager_keeps_what_its_tasks_need_and_nothing_that_opens_its_store() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(dir.path()).expect("it is unlocked");
        let (of_tasks, of_store) = (state.sealer().expect("a key"), state.store_sealer().expect("another key"));
        let task = of_tasks.seal(b"place", b"a task");
        let sealed = of_store.seal(b"place", b"the key of the CA");
        assert!(of_tasks.open(b"place", &sealed).is_err(), "the key that stays does not open it");
        fs_err::create_dir_all(dir.path().join("raft")).expect("a folder");
        fs_err::create_dir_all(dir.path().join("raft.damaged.1")).expect("a folder");
        fs_err::create_dir_all(dir.path().join("raft.before.1")).expect("a folder");
        state.write("raft-id", "7").expect("it is written");
        let again = state.store_sealer().expect("the same key");
        assert!(again.open(b"place", &sealed).is_ok());
        for _ in 0..2 {
            state.forget_store().expect("everything can be removed, or is gone");
            for name in ["raft", "raft.damaged.1", "raft.before.1", "raft-id", "raft.key"] {
                assert!(!dir.path().join(name).exists(), "{name}");
            }
        }
        assert!(state.sealer().expect("the key is there").open(b"place", &task).is_ok());
        assert!(state.store_sealer().expect("a new key").open(b"place", &sealed).is_err());
    }

    #[test]
    fn the_store_of_a_build_with_one_key_is_still_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(dir.path()).expect("it is unlocked");
        let sealed = state.sealer().expect("a key").seal(b"place", b"an entry");
        fs_err::create_dir_all(dir.path().join("raft")).expect("a folder");
        assert!(state.store_sealer().expect("the key is there").open(b"place", &sealed).is_ok());
    }

    #[test]
    fn a_cluster_that_is_forgotten_leaves_nothing_that_opens_its_store() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(dir.path()).expect("it is unlocked");
        let sealed = state.sealer().expect("a key is made").seal(b"place", b"the key of the CA");
        for name in ["raft", "raft.damaged.1", "raft.damaged.2", "worker/images"] {
            fs_err::create_dir_all(dir.path().join(name)).expect("a folder");
        }
        state.write("worker/tunnel-keys", "private keys of WireGuard").expect("it is written");
        state.forget_cluster().expect("everything can be removed");
        let mut left: Vec<_> =
            fs_err::read_dir(dir.path()).expect("it is there").flatten().map(|it| it.file_name()).collect();
        left.sort();
        assert_eq!(left, ["identity", "lock", "worker"]);
        let kept: Vec<_> = fs_err::read_dir(dir.path().join("worker"))
            .expect("it is there")
            .flatten()
            .map(|it| it.file_name())
            .collect();
        assert_eq!(kept, ["images"], "they belong to no cluster");
        assert!(state.sealer().expect("another key is made").open(b"place", &sealed).is_err());
        state.forget_cluster().expect("twice is as good as once");
    }
}
