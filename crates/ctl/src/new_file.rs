//! A file that `ctl` writes for its user: it gets its name only when it is whole, and never takes the place of another.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use flota_api::reason::Reason;

use crate::client::request_id;
use crate::error::Refused;

/// A file that is being written. If it is dropped unfinished, nothing of it stays.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: std::fs::File,
    temporary: PathBuf,
    path: PathBuf,
}

impl NewFile {
    /// Creates the file beside `path`, readable only by its owner.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(exists(path).into());
        }
        let name = path.file_name().with_context(|| format!("`{}` names no file", path.display()))?;
        let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), request_id()));
        let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = options.with_context(|| failed(path))?;
        Ok(Self { file, temporary, path: path.to_owned() })
    }

    /// Appends these bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| failed(&self.path))
    }

    /// Gives the file its name, if nothing else has the name by now.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| failed(&self.path))?;
        match renameat2(AT_FDCWD, &self.temporary, AT_FDCWD, &self.path, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => return Err(exists(&self.path).into()),
            // Not every file system knows the flag. Those that do not, such as NFS, have hard links.
            Err(Errno::EINVAL) => {
                std::fs::hard_link(&self.temporary, &self.path).with_context(|| failed(&self.path))?
            }
            renamed => renamed.with_context(|| failed(&self.path))?,
        }
        let folder = self.path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(folder).and_then(|it| it.sync_all()).with_context(|| failed(&self.path))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // A file that is whole has its other name by now.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn exists(path: &Path) -> Refused {
    Refused { reason: Reason::AlreadyExists, text: format!("{}: the file exists already", failed(path)) }
}

fn failed(path: &Path) -> String {
    format!("failed to write `{}`", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs_err::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let mut file = NewFile::create(&path).unwrap();
        file.write(b"half").unwrap();
        assert!(!path.exists());
        assert_eq!(file.file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        assert_eq!(names(dir.path()), [] as [&str; 0], "an attempt that is given up leaves nothing");
        let mut file = NewFile::create(&path).unwrap();
        file.write(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(names(dir.path()), ["b"]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs_err::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn a_file_that_exists_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let late = NewFile::create(&path).unwrap();
        fs_err::write(&path, "other").unwrap();
        for refused in [NewFile::create(&path).unwrap_err(), late.finish().unwrap_err()] {
            assert!(refused.to_string().ends_with("the file exists already"), "{refused}");
            assert_eq!(crate::error::code(&refused), 4);
        }
        assert_eq!((fs_err::read(&path).unwrap().as_slice(), names(dir.path()).len()), (b"other".as_slice(), 1));
    }
}
