//! Which task uses which image on this node. An image counts as used from before it is fetched until its task has ended,
//! so that its layers are not removed below a container.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use flota_api::id::{ServiceId, TaskId};
use flota_api::model::Assignment;

/// The image of each task of this node. Clones share the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageUses(Arc<Mutex<BTreeMap<TaskId, Use>>>);

#[derive(Debug)]
struct Use {
    service: ServiceId,
    spec_version: u64,
    digest: String,
}

impl ImageUses {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Use>> {
        self.0.lock().expect("no holder panics")
    }

    /// Records that the task uses the image with this digest.
    pub(crate) fn add(&self, task: &Assignment, digest: &str) {
        let used = Use { service: task.service_id.clone(), spec_version: task.spec_version, digest: digest.to_owned() };
        self.lock().insert(task.task_id.clone(), used);
    }

    /// Records that the task uses no image any more.
    pub(crate) fn remove(&self, task: &TaskId) {
        self.lock().remove(task);
    }

    /// Returns whether any task uses the image with this digest.
    pub(super) fn contains(&self, digest: &str) -> bool {
        self.lock().values().any(|it| it.digest == digest)
    }

    /// Returns the digest that another task of the same spec uses.
    pub(super) fn of_spec(&self, task: &Assignment) -> Option<String> {
        let uses = self.lock();
        let mut same = uses.values().filter(|it| it.service == task.service_id && it.spec_version == task.spec_version);
        same.next().map(|it| it.digest.clone())
    }
}
