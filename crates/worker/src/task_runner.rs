//! One task on this node, from its assignment to its removal. The runner gathers facts, `step.rs` decides the next
//! step, and an [`Executor`] carries it out; clock and records are passed in.
//!
//! Delays and ages are monotonic. The wall clock is used only once, when the runner begins, for times from disk or
//! from the leader, and only within the delays that the restart policy allows.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::defaults::STARTS_BEFORE_GIVING_UP;
use flota_api::id::TaskId;
use flota_api::model::{Assignment, OnPartition, RestartCondition, RestartHistory, ServiceSpec, TaskStatus, TaskValue};
use flota_api::state::{DesiredState, TaskState};
use flota_api::text::with_causes;
use flota_api::version::Timestamp;
use flota_runtime::{ExitStatus, KILLED};

use crate::contact::Contact;
use crate::executor::{Executor, ExecutorError, Found, Prepared, log_leftovers, remove_task};
use crate::health::{HealthBoard, Monitor};
use crate::order::{Instruction, Order};
use crate::records::{Record, TaskRecords};
use crate::reporter::Reporter;
use crate::restart::{self, Decision, ProgramEnd};
use crate::spawned::Spawned;
use crate::starts::StartCounters;
use crate::step::{Facts, Step, step};
use crate::stop::stop;

mod container;
mod health;

use container::TaskContainer;

/// Number of tries of a preparation before the task is rejected, so that another node is tried.
const PREPARE_TRIES: u32 = 3;
const PREPARE_DELAY: Duration = Duration::from_millis(500);
/// Exit code that stands for a failure without one.
const FAILED: i32 = 1;
/// Largest number of characters of an error that are kept.
const ERROR_BOUND: usize = 1_000;
/// Delay after the first start that failed because something was short; it doubles.
const START_DELAY: Duration = Duration::from_secs(1);
/// Pause between two tries to replace the secrets and configs of a running container.
const RENEW_RETRY: Duration = Duration::from_secs(10);
/// Pause between two tries to find a task's container.
const FIND_RETRY: Duration = Duration::from_secs(1);
/// Number of tries to remove a task; the next daemon removes what is left then. The pauses between them double.
const REMOVE_TRIES: u32 = 6;
const REMOVE_DELAY: Duration = Duration::from_secs(1);

/// The parts that all runners of a node share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) health: HealthBoard,
    pub(crate) records: Arc<dyn TaskRecords>,
    pub(crate) reporter: Reporter,
    pub(crate) clock: Clock,
    /// Identifies this boot of the machine.
    pub(crate) boot_id: Arc<str>,
    /// The runners and the other futures that end with this worker.
    pub(crate) spawned: Spawned,
    /// Whether there is a session, or since when there is none.
    pub(crate) contact: watch::Receiver<Contact>,
    /// Tasks that have not ended.
    pub(crate) live: Arc<Mutex<BTreeSet<TaskId>>>,
    /// Notified when a task has ended or was removed.
    pub(crate) ended: Arc<Notify>,
    /// Counts the starts of containers.
    pub(crate) starts: StartCounters,
}

/// Runs one task.
pub(crate) struct TaskRunner {
    shared: Shared,
    orders: watch::Receiver<Order>,
    task: TaskId,
    spec: Arc<ServiceSpec>,
    status: TaskStatus,
    container: TaskContainer,
    /// Checks the health of the container that runs.
    health: Option<Monitor>,
    /// Whether the task was to stop already when this runner began, so that an earlier one may have stopped its container.
    was_to_stop: bool,
    /// The boot in which the task may run, because the leader has named it or its service does not require that.
    boot_id: Arc<str>,
    /// Why the container of this attempt is lost, if it is.
    lost: Option<&'static str>,
    /// The restarts of its slot, by the runner's own clock.
    history: RestartHistory,
    /// When the runner began, by the wall clock and by the clock that does not step. From these it tells its own time.
    begun: (Timestamp, Instant),
    /// Earliest time of the next start; while a container runs, when its files are replaced again after a failure.
    due: Instant,
    /// When this daemon started the last container.
    started: Option<Instant>,
    /// The versions with which the files of the running container were last compared.
    renewed: Vec<TaskValue>,
    /// Number of consecutive starts that failed and may succeed later.
    failed_starts: u32,
}

