//! Looks up paths in a stack of unpacked layers by the rules of overlayfs, without mounting it.
//!
//! Layers never change once they are unpacked, and only this process writes to the one that is being unpacked, so paths
//! can't be replaced between two looks. No symbolic link is followed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{OPAQUE, Whiteouts};

/// Layers on top of each other, the topmost first.
pub(crate) struct Stack {
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) whiteouts: Whiteouts,
}

impl Stack {
    /// Returns the file that is visible at the path, in the topmost layer that has it. A folder may be merged from
    /// several layers; the topmost one decides about its attributes.
    pub(super) fn find(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut folders = self.layers.clone();
        let mut found = None;
        for part in path.iter() {
            let entries = self.entries(&std::mem::take(&mut folders), part)?;
            found = entries.first().map(|(at, _)| at.clone());
            folders.extend(entries.into_iter().filter(|(_, about)| about.is_dir()).map(|(at, _)| at));
        }
        Ok(found)
    }

    /// Returns what is merged under this name in these folders: a file, or one folder or more.
    pub(crate) fn entries(&self, folders: &[PathBuf], name: &OsStr) -> io::Result<Vec<(PathBuf, Metadata)>> {
        let mut found: Vec<(PathBuf, Metadata)> = Vec::new();
        for folder in folders {
            let at = folder.join(name);
            if let Some(about) = about(&at)? {
                let is_mark = about.file_type().is_char_device() && about.rdev() == 0;
                if self.whiteouts == Whiteouts::Overlay && is_mark {
                    break;
                }
                let last = !about.is_dir() || self.is_opaque(&at)?;
                if about.is_dir() || found.is_empty() {
                    found.push((at, about));
                }
                if last {
                    break;
                }
            }
            let hidden = OsString::from_iter([OsStr::new(".wh."), name]);
            if self.whiteouts == Whiteouts::Plain && hidden.len() < 256 && self::about(&folder.join(hidden))?.is_some()
            {
                break;
            }
        }
        Ok(found)
    }

    /// Returns whether a file of this name only hides others.
    pub(crate) fn is_whiteout(&self, name: &OsStr) -> bool {
        self.whiteouts == Whiteouts::Plain && name.as_encoded_bytes().starts_with(b".wh.")
    }

    fn is_opaque(&self, folder: &Path) -> io::Result<bool> {
        Ok(match self.whiteouts {
            Whiteouts::Overlay => super::is_opaque(folder)?,
            Whiteouts::Plain => about(&folder.join(OPAQUE))?.is_some(),
        })
    }
}

fn about(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(about) => Ok(Some(about)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
