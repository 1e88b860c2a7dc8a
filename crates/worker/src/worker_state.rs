//! The state that a worker keeps across boots besides its tasks: the addresses of its managers, the newest assignments and
//! their epoch, the epoch whose grace is over, and when it lost its contact with the managers. Files are replaced by rename,
//! so each is complete. Only a new epoch is synced, before the worker acts on it, so that a worker that has followed a cluster
//! that has begun anew never follows the managers of the old one again. If another file is lost in a power failure, the
//! cluster sends its content again, the grace begins anew, or the time without contact does.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::disk_thread::DiskThread;

/// Name of the list of managers, one address per line.
pub(crate) const MANAGERS: &str = "managers";
/// Name of the newest (epoch, version) of assignments.
pub(crate) const NEWEST: &str = "newest";
/// Name of the newest epoch, in a file that is never replaced by one that is not synced.
pub(crate) const EPOCH: &str = "epoch";
/// Name of the newest epoch whose grace is over.
pub(crate) const SETTLED: &str = "settled";
/// Name of the time at which the last contact with a manager ended, in milliseconds; empty while there is contact.
pub(crate) const LOST: &str = "lost";

/// Keeps short texts by name.
pub trait WorkerState: fmt::Debug + Send + Sync {
    /// Returns the text that was last written under this name, if any.
    fn read(&self, name: &str) -> Option<String>;

    /// Replaces the text under this name, soon. If that fails, the failure is logged and the previous text is kept.
    fn write(&self, name: &'static str, text: String);

    /// Replaces the text under this name, and returns when that is durable. If it fails, the failure is logged.
    fn write_durably(&self, name: &'static str, text: String);
}

/// Files in one folder.
#[derive(Debug)]
pub(crate) struct FileState {
    dir: PathBuf,
    disk: Arc<DiskThread>,
    /// Texts that are not written yet.
    pending: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl FileState {
    pub(crate) fn new(dir: &Path, disk: Arc<DiskThread>) -> Self {
        Self { dir: dir.to_owned(), disk, pending: Arc::default() }
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs_err::write(&temporary, text)?;
    fs_err::rename(&temporary, path)
}

fn replace_durably(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs_err::write(&temporary, text)?;
    fs_err::File::open(&temporary)?.sync_all()?;
    fs_err::rename(&temporary, path)?;
    fs_err::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn log(written: io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!(%error, "failed to save what this node knows of its cluster");
    }
}

impl WorkerState for FileState {
    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.join(name)).ok()
    }

    fn write(&self, name: &'static str, text: String) {
        if self.pending.lock().expect("no holder panics").insert(name, text).is_some() {
            return;
        }
        let (path, pending) = (self.dir.join(name), Arc::clone(&self.pending));
        self.disk.run(move || {
            // A later text may be on disk already.
            let text = pending.lock().expect("no holder panics").remove(name);
            log(text.map_or(Ok(()), |text| replace(&path, &text)));
        });
    }

    fn write_durably(&self, name: &'static str, text: String) {
        self.pending.lock().expect("no holder panics").remove(name);
        let (path, (done, written)) = (self.dir.join(name), std::sync::mpsc::channel());
        // Behind the writes that are under way.
        self.disk.run(move || {
            log(replace_durably(&path, &text));
            let _ = done.send(());
        });
        let _ = written.recv();
    }
}

/// A disk in memory. Clones share it, so that it outlives a simulated daemon.
#[cfg(any(test, feature = "fake"))]
#[derive(Clone, Debug, Default)]
pub struct MemoryState(Arc<Mutex<BTreeMap<String, String>>>);

#[cfg(any(test, feature = "fake"))]
impl WorkerState for MemoryState {
    fn read(&self, name: &str) -> Option<String> {
        self.0.lock().expect("no holder panics").get(name).cloned()
    }

    fn write(&self, name: &'static str, text: String) {
        self.0.lock().expect("no holder panics").insert(name.to_owned(), text);
    }

    fn write_durably(&self, name: &'static str, text: String) {
        self.write(name, text);
    }
}