impl TaskRunner {
    /// Creates a runner. `boot_id`: the boot in which the leader has named the task last.
    pub(crate) fn new(shared: Shared, orders: watch::Receiver<Order>, boot_id: Arc<str>) -> Self {
        let order = orders.borrow().clone();
        let was_to_stop = order.instruction() == Instruction::Stop;
        let Order { assignment, confirmed, .. } = order;
        let status = assignment.status;
        let now = Instant::now();
        let wait = |until: Option<Timestamp>, most: Duration| {
            until.map_or(Duration::ZERO, |until| shared.clock.now().until(until).min(most))
        };
        // Only the clock tells how much of a delay passed without a daemon. If it has stepped, all of the delay is due.
        let delay = status.not_before.map_or(Duration::ZERO, |until| status.at.until(until));
        let left =
            wait(status.not_before, delay).max(wait(assignment.not_before, assignment.spec.restart.longest_delay()));
        let history = status.restarts.as_deref().cloned().unwrap_or(assignment.restarts);
        let begun = (shared.clock.now(), now);
        let was_started = status.state >= TaskState::Starting && !status.state.is_terminal();
        Self {
            shared,
            orders,
            spec: assignment.spec,
            container: TaskContainer::Absent,
            health: None,
            was_to_stop,
            boot_id,
            lost: (!confirmed && was_started).then_some("the machine was rebooted"),
            status,
            history,
            begun,
            due: now + left,
            started: None,
            failed_starts: 0,
            renewed: Vec::new(),
            task: assignment.task_id,
        }
    }

    /// Runs until the leader no longer names the task and everything of it is removed.
    pub(crate) async fn run(mut self) {
        // A container that is not there is not reported to run, whatever the leader or the disk knows of it.
        self.find_container().await;
        if self.status.state >= TaskState::Accepted && self.lost.is_none() {
            // A task of an earlier daemon is reported again, because the leader may not have received its last status.
            self.shared.reporter.report(&self.task, self.status.clone());
        }
        let mut prepared = Prepared::unknown(&self.task, self.shared.executor.steps());
        self.live(&mut prepared).await;
        self.shared.live.lock().expect("no holder panics").remove(&self.task);
        self.shared.ended.notify_waiters();
        tear_down(&self.task, &mut prepared).await;
        self.shared.executor.release(&self.task);
        if self.orders.wait_for(|order| order.removed).await.is_err() {
            return;
        }
        self.remove().await;
        if let Err(error) = self.shared.records.remove(&self.task).await {
            tracing::error!(task.id = %self.task, %error, "failed to remove a task's record");
        }
    }

    /// Removes everything of the task.
    async fn remove(&mut self) {
        for tries in 0..REMOVE_TRIES {
            let left = remove_task(&*self.shared.executor, &self.task).await;
            log_leftovers(&self.task, &left);
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(REMOVE_DELAY * 2u32.pow(tries)).await;
        }
    }

    /// Takes one step after the other until the task has ended.
    async fn live(&mut self, prepared: &mut Prepared) {
        loop {
            self.find_container().await;
            self.take_health().await;
            match self.next(prepared.is_complete()) {
                Step::Rest => return,
                Step::Wait if self.renew_values() => {}
                Step::Wait => self.changed().await,
                Step::Accept => self.set(TaskState::Accepted, "").await,
                Step::StartOver => self.begin_attempt(Duration::ZERO, self.lost.unwrap_or_default()).await,
                Step::Adopt => self.report_running().await,
                Step::StopUnhealthy => {
                    let ended = self.stop_container().await;
                    self.container = ended.map_or(TaskContainer::Absent, |(status, ran)| TaskContainer::Ended {
                        status,
                        ran,
                        by_itself: false,
                    });
                }
                // It has ended before it could be asked to, and its end is judged.
                Step::Stop if self.container.ended().now_or_never().is_some() => {}
                Step::Stop => {
                    self.stop_container().await;
                    let message = stopped(&self.orders.borrow().assignment.unconfirmed_nodes);
                    self.set(TaskState::Shutdown, &message).await;
                }
                Step::Suspend => {
                    self.stop_container().await;
                    self.begin_attempt(Duration::ZERO, "stopped: the node has lost contact with all managers").await;
                    tear_down(&self.task, prepared).await;
                }
                Step::Finish => self.set(TaskState::Shutdown, "stopped").await,
                Step::Judge => {
                    self.judge().await;
                    tear_down(&self.task, prepared).await;
                }
                Step::Prepare => self.prepare(prepared).await,
                Step::Hold => self.set(TaskState::Ready, "waits for its turn").await,
                Step::Start => self.start(prepared).await,
            }
        }
    }

