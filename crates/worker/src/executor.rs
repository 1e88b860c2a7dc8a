//! The interface between the logic of tasks (`task_runner.rs`, `task_pool.rs`), which knows nothing about containers,
//! and the code that runs them.
//!
//! [`ContainerExecutor`] creates containers on this machine; `FakeExecutor` simulates them in memory, for tests and
//! the simulator. `conformance.rs` tests what both must do. The preparation of a container is a list of steps
//! (`prepared.rs`). The daemon may crash between any two calls, so every call may be repeated.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::{Assignment, ServiceSpec};
use flota_runtime::ExitStatus;

#[cfg(test)]
mod conformance;
mod container;
#[cfg(any(test, feature = "fake"))]
mod fake;
#[cfg(any(test, feature = "fake"))]
mod machine;
mod paths;
mod prepared;

pub(crate) use container::{ContainerExecutor, ContainerOptions};
#[cfg(any(test, feature = "fake"))]
pub use fake::FakeExecutor;
#[cfg(any(test, feature = "fake"))]
pub use machine::{FakeFailure, FakeMachine, FakeProgram, MachineEvent, OnStop, RunningSlot, WhatHappened};
pub(crate) use paths::TaskPaths;
pub(crate) use prepared::Prepared;
pub use prepared::{Draft, PrepareStep, TeardownError};

/// The cause of a failure.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a task's container can't be prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// Another try may succeed; for example, the image could not be fetched.
    #[error(transparent)]
    Transient(Cause),
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
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("age", &self.age).finish_non_exhaustive()
    }
}

/// Acts on the containers of tasks.
pub trait Executor: fmt::Debug + Send + Sync {
    /// Returns the tasks that have left files, control groups or containers on this machine.
    fn leftovers(&self) -> BTreeSet<TaskId>;

    /// Registers a task that belongs to this node from now on, until [`Executor::remove`].
    fn accept(&self, assignment: &Assignment);

    /// Returns the steps that precede the start of a container, in order.
    fn steps(&self) -> Vec<Arc<dyn PrepareStep>>;

    /// Starts a new container of the task after all steps are done; resolves when its program runs.
    fn start<'a>(&'a self, assignment: &'a Assignment, draft: &'a Draft) -> BoxFuture<'a, Result<(), ExecutorError>>;

    /// Returns the task's container, if it exists and its end is not recorded yet. It may have been started by an
    /// earlier daemon.
    fn attach(&self, task: &TaskId) -> Option<Running>;

    /// Returns how the task's last container ended, if it has; available until the steps are undone.
    fn ended(&self, task: &TaskId) -> Option<ExitStatus>;

    /// Asks the container to stop, with the signal of the service or else of the image with this digest. Does nothing
    /// if no container runs.
    fn stop(&self, task: &TaskId, spec: &ServiceSpec, digest: Option<&str>);

    /// Kills the container. Does nothing if none runs.
    fn kill(&self, task: &TaskId);

    /// Removes what outlives a container, which is its output. The executor has no data of the task afterwards.
    fn remove<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>>;
}

/// Kills the task's container, if it exists, and removes everything that belongs to the task. Returns what could not
/// be removed.
pub(crate) async fn remove_task(executor: &dyn Executor, task: &TaskId) -> Vec<TeardownError> {
    executor.kill(task);
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
