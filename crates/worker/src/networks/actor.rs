//! The thread that makes kernel and DNS what the leader has described, one change after the other. Commands come from
//! the session and from the preparation of tasks; none of them waits here, except for its own answer.
//!
//! What could not be done is kept and tried again. An update counts as programmed only when everything up to it is
//! done. At the start and at intervals everything is compared with the kernel, and drift is mended. A daemon that starts
//! first waits for the leader, because its record may be older than what the kernel has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use flota_api::id::{NetworkId, TaskId};
use flota_api::model::{Assignment, NetworkUpdate, NodePort};
use flota_api::version::Version;

use super::check::CheckPlan;
use super::kernel::{AttachError, Attached, DESCRIPTION_WAIT, Kernel, KernelError, TaskSockets};
use super::record::NetworkRecord;
use super::view::{Touched, View};
use super::{Chain, NetworkFacts};

/// Pause between two comparisons of everything with the kernel.
const AUDIT: Duration = Duration::from_secs(30);
/// Pause before what has failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Pause between two looks at the ports on which the node's own programs listen. One that was not there at the last look
/// is not reported yet: programs that only ask something do not stay.
const LOOK: Duration = Duration::from_secs(2);
/// Delay of the record after a change; changes in between are recorded together.
const SAVE: Duration = Duration::from_secs(1);
/// How long a daemon that starts waits for the leader before it brings the kernel to what is recorded. It is shorter than
/// the time after which resolvers ask again (resolv.conf(5)), because questions of tasks wait too.
const RECORD_WAIT: Duration = Duration::from_secs(3);

/// How long the network of an ended task is kept for what its programs have sent and their peers have not confirmed: if the
/// way is short, TCP sends a lost segment again after 0.2 s. Meanwhile the task's kernel refuses connections whose first
/// segment was lost on the way to it. TCP sends that again after a second (RFC 6298), and then finds another task.
const FLUSH_WAIT: Duration = Duration::from_millis(300);
/// Pause between two looks at the connections of an ended task.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

/// What the thread tells the session.
pub(super) struct Told {
    pub(super) programmed: watch::Sender<Version>,
    pub(super) facts: watch::Sender<NetworkFacts>,
}

/// A request to the thread.
pub(super) enum Command {
    /// All tasks of an earlier daemon are accepted. Nothing is changed before.
    Begin,
    /// The leader has described the networks.
    Update(NetworkUpdate),
    /// The task belongs to this node.
    Accept(Box<Assignment>),
    /// Makes the network of a task's container.
    Attach(TaskId, oneshot::Sender<Result<Attached, AttachError>>),
    /// An earlier daemon has made the network of a task; these are its sockets.
    Adopt(TaskId, TaskSockets),
    /// Plans the check of a network.
    Check(NetworkId, oneshot::Sender<CheckPlan>),
    /// Answers when the kernel has sent what the programs of an ended task have written, or gives up.
    Flush(TaskId, oneshot::Sender<()>),
    /// Removes the network of a task's container.
    Detach(TaskId, oneshot::Sender<Result<(), KernelError>>),
    /// The task no longer belongs to this node.
    Forget(TaskId),
    /// Every node that shares an encrypted network with this one knows this public key of this node.
    KeyKnown([u8; 32]),
    /// The managers have these addresses.
    Managers(BTreeSet<IpAddr>),
    /// The node leaves its cluster, and no task is left. Nothing is made afterwards.
    Leave(oneshot::Sender<Result<(), KernelError>>),
}

/// A task that waits for the description of its networks.
struct Waiting {
    task: TaskId,
    answer: oneshot::Sender<Result<Attached, AttachError>>,
    until: Instant,
}

/// An ended task whose peers may not have confirmed everything that it has sent.
struct Flushing {
    task: TaskId,
    answer: oneshot::Sender<()>,
    until: Instant,
}

