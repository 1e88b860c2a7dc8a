//! Keys for AES-256 as bytes, and the files that hold them.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

/// A key for AES-256.
pub(crate) type Key = [u8; 32];

/// Returns a random key.
pub(crate) fn draw() -> io::Result<Key> {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("the kernel provides no random bytes"))?;
    Ok(key)
}

/// Returns the bytes of the keys in their order.
pub(crate) fn join(keys: &[Key]) -> Vec<u8> {
    keys.concat()
}

/// Returns the keys in the bytes; `None` if there is none, or not a whole number of them.
pub(crate) fn parse(bytes: &[u8]) -> Option<Vec<Key>> {
    let (keys, rest) = bytes.as_chunks();
    (rest.is_empty() && !keys.is_empty()).then(|| keys.to_vec())
}

/// Replaces a file by one that nobody else can read, in one step and durably.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs_err::rename(&temporary, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
