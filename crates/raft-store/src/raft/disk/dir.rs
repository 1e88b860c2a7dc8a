//! [`Disk`] on a real folder.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, DiskFile};

/// Bytes in one write while blocks are allocated.
const ALLOCATION: usize = 256 << 10;

/// A folder in the file system.
#[derive(Clone, Debug)]
pub struct DirDisk {
    path: PathBuf,
}

impl DirDisk {
    /// Opens the folder, and creates it durably if it is missing.
    ///
    /// # Errors
    /// The folder can't be created.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.exists() {
            fs_err::create_dir_all(path)?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        }
        Ok(Self { path: path.to_owned() })
    }
}

impl Disk for DirDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs_err::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_file()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let options = fs_err::OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(DirFile(options.into_file())))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs_err::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Arc::new(DirFile(options.open(self.path.join(name))?.into_file())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs_err::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs_err::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[derive(Debug)]
struct DirFile(File);

impl DiskFile for DirFile {
    fn length(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }

    // The blocks are written, not only reserved: the first write to an unwritten block costs a journal commit.
    fn allocate(&self, length: u64) -> io::Result<()> {
        let zeros = [0; ALLOCATION];
        let mut at = self.length()?;
        while at < length {
            let part = usize::try_from(length - at).unwrap_or(ALLOCATION).min(ALLOCATION);
            self.0.write_all_at(&zeros[..part], at)?;
            at += u64::try_from(part).map_err(io::Error::other)?;
        }
        self.0.sync_all()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
