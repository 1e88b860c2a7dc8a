//! Tasks of a service by slot, and which of them counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::model::{Service, Task};
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::Tables;

/// All tasks of one slot, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) tasks: Vec<Arc<Task>>,
}

/// The slots of a service, by number.
pub(super) fn slots(service: &Service, view: &Tables) -> BTreeMap<u64, Slot> {
    let mut slots: BTreeMap<u64, Slot> = BTreeMap::new();
    for task in view.tasks_of_service(&service.id) {
        slots.entry(task.slot).or_default().tasks.push(Arc::clone(task));
    }
    for slot in slots.values_mut() {
        slot.tasks.sort_by(|left, right| (left.meta.order(), &left.id).cmp(&(right.meta.order(), &right.id)));
    }
    slots
}

impl Slot {
    /// Tasks that may still run.
    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|task| task.is_live())
    }

    /// The one that counts: of those that may run, the one that is furthest, else the newest.
    pub(super) fn current(&self) -> Option<&Arc<Task>> {
        let may_run = self.live().filter(|task| task.desired_state != DesiredState::Ready);
        may_run.max_by_key(|task| (task.spec_version, task.status.state, task.meta.order()))
    }

    /// The one that an update has made ready to take the current one's place.
    pub(super) fn successor(&self) -> Option<&Arc<Task>> {
        let ready = self.live().filter(|task| task.desired_state == DesiredState::Ready);
        ready.max_by_key(|task| (task.spec_version, task.meta.order()))
    }

    /// The newest, whatever became of it.
    pub(super) fn newest(&self) -> Option<&Arc<Task>> {
        self.tasks.last()
    }

    /// Whether it stands for a replica: it has a task that may run, or one that is to be (or was not) replaced.
    pub(super) fn counts(&self) -> bool {
        self.tasks.iter().any(|task| task.desired_state != DesiredState::Remove)
    }

    /// Whether a task that was told to stop has not ended yet.
    pub(super) fn is_stopping(&self) -> bool {
        self.tasks.iter().any(|task| task.desired_state.is_stopping() && !task.status.state.is_terminal())
    }
}

/// For scaling down: slots in the order in which they stay. Assigned before unassigned, running before not running,
/// then so that what stays is spread evenly over the nodes, then the lower number.
pub(super) fn keep_order<'a>(slots: impl Iterator<Item = (u64, &'a Slot)>) -> Vec<(u64, &'a Slot)> {
    let rank = |(number, slot): &(u64, &Slot)| {
        let current = slot.current();
        let assigned = current.is_some_and(|task| !task.node_id.is_empty());
        let running = current.is_some_and(|task| task.status.state == TaskState::Running);
        (!assigned, !running, *number)
    };
    let mut ranked: Vec<_> = slots.collect();
    ranked.sort_by_key(rank);
    // How many of the same node come before it: the second of each node goes before the first of any.
    let mut on_node: BTreeMap<String, usize> = BTreeMap::new();
    let mut placed: Vec<_> = ranked
        .into_iter()
        .map(|it| {
            let node = it.1.current().map(|task| task.node_id.to_string()).unwrap_or_default();
            let before = on_node.entry(node).or_default();
            *before += 1;
            let (unassigned, idle, number) = rank(&it);
            ((unassigned, idle, *before, number), it)
        })
        .collect();
    placed.sort_by_key(|(rank, _)| *rank);
    placed.into_iter().map(|(_, it)| it).collect()
}