    fn next(&mut self, prepared: bool) -> Step {
        let now = Instant::now();
        let (instruction, confirmed, has_values) = {
            let order = self.orders.borrow_and_update();
            (order.instruction(), order.confirmed, order.assignment.has_values())
        };
        let facts = Facts {
            container: self.container.presence(),
            is_lost: self.lost.is_some(),
            allowed: has_values && (confirmed || self.spec.keep_on_node_loss),
            due: self.due <= now,
            cut_off: self.cut_off_at().is_some_and(|at| at <= now),
            awaits_health: self.awaits_health(),
            is_unfit: self.unhealthy_until().is_some_and(|at| at <= now),
            prepared,
        };
        step(&self.status, instruction, &facts)
    }

    /// Replaces the files of the running container that follow the newest version of a secret or config. Returns whether
    /// there was something to do.
    fn renew_values(&mut self) -> bool {
        let TaskContainer::Runs { running, .. } = &self.container else { return false };
        let assignment = self.orders.borrow().assignment.clone();
        let is_followed = self.spec.values().any(|(_, it)| it.signal.is_some());
        if !is_followed || assignment.values == self.renewed {
            return false;
        }
        match self.shared.executor.renew_values(&assignment, &*running.control) {
            Ok(()) => self.renewed = assignment.values,
            Err(error) => {
                tracing::error!(task.id = %self.task, %error, "failed to replace the secrets and configs of a task");
                self.due = Instant::now() + RENEW_RETRY;
                return false;
            }
        }
        true
    }

    /// Returns when the service wants its tasks stopped for lack of contact with a manager; `None` while there is
    /// contact, or if the service never wants that.
    fn cut_off_at(&self) -> Option<Instant> {
        let OnPartition::Stop(after) = self.spec.on_partition else { return None };
        Some(self.shared.contact.borrow().lost? + after)
    }

    /// Finds a running container, including one of an earlier daemon, or an end that was not judged yet.
    async fn find_container(&mut self) {
        if !matches!(self.container, TaskContainer::Absent) || self.status.state.is_terminal() {
            return;
        }
        // Neither a start nor an end may follow from an error: the container may run.
        let found = loop {
            match self.shared.executor.find(&self.task).await {
                Ok(found) => break found,
                Err(error) => tracing::warn!(task.id = %self.task, %error, "failed to find a task's container"),
            }
            tokio::time::sleep(FIND_RETRY).await;
        };
        match found {
            Some(Found::Runs(running)) => {
                let age = running.age;
                self.container = TaskContainer::Runs { running, found: Instant::now() };
                self.watch_health(age).await;
            }
            Some(Found::Ended(status)) if self.status.state >= TaskState::Starting => {
                // Only the wall clock tells how long a container of an earlier daemon ran.
                let by_wall = || self.status.at.until(Timestamp(status.at));
                let ran = self.started.map_or_else(by_wall, |started| started.elapsed());
                self.container = TaskContainer::Ended { status, ran, by_itself: true };
            }
            // It was started in this boot by an earlier daemon, whose record may be lost too.
            None if self.status.state >= TaskState::Starting && self.started.is_none() => {
                self.lost.get_or_insert("its container was lost");
            }
            Some(Found::Ended(_)) | None => {}
        }
    }

    /// Waits until a fact may have changed.
    async fn changed(&mut self) {
        let now = Instant::now();
        let cut_off_at = self.cut_off_at();
        let wake =
            [Some(self.due), cut_off_at, self.unhealthy_until()].into_iter().flatten().filter(|at| *at > now).min();
        let heeds_contact = self.spec.on_partition != OnPartition::Run;
        tokio::select! {
            () = changed(&mut self.orders) => {}
            () = changed(&mut self.shared.contact), if heeds_contact => {}
            () = tokio::time::sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            () = self.container.ended() => {}
            () = health::changed(&mut self.health) => {}
        }
    }

