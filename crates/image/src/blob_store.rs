//! Blobs by digest. A blob is written to a temporary file, verified, synced, and then renamed, so a blob that exists is
//! complete.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Why a blob can't be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The content does not match the digest.
    #[error("the blob {expected} is damaged: what came has the digest {found}")]
    Digest {
        /// The requested digest.
        expected: String,
        /// The digest of the content.
        found: String,
    },
    /// The text is not a sha256 digest.
    #[error("`{0}` is not a sha256 digest")]
    Malformed(String),
    /// The store does not hold the blob.
    #[error("the blob {0} is missing")]
    Missing(String),
    /// An I/O error.
    #[error("failed to store or read the blob {digest}")]
    Io {
        /// Digest of the blob.
        digest: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct BlobStore {
    dir: PathBuf,
}

impl BlobStore {
    /// Opens the store in `dir` and creates its missing folders. Removes blobs that an earlier process left
    /// half-written.
    ///
    /// # Errors
    /// The folders can't be created.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs_err::create_dir_all(dir.join("sha256"))?;
        let partial = dir.join("partial");
        crate::remove::remove_folder(&partial)?;
        fs_err::create_dir(&partial)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Returns the path of the blob, whether the store holds it or not.
    ///
    /// # Errors
    /// The text is not a digest.
    pub fn path(&self, digest: &str) -> Result<PathBuf, BlobError> {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        let legal = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if legal { Ok(self.dir.join("sha256").join(hex)) } else { Err(BlobError::Malformed(digest.to_owned())) }
    }

    /// Returns whether the store holds the blob.
    pub fn has(&self, digest: &str) -> bool {
        self.path(digest).is_ok_and(|path| path.exists())
    }

    /// Reads a blob of at most `most` bytes.
    ///
    /// # Errors
    /// The blob is missing or larger.
    pub fn read(&self, digest: &str, most: u64) -> Result<Vec<u8>, BlobError> {
        let io = |source| BlobError::Io { digest: digest.to_owned(), source };
        let mut file = self.open_blob(digest)?;
        if file.metadata().map_err(io)?.len() > most {
            return Err(io(io::Error::other(format!("it has more than {most} bytes"))));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// The blob is missing.
    pub fn open_blob(&self, digest: &str) -> Result<File, BlobError> {
        let path = self.path(digest)?;
        File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BlobError::Missing(digest.to_owned()),
            _ => BlobError::Io { digest: digest.to_owned(), source },
        })
    }

    /// Begins to write a blob. Its digest need not be known yet.
    ///
    /// # Errors
    /// An I/O error.
    pub fn writer(&self) -> io::Result<BlobWriter> {
        let name = format!("{:032x}", rand::random::<u128>());
        let path = self.dir.join("partial").join(name);
        Ok(BlobWriter { file: File::create(&path)?, path, hash: Sha256::new(), size: 0, store: self.clone() })
    }

    /// Stores everything that `reader` returns as one blob. Returns its digest and size.
    ///
    /// # Errors
    /// The blob does not have the digest `expected`, if that is given, or an I/O error.
    pub fn put(&self, mut reader: impl Read, expected: Option<&str>) -> Result<(String, u64), BlobError> {
        let io = |source| BlobError::Io { digest: expected.unwrap_or("of this image").to_owned(), source };
        let mut writer = self.writer().map_err(io)?;
        io::copy(&mut reader, &mut writer).map_err(io)?;
        writer.finish(expected)
    }

    /// Returns the digests of all blobs.
    pub(crate) fn all(&self) -> io::Result<Vec<String>> {
        let entries = fs_err::read_dir(self.dir.join("sha256"))?;
        entries.map(|entry| Ok(format!("sha256:{}", entry?.file_name().to_string_lossy()))).collect()
    }

    /// Removes the blob, if the store holds it.
    ///
    /// # Errors
    /// The text is not a digest, or an I/O error.
    pub fn remove(&self, digest: &str) -> io::Result<()> {
        let path = self.path(digest).map_err(io::Error::other)?;
        match fs_err::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// A blob that is being written. If it is dropped unfinished, its file is removed.
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    path: PathBuf,
    hash: Sha256,
    size: u64,
    store: BlobStore,
}

impl BlobWriter {
    /// Returns the number of bytes written so far. A transfer that broke off continues from there.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Verifies the blob and makes it visible in the store. Returns its digest and size.
    ///
    /// # Errors
    /// The blob does not have the digest `expected`, if that is given, or an I/O error.
    pub fn finish(self, expected: Option<&str>) -> Result<(String, u64), BlobError> {
        let hex: String = self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hex}");
        if let Some(expected) = expected.filter(|it| **it != *digest) {
            return Err(BlobError::Digest { expected: expected.to_owned(), found: digest });
        }
        let io = |source| BlobError::Io { digest: digest.clone(), source };
        let path = self.store.path(&digest)?;
        self.file.sync_all().map_err(io)?;
        std::fs::rename(&self.path, &path).map_err(io)?;
        File::open(path.parent().unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).map_err(io)?;
        Ok((digest.clone(), self.size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // A finished blob has been renamed, and the removal then finds no file.
        let _ = std::fs::remove_file(&self.path);
    }
}
