//! What runs a task: the seam between the logic of tasks (`task_runner.rs`, `task_pool.rs`), which knows no container,
//! and the means that carry it out.
//!
//! [`ContainerExecutor`] makes containers on this machine; `FakeExecutor` plays them in memory, for tests and the
//! simulator. Each call may be repeated after a crash of the daemon between any two of them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;

use flota_api::model::ServiceSpec;
use flota_api::proto::dispatcher::TaskAssignment;
use flota_image::ImageConfig;
use flota_runtime::ExitStatus;

mod container;
#[cfg(any(test, feature = "fake"))]
mod fake;
#[cfg(any(test, feature = "fake"))]
mod machine;
mod paths;

pub(crate) use container::ContainerExecutor;
#[cfg(any(test, feature = "fake"))]
pub use fake::FakeExecutor;
#[cfg(any(test, feature = "fake"))]
pub use machine::{FakeMachine, FakeProgram, MachineEvent, OnStop, RunningSlot, WhatHappened};
pub(crate) use paths::TaskPaths;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a task's container can't be prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// Another try may succeed: the image could not be fetched.
    #[error(transparent)]
    Transient(Cause),
    /// Another try here fails in the same way.
    #[error(transparent)]
    Final(Cause),
}

/// An image that is on this node, ready for a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prepared {
    /// Digest of the image.
    pub digest: String,
    /// Folders of its unpacked layers, the uppermost first.
    pub layers: Vec<PathBuf>,
    /// How the image asks to be run.
    pub config: ImageConfig,
}

/// A container that was started and whose end nobody has taken yet.
pub struct Running<'a> {
    /// How long ago it was started; it may be older than the daemon.
    pub age: Duration,
    /// Resolves when the container has ended.
    pub end: BoxFuture<'a, ExitStatus>,
}

impl fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("age", &self.age).finish_non_exhaustive()
    }
}

/// Acts on the containers of tasks.
pub trait Executor: fmt::Debug + Send + Sync {
    /// Kills and removes whatever belongs to tasks other than these.
    fn sweep(&self, known: &BTreeSet<String>);

    /// Takes note of a task that belongs to this node from now on, until [`Executor::remove`].
    fn accept(&self, assignment: &TaskAssignment);

    /// Brings the task's image to this node. `pinned` is the digest that an earlier start of the task used; it counts
    /// where the assignment names none.
    fn prepare<'a>(
        &'a self,
        assignment: &'a TaskAssignment,
        pinned: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Prepared, ExecutorError>>;

    /// Starts a new container of the task; resolves when its program runs.
    fn start<'a>(
        &'a self,
        assignment: &'a TaskAssignment,
        spec: &'a ServiceSpec,
        prepared: Prepared,
    ) -> BoxFuture<'a, Result<(), ExecutorError>>;

    /// The task's container, if it is there and its end is not recorded yet. It may have been started by an earlier
    /// daemon.
    fn attach<'a>(&'a self, task: &'a str) -> Option<Running<'a>>;

    /// How the task's last container ended, if it did; known until [`Executor::clean`].
    fn ended(&self, task: &str) -> Option<ExitStatus>;

    /// Asks the container to stop, with the signal of the service, else of the image with this digest.
    fn stop(&self, task: &str, spec: &ServiceSpec, digest: Option<&str>);

    /// Kills the container.
    fn kill(&self, task: &str);

    /// Removes what an ended container leaves, except its output.
    fn clean<'a>(&'a self, task: &'a str) -> BoxFuture<'a, ()>;

    /// Kills the task's container if it is there, and removes everything that belongs to the task.
    fn remove<'a>(&'a self, task: &'a str) -> BoxFuture<'a, ()>;
}