    /// Prepares everything that a container needs, as long as preparing remains the next step.
    async fn prepare(&mut self, prepared: &mut Prepared) {
        self.set(TaskState::Preparing, "").await;
        let assignment = self.orders.borrow().assignment.clone();
        let digest = self.status.image_digest.clone();
        let done = {
            let preparation = complete(prepared, &assignment, digest.as_deref());
            tokio::pin!(preparation);
            loop {
                tokio::select! {
                    done = &mut preparation => break Some(done),
                    () = self.changed() => if self.next(false) != Step::Prepare { break None },
                }
            }
        };
        match done {
            Some(Ok(())) => self.status.image_digest = prepared.digest().map(str::to_owned),
            Some(Err(error)) => self.reject(&error).await,
            None => tear_down(&self.task, prepared).await,
        }
    }

    async fn start(&mut self, prepared: &mut Prepared) {
        let (assignment, draft) = (self.orders.borrow().assignment.clone(), prepared.take_draft());
        self.set(TaskState::Starting, "").await;
        let now = Instant::now();
        self.started = Some(now);
        let started = self.shared.executor.start(&assignment, &draft).await;
        self.shared.starts.count(started.is_err(), now.elapsed());
        match started {
            Ok(running) => {
                self.failed_starts = 0;
                self.container = TaskContainer::Runs { running, found: now };
                self.watch_health(Duration::ZERO).await;
                self.report_running().await;
            }
            Err(ExecutorError::Transient(error)) if self.failed_starts + 1 < STARTS_BEFORE_GIVING_UP => {
                tracing::warn!(task.id = %self.task, %error, "failed to start a task; trying again");
                let delay = START_DELAY * 2u32.pow(self.failed_starts);
                self.failed_starts += 1;
                let now = self.now();
                self.spec.restart.restart(&mut self.history, now);
                self.status.error = with_causes(&*error);
                self.begin_attempt(delay, "waits to be started again").await;
                tear_down(&self.task, prepared).await;
            }
            Err(error) => self.reject(&error).await,
        }
    }

    /// Returns the digest of the task's image, if it is known.
    fn digest(&self) -> Option<String> {
        let named = self.orders.borrow().assignment.image.as_ref().map(|image| image.digest.clone());
        named.or_else(|| self.status.image_digest.clone())
    }

    /// Ends the container, and waits until what it has sent has arrived. Returns how it ended and how long it ran;
    /// `None` if there was none.
    async fn stop_container(&mut self) -> Option<(ExitStatus, Duration)> {
        self.health = None;
        let TaskContainer::Runs { mut running, found } = std::mem::replace(&mut self.container, TaskContainer::Absent)
        else {
            return None;
        };
        // The save comes before the signal: a daemon that restarts midway must not take the end for a crash.
        self.save().await;
        let digest = self.digest();
        let executor = &*self.shared.executor;
        let signal = executor.stop_signal(&self.spec, digest.as_deref()).await;
        let status = stop(executor, &self.task, &mut running, signal, self.spec.stop_grace).await;
        let killed = || ExitStatus { code: KILLED, out_of_memory: None, at: self.shared.clock.now().0 };
        let status = status.unwrap_or_else(killed);
        executor.flush(&self.task).await;
        self.status.exit_code = Some(status.code);
        Some((status, running.age + found.elapsed()))
    }

    /// Applies the restart policy to the end of a container that was not stopped by the runner. A program that has done its
    /// work has done it, although the leader wants the task stopped.
    async fn judge(&mut self) {
        let TaskContainer::Ended { status, ran, by_itself } =
            std::mem::replace(&mut self.container, TaskContainer::Absent)
        else {
            return;
        };
        self.health = None;
        // Once its end is reported, other nodes forget the task's addresses, and drop what comes from there.
        self.shared.executor.flush(&self.task).await;
        // An unhealthy program that stops as it was asked to has failed nevertheless; its error is known already.
        let is_unhealthy = self.status.is_unhealthy();
        self.status.exit_code = Some(status.code).filter(|code| *code != 0 || !is_unhealthy);
        if !is_unhealthy {
            self.status.error = restart::exit_error(&status);
        }
        if self.orders.borrow().instruction() == Instruction::Stop {
            // The order to stop is saved before it is carried out.
            let is_well = by_itself && !self.was_to_stop && self.status.exit_code == Some(0);
            return match is_well && self.spec.restart.condition != RestartCondition::Any {
                true => self.set(TaskState::Complete, "ended").await,
                false => self.set(TaskState::Shutdown, "stopped").await,
            };
        }
        let code = self.status.exit_code.unwrap_or(FAILED);
        let end = ProgramEnd { code, ran, at: self.now() };
        // Without a manager nobody would try another node.
        let may_leave =
            self.shared.contact.borrow().lost.is_none() && restart::can_move(&self.orders.borrow().assignment);
        match restart::after_end(&self.spec.restart, &mut self.history, end, may_leave) {
            Decision::Restart(delay) => self.begin_attempt(delay, "waits to be restarted").await,
            Decision::End(state) => {
                self.record_restarts();
                self.set(state, "ended").await;
            }
        }
    }

