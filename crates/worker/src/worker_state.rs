//! What a worker keeps across boots besides its tasks: the addresses of its managers, and the version of the newest
//! assignments. Files are replaced by rename, so each is complete; they are not synced, because the cluster sends both
//! again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the list of managers, one address per line.
pub(crate) const MANAGERS: &str = "managers";
/// Name of the newest (epoch, version) of assignments.
pub(crate) const NEWEST: &str = "newest";

/// Keeps short texts by name.
pub trait WorkerState: fmt::Debug + Send + Sync {
    /// Returns the text that was last written under this name, if any.
    fn read(&self, name: &str) -> Option<String>;

    /// Replaces the text under this name.
    ///
    /// # Errors
    /// An I/O error; the previous text still exists.
    fn write(&self, name: &str, text: &str) -> io::Result<()>;
}

/// Files in one folder.
#[derive(Clone, Debug)]
pub(crate) struct FileState {
    dir: PathBuf,
}

impl FileState {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

impl WorkerState for FileState {
    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.join(name)).ok()
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.dir.join(name);
        let temporary = path.with_extension("new");
        fs_err::write(&temporary, text)?;
        fs_err::rename(&temporary, &path)
    }
}

/// A disk in memory. Clones share it, so that it outlives a simulated daemon.
#[cfg(any(test, feature = "fake"))]
#[derive(Clone, Debug, Default)]
pub struct MemoryState(std::sync::Arc<std::sync::Mutex<std::collections::BTreeMap<String, String>>>);

#[cfg(any(test, feature = "fake"))]
impl WorkerState for MemoryState {
    fn read(&self, name: &str) -> Option<String> {
        self.0.lock().expect("no holder panics").get(name).cloned()
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.0.lock().expect("no holder panics").insert(name.to_owned(), text.to_owned());
        Ok(())
    }
}
