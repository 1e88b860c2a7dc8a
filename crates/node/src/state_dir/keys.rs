//! The keys in the data folder: that of the node's identity, that of the records of its tasks, and on a manager that of its
//! copy of the store. They are sealed if the cluster wants it ([`KeyVault`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context;

use flota_api::seal::Sealer;
use flota_identity::{FileError, Identity, KeyFile, KeyVault, UnlockError, UnlockKey};

use super::remove;

/// The key of the records of tasks.
pub(super) const DATA_KEY: &str = "data.key";
/// The key of the store.
pub(super) const STORE_KEY: &str = "raft.key";
/// The master key that the others are sealed with, itself sealed with the cluster's unlock key.
const LOCKED: &str = "locked";

/// The keys of this node. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    vault: KeyVault,
    /// Those that are in use, by their names.
    files: Mutex<BTreeMap<&'static str, KeyFile>>,
    /// Held while the identity is written: what is written again is the newest.
    identity: Mutex<()>,
    /// Held while all of them are written again.
    protecting: Mutex<()>,
}

impl Keys {
    /// Opens the keys in the data folder `root`.
    pub(super) fn open(root: &Path) -> anyhow::Result<Self> {
        let vault = KeyVault::open(&root.join(LOCKED)).context("failed to read the master key")?;
        let (root, files) = (root.to_owned(), Mutex::default());
        Ok(Self(Arc::new(Inner { root, vault, files, identity: Mutex::default(), protecting: Mutex::default() })))
    }

    /// Returns whether the keys can't be used before [`Keys::unlock`].
    pub(crate) fn are_locked(&self) -> bool {
        self.0.vault.is_locked()
    }

    /// Opens the keys of a locked manager.
    pub(crate) fn unlock(&self, key: &UnlockKey) -> Result<(), UnlockError> {
        self.0.vault.unlock(key)
    }

    fn folder(&self) -> PathBuf {
        self.0.root.join("identity")
    }

    /// Returns the node's identity; `None` if it belongs to no cluster.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, FileError> {
        flota_identity::load(&self.folder(), &self.0.vault)
    }

    /// Writes the node's identity.
    pub(crate) fn save_identity(&self, identity: &Identity) -> Result<(), FileError> {
        let _held = self.0.identity.lock().expect("no holder panics");
        flota_identity::save(&self.folder(), identity, &self.0.vault)
    }

    /// Returns a sealer with the key in the file, which is made on first use.
    pub(super) fn sealer(&self, name: &'static str) -> std::io::Result<Sealer> {
        let mut files = self.0.files.lock().expect("no holder panics");
        if let Some(file) = files.get(name) {
            return Ok(file.sealer());
        }
        let file = KeyFile::open(&self.0.root.join(name), &self.0.vault)?;
        Ok(files.entry(name).or_insert(file).sealer())
    }

    /// Removes the key in the file.
    pub(super) fn forget(&self, name: &'static str) -> anyhow::Result<()> {
        self.0.files.lock().expect("no holder panics").remove(name);
        remove(&self.0.root.join(name))
    }

    /// Removes the node's identity, and then all other keys.
    pub(super) fn forget_all(&self) -> anyhow::Result<()> {
        let _held = self.0.identity.lock().expect("no holder panics");
        flota_identity::remove(&self.folder())?;
        [DATA_KEY, STORE_KEY].into_iter().try_for_each(|name| self.forget(name))?;
        self.0.vault.remove().context("failed to remove the master key")
    }

    /// Draws new keys for the records and the store. What was sealed before can still be read.
    pub(crate) fn rotate(&self) -> anyhow::Result<()> {
        let files = self.0.files.lock().expect("no holder panics");
        files.values().try_for_each(|file| file.rotate(&self.0.vault)).context("failed to write a new data key")
    }

    /// Returns whether the keys are sealed so that this unlock key opens them, or in clear if there is none.
    pub(crate) fn are_as_wanted(&self, wanted: Option<&UnlockKey>) -> bool {
        self.0.vault.is_as_wanted(wanted)
    }

    /// Seals the keys so that this unlock key opens them, or writes them in clear. From then on nothing is sealed with a data
    /// key that was on disk in clear, or under an earlier unlock key. Returns `false` if they are so already, or `is_current`
    /// says that it is no longer wanted. After a crash it is to be called again.
    pub(crate) fn protect(
        &self,
        wanted: Option<&UnlockKey>,
        is_current: impl FnOnce() -> bool,
    ) -> anyhow::Result<bool> {
        let _held = self.0.protecting.lock().expect("no holder panics");
        let vault = &self.0.vault;
        if vault.is_as_wanted(wanted) || !is_current() {
            return Ok(false);
        }
        // Also those that are not in use yet: without the master key they could not be read any more.
        for name in [DATA_KEY, STORE_KEY].into_iter().filter(|name| self.0.root.join(name).exists()) {
            self.sealer(name).context("failed to read a data key")?;
        }
        match wanted {
            Some(key) => {
                vault.seal_anew(key).context("failed to write the master key")?;
                self.rotate()?;
                self.rewrite_identity()?;
                vault.finish(key).context("failed to write the master key")?;
            }
            None => {
                vault.write_in_clear().context("failed to write the master key")?;
                let files = self.0.files.lock().expect("no holder panics");
                files.values().try_for_each(|file| file.rewrite(vault)).context("failed to write a data key")?;
                drop(files);
                self.rewrite_identity()?;
                vault.remove().context("failed to remove the master key")?;
            }
        }
        Ok(true)
    }

    fn rewrite_identity(&self) -> anyhow::Result<()> {
        let _held = self.0.identity.lock().expect("no holder panics");
        let vault = &self.0.vault;
        if let Some(identity) = flota_identity::load(&self.folder(), vault)? {
            flota_identity::save(&self.folder(), &identity, vault)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_not_in_use_yet_are_sealed_and_opened_with_the_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let started = || Keys::open(dir.path()).expect("it is whole");
        std::fs::create_dir(dir.path().join("identity")).expect("a folder");
        let sealed = started().sealer(DATA_KEY).expect("it is made").seal(b"place", b"a task");
        let key = UnlockKey::new("1-a");
        assert!(started().protect(Some(&key), || true).expect("there is room"));
        let keys = started();
        assert!(keys.are_locked() && keys.sealer(DATA_KEY).is_err());
        keys.unlock(&key).expect("it is the key");
        assert!(!keys.protect(None, || false).expect("nothing is done"), "it is no longer wanted");
        assert!(keys.protect(None, || true).expect("there is room"));
        let keys = started();
        assert!(!keys.are_locked());
        let opened = keys.sealer(DATA_KEY).expect("it is in clear").open(b"place", &sealed);
        assert_eq!(opened.as_deref(), Ok(b"a task".as_slice()));
    }
}
