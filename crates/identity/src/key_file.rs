//! The files with the keys that encrypt a node's data: the store, and the records of its tasks.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use flota_api::seal::Sealer;

use crate::key_bytes::{Key, draw, join, parse, replace};
use crate::vault::KeyVault;

/// A file with the keys of one kind of data: the newest, which seals, and then the earlier ones, which open what they have
/// sealed. An earlier key is kept, because the log and folders that were put aside may still need it.
#[derive(Clone)]
pub struct KeyFile {
    path: PathBuf,
    keys: Arc<Mutex<Vec<Key>>>,
    sealer: Sealer,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl KeyFile {
    /// Reads the file, or makes it with a random key if it does not exist.
    ///
    /// # Errors
    /// The vault is locked, the file can't be read or written, or it does not have keys of 32 bytes.
    pub fn open(path: &Path, vault: &KeyVault) -> io::Result<Self> {
        let name = name(path);
        let keys = match fs_err::read(path) {
            Ok(bytes) => {
                let keys = vault.unseal(&name, bytes).map_err(|error| at(path, &error))?;
                parse(&keys).ok_or_else(|| io::Error::other("the data key does not have 32 bytes"))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keys = vec![draw()?];
                replace(path, &vault.seal(&name, &join(&keys)))?;
                keys
            }
            Err(error) => return Err(error),
        };
        let sealer = Sealer::with_earlier(&keys);
        Ok(Self { path: path.to_owned(), keys: Arc::new(Mutex::new(keys)), sealer })
    }

    /// Returns the sealer with these keys. It uses a new one at once after [`KeyFile::rotate`].
    pub fn sealer(&self) -> Sealer {
        self.sealer.clone()
    }

    /// Draws a new key for what is sealed from now on, and writes the file as the vault has it now.
    ///
    /// # Errors
    /// The file can't be written. Nothing has changed then.
    pub fn rotate(&self, vault: &KeyVault) -> io::Result<()> {
        let mut keys = self.keys.lock().expect("no holder panics");
        let next: Vec<Key> = [draw()?].into_iter().chain(keys.iter().copied()).collect();
        // On disk before anything is sealed with it.
        self.write_keys(vault, &next)?;
        self.sealer.rotate(&next[0]);
        *keys = next;
        Ok(())
    }

    /// Writes the file again, as the vault has it now.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn rewrite(&self, vault: &KeyVault) -> io::Result<()> {
        self.write_keys(vault, &self.keys.lock().expect("no holder panics"))
    }

    fn write_keys(&self, vault: &KeyVault, keys: &[Key]) -> io::Result<()> {
        replace(&self.path, &vault.seal(&name(&self.path), &join(keys)))
    }
}

/// Returns the name of the file, which is sealed with it: no file can take the place of another.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to open `{}`: {error}", path.display()))
}
