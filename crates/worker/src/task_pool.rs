//! One runner for each task of this node, which is started by an assignment or from disk and ends when the leader no
//! longer names the task. The agent passes sets of assignments to the pool, and the runners carry them out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;

use flota_api::id::TaskId;
use flota_api::model::{Assignment, Measured, TaskStatus};
use flota_api::state::{DesiredState, TaskState};

use crate::executor::{log_leftovers, remove_task};
use crate::locks::KeyedLocks;
use crate::messages::{AssignmentSet, Refused};
use crate::order::{Instruction, Order};
use crate::starts::StartStatistics;
use crate::task_runner::{Shared, TaskRunner};

type Runners = BTreeMap<TaskId, watch::Sender<Order>>;

/// Whether a task has a record on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded {
    Yes,
    No,
}

/// The runners of all tasks. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct TaskPool {
    shared: Shared,
    runners: Arc<Mutex<Runners>>,
    /// Held for a task while it has a runner, or while what an earlier daemon left of it is removed.
    busy: KeyedLocks,
    /// Whether the leftovers of unknown tasks are removed, or are being removed.
    swept: Arc<AtomicBool>,
    /// Whether the machine goes down, in which case new assignments are not started.
    stopping: Arc<AtomicBool>,
}

impl TaskPool {
    /// Loads the records on disk. Containers of this boot are found again.
    pub(crate) fn start(shared: Shared) -> Self {
        let pool = Self {
            shared,
            runners: Arc::default(),
            busy: KeyedLocks::default(),
            swept: Arc::default(),
            stopping: Arc::default(),
        };
        for record in pool.shared.records.load() {
            pool.run(record.assignment, record.boot_id.into(), Recorded::Yes);
        }
        pool
    }

    /// Removes, once and after `grace`, what is left of tasks that have no runner. The records of such tasks are lost,
    /// so this begins with the leader's first full set: the containers of tasks that it names continue to run.
    fn sweep(&self, grace: Duration) {
        if self.swept.swap(true, Ordering::SeqCst) {
            return;
        }
        let pool = self.clone();
        self.shared.spawned.spawn(async move {
            tokio::time::sleep(grace).await;
            for task in pool.shared.executor.leftovers().await {
                // A runner that begins in the meantime waits for this lock.
                let Some(_alone) = pool.busy.lock(task.as_str()).now_or_never() else { continue };
                if !pool.runners().contains_key(&task) {
                    tracing::info!(task.id = %task, "removing what is left of a task that is not known");
                    log_leftovers(&task, &remove_task(&*pool.shared.executor, &task).await);
                }
            }
        });
    }

