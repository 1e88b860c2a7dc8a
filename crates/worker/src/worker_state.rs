//! What a worker keeps across boots beside its tasks: who its managers are, and which assignments were the newest. Files
//! are replaced by rename, so that each is there whole; they are not synced, as the cluster sends both again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The list of managers, one address a line.
pub(crate) const MANAGERS: &str = "managers";
/// The newest (epoch, version) of assignments.
pub(crate) const NEWEST: &str = "newest";

/// Keeps short texts by name.
pub trait WorkerState: fmt::Debug + Send + Sync {
    /// Returns what was last written under this name, if anything was.
    fn read(&self, name: &str) -> Option<String>;

    /// Replaces what is kept under this name.
    ///
    /// # Errors
    /// An I/O error; what was kept before is still there.
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

/// A disk in memory: clones share it, so that it outlives a simulated daemon.
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
