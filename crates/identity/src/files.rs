//! The node's identity on disk: `node.crt`, `node.key` (mode 0600) and `ca.crt`, DER. The certificate is written
//! last: where it is, everything is.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::certificate::{CertificateError, Identity};

const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";
const CA: &str = "ca.crt";

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The machine would not.
    #[error("failed to {act} the node's identity at `{path}`", path = path.display())]
    Io {
        /// `read`, `write`.
        act: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is there is no identity.
    #[error("the node's identity in `{path}` is damaged", path = path.display())]
    Damaged {
        /// Which folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: CertificateError,
    },
}

/// The identity in `dir`; `None` where the node belongs to no cluster.
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

/// Writes the identity so that it is there whole after a crash, or not at all.
///
/// # Errors
/// The machine would not.
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

/// Forgets the identity; does nothing where there is none.
///
/// # Errors
/// The machine would not.
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
