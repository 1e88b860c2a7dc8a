//! One task on this node, from its assignment to its removal: prepare, start, wait, restart, stop. The logic alone: an
//! [`Executor`] acts, and clock and records come from outside.
//!
//! Delays and ages are monotonic. The wall clock counts where a time comes from disk or from the leader, once, when the
//! runner begins, and no longer than the restart policy could have meant.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::model::{OnPartition, ServiceSpec, TaskStatus};
use flota_api::proto::dispatcher::{ImageSource, TaskAssignment};
use flota_api::proto::types::DesiredState;
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_runtime::ExitStatus;

use crate::executor::{Executor, ExecutorError, Prepared, Running};
use crate::order::{Contact, Order};
use crate::records::{Record, TaskRecords};
use crate::reporter::Reporter;
use crate::restart::{self, Decision, Ended};
use crate::spawned::Spawned;

/// Tries to get an image before the task is given back, so that another node is tried.
const PREPARE_TRIES: u32 = 3;
const PREPARE_DELAY: Duration = Duration::from_millis(500);
/// More restarts than a budget can have.
const RESTARTS_KEPT: usize = 1_000;
/// Characters of an error that are kept.
const ERROR_BOUND: usize = 1_000;
/// After SIGKILL a container ends; longer than this only where the kernel is stuck, and then it is said.
const KILL_WAIT: Duration = Duration::from_secs(15);

/// What runners share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) records: Arc<dyn TaskRecords>,
    pub(crate) reporter: Reporter,
    pub(crate) clock: Clock,
    /// Identifies this boot of the machine.
    pub(crate) boot_id: Arc<str>,
    /// The runners, and what else ends with this worker.
    pub(crate) spawned: Spawned,
    /// Whether there is a session, and since when not; and whether this boot's assignments were confirmed.
    pub(crate) contact: watch::Receiver<Contact>,
    /// Tasks that have not come to their end.
    pub(crate) live: Arc<Mutex<BTreeSet<String>>>,
    /// A task has come to its end, or is gone altogether.
    pub(crate) ended: Arc<Notify>,
}

/// Why a wait ended.
enum Woken {
    Done,
    Stop,
}

/// Runs one task.
pub(crate) struct TaskRunner {
    shared: Shared,
    orders: watch::Receiver<Order>,
    task: String,
    spec: ServiceSpec,
    /// Why the spec can't be carried out at all.
    bad_spec: Option<String>,
    status: TaskStatus,
    /// Restarts in a row that were not healthy.
    in_a_row: u32,
    /// When it was restarted, as far as the budget cares.
    restarts: Vec<Instant>,
    /// The next start is not before this.
    due: Instant,
    /// When this daemon started the last container.
    started: Option<Instant>,
    /// What the image's name stood for at the first start, where the leader does not say: a restart asks nobody.
    digest: Option<String>,
}

impl TaskRunner {
    pub(crate) fn new(shared: Shared, orders: watch::Receiver<Order>) -> Self {
        let assignment = orders.borrow().assignment.clone();
        let spec = assignment.spec.clone().map(ServiceSpec::try_from);
        let (spec, bad_spec) = match spec {
            Some(Ok(spec)) => (spec, None),
            Some(Err(error)) => (ServiceSpec::default(), Some(error.to_string())),
            None => (ServiceSpec::default(), Some("it is missing".into())),
        };
        let status = TaskStatus::try_from(assignment.status.clone()).unwrap_or_default();
        let now = Instant::now();
        // How long ago they were is not known any more: they count as if they were now.
        let used = assignment.inherited_restarts + u64::from(status.attempt.saturating_sub(1));
        let restarts = vec![now; usize::try_from(used).unwrap_or(usize::MAX).min(RESTARTS_KEPT)];
        let not_before = status.not_before.max(Timestamp(assignment.not_before));
        let left = shared.clock.now().until(not_before).min(restart::most_delay(&spec.restart));
        Self {
            shared,
            orders,
            spec,
            bad_spec,
            status,
            in_a_row: 0,
            restarts,
            due: now + left,
            started: None,
            digest: assignment.image.map(|image| image.digest),
            task: assignment.task_id,
        }
    }