/// The state of the thread.
pub(super) struct Actor<K> {
    kernel: K,
    record: NetworkRecord,
    told: Told,
    view: View,
    /// Whether the view is what a leader has told, now or to an earlier daemon. Without that nothing is removed.
    is_known: bool,
    /// Whether the tasks of an earlier daemon are accepted.
    has_begun: bool,
    /// Whether an update was not confirmed yet.
    is_news: bool,
    /// Whether the kernel was told something that [`Kernel::program`] carries out.
    is_changed: bool,
    /// What may differ from the view.
    todo: Touched,
    /// Tasks of this node.
    tasks: BTreeMap<TaskId, Assignment>,
    /// Tasks that have a namespace.
    attached: BTreeSet<TaskId>,
    waiting: Vec<Waiting>,
    flushing: Vec<Flushing>,
    /// Tasks whose networks are to be removed.
    leaving: VecDeque<(TaskId, oneshot::Sender<Result<(), KernelError>>)>,
    /// The sockets of tasks of an earlier daemon whose networks are not adopted yet.
    orphaned: BTreeMap<TaskId, TaskSockets>,
    retry_at: Option<Instant>,
    save_at: Option<Instant>,
    audit_at: Instant,
    /// The ports on which the node's own programs listened at the last look.
    seen: BTreeSet<NodePort>,
    look_at: Instant,
    /// Until when the leader is waited for, because the view is a record.
    recorded_until: Option<Instant>,
}

impl<K: Kernel> Actor<K> {
    pub(super) fn new(mut kernel: K, record: NetworkRecord, told: Told) -> Self {
        let seen = told.facts.borrow().ports.clone();
        kernel.leave_ports(&seen);
        let mut view = View::default();
        let recorded = record.load();
        let is_known = recorded.is_some();
        recorded.into_iter().for_each(|update| drop(view.apply(NetworkUpdate { full: true, ..update })));
        Self {
            attached: kernel.tasks(),
            kernel,
            record,
            told,
            view,
            is_known,
            has_begun: false,
            is_news: false,
            is_changed: false,
            todo: Touched::default(),
            tasks: BTreeMap::new(),
            waiting: Vec::new(),
            flushing: Vec::new(),
            leaving: VecDeque::new(),
            orphaned: BTreeMap::new(),
            retry_at: None,
            save_at: None,
            audit_at: Instant::now(),
            seen,
            look_at: Instant::now() + LOOK,
            recorded_until: is_known.then(|| Instant::now() + RECORD_WAIT),
        }
    }

    /// Runs until all senders of commands are gone.
    pub(super) fn run(mut self, commands: &mpsc::Receiver<Command>) {
        loop {
            let now = Instant::now();
            let wake_at = if self.leaving.is_empty() { self.wake_at(now) } else { now };
            match commands.recv_timeout(wake_at.saturating_duration_since(now)) {
                Ok(first) => {
                    let now = Instant::now();
                    std::iter::once(first).chain(commands.try_iter()).for_each(|it| self.handle(it, now));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) if self.leaving.is_empty() => break,
                Err(_) => {}
            }
            self.turn(Instant::now());
        }
        if self.save_at.is_some() {
            self.record.save(self.view.to_update());
        }
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let waiting = self.waiting.iter().map(|it| it.until);
        let due = [self.look_at].into_iter().chain(waiting).chain(self.retry_at).chain(self.save_at);
        let wake_at = self.recorded_until.unwrap_or(due.fold(self.audit_at, Instant::min));
        if self.flushing.is_empty() { wake_at } else { wake_at.min(now + FLUSH_PAUSE) }
    }

