//! One task on this node, from its assignment to its removal: prepare, start, wait, restart, stop.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use flota_api::model::{OnPartition, ServiceSpec, TaskStatus};
use flota_api::proto::dispatcher::{ImageSource, TaskAssignment};
use flota_api::proto::types::DesiredState;
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_image::ImageConfig;

use crate::describe::boot_id;
use crate::executor::{Executor, PrepareError};
use crate::reporter::Reporter;
use crate::restart::{self, Decision, Ended};
use crate::task_db::{Record, TaskDb};
use crate::translate::stop_signal;

/// Tries to get an image before the task is given back, so that another node is tried.
const PREPARE_TRIES: u32 = 3;
const PREPARE_DELAY: Duration = Duration::from_millis(500);
/// More restarts than a budget can have.
const RESTARTS_KEPT: usize = 1_000;
/// Characters of an error that are kept.
const ERROR_BOUND: usize = 1_000;
/// After SIGKILL a container ends; longer than this only where the kernel is stuck, and then it is said.
const KILL_WAIT: Duration = Duration::from_secs(15);

/// What the leader last said of the task.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) assignment: TaskAssignment,
    /// It is no longer named: stop it and remove everything of it.
    pub(crate) removed: bool,
    /// A whole set did not name it, and its grace runs.
    pub(crate) unnamed: bool,
    /// Whether the leader has named it since this boot.
    pub(crate) confirmed: bool,
}

impl Order {
    /// It is to be made ready, and not to run yet.
    fn waits(&self) -> bool {
        !self.stops() && self.assignment.desired_state == i32::from(DesiredState::Ready)
    }

    fn stops(&self) -> bool {
        self.removed || self.assignment.desired_state >= i32::from(DesiredState::Shutdown)
    }
}

/// The link to the leader, as the tasks see it: since when it is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) lost: Option<Instant>,
}

