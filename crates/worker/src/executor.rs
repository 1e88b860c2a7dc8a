//! The interface between the logic of tasks (`task_runner.rs`, `task_pool.rs`), which knows nothing about containers,
//! and the code that runs them.
//!
//! [`ContainerExecutor`] creates containers on this machine; `FakeExecutor` simulates them in memory, for tests and
//! the simulator. `conformance.rs` tests what both must do. The preparation of a container is a list of steps
//! (`prepared.rs`). The daemon may crash between any two calls, so every call may be repeated.
//!
//! A container that runs is represented by [`Running`], which holds the one connection over which the daemon learns of
//! its end and signals it.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::{Assignment, HealthCheck, HealthTest, Measured, ServiceSpec};
use flota_runtime::ExitStatus;

#[cfg(test)]
mod conformance;
mod container;
#[cfg(any(test, feature = "fake"))]
mod fake;
#[cfg(any(test, feature = "fake"))]
mod fake_usage;
#[cfg(any(test, feature = "fake"))]
mod machine;
mod paths;
mod prepared;
#[cfg(any(test, feature = "fake"))]
mod program;

pub(crate) use container::{ContainerExecutor, ContainerOptions, exit_code};
#[cfg(any(test, feature = "fake"))]
pub use fake::FakeExecutor;
#[cfg(any(test, feature = "fake"))]
pub use machine::{FakeMachine, MachineEvent, RunningSlot, WhatHappened};
pub(crate) use paths::TaskPaths;
pub(crate) use prepared::Prepared;
pub use prepared::{Draft, PrepareStep, TeardownError};
#[cfg(any(test, feature = "fake"))]
pub use program::{FakeFailure, FakeHealth, FakeProgram, OnStop};

/// The cause of a failure.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a task's container can't be prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// Another try may succeed; for example, the machine lacked memory.
    #[error(transparent)]
    Transient(Cause),
    /// The registry of an image did not send it. Another try may succeed, most likely with other credentials.
    #[error(transparent)]
    Unfetched(Cause),
    /// Another try on this node fails in the same way.
    #[error(transparent)]
    Final(Cause),
}

/// A container that was started and whose end was not handled yet.
pub struct Running {
    /// Time since its start; it may be older than the daemon.
    pub age: Duration,
    /// Resolves when the container has ended.
    pub end: BoxFuture<'static, ExitStatus>,
    /// Signals the container.
    pub control: Box<dyn Control>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("age", &self.age).finish_non_exhaustive()
    }
}

/// A connection to a running container.
pub trait Control: Send + Sync {
    /// Sends a signal to the container's program. Succeeds if the signal will arrive, or if the program has ended.
    ///
    /// # Errors
    /// The signal could not be sent, and another try may succeed.
    fn signal(&self, signal: i32) -> io::Result<()>;
}

/// How a test of a container's health ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckEnd {
    /// Zero after a success.
    pub exit_code: i32,
    /// The beginning of what the test wrote, or why it failed.
    pub output: String,
}

/// What the running container of a task has used since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// CPU time in nanoseconds; `None` if it is not counted here.
    pub cpu_nanos: Option<u64>,
    /// The memory that it uses now, in bytes, without the page cache that is not in use; `None` if it is not counted here.
    pub memory_bytes: Option<u64>,
    /// Requests; `None` if they are not wanted, or the task does not say.
    pub requests: Option<u64>,
}

/// What the machine has used since it started, whoever used it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Time for which its CPUs have worked, in any unit.
    pub busy: u64,
    /// Time of its CPUs in all, at work or not, in the same unit.
    pub all: u64,
    /// The memory that is in use now, in thousandths.
    pub memory: u32,
}

/// The container of a task, as [`Executor::find`] finds it.
#[derive(Debug)]
pub enum Found {
    /// It runs, and its end is not recorded yet. It may have been started by an earlier daemon.
    Runs(Running),
    /// It has ended; known until the steps are undone.
    Ended(ExitStatus),
}

/// Acts on the containers of tasks.
pub trait Executor: fmt::Debug + Send + Sync {
    /// Returns the tasks that have left files, control groups or containers on this machine.
    fn leftovers(&self) -> BoxFuture<'_, BTreeSet<TaskId>>;

    /// Registers a task that belongs to this node from now on, until [`Executor::remove`].
    fn accept(&self, assignment: &Assignment);

    /// Returns the steps that precede the start of a container, in order.
    fn steps(&self) -> Vec<Arc<dyn PrepareStep>>;

    /// Starts a new container of the task after all steps are done; resolves when its program runs.
    fn start<'a>(
        &'a self,
        assignment: &'a Assignment,
        draft: &'a Draft,
    ) -> BoxFuture<'a, Result<Running, ExecutorError>>;

    /// Finds the task's last container, if there is one.
    ///
    /// # Errors
    /// It is unknown whether there is a container. Another try may succeed.
    fn find<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, io::Result<Option<Found>>>;

    /// Returns the signal that asks the service's program to stop; the image with this digest may name it.
    fn stop_signal<'a>(&'a self, spec: &'a ServiceSpec, digest: Option<&'a str>) -> BoxFuture<'a, i32>;

    /// Returns the health check of the service's tasks; the image with this digest may have one.
    fn health_check<'a>(&'a self, spec: &'a ServiceSpec, digest: Option<&'a str>)
    -> BoxFuture<'a, Option<HealthCheck>>;

    /// Runs a test of the health of the task's container once; resolves when it has ended. Dropping the future ends the
    /// test with everything that it has started.
    fn check_health(&self, task: &TaskId, test: &HealthTest) -> BoxFuture<'static, CheckEnd>;

    /// Reads what the task's container has used; `None` if it does not run. May wait for an answer of the task.
    fn counters<'a>(&'a self, task: &'a TaskId, measured: &'a Measured) -> BoxFuture<'a, Option<Counters>>;

    /// Reads what the machine has used; `None` if it does not say.
    fn node_counters(&self) -> Option<NodeCounters>;

    /// Replaces the files of the task's running container that follow the newest version of a secret or config and have an
    /// older one, and signals the program.
    ///
    /// # Errors
    /// Another try may succeed.
    fn renew_values(&self, assignment: &Assignment, control: &dyn Control) -> io::Result<()>;

    /// Kills every process of the task's container without the help of its supervisor. Succeeds once none is left.
    fn kill_all<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>>;

    /// Waits until the peers of the task's ended container have confirmed what its programs have sent, or cannot be waited
    /// for any longer. Until then, the task keeps its addresses.
    fn flush<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, ()>;

    /// Releases what an ended task no longer needs, such as its image. Its output stays until [`Executor::remove`].
    fn release(&self, task: &TaskId);

    /// Removes what outlives a container, which is its output. The executor has no data of the task afterwards.
    fn remove<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>>;
}

/// Kills the task's container, if it exists, and removes everything that belongs to the task. Returns what could not
/// be removed.
pub(crate) async fn remove_task(executor: &dyn Executor, task: &TaskId) -> Vec<TeardownError> {
    let mut failed = Prepared::unknown(task, executor.steps()).undo().await;
    let removed = executor.remove(task).await;
    failed.extend(removed.err().map(|source| TeardownError { what: "output", source }));
    failed
}

/// Logs what could not be removed of a task.
pub(crate) fn log_leftovers(task: &TaskId, left: &[TeardownError]) {
    for error in left {
        tracing::error!(task.id = %task, %error, cause = %error.source, "something of a task is left on this machine");
    }
}
