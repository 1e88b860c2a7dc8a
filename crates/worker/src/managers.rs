//! The managers that this node knows: any of them says who leads. Kept on disk, so that a worker finds its cluster
//! again after a boot.

use std::sync::{Arc, Mutex};

use crate::worker_state::{MANAGERS, WorkerState};

/// Cloned handles share the list.
#[derive(Clone, Debug)]
pub(crate) struct KnownManagers {
    state: Arc<dyn WorkerState>,
    list: Arc<Mutex<Vec<String>>>,
}

impl KnownManagers {
    /// Those that are kept; `first` if none are.
    pub(crate) fn load(state: Arc<dyn WorkerState>, first: Vec<String>) -> Self {
        let text = state.read(MANAGERS).unwrap_or_default();
        let read: Vec<String> = text.lines().map(str::to_owned).collect();
        let is_new = read.is_empty();
        let known = Self { state, list: Arc::new(Mutex::new(if is_new { first } else { read })) };
        if is_new {
            known.keep(&known.get());
        }
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
        self.keep(&managers);
        *list = managers;
    }

    /// All of them.
    pub(crate) fn get(&self) -> Vec<String> {
        self.list.lock().expect("no holder panics").clone()
    }

    fn keep(&self, managers: &[String]) {
        if let Err(error) = self.state.write(MANAGERS, &managers.join("\n")) {
            tracing::warn!(%error, "the list of managers could not be kept");
        }
    }
}
