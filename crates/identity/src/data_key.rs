//! The node's data key, which encrypts the store and the task database on this machine's disk.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use flota_api::seal::Sealer;

/// Returns a sealer with the key in the file `path`. If the file does not exist, a random key is written to it (mode
/// 0600) and synced.
///
/// # Errors
/// The file can't be read or written, or does not have 32 bytes.
pub fn sealer(path: &Path) -> io::Result<Sealer> {
    match fs_err::read(path) {
        Ok(bytes) => {
            let key = bytes.try_into().map_err(|_| io::Error::other("the data key does not have 32 bytes"))?;
            Ok(Sealer::new(&key))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("the kernel provides no random bytes"))?;
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