    /// Until the leader no longer names the task and nothing of it is left.
    pub(crate) async fn run(mut self) {
        if let Some(why) = self.bad_spec.take().filter(|_| !self.status.state.is_terminal()) {
            self.status.error = format!("this node does not understand the task's spec: {why}");
            self.set(TaskState::Rejected, "");
        } else if self.status.state < TaskState::Accepted {
            self.set(TaskState::Accepted, "");
        } else if !self.orders.borrow().confirmed && self.status.state >= TaskState::Starting && self.is_open() {
            // It ran before this boot: what it had is gone, and this is another start.
            self.again(Duration::ZERO, "the machine was started anew");
        } else {
            // Taken over from an earlier life: the leader may not have heard the last of it.
            self.shared.reporter.report(&self.task, self.status.clone());
        }
        self.live().await;
        self.shared.live.lock().expect("no holder panics").remove(&self.task);
        self.shared.ended.notify_waiters();
        let over = self.orders.wait_for(|order| order.removed).await;
        drop(over.map(|_| ()));
        self.shared.executor.remove(&self.task).await;
        self.shared.records.remove(&self.task);
    }

    fn is_open(&self) -> bool {
        !self.status.state.is_terminal()
    }

    async fn live(&mut self) {
        // Of their own, so that a running container can borrow them.
        let (executor, task) = (Arc::clone(&self.shared.executor), self.task.clone());
        while self.is_open() {
            if let Some(container) = executor.attach(&task) {
                self.watch_container(container).await;
            } else if let Some(ended) = self.take_ending() {
                // A container of an earlier daemon is judged by the wall clock: there is no other.
                let by_wall = || self.status.at.until(Timestamp(ended.at));
                let ran = self.started.map_or_else(by_wall, |started| started.elapsed());
                self.after(&ended, ran);
            } else if matches!(self.wait_until_due().await, Woken::Stop) {
                self.set(TaskState::Shutdown, "stopped");
            } else {
                self.start().await;
            }
        }
    }

    /// A container that ended while no daemon watched; only when its start was this attempt's.
    fn take_ending(&self) -> Option<ExitStatus> {
        let started = self.status.state >= TaskState::Starting;
        started.then(|| self.shared.executor.ended(&self.task)).flatten()
    }