    fn runners(&self) -> MutexGuard<'_, Runners> {
        self.runners.lock().expect("no holder panics")
    }

    /// Returns the number of tasks that have not ended.
    pub(crate) fn live_tasks(&self) -> usize {
        self.shared.live.lock().expect("no holder panics").len()
    }

    /// Returns what starting containers has taken.
    pub(crate) fn start_statistics(&self) -> StartStatistics {
        self.shared.starts.read()
    }

    /// Returns the time since there was a session; `None` if there is one.
    pub(crate) fn lost(&self) -> Option<Duration> {
        self.shared.contact.borrow().lost.map(|since| since.elapsed())
    }

    /// Returns every task that has a runner, in order.
    #[cfg(test)]
    pub(crate) fn tasks(&self) -> Vec<String> {
        self.runners().keys().map(ToString::to_string).collect()
    }

    /// Returns the tasks that are measured and are to run.
    pub(crate) fn measured(&self) -> Vec<(TaskId, Measured)> {
        let of = |(id, runner): (&TaskId, &watch::Sender<Order>)| {
            let order = runner.borrow();
            let measured = order.assignment.measured.as_ref().filter(|_| order.instruction() == Instruction::Run)?;
            Some((id.clone(), measured.clone()))
        };
        self.runners().iter().filter_map(of).collect()
    }

    /// Starts a runner. `boot_id`: the boot in which the leader has named the task last.
    fn run(&self, assignment: Assignment, boot_id: Arc<str>, recorded: Recorded) {
        let (id, confirmed) = (assignment.task_id.clone(), boot_id == self.shared.boot_id);
        self.shared.live.lock().expect("no holder panics").insert(id.clone());
        self.shared.executor.accept(&assignment);
        let (sender, orders) = watch::channel(Order { assignment, removed: false, unnamed: false, confirmed });
        self.runners().insert(id.clone(), sender);
        let mut runner = TaskRunner::new(self.shared.clone(), orders, boot_id);
        let pool = self.clone();
        self.shared.spawned.spawn(async move {
            let _alone = pool.busy.lock(id.as_str()).await;
            if recorded == Recorded::No {
                runner.save().await;
            }
            runner.run().await;
            pool.runners().remove(&id);
            pool.shared.ended.notify_waiters();
        });
    }

    /// Carries out an assignment set. Tasks that a full set does not name are stopped only after `grace`, unless they
    /// are named by then.
    pub(crate) fn assign(&self, set: AssignmentSet, grace: Duration) {
        if self.stopping.load(Ordering::SeqCst) {
            return;
        }
        let gone = self.gone(&set);
        if grace.is_zero() {
            gone.iter().for_each(|id| self.take_away(id));
        } else if !gone.is_empty() {
            self.take_away_after(gone, grace);
        }
        set.refused.into_iter().for_each(|task| self.refuse(task));
        for new in set.tasks.into_iter().filter_map(|assignment| self.update(assignment)) {
            self.run(new, Arc::clone(&self.shared.boot_id), Recorded::No);
        }
        if set.is_full {
            self.sweep(grace);
        }
    }

    /// Returns the tasks that the set removes from this node.
    fn gone(&self, set: &AssignmentSet) -> Vec<TaskId> {
        if !set.is_full {
            return set.removed.clone();
        }
        let named = set.tasks.iter().map(|task| &task.task_id).chain(set.refused.iter().map(|it| &it.task));
        let named: BTreeSet<&TaskId> = named.collect();
        let runners = self.runners();
        // A task whose grace period runs is not affected by other sets that do not name it.
        let gone = runners.iter().filter(|(id, runner)| !named.contains(id) && !runner.borrow().unnamed);
        gone.map(|(id, _)| id.clone()).collect()
    }

    fn take_away_after(&self, tasks: Vec<TaskId>, grace: Duration) {
        tracing::warn!(tasks = tasks.len(), ?grace, "the restored cluster does not name tasks that run here");
        let pool = self.clone();
        tasks.iter().for_each(|id| pool.order(id, |order| order.unnamed = true));
        self.shared.spawned.spawn(async move {
            tokio::time::sleep(grace).await;
            let is_unnamed = |id: &&TaskId| pool.runners().get(*id).is_some_and(|runner| runner.borrow().unnamed);
            tasks.iter().filter(is_unnamed).for_each(|id| pool.take_away(id));
        });
    }

    /// Reports a task that can't be parsed as rejected. One that already runs continues unchanged.
    fn refuse(&self, refused: Refused) {
        let Refused { task, known, why } = refused;
        tracing::warn!(task.id = %task, why, "an assignment can't be understood");
        if known.state.is_terminal() || self.runners().contains_key(&task) {
            return;
        }
        let error = format!("this node does not understand the task: {why}");
        let status = TaskStatus { state: TaskState::Rejected, at: self.shared.clock.now(), error, ..known };
        self.shared.reporter.report(&task, status);
    }

    fn order(&self, id: &TaskId, change: impl FnOnce(&mut Order)) {
        if let Some(runner) = self.runners().get(id) {
            runner.send_modify(change);
        }
    }

    fn take_away(&self, id: &TaskId) {
        self.order(id, |order| order.removed = true);
    }

    /// Passes the assignment to the task's runner. Returns it if the task has none yet.
    fn update(&self, mut assignment: Assignment) -> Option<Assignment> {
        let runners = self.runners();
        let Some(runner) = runners.get(&assignment.task_id) else { return Some(assignment) };
        runner.send_if_modified(|order| {
            order.keep_values(&mut assignment);
            let is_changed = order.is_changed_by(&assignment);
            *order = Order { assignment, confirmed: true, removed: false, unnamed: false };
            is_changed
        });
        None
    }

    /// Stops every task because the machine goes down; returns when all have ended.
    pub(crate) async fn stop_all(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for runner in self.runners().values() {
            runner.send_modify(|order| order.assignment.desired_state = DesiredState::Shutdown);
        }
        self.wait_until(|pool| pool.shared.live.lock().expect("no holder panics").is_empty()).await;
    }

    /// Stops and removes every task, because the node leaves its cluster.
    pub(crate) async fn remove_all(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for runner in self.runners().values() {
            runner.send_modify(|order| order.removed = true);
        }
        self.wait_until(|pool| pool.runners().is_empty()).await;
    }

    /// Waits for a condition. Each task ends within its grace period, so the wait is bounded.
    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            // This comes before the check, so that no end in between is missed.
            let ended = self.shared.ended.notified();
            if done(self) {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests;
