//! Protects the files with a node's keys. In a cluster with autolock, those of a manager are sealed with a master key, and
//! the master key is sealed with the cluster's unlock key in a file of its own. Whoever has the disk and not the unlock key
//! can't read the store, and can't act as this manager.
//!
//! Each file is in clear or sealed by itself, and both can be read, so a crash while the files are written again loses
//! nothing: the next start finds out from the file of the master key that this was under way.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use flota_api::seal::Sealer;

use crate::key_bytes::{Key, draw, join, parse, replace};
use crate::unlock_key::UnlockKey;

/// Beginning of a file that is sealed with the master key. No key and no DER file begins with it.
const SEALED: &[u8] = b"flota sealed 1\n";
/// Beginning of the file of the master key.
const LOCKED: &[u8] = b"flota locked 1\n";
/// Number of bytes after the beginning: the generation of the unlock key, and the stage.
const HEAD: usize = 9;

/// How far the files are. The numbers are those in the file of the master key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// They are being sealed with the newest master key.
    Sealing = 0,
    /// All are sealed with it.
    Sealed = 1,
    /// They are being written in clear. The master keys are in clear already, so that nobody needs an unlock key that the
    /// cluster has no more.
    Ending = 2,
}

/// Why a locked manager stays locked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// There is nothing to unlock.
    #[error("this node is not locked")]
    NotLocked,
    /// The key is of another generation.
    #[error(
        "this manager was locked with unlock key number {locked_with}, and this is number {given}: the key was rotated while \
         the manager was off, or after it was locked"
    )]
    OtherGeneration {
        /// Generation of the key with which the manager was locked.
        locked_with: u64,
        /// Generation of the given key.
        given: u64,
    },
    /// The key opens nothing.
    #[error("this unlock key is wrong, or the file `{}` is damaged", .0.display())]
    Wrong(PathBuf),
}

/// Seals what is written to the files of a node's keys, and opens what is read from them.
#[derive(Clone)]
pub struct KeyVault {
    /// The file of the master key. A node without autolock has none.
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

enum State {
    /// Files are in clear.
    Open,
    /// The master key has to be unsealed first.
    Locked { generation: u64, stage: Stage, sealed: Vec<u8> },
    /// The master key is known.
    Unlocked(Masters),
}

/// The master keys.
struct Masters {
    /// The newest first; earlier ones only while files are written again.
    keys: Vec<Key>,
    sealer: Sealer,
    /// The unlock key with which they are sealed in their file.
    generation: u64,
    stage: Stage,
}

impl Masters {
    fn new(keys: Vec<Key>, generation: u64, stage: Stage) -> Self {
        Self { sealer: Sealer::with_earlier(&keys), keys, generation, stage }
    }
}

impl fmt::Debug for KeyVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyVault")
            .field("path", &self.path)
            .field("is_locked", &self.is_locked())
            .finish_non_exhaustive()
    }
}

/// Returns what the master keys are sealed with in their file: a head that was changed does not open them.
fn head(generation: u64, stage: Stage) -> Vec<u8> {
    [LOCKED, &generation.to_be_bytes(), &[stage as u8]].concat()
}