    /// Returns the time by a clock that does not step.
    fn now(&self) -> Timestamp {
        let (wall, monotonic) = self.begun;
        wall + monotonic.elapsed()
    }

    /// Puts the restarts of the slot into the status, by the wall clock, as all its times are.
    fn record_restarts(&mut self) {
        self.status.restarts = Some(Box::new(self.history.by_clock(self.now(), self.shared.clock.now())));
    }

    /// Begins the next attempt; its start is due after the delay.
    async fn begin_attempt(&mut self, delay: Duration, why: &str) {
        self.lost = None;
        self.due = Instant::now() + delay;
        self.status.attempt += 1;
        self.status.health = None;
        self.record_restarts();
        self.status.not_before = Some(self.shared.clock.now() + delay);
        self.set(TaskState::Ready, why).await;
    }

    async fn reject(&mut self, error: &ExecutorError) {
        self.status.error = with_causes(error);
        self.status.lacks_image = matches!(error, ExecutorError::Unfetched(_));
        self.set(TaskState::Rejected, "").await;
    }

    /// Moves the task to a state, which is saved on disk before it is reported.
    async fn set(&mut self, state: TaskState, message: &str) {
        tracing::debug!(task.id = %self.task, state.from = %self.status.state, state.to = %state, "task state changed");
        self.status.state = state;
        self.status.at = self.shared.clock.now();
        self.status.message = message.to_owned();
        if let Some((cut, _)) = self.status.error.char_indices().nth(ERROR_BOUND) {
            self.status.error.truncate(cut);
        }
        if state == TaskState::Running && !self.status.is_unhealthy() {
            self.status.error = String::new();
            self.status.not_before = None;
        }
        // A transient state need not outlive the daemon.
        if state >= TaskState::Starting || state == TaskState::Ready {
            self.save().await;
        }
        self.shared.reporter.report(&self.task, self.status.clone());
    }

    /// Saves the order and the status on disk.
    pub(crate) async fn save(&mut self) {
        let Order { mut assignment, removed, confirmed, .. } = self.orders.borrow().clone();
        assignment.status = self.status.clone();
        if removed {
            assignment.desired_state = DesiredState::Remove;
        }
        // Credentials are not kept on disk.
        assignment.credentials = None;
        assignment.mounted_images.iter_mut().for_each(|image| image.credentials = None);
        // The next daemon of this boot needs the same permission to start it.
        if confirmed || self.spec.keep_on_node_loss {
            self.boot_id = Arc::clone(&self.shared.boot_id);
        }
        let record = Record { boot_id: self.boot_id.to_string(), assignment };
        if let Err(error) = self.shared.records.save(record).await {
            tracing::error!(task.id = %self.task, %error, "failed to save a task's state");
        }
    }
}

/// Completes a preparation; retries transient errors.
async fn complete(prepared: &mut Prepared, assignment: &Assignment, digest: Option<&str>) -> Result<(), ExecutorError> {
    let mut tries = 1;
    loop {
        match prepared.complete(assignment, digest).await {
            Err(ExecutorError::Transient(error) | ExecutorError::Unfetched(error)) if tries < PREPARE_TRIES => {
                let error = with_causes(&*error);
                tracing::warn!(task.id = %assignment.task_id, error, "failed to prepare a task; trying again");
                tries += 1;
                tear_down(&assignment.task_id, prepared).await;
                tokio::time::sleep(PREPARE_DELAY * tries).await;
            }
            other => return other,
        }
    }
}

/// Returns the message of a task that was stopped although these nodes might still send it connections.
fn stopped(unconfirmed: &[String]) -> String {
    match unconfirmed {
        [] => "stopped".to_owned(),
        nodes => format!("stopped, although these nodes may still have sent it connections: {}", nodes.join(", ")),
    }
}

/// Removes what the last attempt left.
async fn tear_down(task: &TaskId, prepared: &mut Prepared) {
    log_leftovers(task, &prepared.undo().await);
}

/// Waits for the next value; never returns if the sender is gone.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
