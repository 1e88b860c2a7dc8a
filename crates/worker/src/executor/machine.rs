//! A machine in memory whose containers `FakeExecutor` starts. It outlives the daemon: whoever holds the machine sees
//! its containers run on, and gives it to the next daemon. A container ends by time alone, computed when somebody
//! looks, so no task of a daemon that was killed is needed for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What the containers of a service or of a task do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeProgram {
    /// How long it takes to bring the image here.
    pub prepare_delay: Duration,
    /// Whether the image can't be brought here. Its task is rejected after some tries, unless a later one succeeds.
    pub prepare_failure: Option<FakeFailure>,
    /// How long it takes until the container runs.
    pub start_delay: Duration,
    /// Whether the container can't be started: its task is rejected then.
    pub start_failure: Option<FakeFailure>,
    /// How long the daemon does not know that the container runs. A daemon that is killed in that time leaves a container
    /// that it has not recorded as running.
    pub answer_delay: Duration,
    /// How long the program runs until it ends by itself; `None`: until it is stopped.
    pub runs: Option<Duration>,
    /// Its exit code when it ends by itself.
    pub exit_code: i32,
    /// What it does when it is asked to stop.
    pub on_stop: OnStop,
    /// How long it takes to remove what an ended container leaves.
    pub undo_delay: Duration,
    /// Whether that can't be removed.
    pub undo_failure: Option<FakeFailure>,
}

/// An act on a task that fails, always or some times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeFailure {
    /// Why it fails.
    pub error: String,
    /// How many times it fails for each task before it succeeds; `None`: always.
    pub times: Option<u32>,
}

impl FakeFailure {
    /// Fails always.
    pub fn always(error: &str) -> Self {
        Self { error: error.to_owned(), times: None }
    }

    /// Fails the first few times for each task.
    pub fn first(times: u32, error: &str) -> Self {
        Self { error: error.to_owned(), times: Some(times) }
    }
}

impl Default for FakeProgram {
    /// Starts at once, runs until it is stopped, and stops at once.
    fn default() -> Self {
        Self {
            prepare_delay: Duration::ZERO,
            prepare_failure: None,
            start_delay: Duration::ZERO,
            start_failure: None,
            answer_delay: Duration::ZERO,
            runs: None,
            exit_code: 0,
            on_stop: OnStop::Exit { after: Duration::ZERO, code: 143 },
            undo_delay: Duration::ZERO,
            undo_failure: None,
        }
    }
}

/// What a program does when it is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// It ends.
    Exit {
        /// How long that takes.
        after: Duration,
        /// Its exit code then.
        code: i32,
    },
    /// It goes on until it is killed.
    Ignore,
}

/// A container that runs.
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
    /// When that was.
    pub at: Instant,
    /// Its task.
    pub task: String,
    /// Name of the task's service.
    pub service: String,
    /// The task's slot in its service.
    pub slot: u64,
    /// What happened.
    pub what: WhatHappened,
}

/// What happened to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhatHappened {
    /// It was started.
    Started,
    /// It ended with this exit code; 128 + the signal's number if a signal ended it.
    Ended(i32),
}

/// The machine. Clones are handles of the same machine.
#[derive(Clone, Debug)]
pub struct FakeMachine {
    name: String,
    inner: Arc<Mutex<Inner>>,
    /// The end of some container has been brought forward.
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    boot: u64,
    programs: BTreeMap<String, FakeProgram>,
    default_program: FakeProgram,
    /// In the order of their starts. A task has several if its daemon starts one while another runs.
    containers: Vec<Container>,
    events: Vec<MachineEvent>,
    /// What was prepared and not undone, by task and step, with the program that says how that goes.
    prepared: BTreeMap<(String, &'static str), FakeProgram>,
    /// How often each act has failed.
    failures: BTreeMap<(String, Act), u32>,
}

/// What can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Act {
    Prepare,
    Start,
    Undo,
}

#[derive(Clone, Debug)]
struct Container {
    running: RunningSlot,
    on_stop: OnStop,
    /// When it ends, as far as that is known, and the exit code then.
    end: Option<(Instant, i32)>,
    has_ended: bool,
}

impl Inner {
    /// Notes every end that has come by now, in the order of their times.
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

    fn last(&self, task: &str) -> Option<&Container> {
        self.containers.iter().rfind(|it| it.running.task == task)
    }
}

fn event(running: &RunningSlot, at: Instant, what: WhatHappened) -> MachineEvent {
    MachineEvent { at, task: running.task.clone(), service: running.service.clone(), slot: running.slot, what }
}

