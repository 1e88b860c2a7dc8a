//! One runner for each task that this node has: started by an assignment or from disk, ended when the leader no
//! longer names it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use flota_api::proto::dispatcher::{Assignments, TaskAssignment};
use flota_api::proto::types::DesiredState;

use crate::order::Order;
use crate::records::Record;
use crate::task_runner::{Shared, TaskRunner};

type Runners = BTreeMap<String, watch::Sender<Order>>;

/// Cloned handles share the runners.
#[derive(Clone, Debug)]
pub(crate) struct TaskPool {
    shared: Shared,
    runners: Arc<Mutex<Runners>>,
    /// The machine goes down: what is assigned from now on is not begun.
    stopping: Arc<AtomicBool>,
}

impl TaskPool {
    /// Takes up what is on disk; containers of this boot are found again, what belongs to no task is removed.
    pub(crate) fn start(shared: Shared) -> Self {
        let pool = Self { shared, runners: Arc::default(), stopping: Arc::default() };
        let records = pool.shared.records.load();
        let known: BTreeSet<String> = records.iter().map(|record| record.assignment.task_id.clone()).collect();
        pool.shared.executor.sweep(&known);
        for record in records {
            let same_boot = *record.boot_id == *pool.shared.boot_id;
            pool.run(record.assignment, same_boot);
        }
        pool
    }

    /// Every task that has a runner, in order.
    #[cfg(test)]
    pub(crate) fn tasks(&self) -> Vec<String> {
        self.runners.lock().expect("no holder panics").keys().cloned().collect()
    }

    /// Images that tasks here have or are to have.
    pub(crate) fn images_used(&self) -> BTreeSet<String> {
        let runners = self.runners.lock().expect("no holder panics");
        let image = |runner: &watch::Sender<Order>| Some(runner.borrow().assignment.image.as_ref()?.digest.clone());
        runners.values().filter_map(image).collect()
    }

    fn run(&self, assignment: TaskAssignment, confirmed: bool) {
        let mut runners = self.runners.lock().expect("no holder panics");
        let id = assignment.task_id.clone();
        self.shared.live.lock().expect("no holder panics").insert(id.clone());
        self.shared.executor.accept(&assignment);
        let (sender, orders) = watch::channel(Order { assignment, removed: false, unnamed: false, confirmed });
        runners.insert(id.clone(), sender);
        let runner = TaskRunner::new(self.shared.clone(), orders);
        let pool = self.clone();
        self.shared.spawned.spawn(async move {
            runner.run().await;
            pool.runners.lock().expect("no holder panics").remove(&id);
            pool.shared.ended.notify_waiters();
        });
    }

    /// Carries out what the leader says: all of it, or what has changed. `grace`: what a whole set does not name is
    /// stopped only after it, if it is not named by then.
    pub(crate) fn assign(&self, assignments: Assignments, grace: Duration) {
        if self.stopping.load(Ordering::SeqCst) {
            return;
        }
        let named: BTreeSet<String> = assignments.tasks.iter().map(|task| task.task_id.clone()).collect();
        let gone: Vec<String> = if assignments.full {
            // What runs out its grace does so, whatever other sets do not name it.
            let runners = self.runners.lock().expect("no holder panics");
            let gone = runners.iter().filter(|(id, runner)| !named.contains(*id) && !runner.borrow().unnamed);
            gone.map(|(id, _)| id.clone()).collect()
        } else {
            assignments.removed_tasks
        };
        if grace.is_zero() {
            gone.iter().for_each(|id| self.take_away(id));
        } else if !gone.is_empty() {
            tracing::warn!(tasks = gone.len(), ?grace, "the cluster was brought back and does not name these tasks");
            let pool = self.clone();
            let mark = |id: &String| pool.order(id, |order| order.unnamed = true);
            gone.iter().for_each(mark);
            self.shared.spawned.spawn(async move {
                tokio::time::sleep(grace).await;
                let unnamed = |id: &&String| {
                    let runners = pool.runners.lock().expect("no holder panics");
                    runners.get(*id).is_some_and(|runner| runner.borrow().unnamed)
                };
                gone.iter().filter(unnamed).for_each(|id| pool.take_away(id));
            });
        }
        let new: Vec<_> = assignments.tasks.into_iter().filter_map(|assignment| self.update(assignment)).collect();
        self.begin(new);
    }

    fn order(&self, id: &str, change: impl FnOnce(&mut Order)) {
        if let Some(runner) = self.runners.lock().expect("no holder panics").get(id) {
            runner.send_modify(change);
        }
    }

    fn take_away(&self, id: &str) {
        self.order(id, |order| order.removed = true);
    }

    /// Tells the task's runner; the assignment again if the task has none yet.
    fn update(&self, assignment: TaskAssignment) -> Option<TaskAssignment> {
        let runners = self.runners.lock().expect("no holder panics");
        let Some(runner) = runners.get(&assignment.task_id) else { return Some(assignment) };
        runner.send_if_modified(|order| {
            let news = !order.confirmed
                || TaskAssignment { status: None, ..order.assignment.clone() }
                    != TaskAssignment { status: None, ..assignment.clone() };
            *order = Order { assignment, confirmed: true, removed: false, unnamed: false };
            news
        });
        None
    }

    /// Takes up tasks that are new here: all of them are saved at once, as one save costs as much as many.
    fn begin(&self, new: Vec<TaskAssignment>) {
        if new.is_empty() {
            return;
        }
        let boot_id = || self.shared.boot_id.to_string();
        let records: Vec<_> = new.iter().map(|it| Record { boot_id: boot_id(), assignment: it.clone() }).collect();
        if let Err(error) = self.shared.records.save(&records) {
            // They run all the same: the leader sends them again after a restart.
            tracing::error!(tasks = records.len(), %error, "new tasks could not be noted on disk");
        }
        for assignment in new {
            self.run(assignment, true);
        }
    }

    /// The machine goes down: every task is told to stop; returns when all have ended.
    pub(crate) async fn stop_all(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for runner in self.runners.lock().expect("no holder panics").values() {
            runner.send_modify(|order| order.assignment.desired_state = DesiredState::Shutdown.into());
        }
        self.wait_until(|pool| pool.shared.live.lock().expect("no holder panics").is_empty()).await;
    }

    /// The node leaves its cluster: every task is stopped and removed.
    pub(crate) async fn remove_all(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for runner in self.runners.lock().expect("no holder panics").values() {
            runner.send_modify(|order| order.removed = true);
        }
        self.wait_until(|pool| pool.runners.lock().expect("no holder panics").is_empty()).await;
    }

    /// Each task ends within its grace period, so this has a bound.
    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            // Before the look: an end in between must not be missed.
            let ended = self.shared.ended.notified();
            if done(self) {
                return;
            }
            ended.await;
        }
    }
}