    fn handle(&mut self, command: Command, now: Instant) {
        match command {
            Command::Begin => self.has_begun = true,
            Command::Managers(managers) => {
                self.kernel.set_managers(managers);
                self.is_changed = true;
            }
            Command::Update(update) => self.update(update, now),
            Command::Accept(task) => drop(self.tasks.insert(task.task_id.clone(), *task)),
            Command::Attach(task, answer) => {
                self.waiting.push(Waiting { task, answer, until: now + DESCRIPTION_WAIT });
            }
            Command::Adopt(task, sockets) => drop(self.orphaned.insert(task, sockets)),
            Command::Check(network, answer) => drop(answer.send(self.kernel.plan_check(&self.view, &network))),
            Command::Flush(task, answer) => self.flushing.push(Flushing { task, answer, until: now + FLUSH_WAIT }),
            Command::Detach(task, answer) => {
                self.waiting.retain(|it| it.task != task);
                self.orphaned.remove(&task);
                // One may have been made before the network, for a task with ids of its own.
                if self.attached.contains(&task) || self.kernel.has_namespace(&task) {
                    self.leaving.push_back((task, answer));
                } else {
                    // A new task removes what may be left of it, and must not wait for those that end.
                    let _ = answer.send(Ok(()));
                }
            }
            Command::Forget(task) => drop(self.tasks.remove(&task)),
            Command::KeyKnown(public) => {
                self.kernel.settle_key(public);
                self.look_at = now;
            }
            Command::Leave(answer) => {
                (self.has_begun, self.save_at) = (false, None);
                let _ = answer.send(self.kernel.remove_all());
            }
        }
    }

    fn update(&mut self, update: NetworkUpdate, now: Instant) {
        let recorded = self.recorded_until.filter(|_| update.full).map(|_| self.view.clone());
        if update.full {
            // What an earlier view had is removed even if this daemon does not know that it is there.
            self.todo.networks.extend(self.kernel.networks());
            (self.is_known, self.recorded_until) = (true, None);
        }
        self.todo.extend(self.view.apply(update));
        recorded.iter().for_each(|recorded| self.kernel.succeed(recorded, &self.view));
        (self.is_news, self.retry_at) = (true, None);
        self.save_at.get_or_insert(now + SAVE);
    }

    /// Does what is due.
    fn turn(&mut self, now: Instant) {
        self.answer_flushed(now);
        self.detach_next();
        self.recorded_until = self.recorded_until.filter(|until| *until > now);
        if !self.has_begun || self.recorded_until.is_some() {
            self.audit_at = self.audit_at.max(now + RETRY);
            self.look_at = self.look_at.max(now + LOOK);
            return;
        }
        if self.audit_at <= now {
            self.audit_at = now + AUDIT;
            self.audit();
        }
        if self.is_known && self.retry_at.is_none_or(|at| at <= now) {
            self.program(now);
        }
        let is_changed = self.is_known && std::mem::take(&mut self.is_changed);
        if self.adopt_orphaned() | self.attach_waiting(now) | is_changed {
            self.program(now);
        }
        if self.look_at <= now {
            self.look_at = now + LOOK;
            self.look(now);
        }
        if self.save_at.is_some_and(|at| at <= now) {
            self.save_at = None;
            self.record.save(self.view.to_update());
        }
    }

    /// Looks at the node's own network, and says what has changed.
    fn look(&mut self, now: Instant) {
        self.kernel.renew_key();
        let found = self.kernel.facts();
        let ports: BTreeSet<NodePort> = found.ports.intersection(&self.seen).copied().collect();
        self.seen = found.ports;
        let tasks = found.tasks.into_iter().filter(|(port, _)| ports.contains(port)).collect();
        let new = NetworkFacts { ports, tasks, ..found };
        let last = self.told.facts.borrow().clone();
        if new.ports != last.ports {
            self.kernel.leave_ports(&new.ports);
            if self.is_known {
                self.program(now);
            }
        }
        if new != last {
            self.told.facts.send_replace(new);
        }
    }

    /// Compares everything with the kernel.
    fn audit(&mut self) {
        if !self.is_known {
            return;
        }
        self.todo.extend(self.view.all());
        self.todo.networks.extend(self.kernel.networks());
        if let Err(error) = self.kernel.audit(&self.view) {
            tracing::warn!(error = %Chain(&error), "failed to mend the networks");
        }
    }