impl FakeMachine {
    /// A machine that has just booted; `name` makes its boot ids differ from those of other machines.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), inner: Arc::default(), changed: Arc::default() }
    }

    /// Identifies the current boot.
    pub fn boot_id(&self) -> String {
        format!("{} boot {}", self.name, self.with(|inner| inner.boot))
    }

    /// Reboots: nothing is left of its containers, and the boot id is another one.
    pub fn reboot(&self) {
        self.with(|inner| {
            inner.boot += 1;
            for container in inner.containers.iter_mut().filter(|it| !it.has_ended) {
                container.end = Some((Instant::now(), 137));
            }
            inner.settle();
            inner.containers.clear();
            inner.prepared.clear();
        });
        self.changed.notify_waiters();
    }

    /// Containers of this service or of this task do this from their next start on. The program of a task counts
    /// before that of its service.
    pub fn set_program(&self, service_or_task: &str, program: FakeProgram) {
        self.with(|inner| inner.programs.insert(service_or_task.to_owned(), program));
    }

    /// What containers do for which [`FakeMachine::set_program`] was not called.
    pub fn set_default_program(&self, program: FakeProgram) {
        self.with(|inner| inner.default_program = program);
    }

    /// Returns the containers that run.
    pub fn running(&self) -> Vec<RunningSlot> {
        self.with(|inner| inner.containers.iter().filter(|it| !it.has_ended).map(|it| it.running.clone()).collect())
    }

    /// Returns every start and end since the last call, in the order of their times.
    pub fn take_events(&self) -> Vec<MachineEvent> {
        self.with(|inner| std::mem::take(&mut inner.events))
    }

    /// Kills the container of a task from outside, as an operator or the kernel may; nothing if none runs.
    pub fn kill(&self, task: &str) {
        self.end(|it| it.running.task == task, Instant::now(), 137);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock().expect("no holder panics");
        inner.settle();
        act(&mut inner)
    }

    /// Brings the end of these containers forward.
    fn end(&self, of: impl Fn(&Container) -> bool, at: Instant, code: i32) {
        self.with(|inner| {
            for container in inner.containers.iter_mut().filter(|it| !it.has_ended && of(it)) {
                container.end = Some(container.end.map_or((at, code), |end| end.min((at, code))));
            }
            inner.settle();
        });
        self.changed.notify_waiters();
    }

    pub(super) fn program(&self, service: &str, task: &str) -> FakeProgram {
        self.with(|inner| {
            let program = inner.programs.get(task).or_else(|| inner.programs.get(service));
            program.unwrap_or(&inner.default_program).clone()
        })
    }

    pub(super) fn start(&self, task: &str, service: &str, slot: u64, program: &FakeProgram) {
        let now = Instant::now();
        let running = RunningSlot { task: task.to_owned(), service: service.to_owned(), slot, since: now };
        let end = program.runs.map(|runs| (now + runs, program.exit_code));
        self.with(|inner| {
            inner.events.push(event(&running, now, WhatHappened::Started));
            inner.containers.push(Container { running, on_stop: program.on_stop, end, has_ended: false });
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

    /// Waits until the task's last container has ended; one that is gone was killed.
    pub(super) async fn wait(&self, task: &str) -> (Instant, i32) {
        loop {
            // Before the look: a change in between must not be missed.
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

    /// Forgets the containers of a task that have ended. One that runs stays: it is what a daemon must not forget.
    pub(super) fn clean(&self, task: &str) {
        self.with(|inner| inner.containers.retain(|it| it.running.task != task || !it.has_ended));
    }

    /// Returns the tasks of which a container or something prepared is here.
    pub fn tasks(&self) -> BTreeSet<String> {
        self.with(|inner| {
            let containers = inner.containers.iter().map(|it| &it.running.task);
            containers.chain(inner.prepared.keys().map(|(task, _)| task)).cloned().collect()
        })
    }

    /// Takes note of what a step has prepared for a container with this program.
    pub(super) fn prepare(&self, task: &str, step: &'static str, program: FakeProgram) {
        self.with(|inner| inner.prepared.insert((task.to_owned(), step), program));
    }

    /// Returns how long it takes to remove what a step has prepared.
    pub(super) fn undo_delay(&self, task: &str, step: &'static str) -> Duration {
        let program = self.with(|inner| inner.prepared.get(&(task.to_owned(), step)).cloned());
        program.map(|it| it.undo_delay).unwrap_or_default()
    }

    /// Removes what a step has prepared. Returns why that fails, if it does.
    pub(super) fn undo(&self, task: &str, step: &'static str) -> Option<String> {
        let key = (task.to_owned(), step);
        let failure = self.with(|inner| inner.prepared.get(&key)?.undo_failure.clone());
        let error = self.failure(task, Act::Undo, failure);
        if error.is_none() {
            self.with(|inner| inner.prepared.remove(&key));
        }
        error
    }

    /// Returns the error if the act fails this time.
    pub(super) fn failure(&self, task: &str, act: Act, failure: Option<FakeFailure>) -> Option<String> {
        let failure = failure?;
        self.with(|inner| {
            let failed = inner.failures.entry((task.to_owned(), act)).or_default();
            *failed += 1;
            failure.times.is_none_or(|times| *failed <= times).then_some(failure.error)
        })
    }

    /// Forgets how often acts on the task have failed.
    pub(super) fn forget(&self, task: &str) {
        self.with(|inner| inner.failures.retain(|(it, _), _| it != task));
    }
}