    /// Until the start is due and allowed: its time has come, and the leader has confirmed it in this boot.
    async fn wait_until_due(&mut self) -> Woken {
        let keep = self.spec.keep_on_node_loss;
        loop {
            let order = self.orders.borrow_and_update().clone();
            if order.stops() {
                return Woken::Stop;
            }
            let allowed = order.confirmed || keep;
            let is_due = self.due <= Instant::now();
            if allowed && is_due && !self.cut_off() {
                return Woken::Done;
            }
            let wake = if allowed && !is_due { self.due } else { Instant::now() + Duration::from_secs(1) };
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() { return Woken::Stop },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Whether the service wants its tasks stopped because no manager was heard for so long.
    fn cut_off(&self) -> bool {
        let OnPartition::Stop(after) = self.spec.on_partition else { return false };
        self.shared.contact.borrow().lost.is_some_and(|since| since.elapsed() >= after)
    }

    async fn start(&mut self) {
        let assignment = self.orders.borrow().assignment.clone();
        // Also how the last container ended: it was judged already, and must not be once more.
        self.shared.executor.clean(&self.task).await;
        self.set(TaskState::Preparing, "");
        let prepared = tokio::select! {
            prepared = self.prepare(&assignment) => prepared,
            () = stop_order(self.orders.clone()) => return self.set(TaskState::Shutdown, "stopped"),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.reject(&error),
        };
        self.digest = Some(prepared.digest.clone());
        if self.orders.borrow().waits() {
            self.set(TaskState::Ready, "waits for its turn");
            let turn = self.orders.wait_for(|order| !order.waits()).await.map(|order| order.stops());
            if turn.unwrap_or(true) {
                return self.set(TaskState::Shutdown, "stopped");
            }
        }
        self.set(TaskState::Starting, "");
        self.started = Some(Instant::now());
        match self.shared.executor.start(&assignment, &self.spec, prepared).await {
            Ok(()) => self.set(TaskState::Running, ""),
            Err(error) => self.reject(&error),
        }
    }

    async fn prepare(&self, assignment: &TaskAssignment) -> Result<Prepared, ExecutorError> {
        let mut tries = 1;
        loop {
            match self.shared.executor.prepare(assignment, self.digest.as_deref()).await {
                Err(ExecutorError::Transient(error)) if tries < PREPARE_TRIES => {
                    tracing::warn!(task.id = self.task, %error, "an image could not be had yet");
                    tries += 1;
                    tokio::time::sleep(PREPARE_DELAY * tries).await;
                }
                other => return other,
            }
        }
    }

    fn reject(&mut self, error: &ExecutorError) {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            // A transparent error's cause says the same again.
            if !text.ends_with(&cause.to_string()) {
                text = format!("{text}: {cause}");
            }
            source = cause.source();
        }
        self.status.error = text;
        self.set(TaskState::Rejected, "");
    }

    /// While the container runs: until it ends, or is told to.
    async fn watch_container(&mut self, container: Running<'_>) {
        if self.status.state != TaskState::Running {
            self.set(TaskState::Running, "");
        }
        // It may have run for days before this daemon began.
        let watched = Instant::now();
        let Running { age, mut end } = container;
        loop {
            tokio::select! {
                status = &mut end => return self.after(&status, age + watched.elapsed()),
                () = stop_order(self.orders.clone()) => break,
                () = tokio::time::sleep(Duration::from_secs(1)), if self.spec.on_partition != OnPartition::Run => {
                    if self.cut_off() { break }
                }
            }
        }
        let cut_off = self.cut_off() && !self.orders.borrow().stops();
        // Before the signal: a daemon that begins anew in the middle must not take the end for a crash.
        self.note();
        let status = self.stop_container(&mut end).await;
        self.status.exit_code = Some(status.code);
        if cut_off {
            self.again(Duration::ZERO, "stopped: no manager was heard");
        } else {
            self.set(TaskState::Shutdown, "stopped");
        }
    }

    /// Asks the container to stop, and kills it when its grace is over.
    async fn stop_container(&self, end: &mut (impl Future<Output = ExitStatus> + Unpin)) -> ExitStatus {
        let (executor, task) = (&self.shared.executor, &self.task);
        executor.stop(task, &self.spec, self.digest.as_deref());
        if let Ok(status) = tokio::time::timeout(self.spec.stop_grace, &mut *end).await {
            return status;
        }
        executor.kill(task);
        if let Ok(status) = tokio::time::timeout(KILL_WAIT, &mut *end).await {
            return status;
        }
        tracing::error!(task.id = task, "a container does not end after SIGKILL; it is waited for");
        end.await
    }

    /// The container has ended by itself.
    fn after(&mut self, status: &ExitStatus, ran: Duration) {
        let code = status.code;
        self.status.exit_code = Some(code);
        self.in_a_row = restart::in_a_row(self.in_a_row, ran);
        let now = Instant::now();
        let restarts = restart::counted(&self.spec.restart, &mut self.restarts, now);
        let ended = Ended { code, restarts, in_a_row: self.in_a_row };
        self.status.error = match (code, status.out_of_memory) {
            (_, true) => format!("killed for want of memory (exit code {code})"),
            (0, _) => String::new(),
            (code, _) => format!("exit code {code}"),
        };
        if self.orders.borrow().stops() {
            return self.set(TaskState::Shutdown, "stopped");
        }
        match restart::decide(&self.spec.restart, &ended) {
            Decision::Restart(delay) => {
                self.in_a_row += 1;
                self.restarts.truncate(RESTARTS_KEPT);
                self.restarts.push(now);
                self.again(delay, "waits to be restarted");
            }
            Decision::End(state) => self.set(state, "ended"),
        }
    }

    /// The next attempt, after a delay.
    fn again(&mut self, delay: Duration, why: &str) {
        self.due = Instant::now() + delay;
        self.status.attempt += 1;
        self.status.not_before = self.shared.clock.now() + delay;
        self.set(TaskState::Ready, why);
    }

    /// A state is kept on disk before it is told.
    fn set(&mut self, state: TaskState, message: &str) {
        tracing::debug!(task.id = self.task, state.from = %self.status.state, state.to = %state, "task state changed");
        self.status.state = state;
        self.status.at = self.shared.clock.now();
        self.status.message = message.to_owned();
        if let Some((cut, _)) = self.status.error.char_indices().nth(ERROR_BOUND) {
            self.status.error.truncate(cut);
        }
        if state == TaskState::Running {
            self.status.error = String::new();
            self.status.not_before = Timestamp::default();
        }
        // What only leads to the next state need not outlive the daemon.
        if state >= TaskState::Starting || state == TaskState::Ready {
            self.note();
        }
        self.shared.reporter.report(&self.task, self.status.clone());
    }

    /// Keeps order and status on disk.
    fn note(&self) {
        let order = self.orders.borrow().clone();
        let mut assignment = order.assignment;
        assignment.status = Some((&self.status).into());
        if order.removed {
            assignment.desired_state = DesiredState::Remove.into();
        }
        if let Some(digest) = self.digest.clone().filter(|_| assignment.image.is_none()) {
            assignment.image = Some(ImageSource { digest, ..ImageSource::default() });
        }
        // What a registry asks for is not for the disk.
        assignment.credentials = None;
        let record = Record { boot_id: self.shared.boot_id.to_string(), assignment };
        if let Err(error) = self.shared.records.save(&[record]) {
            tracing::error!(task.id = self.task, %error, "a task's state could not be noted on disk");
        }
    }
}

/// Waits until the leader wants the task stopped.
async fn stop_order(mut orders: watch::Receiver<Order>) {
    if orders.wait_for(Order::stops).await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