impl KeyVault {
    /// Opens the vault whose master key is in the file `path`. If there is one, the vault is locked.
    ///
    /// # Errors
    /// The file can't be read, or is not one of this build's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let state = match fs_err::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::Open,
            Err(error) => return Err(error),
            Ok(bytes) => {
                let rest = bytes.strip_prefix(LOCKED).and_then(|rest| rest.split_at_checked(HEAD));
                let other =
                    || io::Error::other(format!("`{}` has another format: is this build too old?", path.display()));
                let (head, sealed) = rest.ok_or_else(other)?;
                let (generation, stage) = head.split_first_chunk().expect("it has nine bytes");
                let generation = u64::from_be_bytes(*generation);
                let stages = [Stage::Sealing, Stage::Sealed, Stage::Ending];
                match stages.into_iter().find(|it| stage == [*it as u8]).ok_or_else(other)? {
                    Stage::Ending => {
                        let keys = parse(sealed).ok_or_else(other)?;
                        State::Unlocked(Masters::new(keys, generation, Stage::Ending))
                    }
                    stage => State::Locked { generation, stage, sealed: sealed.to_vec() },
                }
            }
        };
        Ok(Self { path: path.to_owned(), state: Arc::new(Mutex::new(state)) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Returns whether sealed files can't be read before [`KeyVault::unlock`].
    pub fn is_locked(&self) -> bool {
        matches!(*self.state(), State::Locked { .. })
    }

    /// Returns whether files are as a cluster with this unlock key, or without one, wants them.
    pub fn is_as_wanted(&self, wanted: Option<&UnlockKey>) -> bool {
        match (&*self.state(), wanted) {
            (State::Open, None) => true,
            (State::Unlocked(it), Some(key)) => it.stage == Stage::Sealed && it.generation == key.generation(),
            _ => false,
        }
    }

    /// Opens the master key, so that the files can be read.
    ///
    /// # Errors
    /// The vault is not locked, or not with this key.
    pub fn unlock(&self, key: &UnlockKey) -> Result<(), UnlockError> {
        let mut state = self.state();
        let State::Locked { generation, stage, sealed } = &*state else { return Err(UnlockError::NotLocked) };
        let (generation, stage) = (*generation, *stage);
        if generation != key.generation() {
            return Err(UnlockError::OtherGeneration { locked_with: generation, given: key.generation() });
        }
        let keys = key.sealer().open(&head(generation, stage), sealed).ok().and_then(|keys| parse(&keys));
        let keys = keys.ok_or_else(|| UnlockError::Wrong(self.path.clone()))?;
        *state = State::Unlocked(Masters::new(keys, generation, stage));
        Ok(())
    }

    /// Draws a new master key, which is sealed with `key`. From now on files are written with it, and those that are sealed
    /// with an earlier one can still be read. [`KeyVault::finish`] is to be called when all files were written again.
    ///
    /// # Errors
    /// The vault is locked, or its file can't be written. Nothing has changed then.
    pub fn seal_anew(&self, key: &UnlockKey) -> io::Result<()> {
        let mut state = self.state();
        let mut keys = vec![draw()?];
        match &*state {
            State::Open => {}
            State::Locked { .. } => return Err(locked()),
            State::Unlocked(it) => keys.extend(&it.keys),
        }
        self.put(&mut state, keys, key, Stage::Sealing)
    }

    /// Forgets the earlier master keys: every file was written again with the newest.
    ///
    /// # Errors
    /// As for [`KeyVault::seal_anew`].
    pub fn finish(&self, key: &UnlockKey) -> io::Result<()> {
        let mut state = self.state();
        let State::Unlocked(it) = &*state else { return Err(locked()) };
        let keys = it.keys[..1].to_vec();
        self.put(&mut state, keys, key, Stage::Sealed)
    }

    fn put(&self, state: &mut State, keys: Vec<Key>, key: &UnlockKey, stage: Stage) -> io::Result<()> {
        let generation = key.generation();
        let head = head(generation, stage);
        let sealed = key.sealer().seal(&head, &join(&keys));
        replace(&self.path, &[head, sealed].concat())?;
        *state = State::Unlocked(Masters::new(keys, generation, stage));
        Ok(())
    }

    /// From now on files are written in clear, and no start needs an unlock key. [`KeyVault::remove`] is to be called when all
    /// files were written again.
    ///
    /// # Errors
    /// The vault is locked, or the file of the master key can't be written.
    pub fn write_in_clear(&self) -> io::Result<()> {
        match &mut *self.state() {
            State::Open => Ok(()),
            State::Locked { .. } => Err(locked()),
            State::Unlocked(it) => {
                replace(&self.path, &[head(it.generation, Stage::Ending), join(&it.keys)].concat())?;
                it.stage = Stage::Ending;
                Ok(())
            }
        }
    }

    /// Forgets the master key. Sealed files can't be read any more.
    ///
    /// # Errors
    /// Its file can't be removed.
    pub fn remove(&self) -> io::Result<()> {
        let mut state = self.state();
        match fs_err::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        *state = State::Open;
        Ok(())
    }

    /// Returns the bytes that the file of this name is to have.
    pub(crate) fn seal(&self, name: &str, plain: &[u8]) -> Vec<u8> {
        match &*self.state() {
            State::Unlocked(it) if it.stage != Stage::Ending => {
                [SEALED, &it.sealer.seal(name.as_bytes(), plain)].concat()
            }
            // A locked vault is asked for nothing that was in a sealed file, so this was in clear before.
            _ => plain.to_vec(),
        }
    }

    /// Returns what was passed to [`KeyVault::seal`], from the bytes of the file.
    ///
    /// # Errors
    /// The vault is locked, or the bytes were changed.
    pub(crate) fn unseal(&self, name: &str, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let Some(sealed) = bytes.strip_prefix(SEALED) else { return Ok(bytes) };
        match &*self.state() {
            State::Unlocked(it) => {
                let opened = it.sealer.open(name.as_bytes(), sealed);
                opened.map_err(|_| io::Error::other("it is damaged, or was sealed with another master key"))
            }
            State::Locked { .. } => Err(locked()),
            State::Open => Err(io::Error::other("it is sealed, and the file with the master key is missing")),
        }
    }
}

fn locked() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the node's keys are locked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_file::KeyFile;

    fn key(secret: &str) -> UnlockKey {
        UnlockKey::new(secret)
    }

    /// The vault in the folder, as a start of the daemon finds it.
    fn started(dir: &Path) -> KeyVault {
        KeyVault::open(&dir.join("locked")).expect("it is whole, or there is none")
    }

    /// Seals what `vault` has in `data.key` of the folder, as a daemon does when the cluster has this unlock key.
    fn protect(dir: &Path, vault: &KeyVault, with: &UnlockKey) {
        let file = KeyFile::open(&dir.join("data.key"), vault).expect("it can be read");
        vault.seal_anew(with).expect("there is room");
        file.rotate(vault).expect("there is room");
        vault.finish(with).expect("there is room");
    }

    #[test]
    fn what_is_sealed_is_read_only_after_a_start_with_the_unlock_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let vault = started(dir.path());
        let path = dir.path().join("data.key");
        let before = KeyFile::open(&path, &vault).expect("it is made").sealer().seal(b"a", b"before");
        let clear = std::fs::read(&path).expect("it is there");
        assert!(!vault.is_locked() && vault.is_as_wanted(None) && !vault.is_as_wanted(Some(&key("1-a"))));
        protect(dir.path(), &vault, &key("1-a"));
        assert!(vault.is_as_wanted(Some(&key("1-a"))) && !vault.is_as_wanted(Some(&key("2-b"))));
        let after = KeyFile::open(&path, &vault).expect("it can be read").sealer().seal(b"a", b"after");
        for name in ["data.key", "locked"] {
            let bytes = std::fs::read(dir.path().join(name)).expect("it is there");
            assert!(!bytes.windows(32).any(|part| part == clear), "the key is in clear in {name}");
        }
        assert!(Sealer::new(&clear.try_into().expect("32 bytes")).open(b"a", &after).is_err(), "it is another key");

        let vault = started(dir.path());
        assert!(vault.is_locked());
        let refused = KeyFile::open(&path, &vault).expect_err("it is locked");
        assert!(refused.to_string().ends_with("the node's keys are locked"), "{refused}");
        assert!(matches!(vault.unlock(&key("1-b")), Err(UnlockError::Wrong(_))));
        let other = vault.unlock(&key("2-b")).expect_err("it is another one");
        assert!(other.to_string().contains("locked with unlock key number 1, and this is number 2"), "{other}");
        vault.unlock(&key("1-a")).expect("it is the key");
        assert!(matches!(vault.unlock(&key("1-a")), Err(UnlockError::NotLocked)));
        let sealer = KeyFile::open(&path, &vault).expect("it can be read").sealer();
        assert_eq!(sealer.open(b"a", &before).as_deref(), Ok(b"before".as_slice()));
        assert_eq!(sealer.open(b"a", &after).as_deref(), Ok(b"after".as_slice()));
    }

    #[test]
    fn a_crash_between_the_steps_of_another_unlock_key_loses_nothing() {
        for steps in 0..=3 {
            let dir = tempfile::tempdir().expect("a folder");
            let (first, second) = (key("1-a"), key("2-b"));
            let vault = started(dir.path());
            protect(dir.path(), &vault, &first);
            let [one, two] = ["data.key", "raft.key"].map(|name| dir.path().join(name));
            let open = |vault: &KeyVault| [&one, &two].map(|path| KeyFile::open(path, vault).expect("it can be read"));
            let files = open(&vault);
            let sealed = files.each_ref().map(|file| file.sealer().seal(b"a", b"x"));
            let act: [&dyn Fn(); 3] = [
                &|| vault.seal_anew(&second).expect("there is room"),
                &|| files[0].rotate(&vault).expect("there is room"),
                &|| files[1].rotate(&vault).expect("there is room"),
            ];
            act[..steps].iter().for_each(|act| act());

            let vault = started(dir.path());
            let now = if steps == 0 { &first } else { &second };
            vault.unlock(now).expect("it is one of the two");
            assert!(!vault.is_as_wanted(Some(&second)), "after {steps} steps it is to be done again");
            let files = open(&vault);
            let opened = files.iter().zip(&sealed).all(|(file, sealed)| file.sealer().open(b"a", sealed).is_ok());
            assert!(opened, "after {steps} steps");
            vault.seal_anew(&second).expect("there is room");
            files.iter().for_each(|file| file.rotate(&vault).expect("there is room"));
            vault.finish(&second).expect("there is room");
            let vault = started(dir.path());
            vault.unlock(&second).expect("it is the key");
            assert!(vault.is_as_wanted(Some(&second)), "after {steps} steps");
            open(&vault);
        }
    }

    #[test]
    fn what_is_written_in_clear_again_needs_no_key_also_after_a_crash() {
        for removed in [false, true] {
            let dir = tempfile::tempdir().expect("a folder");
            let vault = started(dir.path());
            protect(dir.path(), &vault, &key("1-a"));
            let path = dir.path().join("data.key");
            let file = KeyFile::open(&path, &vault).expect("it can be read");
            vault.write_in_clear().expect("there is room");
            if !removed {
                let vault = started(dir.path());
                assert!(!vault.is_locked() && !vault.is_as_wanted(None), "it is to be done, and needs no key");
                KeyFile::open(&path, &vault).expect("it is sealed, and can be read");
            }
            file.rewrite(&vault).expect("there is room");
            if removed {
                vault.remove().expect("it is there");
                assert!(vault.is_as_wanted(None));
            }
            let vault = started(dir.path());
            assert!(!vault.is_locked());
            KeyFile::open(&path, &vault).expect("it is in clear");
        }
    }

    #[test]
    fn no_file_takes_the_place_of_another_and_none_is_changed_unnoticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let vault = started(dir.path());
        protect(dir.path(), &vault, &key("1-a"));
        std::fs::copy(dir.path().join("data.key"), dir.path().join("raft.key")).expect("there is room");
        KeyFile::open(&dir.path().join("raft.key"), &vault).expect_err("it has another name");
        let path = dir.path().join("locked");
        let whole = std::fs::read(&path).expect("it is there");
        for position in LOCKED.len()..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            std::fs::write(&path, &bytes).expect("there is room");
            started(dir.path()).unlock(&key("1-a")).expect_err("it was changed");
        }
        std::fs::write(&path, b"flota locked 2\n").expect("there is room");
        let refused = KeyVault::open(&path).expect_err("it is of a newer build");
        assert!(refused.to_string().contains("another format"), "{refused}");
    }
}
