//! A machine in memory on which `FakeExecutor` starts containers. It outlives the daemon: its containers continue to
//! run, and the owner of the machine passes it to the next daemon. The end of a container is computed from the time at
//! the next access, so it needs no task of a daemon that was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use flota_api::model::{Assignment, NodeUsage, TaskVolume};

use super::fake_usage::FakeUsage;
use super::program::{FakeFailure, FakeHealth, FakeProgram, OnStop};
use super::{Counters, NodeCounters};

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningSlot {
    /// Its task.
    pub task: String,
    /// Name of the task's service.
    pub service: String,
    /// The task's slot in its service.
    pub slot: u64,
    /// When it was started.
    pub since: Instant,
}

/// A container that was started or has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineEvent {
    /// When it happened.
    pub at: Instant,
    /// Its task.
    pub task: String,
    /// Name of the task's service.
    pub service: String,
    /// The task's slot in its service.
    pub slot: u64,
    /// The event.
    pub what: WhatHappened,
}

/// An event in the life of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhatHappened {
    /// It was started.
    Started,
    /// It ended with this exit code; 128 + the signal's number if a signal ended it.
    Ended(i32),
}

/// A simulated machine. Clones are handles of the same machine.
#[derive(Clone, Debug)]
pub struct FakeMachine {
    name: String,
    inner: Arc<Mutex<Inner>>,
    /// Notified when the end of a container has been brought forward.
    changed: Arc<Notify>,
    /// The number of health checks that have begun.
    checks: Arc<watch::Sender<usize>>,
}

#[derive(Debug, Default)]
struct Inner {
    boot: u64,
    programs: BTreeMap<String, FakeProgram>,
    default_program: FakeProgram,
    usage: FakeUsage,
    /// The containers in the order of their starts. A task has several if its daemon starts one while another runs.
    containers: Vec<MachineContainer>,
    events: Vec<MachineEvent>,
    /// The steps that were prepared and not undone, by task and step, with the program that defines how the undo
    /// behaves.
    prepared: BTreeMap<(String, &'static str), FakeProgram>,
    /// The data of volumes: the id of the volume, and the slot. It outlives a boot.
    volumes: BTreeSet<(String, Option<u64>)>,
    /// The volumes that a task uses.
    volume_uses: BTreeMap<String, Vec<String>>,
    /// Whether daemons take tasks for ones without a health check.
    is_unchecked: bool,
    /// The tasks of which a health check has succeeded.
    passed: BTreeSet<String>,
    /// How often each action has failed.
    failures: BTreeMap<(String, Act), u32>,
}

/// The actions that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Act {
    Prepare,
    Start,
    Signal,
    Undo,
}

#[derive(Clone, Debug)]
struct MachineContainer {
    running: RunningSlot,
    on_stop: OnStop,
    health: FakeHealth,
    signal_failure: Option<FakeFailure>,
    /// When the container ends, if that is known, and its exit code.
    end: Option<(Instant, i32)>,
    has_ended: bool,
    /// The CPU time in nanoseconds that it had used at this time.
    used: (Instant, u64),
}

impl Inner {
    /// Records every end whose time has come, in the order of their times.
    fn settle(&mut self) {
        let now = Instant::now();
        loop {
            let due = self.containers.iter_mut().filter(|it| !it.has_ended && it.end.is_some_and(|(at, _)| at <= now));
            let Some(container) = due.min_by_key(|it| it.end) else { return };
            container.has_ended = true;
            let (at, code) = container.end.expect("those that are due have an end");
            let event = event(&container.running, at, WhatHappened::Ended(code));
            self.events.push(event);
        }
    }

    fn last(&self, task: &str) -> Option<&MachineContainer> {
        self.containers.iter().rfind(|it| it.running.task == task)
    }
}

fn event(running: &RunningSlot, at: Instant, what: WhatHappened) -> MachineEvent {
    MachineEvent { at, task: running.task.clone(), service: running.service.clone(), slot: running.slot, what }
}

