//! Runs tasks in containers on this machine, with Flota's runtime. Blocking work (disk, kernel) runs outside the async
//! threads, except for single accesses to files in memory.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use flota_api::clock::Clock;
use flota_api::id::TaskId;
use flota_api::model::{Assignment, ServiceSpec};
use flota_api::naming::task_name;
use flota_image::ImageError;
use flota_runtime::{ContainerClient, ContainerEvent, ContainerEvents, ExitStatus, Program, State};

use super::paths::remove_folder;
use super::{Cause, Draft, Executor, ExecutorError, PrepareStep, Running, TaskPaths};
use crate::images::{FetchError, Images};
use crate::locks::KeyedLocks;
use crate::offers::NodeOffers;
use crate::translate::{self, NodeNames, Places, stop_signal};

mod steps;

use steps::{ImageStep, RunFolder, WritableLayer};

/// Longest delay between the end of the supervisor's connection and the exit status. The status is normally written
/// before.
const END_WAIT: Duration = Duration::from_secs(5);

/// Why a container can't be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// Its image can't be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Its image is refused.
    #[error("the image is refused: {0}")]
    Image(#[from] ImageError),
    /// Its spec can't be translated for this node.
    #[error(transparent)]
    Translate(#[from] translate::TranslateError),
    /// It failed to start.
    #[error(transparent)]
    Run(#[from] flota_runtime::RunError),
    /// An I/O error.
    #[error("failed to prepare the task's folder: {0}")]
    Io(#[from] std::io::Error),
}

impl From<ContainerError> for ExecutorError {
    fn from(error: ContainerError) -> Self {
        match error {
            ContainerError::Fetch(_) => Self::Transient(Box::new(error)),
            _ => Self::Final(Box::new(error)),
        }
    }
}

/// The dependencies of a [`ContainerExecutor`].
#[derive(Debug)]
pub(crate) struct ContainerOptions {
    pub(crate) node: NodeNames,
    pub(crate) images: Images,
    pub(crate) runtime: Program,
    pub(crate) paths: TaskPaths,
    pub(crate) offers: Arc<NodeOffers>,
    /// Whether containers can be mounted from layers on this machine.
    pub(crate) overlay: bool,
    pub(crate) clock: Clock,
}

/// Containers of this node.
#[derive(Debug)]
pub(crate) struct ContainerExecutor {
    pub(crate) node: NodeNames,
    pub(crate) images: Images,
    pub(crate) paths: TaskPaths,
    runtime: Arc<Program>,
    offers: Arc<NodeOffers>,
    clock: Clock,
    layer: WritableLayer,
    steps: Vec<Arc<dyn PrepareStep>>,
    /// Names of the node's tasks, as users know them.
    names: Mutex<HashMap<TaskId, String>>,
}

impl ContainerExecutor {
    pub(crate) fn new(options: ContainerOptions) -> Self {
        let ContainerOptions { node, images, runtime, paths, offers, overlay, clock } = options;
        let layer = WritableLayer { paths: paths.clone(), overlay, busy: KeyedLocks::default() };
        let steps: Vec<Arc<dyn PrepareStep>> = vec![
            Arc::new(ImageStep { images: images.clone() }),
            Arc::new(layer.clone()),
            Arc::new(RunFolder { paths: paths.clone() }),
        ];
        Self { node, images, paths, runtime: Arc::new(runtime), offers, clock, layer, steps, names: Mutex::default() }
    }

    /// Returns the task's name as users know it, or its id if the task is unknown.
    pub(crate) fn name(&self, task: &TaskId) -> String {
        self.names.lock().expect("no holder panics").get(task).cloned().unwrap_or_else(|| task.to_string())
    }

    /// Connects to the task's supervisor.
    pub(crate) fn client(&self, task: &TaskId) -> std::io::Result<ContainerClient> {
        ContainerClient::connect(&self.paths.run_folder(task))
    }

    async fn start_container(&self, assignment: &Assignment, draft: &Draft) -> Result<(), ContainerError> {
        let task = &assignment.task_id;
        let places = Places {
            root: self.layer.root(task, &draft.layers),
            groups: self.paths.cgroups(task),
            log: self.paths.log(task),
            runtime: self.runtime.path().to_owned(),
        };
        let translate::Container { order, spec } =
            translate::container(assignment, &draft.config, &self.node, &self.offers, places)?;
        let (runtime, folder) = (Arc::clone(&self.runtime), self.paths.run_folder(task));
        let started = tokio::task::spawn_blocking(move || flota_runtime::start(&runtime, &folder, &order, spec));
        started.await.map_err(std::io::Error::other)??;
        Ok(())
    }

    /// Returns the time since the start of the task's container.
    fn age(&self, task: &TaskId) -> Option<Duration> {
        State::load(&self.paths.run_folder(task)).ok().flatten()?.age()
    }

    /// Connects to the supervisor of the task's container, if it is running.
    #[expect(deprecated, reason = "it is unsound for types that change their descriptor, and this one never does")]
    fn supervisor(&self, task: &TaskId) -> Option<AsyncFd<ContainerEvents>> {
        let events = self.client(task).ok()?.watch().ok()?;
        AsyncFd::with_interest(events, Interest::READABLE).ok()
    }

    /// Sends the container a signal. A container that has ended is ignored.
    fn signal(&self, task: &TaskId, signal: i32) {
        if let Ok(client) = self.client(task) {
            let _ = client.kill(signal);
        }
    }
}

/// Returns how a task's container ended, if it has.
fn ended(paths: &TaskPaths, clock: &Clock, task: &TaskId) -> Option<ExitStatus> {
    let folder = paths.run_folder(task);
    if let Ok(Some(status)) = ExitStatus::load(&folder) {
        return Some(status);
    }
    let state = State::load(&folder).ok().flatten()?;
    if ContainerClient::connect(&folder).is_ok() {
        return None;
    }
    // The supervisor may have written the status and ended between the first check and the connection.
    if let Ok(Some(status)) = ExitStatus::load(&folder) {
        return Some(status);
    }
    if state.is_alive() {
        // Without its supervisor, the container has no output log and can't be stopped.
        tracing::warn!(task.id = %task, "the container's supervisor is gone: the container is killed");
        let _ = paths.cgroups(task).sweep();
    }
    Some(killed(clock))
}

/// Waits until the container has ended.
async fn wait(paths: TaskPaths, clock: Clock, task: TaskId, supervisor: AsyncFd<ContainerEvents>) -> ExitStatus {
    loop {
        match supervisor.async_io(Interest::READABLE, ContainerEvents::next_event).await {
            Ok(Some(ContainerEvent::Exited(status))) => return status,
            Ok(Some(ContainerEvent::OutOfMemory)) => {
                tracing::info!(task.id = %task, "a container ran out of memory");
            }
            // The supervisor was killed, or it ended just before the connection was established.
            Ok(None) | Err(_) => break,
        }
    }
    let until = tokio::time::Instant::now() + END_WAIT;
    while tokio::time::Instant::now() < until {
        if let Some(status) = ended(&paths, &clock, &task) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A failed start leaves neither a state nor an exit status.
    let _ = paths.cgroups(&task).sweep();
    killed(&clock)
}

fn killed(clock: &Clock) -> ExitStatus {
    ExitStatus { code: 137, out_of_memory: None, at: clock.now().0 }
}

impl Executor for ContainerExecutor {
    fn leftovers(&self) -> BTreeSet<TaskId> {
        self.paths.leftovers()
    }

    fn accept(&self, assignment: &Assignment) {
        let name = task_name(&assignment.service_name, assignment.slot);
        self.names.lock().expect("no holder panics").insert(assignment.task_id.clone(), name);
    }

    fn steps(&self) -> Vec<Arc<dyn PrepareStep>> {
        self.steps.clone()
    }

    fn start<'a>(&'a self, assignment: &'a Assignment, draft: &'a Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(self.start_container(assignment, draft).await?) })
    }

    /// The container may have ended already: its end is recorded only when the supervisor exits.
    fn attach(&self, task: &TaskId) -> Option<Running> {
        let supervisor = self.supervisor(task)?;
        let age = self.age(task).unwrap_or_default();
        let end = wait(self.paths.clone(), self.clock.clone(), task.clone(), supervisor);
        Some(Running { age, end: Box::pin(end) })
    }

    fn ended(&self, task: &TaskId) -> Option<ExitStatus> {
        ended(&self.paths, &self.clock, task)
    }

    fn stop(&self, task: &TaskId, spec: &ServiceSpec, digest: Option<&str>) {
        let image = digest.and_then(|digest| self.images.store.image(digest).ok());
        let config = image.map(|image| image.config).unwrap_or_default();
        self.signal(task, stop_signal(spec, &config));
    }

    fn kill(&self, task: &TaskId) {
        self.signal(task, nix::libc::SIGKILL);
    }

    fn remove<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        let folder = self.paths.data_folder(task);
        Box::pin(async move {
            self.names.lock().expect("no holder panics").remove(task);
            Ok(tokio::task::spawn_blocking(move || remove_folder(&folder)).await??)
        })
    }
}
