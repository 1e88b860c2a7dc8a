//! The tasks of a service by slot, and the role that each has in its slot.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use flota_api::id::NodeId;
use flota_api::model::{Service, Task};
use flota_api::state::DesiredState;
use flota_api::version::{Timestamp, Version};
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

/// The tasks of one slot, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) tasks: Vec<Arc<Task>>,
    /// Number of the service's present spec.
    spec_version: u64,
    /// Number of the run of the job that goes on; `None` if it is not a job.
    run: Option<NonZeroU64>,
}

/// The slots of a service, by number.
pub(super) fn slots(service: &Service, view: &Tables) -> BTreeMap<u64, Slot> {
    let tasks: Vec<_> = view.tasks_of_service(&service.id).collect();
    let slots = tasks.chunk_by(|left, right| left.slot == right.slot);
    slots.map(|tasks| (tasks[0].slot, Slot::of(service, tasks.iter().copied()))).collect()
}

/// The key that sorts the tasks of a slot, oldest first; with the fault `OrderByClock` on, their times.
fn order(task: &Task) -> (Version, Timestamp) {
    if faults::is_on(Fault::OrderByClock) { (0, task.meta.created_at) } else { task.meta.order() }
}

impl Slot {
    /// The slot with these tasks, of a service whose present spec has this number.
    pub(super) fn new<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>, spec_version: u64) -> Self {
        let mut tasks: Vec<_> = tasks.cloned().collect();
        tasks.sort_by(|left, right| (order(left), &left.id).cmp(&(order(right), &right.id)));
        Self { tasks, spec_version, run: None }
    }

    /// The slot with these tasks, of this service; of the mode cron, see [`Slot::of_run`].
    pub(super) fn of<'a>(service: &Service, tasks: impl Iterator<Item = &'a Arc<Task>>) -> Self {
        Self::new(tasks, service.spec_version).of_run(service.job_run)
    }

    /// The slot with another run that goes on.
    #[must_use]
    pub(super) fn of_run(self, run: Option<NonZeroU64>) -> Self {
        Self { run, ..self }
    }

    /// Tasks that may still run.
    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|task| task.is_live())
    }

    /// Whether the task has the present spec of the service.
    pub(super) fn is_present(&self, task: &Task) -> bool {
        task.spec_version == self.spec_version
    }

    /// The present spec comes first, which is the newest unless the service was brought back to an earlier one.
    fn rank(&self, task: &Task) -> (bool, u64) {
        (self.is_present(task), task.spec_version)
    }

    /// The task that fills the slot: of those that may run and that no other one replaces, one with the present spec, then
    /// the one with the newest spec, then the highest state, then the newest.
    pub(super) fn current(&self) -> Option<&Arc<Task>> {
        let may_run = self.live().filter(|task| task.desired_state != DesiredState::Ready && !self.is_replaced(task));
        may_run.max_by_key(|task| (self.rank(task), task.status.state, order(task)))
    }

    /// Whether a task of the same spec was started beside this one to take its place on another node. One with another spec
    /// comes before it only by that: a rollback may have brought back the spec of this one.
    fn is_replaced(&self, task: &Task) -> bool {
        self.live().any(|it| it.replaces.as_ref() == Some(&task.id) && it.spec_version == task.spec_version)
    }

    /// The task that serves until the current one does: that of another spec in a start-first update, or that on the node
    /// that the slot leaves.
    pub(super) fn predecessor(&self) -> Option<&Arc<Task>> {
        let current = self.current()?;
        let precedes =
            |task: &Task| task.spec_version != current.spec_version || current.replaces.as_ref() == Some(&task.id);
        let serving = self.live().filter(|task| task.is_serving() && precedes(task));
        serving.max_by_key(|task| (self.rank(task), order(task)))
    }

    /// The task that was started beside another one to take its place on another node, and that other one.
    pub(super) fn move_under_way(&self) -> Option<(&Arc<Task>, &Arc<Task>)> {
        let (new, old) = (self.current()?, self.predecessor()?);
        (new.replaces.as_ref() == Some(&old.id)).then_some((new, old))
    }

    /// The task that an update prepares to take the place of the current one.
    pub(super) fn successor(&self) -> Option<&Arc<Task>> {
        let ready = self.live().filter(|task| task.desired_state == DesiredState::Ready);
        ready.max_by_key(|task| (self.rank(task), order(task)))
    }

    /// The only node on which its tasks may run; `None` for any.
    pub(super) fn pinned_to(&self) -> Option<&NodeId> {
        self.tasks.iter().find_map(|task| task.pinned_to.as_ref())
    }

    /// The newest task, whatever its state.
    pub(super) fn newest(&self) -> Option<&Arc<Task>> {
        self.tasks.last()
    }

    /// Whether the last task before this one that had a node was stopped for one of a higher priority, and the slot has
    /// waited for room since.
    pub(super) fn is_preempted_before(&self, task: &Task) -> bool {
        let mut before = self.tasks.iter().rev().skip_while(|it| it.id != task.id).skip(1);
        before.find(|it| it.node_id.is_some()).is_some_and(|it| it.preempted_by.is_some())
    }

    /// Whether the slot counts as one of the service's tasks: one of its tasks is not to be removed.
    pub(super) fn counts(&self) -> bool {
        self.tasks.iter().any(|task| task.desired_state != DesiredState::Remove)
    }

    /// The tasks that were told to stop and have not ended yet.
    pub(super) fn stopping(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|task| task.desired_state.is_stopping() && !task.status.state.is_terminal())
    }

    /// Whether a task of it may run, or has not ended yet.
    pub(super) fn is_busy(&self) -> bool {
        self.live().next().is_some() || self.is_stopping()
    }

    /// Whether a task of it has done what the present spec asks for, in the present run, as that of a job can.
    pub(super) fn is_done(&self) -> bool {
        self.tasks.iter().any(|task| self.is_present(task) && task.run == self.run && task.has_done_its_work())
    }

    /// Whether a task that was told to stop has not ended yet.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping().next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use flota_api::model::TaskStatus;
    use flota_api::state::TaskState;

    use super::*;

    #[test]
    fn a_task_whose_place_one_of_another_spec_was_to_take_fills_the_slot_again_after_a_rollback() {
        let task = |id: &str, created, spec_version, replaces: Option<&str>| {
            let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
            let mut task = Task { id: id.into(), slot: 1, spec_version, status, ..Task::default() };
            (task.meta.created, task.replaces) = (created, replaces.map(Into::into));
            Arc::new(task)
        };
        let current = |tasks: &[Arc<Task>], present| {
            let slot = Slot::new(tasks.iter(), present);
            slot.current().expect("both may run").id.to_string()
        };
        // The node of the first one was drained while the service was updated.
        let updated = [task("old", 1, 6, None), task("new", 2, 7, Some("old"))];
        assert_eq!((current(&updated, 7).as_str(), current(&updated, 6).as_str()), ("new", "old"));
        let moved = [task("old", 1, 6, None), task("new", 2, 6, Some("old"))];
        assert_eq!(current(&moved, 6), "new");
    }
}
