//! The node's data key: what seals the store and the task database on this machine's disk.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use flota_api::seal::Sealer;

/// The sealer with the key in `path`, which is made (mode 0600, synced) where it is absent.
///
/// # Errors
/// The file can't be read or made, or is no key.
pub fn sealer(path: &Path) -> io::Result<Sealer> {
    match fs_err::read(path) {
        Ok(bytes) => {
            let key = bytes.try_into().map_err(|_| io::Error::other("the data key has not 32 bytes"))?;
            Ok(Sealer::new(&key))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("no random bytes"))?;
            let temporary = path.with_extension("new");
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&key)?;
            file.sync_all()?;
            fs_err::rename(&temporary, path)?;
            std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(Sealer::new(&key))
        }
        Err(error) => Err(error),
    }
}