    fn program(&mut self, now: Instant) {
        let attached = self.attached.iter().filter_map(|task| self.tasks.get(task));
        let tasks: Vec<&Assignment> = attached.collect();
        match self.kernel.program(&self.view, &tasks, &mut self.todo) {
            Ok(()) => {
                self.retry_at = None;
                if std::mem::take(&mut self.is_news) {
                    // A new session may begin with the version that an earlier one ended with, and waits for it again.
                    self.told.programmed.send_replace(self.view.version);
                }
                self.kernel.settle();
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "failed to program the networks; trying again");
                self.retry_at = Some(now + RETRY);
            }
        }
    }

    /// Makes the networks of tasks whose networks are all described.
    /// Returns whether there was any.
    fn attach_waiting(&mut self, now: Instant) -> bool {
        let before = self.attached.len();
        for waiting in std::mem::take(&mut self.waiting) {
            let Some(task) = self.tasks.get(&waiting.task) else { continue };
            if self.leaving.iter().any(|(leaving, _)| *leaving == waiting.task) {
                self.waiting.push(waiting);
                continue;
            }
            match self.missing(task) {
                Some(missing) if waiting.until <= now => {
                    let _ = waiting.answer.send(Err(missing));
                }
                Some(_) => self.waiting.push(waiting),
                None => {
                    // The namespace may be there even if the rest of it has failed.
                    self.attached.insert(waiting.task.clone());
                    let _ = waiting.answer.send(self.kernel.attach(&self.view, task));
                }
            }
        }
        self.attached.len() != before
    }

    /// Takes over the networks of an earlier daemon's tasks, as soon as they are described.
    /// Returns whether there was any.
    fn adopt_orphaned(&mut self) -> bool {
        let before = self.orphaned.len();
        for (id, sockets) in std::mem::take(&mut self.orphaned) {
            let Some(task) = self.tasks.get(&id) else { continue };
            let adopted = match self.missing(task) {
                Some(_) => false,
                None => self.kernel.adopt(&self.view, task, &sockets).inspect_err(log_failed_adoption(&id)).is_ok(),
            };
            if !adopted {
                self.orphaned.insert(id, sockets);
            }
        }
        self.orphaned.len() != before
    }

    /// Returns what the leader has not described of the task's networks. The bridge of a task without networks depends on
    /// which networks there are.
    fn missing(&self, task: &Assignment) -> Option<AttachError> {
        let unknown = task.attachments.iter().map(|it| &it.network).find(|it| self.view.network(it).is_none());
        let unknown = unknown.map(|it| AttachError::Unknown(it.clone()));
        unknown.or_else(|| (!self.is_known).then_some(AttachError::Undescribed))
    }

    /// Answers for the tasks that have sent everything, and for those that were waited for long enough.
    fn answer_flushed(&mut self, now: Instant) {
        for flushing in std::mem::take(&mut self.flushing) {
            let is_sending = self.kernel.is_sending(&flushing.task);
            if is_sending && now < flushing.until {
                self.flushing.push(flushing);
                continue;
            }
            if is_sending {
                tracing::debug!(task.id = %flushing.task, "peers have not confirmed all that an ended task has sent");
            }
            // A runner that has given up does not read the answer.
            let _ = flushing.answer.send(());
        }
    }

    /// Removes the network of one task. The kernel takes many milliseconds for it, and a task that starts must not wait
    /// for all that end.
    fn detach_next(&mut self) {
        if let Some((task, answer)) = self.leaving.pop_front() {
            // A runner that has given up does not read the answer.
            let _ = answer.send(self.detach(&task));
        }
    }

    fn detach(&mut self, task: &TaskId) -> Result<(), KernelError> {
        self.kernel.detach(task, self.tasks.get(task))?;
        self.attached.remove(task);
        // Its networks may have been waiting for it to go.
        let networks = self.tasks.get(task).into_iter().flat_map(|it| &it.attachments).map(|it| it.network.clone());
        self.todo.networks.extend(networks);
        Ok(())
    }
}

fn log_failed_adoption(task: &TaskId) -> impl FnOnce(&AttachError) {
    move |error| {
        tracing::warn!(task.id = %task, error = %Chain(error), "failed to take over the network of a task; trying again");
    }
}

#[cfg(test)]
mod tests;
