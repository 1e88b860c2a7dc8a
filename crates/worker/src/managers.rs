//! The managers that this node knows: any of them says who leads. Kept on disk, so that a worker finds its cluster
//! again after a boot.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Cloned handles share the list.
#[derive(Clone, Debug)]
pub(crate) struct KnownManagers {
    path: PathBuf,
    list: Arc<Mutex<Vec<String>>>,
}

impl KnownManagers {
    /// What the file says; `first`, where there is none.
    pub(crate) fn load(path: &Path, first: Vec<String>) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let read: Vec<String> = text.lines().map(str::to_owned).collect();
        let list = if read.is_empty() {
            write(path, &first);
            first
        } else {
            read
        };
        let known = Self { path: path.to_owned(), list: Arc::default() };
        *known.list.lock().expect("no holder panics") = list;
        known
    }

    /// The cluster's word on who they are, the one that leads first. An empty list is no word.
    pub(crate) fn set(&self, managers: Vec<String>, leader: &str) {
        let mut managers = managers;
        managers.sort_by_key(|manager| (manager != leader, manager.clone()));
        let mut list = self.list.lock().expect("no holder panics");
        if managers.is_empty() || *list == managers {
            return;
        }
        write(&self.path, &managers);
        *list = managers;
    }

    /// All of them.
    pub(crate) fn get(&self) -> Vec<String> {
        self.list.lock().expect("no holder panics").clone()
    }
}

fn write(path: &Path, managers: &[String]) {
    let temporary = path.with_extension("new");
    let written = fs_err::write(&temporary, managers.join("\n")).and_then(|()| fs_err::rename(&temporary, path));
    if let Err(error) = written {
        tracing::warn!(%error, "the list of managers could not be kept");
    }
}
