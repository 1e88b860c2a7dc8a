//! The node's identity on disk: `node.crt`, `node.key` and `ca.crt`, all DER with mode 0600. The certificate is written
//! last and removed first, so if it exists, the other files do too.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::certificate::{CertificateError, Identity};

const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";
const CA: &str = "ca.crt";

/// Why an identity can't be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// An I/O error.
    #[error("failed to {act} the node's identity at `{path}`", path = path.display())]
    Io {
        /// `read`, `write` or `remove`.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The files hold no valid identity.
    #[error("the node's identity in `{path}` is damaged", path = path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CertificateError,
    },
}

/// Reads the identity in `dir`. Returns `None` if there is none, because the node belongs to no cluster.
///
/// # Errors
/// A file can't be read or is damaged.
pub fn load(dir: &Path) -> Result<Option<Identity>, FileError> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs_err::read(&path).map_err(|source| FileError::Io { act: "read", path, source })
    };
    let certificate = match read(CERTIFICATE) {
        Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let identity = Identity::new(certificate, read(KEY)?, read(CA)?);
    identity.map(Some).map_err(|source| FileError::Damaged { path: dir.to_owned(), source })
}

/// Writes the identity to `dir`. If `dir` held no identity before,
/// [`load`] finds the whole new one after a crash, or none.
///
/// # Errors
/// A file can't be written.
pub fn save(dir: &Path, identity: &Identity) -> Result<(), FileError> {
    for (name, bytes) in [(CA, &identity.ca), (KEY, &identity.key), (CERTIFICATE, &identity.certificate)] {
        let path = dir.join(name);
        write(&path, bytes).map_err(|source| FileError::Io { act: "write", path, source })?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Removes the identity from `dir`. Does nothing if there is none.
///
/// # Errors
/// A file can't be removed.
pub fn remove(dir: &Path) -> Result<(), FileError> {
    for name in [CERTIFICATE, KEY, CA] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(FileError::Io { act: "remove", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}
