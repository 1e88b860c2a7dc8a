//! The folder of a container. A daemon removes it when it gives up on the container, and may make another one at its path for
//! the next attempt, so a supervisor acts on what is at the path only as long as its own folder is there.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;

/// The folder of a container.
pub(super) struct ContainerDir {
    path: PathBuf,
    folder: File,
}

impl ContainerDir {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), folder: File::open(path)? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the names in it durable, as far as the disk lets that be.
    pub(super) fn sync(&self) {
        let _ = self.folder.sync_all();
    }

    /// Returns whether the daemon has removed it. There may be another folder at the path by now.
    pub(super) fn is_removed(&self) -> bool {
        fstat(&self.folder).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_another_has_replaced_is_removed() {
        let path = std::env::temp_dir().join(format!("flota-container-dir-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a free path");
        let dir = ContainerDir::open(&path).expect("it is there");
        assert!(!dir.is_removed());
        std::fs::remove_dir(&path).expect("it is empty");
        std::fs::create_dir(&path).expect("a free path");
        assert!(dir.is_removed() && !ContainerDir::open(&path).expect("it is there").is_removed());
        std::fs::remove_dir(&path).expect("it is empty");
    }
}