impl FakeMachine {
    /// Returns a machine that has just booted; `name` makes its boot ids differ from those of other machines.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), inner: Arc::default(), changed: Arc::default(), checks: Arc::default() }
    }

    /// Returns the identifier of the current boot.
    pub fn boot_id(&self) -> String {
        format!("{} boot {}", self.name, self.with(|inner| inner.boot))
    }

    /// Reboots the machine: all containers are lost, and the boot id changes.
    pub fn reboot(&self) {
        self.with(|inner| {
            inner.boot += 1;
            for container in inner.containers.iter_mut().filter(|it| !it.has_ended) {
                container.end = Some((Instant::now(), 137));
            }
            inner.settle();
            inner.containers.clear();
            inner.prepared.clear();
            inner.volume_uses.clear();
        });
        self.changed.notify_waiters();
    }

    /// Sets the behaviour of containers of this service, image or task from their next start on. The program of a task takes
    /// precedence over that of its image, and that over that of its service.
    pub fn set_program(&self, of: &str, program: FakeProgram) {
        self.with(|inner| inner.programs.insert(of.to_owned(), program));
    }

    /// Sets the behaviour of containers for which [`FakeMachine::set_program`] was not called.
    pub fn set_default_program(&self, program: FakeProgram) {
        self.with(|inner| inner.default_program = program);
    }

    /// Returns the running containers.
    pub fn running(&self) -> Vec<RunningSlot> {
        self.with(|inner| inner.containers.iter().filter(|it| !it.has_ended).map(|it| it.running.clone()).collect())
    }

    /// Returns every start and end since the last call, in the order of their times.
    pub fn take_events(&self) -> Vec<MachineEvent> {
        self.with(|inner| std::mem::take(&mut inner.events))
    }

    /// Kills the container of a task from outside, as an operator or the kernel may; does nothing if none runs.
    pub fn kill(&self, task: &str) {
        self.end(|it| it.running.task == task && it.on_stop != OnStop::Hang, Instant::now(), 137);
    }

    /// Kills everything in the control groups of a task.
    pub(super) fn kill_all(&self, task: &str) {
        self.end(|it| it.running.task == task, Instant::now(), 137);
    }

    /// Returns the error if the next signal to the task's container is lost.
    pub(super) fn signal_failure(&self, task: &str) -> Option<String> {
        let failure = self.with(|inner| inner.last(task).and_then(|it| it.signal_failure.clone()));
        self.failure(task, Act::Signal, failure)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock().expect("no holder panics");
        inner.settle();
        act(&mut inner)
    }

    /// Brings the end of these containers forward.
    fn end(&self, of: impl Fn(&MachineContainer) -> bool, at: Instant, code: i32) {
        self.with(|inner| {
            for container in inner.containers.iter_mut().filter(|it| !it.has_ended && of(it)) {
                container.end = Some(container.end.map_or((at, code), |end| end.min((at, code))));
            }
            inner.settle();
        });
        self.changed.notify_waiters();
    }

    pub(super) fn program(&self, task: &Assignment) -> FakeProgram {
        let names = [task.task_id.as_str(), &task.spec.image, &task.service_name];
        self.with(|inner| {
            let program = names.into_iter().find_map(|name| inner.programs.get(name));
            program.unwrap_or(&inner.default_program).clone()
        })
    }

    pub(super) fn start(&self, task: &str, service: &str, slot: u64, program: &FakeProgram) {
        let now = Instant::now();
        let running = RunningSlot { task: task.to_owned(), service: service.to_owned(), slot, since: now };
        let end = program.runs.map(|runs| (now + runs, program.exit_code));
        self.with(|inner| {
            inner.events.push(event(&running, now, WhatHappened::Started));
            let (on_stop, health) = (program.on_stop, program.health);
            let signal_failure = program.signal_failure.clone();
            let (has_ended, used) = (false, (now, 0));
            inner.containers.push(MachineContainer { running, on_stop, health, signal_failure, end, has_ended, used });
        });
    }

    /// Returns when the task's last container was started, if it runs.
    pub(super) fn started(&self, task: &str) -> Option<Instant> {
        self.with(|inner| inner.last(task).filter(|it| !it.has_ended).map(|it| it.running.since))
    }

    /// Returns when and with which exit code the task's last container ended.
    pub(super) fn ended(&self, task: &str) -> Option<(Instant, i32)> {
        self.with(|inner| inner.last(task).filter(|it| it.has_ended).and_then(|it| it.end))
    }

    /// Returns what the task's last container has used, if it runs.
    pub(super) fn counters(&self, task: &str) -> Option<Counters> {
        self.with(|inner| {
            let service = inner.last(task).filter(|it| !it.has_ended)?.running.service.clone();
            let program = inner.programs.get(task).or_else(|| inner.programs.get(&service));
            let FakeProgram { nano_cpus, memory_bytes, .. } = *program.unwrap_or(&inner.default_program);
            let container = inner.containers.iter_mut().rfind(|it| it.running.task == task)?;
            let (now, (since, used)) = (Instant::now(), container.used);
            let more = (now - since).as_nanos() * u128::from(nano_cpus) / 1_000_000_000;
            container.used = (now, used + u64::try_from(more).unwrap_or(u64::MAX - used));
            Some(Counters {
                cpu_nanos: Some(container.used.1),
                memory_bytes: Some(memory_bytes),
                ..Counters::default()
            })
        })
    }

    /// Lets the machine use this share of itself from now on.
    pub fn set_usage(&self, usage: NodeUsage) {
        self.with(|inner| inner.usage.set(usage));
    }

    pub(super) fn node_counters(&self) -> NodeCounters {
        self.with(|inner| inner.usage.counters())
    }

    /// Returns what a health check of the task's last container finds now; `None` if the check hangs.
    pub(super) fn is_healthy(&self, task: &str) -> Option<bool> {
        self.checks.send_modify(|checks| *checks += 1);
        self.with(|inner| {
            let Some(container) = inner.last(task).filter(|it| !it.has_ended) else { return Some(false) };
            let age = container.running.since.elapsed();
            let is_healthy = match container.health {
                FakeHealth::Good => true,
                FakeHealth::From(begin) => age >= begin,
                FakeHealth::Until(end) => age < end,
                FakeHealth::Hangs => return None,
            };
            if is_healthy {
                inner.passed.insert(task.to_owned());
            }
            Some(is_healthy)
        })
    }

    /// Sets whether daemons see that tasks have health checks, as they do at first.
    pub fn set_checked(&self, is_checked: bool) {
        self.with(|inner| inner.is_unchecked = !is_checked);
    }

    pub(super) fn is_checked(&self) -> bool {
        self.with(|inner| !inner.is_unchecked)
    }

    /// Returns whether a health check of the task has ever succeeded.
    pub fn has_been_healthy(&self, task: &str) -> bool {
        self.with(|inner| inner.passed.contains(task))
    }

    /// Waits until another health check has begun.
    #[cfg(test)]
    pub(crate) async fn checked(&self) {
        // The sender lives as long as the machine.
        let _ = self.checks.subscribe().changed().await;
    }

    /// Waits until the task's last container has been told to stop.
    #[cfg(test)]
    pub(crate) async fn stopping(&self, task: &str) {
        loop {
            let changed = self.changed.notified();
            if self.with(|inner| inner.last(task).is_some_and(|it| it.end.is_some())) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the task's last container has ended. A container that no longer exists was killed.
    pub(crate) async fn wait(&self, task: &str) -> (Instant, i32) {
        loop {
            // This comes before the check, so that no change in between is missed.
            let changed = self.changed.notified();
            let end = self.with(|inner| inner.last(task).map(|it| (it.has_ended, it.end)));
            match end {
                None => return (Instant::now(), 137),
                Some((true, end)) => return end.expect("what has ended has an end"),
                Some((false, Some((at, _)))) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = changed => {}
                    }
                }
                Some((false, None)) => changed.await,
            }
        }
    }

    pub(super) fn stop(&self, task: &str) {
        let on_stop = self.with(|inner| inner.last(task).map(|it| it.on_stop));
        if let Some(OnStop::Exit { after, code }) = on_stop {
            self.end(|it| it.running.task == task, Instant::now() + after, code);
        }
    }

    /// Removes the ended containers of a task. A running one stays, as on a real machine.
    pub(super) fn clean(&self, task: &str) {
        self.with(|inner| inner.containers.retain(|it| it.running.task != task || !it.has_ended));
    }

    /// Returns the tasks that have a container or a prepared step on this machine.
    pub fn tasks(&self) -> BTreeSet<String> {
        self.with(|inner| {
            let containers = inner.containers.iter().map(|it| &it.running.task);
            containers.chain(inner.prepared.keys().map(|(task, _)| task)).cloned().collect()
        })
    }

    /// Makes the data of these volumes, where there is none, and records that the task uses it.
    pub(super) fn use_volumes(&self, task: &str, volumes: &[TaskVolume]) {
        self.with(|inner| {
            let folders = volumes.iter().filter(|it| it.file_system.is_none());
            inner.volumes.extend(folders.map(|it| (it.id.to_string(), it.slot)));
            let used = volumes.iter().map(|it| it.id.to_string()).collect();
            inner.volume_uses.insert(task.to_owned(), used);
        });
    }

    /// Records that the task uses no volume any more.
    pub(super) fn leave_volumes(&self, task: &str) {
        self.with(|inner| inner.volume_uses.remove(task));
    }

    /// Drops the data of a volume, unless a task uses it. Returns whether nothing is left.
    pub(crate) fn drop_volume(&self, volume: &str) -> bool {
        self.with(|inner| {
            let is_used = inner.volume_uses.values().flatten().any(|used| used == volume);
            if !is_used {
                inner.volumes.retain(|(id, _)| id != volume);
            }
            !is_used
        })
    }

    /// Returns the data of volumes on this machine: the id of the volume, and the slot that it belongs to.
    pub fn volumes(&self) -> BTreeSet<(String, Option<u64>)> {
        self.with(|inner| inner.volumes.clone())
    }

    /// Records what a step has prepared for a container with this program.
    pub(super) fn prepare(&self, task: &str, step: &'static str, program: FakeProgram) {
        self.with(|inner| inner.prepared.insert((task.to_owned(), step), program));
    }

    /// Returns the time that undoing a step takes.
    pub(super) fn undo_delay(&self, task: &str, step: &'static str) -> Duration {
        self.prepared(task, step).map(|it| it.undo_delay).unwrap_or_default()
    }

    pub(super) fn flush_delay(&self, task: &str, step: &'static str) -> Duration {
        self.prepared(task, step).map(|it| it.flush_delay).unwrap_or_default()
    }

    /// Returns the program of a step that was prepared and not undone.
    fn prepared(&self, task: &str, step: &'static str) -> Option<FakeProgram> {
        self.with(|inner| inner.prepared.get(&(task.to_owned(), step)).cloned())
    }

    /// Removes what a step has prepared. Returns the error if that fails.
    pub(super) fn undo(&self, task: &str, step: &'static str) -> Option<String> {
        let key = (task.to_owned(), step);
        let failure = self.with(|inner| inner.prepared.get(&key)?.undo_failure.clone());
        let error = self.failure(task, Act::Undo, failure);
        if error.is_none() {
            self.with(|inner| inner.prepared.remove(&key));
        }
        error
    }

    /// Returns the error if the action fails this time.
    pub(super) fn failure(&self, task: &str, act: Act, failure: Option<FakeFailure>) -> Option<String> {
        let failure = failure?;
        self.with(|inner| {
            let failed = inner.failures.entry((task.to_owned(), act)).or_default();
            *failed += 1;
            failure.times.is_none_or(|times| *failed <= times).then_some(failure.error)
        })
    }

    /// Forgets how often actions on the task have failed.
    pub(super) fn forget(&self, task: &str) {
        self.with(|inner| inner.failures.retain(|(it, _), _| it != task));
    }
}