/// What runners share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) executor: Arc<Executor>,
    pub(crate) db: TaskDb,
    pub(crate) reporter: Reporter,
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
    restarts: Vec<Timestamp>,
    config: ImageConfig,
    /// What the image's name stood for at the first start, where the leader does not say: a restart asks nobody.
    digest: Option<String>,
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
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
        // How long ago they were is not known any more: they count as if they were now.
        let used = assignment.inherited_restarts + u64::from(status.attempt.saturating_sub(1));
        let restarts = vec![now(); usize::try_from(used).unwrap_or(usize::MAX).min(RESTARTS_KEPT)];
        Self {
            shared,
            orders,
            spec,
            bad_spec,
            status,
            in_a_row: 0,
            restarts,
            config: ImageConfig::default(),
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
            self.again(now(), "the machine was started anew");
        } else {
            // Taken over from an earlier life: the leader may not have heard the last of it.
            self.shared.reporter.report(&self.task, self.status.clone());
        }
        self.live().await;
        self.shared.live.lock().expect("no holder panics").remove(&self.task);
        self.shared.ended.notify_waiters();
        let over = self.orders.wait_for(|order| order.removed).await;
        drop(over.map(|_| ()));
        let (executor, task) = (self.shared.executor.clone(), self.task.clone());
        let _ = tokio::task::spawn_blocking(move || executor.remove(&task)).await;
        self.shared.db.remove(&self.task);
    }

    fn is_open(&self) -> bool {
        !self.status.state.is_terminal()
    }

    async fn live(&mut self) {
        while self.is_open() {
            if let Some(container) = self.shared.executor.find(&self.task) {
                self.watch_container(container).await;
            } else if let Some(ended) = self.take_ending() {
                let ran = self.status.at.until(Timestamp(ended.at));
                self.after(ended.code, ended.out_of_memory, ran);
            } else if matches!(self.wait_until_due().await, Woken::Stop) {
                self.set(TaskState::Shutdown, "stopped");
            } else {
                self.start().await;
            }
        }
    }

    /// A container that ended while no daemon watched; only when its start was this attempt's.
    fn take_ending(&self) -> Option<flota_runtime::ExitStatus> {
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
            let due = self.status.not_before.max(Timestamp(order.assignment.not_before));
            let wait = now().until(due);
            let allowed = order.confirmed || keep;
            if allowed && wait.is_zero() && !self.cut_off() {
                return Woken::Done;
            }
            let wait = if allowed && !wait.is_zero() { wait } else { Duration::from_secs(1) };
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() { return Woken::Stop },
                () = tokio::time::sleep(wait) => {}
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
        let (executor, task) = (self.shared.executor.clone(), self.task.clone());
        let _ = tokio::task::spawn_blocking(move || executor.clean(&task)).await;
        self.set(TaskState::Preparing, "");
        let prepared = tokio::select! {
            prepared = self.prepare(&assignment) => prepared,
            () = stop_order(self.orders.clone()) => return self.set(TaskState::Shutdown, "stopped"),
        };
        let (digest, layers, config) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.reject(&error),
        };
        self.digest = Some(digest);
        if self.orders.borrow().waits() {
            self.set(TaskState::Ready, "waits for its turn");
            let turn = self.orders.wait_for(|order| !order.waits()).await.map(|order| order.stops());
            if turn.unwrap_or(true) {
                return self.set(TaskState::Shutdown, "stopped");
            }
        }
        self.set(TaskState::Starting, "");
        let started = self.shared.executor.start(&assignment, &self.spec, layers, &config).await;
        self.config = config;
        match started {
            Ok(()) => self.set(TaskState::Running, ""),
            Err(error) => self.reject(&error),
        }
    }

    async fn prepare(
        &self,
        assignment: &TaskAssignment,
    ) -> Result<(String, Vec<std::path::PathBuf>, ImageConfig), PrepareError> {
        let mut tries = 1;
        loop {
            match self.shared.executor.prepare(assignment, self.digest.as_deref()).await {
                Err(PrepareError::Fetch(error)) if tries < PREPARE_TRIES => {
                    tracing::warn!(task.id = self.task, %error, "an image could not be had yet");
                    tries += 1;
                    tokio::time::sleep(PREPARE_DELAY * tries).await;
                }
                other => return other,
            }
        }
    }

    fn reject(&mut self, error: &PrepareError) {
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
    async fn watch_container(&mut self, mut container: UnixStream) {
        if self.status.state != TaskState::Running {
            self.set(TaskState::Running, "");
        }
        let executor = self.shared.executor.clone();
        let task = self.task.clone();
        // It may have run for days before this daemon began.
        let started = executor.age(&task).and_then(|age| Instant::now().checked_sub(age)).unwrap_or_else(Instant::now);
        if let Some(config) = self.digest.as_deref().and_then(|digest| executor.config(digest)) {
            self.config = config;
        }
        let ended = executor.wait(&task, &mut container);
        tokio::pin!(ended);
        loop {
            tokio::select! {
                status = &mut ended => return self.after(status.code, status.out_of_memory, started.elapsed()),
                () = stop_order(self.orders.clone()) => break,
                () = tokio::time::sleep(Duration::from_secs(1)), if self.spec.on_partition != OnPartition::Run => {
                    if self.cut_off() { break }
                }
            }
        }
        let cut_off = self.cut_off() && !self.orders.borrow().stops();
        // Before the signal: a daemon that begins anew in the middle must not take the end for a crash.
        self.note();
        executor.signal(&task, stop_signal(&self.spec, &self.config));
        let status = match tokio::time::timeout(self.spec.stop_grace, &mut ended).await {
            Ok(status) => status,
            Err(_) => {
                executor.signal(&task, nix::libc::SIGKILL);
                match tokio::time::timeout(KILL_WAIT, &mut ended).await {
                    Ok(status) => status,
                    Err(_) => {
                        tracing::error!(task.id = task, "a container does not end after SIGKILL; it is waited for");
                        ended.await
                    }
                }
            }
        };
        self.status.exit_code = Some(status.code);
        if cut_off {
            self.again(now(), "stopped: no manager was heard");
        } else {
            self.set(TaskState::Shutdown, "stopped");
        }
    }

    /// The container has ended by itself.
    fn after(&mut self, code: i32, out_of_memory: bool, ran: Duration) {
        self.status.exit_code = Some(code);
        self.in_a_row = restart::in_a_row(self.in_a_row, ran);
        let now = now();
        let restarts = restart::counted(&self.spec.restart, &mut self.restarts, now);
        let ended = Ended { code, restarts, in_a_row: self.in_a_row, now };
        self.status.error = match (code, out_of_memory) {
            (_, true) => format!("killed for want of memory (exit code {code})"),
            (0, _) => String::new(),
            (code, _) => format!("exit code {code}"),
        };
        if self.orders.borrow().stops() {
            return self.set(TaskState::Shutdown, "stopped");
        }
        match restart::decide(&self.spec.restart, &ended) {
            Decision::Restart(at) => {
                self.in_a_row += 1;
                self.restarts.truncate(RESTARTS_KEPT);
                self.restarts.push(now);
                self.again(at, "waits to be restarted");
            }
            Decision::End(state) => self.set(state, "ended"),
        }
    }

    /// The next attempt, not before `at`.
    fn again(&mut self, at: Timestamp, why: &str) {
        self.status.attempt += 1;
        self.status.not_before = at;
        self.set(TaskState::Ready, why);
    }

    /// A state is kept on disk before it is told.
    fn set(&mut self, state: TaskState, message: &str) {
        tracing::debug!(task.id = self.task, state.from = %self.status.state, state.to = %state, "task state changed");
        self.status.state = state;
        self.status.at = now();
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
        let record = Record { boot_id: boot_id(), assignment };
        if let Err(error) = self.shared.db.save(&record) {
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
