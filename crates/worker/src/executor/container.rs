//! Runs tasks in containers on this machine, with Flota's runtime. What blocks (disk, kernel) is done away from the
//! threads that answer others.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use flota_api::clock::Clock;
use flota_api::model::ServiceSpec;
use flota_api::naming::task_name;
use flota_api::proto::dispatcher::TaskAssignment;
use flota_image::ImageError;
use flota_runtime::{ContainerClient, ContainerEvent, ContainerEvents, ExitStatus, Program, Root, State};

use super::{Executor, ExecutorError, Prepared, Running, TaskPaths};
use crate::images::{FetchError, Images};
use crate::offers::NodeOffers;
use crate::translate::{self, NodeNames, Places, stop_signal};

/// The longest wait for the exit status of a container whose supervisor has gone.
const END_WAIT: Duration = Duration::from_secs(5);

/// Why a container can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// Its image can't be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Its image is refused.
    #[error("the image is refused: {0}")]
    Image(#[from] ImageError),
    /// Its spec can't be carried out here.
    #[error(transparent)]
    Translate(#[from] translate::TranslateError),
    /// It did not start.
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

/// Containers of this node.
#[derive(Debug)]
pub(crate) struct ContainerExecutor {
    pub(crate) node: NodeNames,
    pub(crate) images: Images,
    pub(crate) runtime: Arc<Program>,
    pub(crate) paths: TaskPaths,
    pub(crate) offers: Arc<NodeOffers>,
    /// Whether containers can be mounted from layers here.
    pub(crate) overlay: bool,
    pub(crate) clock: Clock,
    /// Names of the tasks here, as users know them.
    pub(crate) names: Mutex<HashMap<String, String>>,
}

impl ContainerExecutor {
    /// The task's name as users know it; its id if the task is not here.
    pub(crate) fn name(&self, task: &str) -> String {
        self.names.lock().expect("no holder panics").get(task).cloned().unwrap_or_else(|| task.to_owned())
    }

    /// Connects to the task's supervisor.
    pub(crate) fn client(&self, task: &str) -> std::io::Result<ContainerClient> {
        ContainerClient::connect(&self.paths.run_folder(task))
    }

    async fn prepare_image(
        &self,
        assignment: &TaskAssignment,
        pinned: Option<&str>,
    ) -> Result<Prepared, ContainerError> {
        let image = self.images.ensure(assignment, pinned).await?;
        let (store, digest, config) = (self.images.store.clone(), image.digest.clone(), image.config.clone());
        let layers =
            tokio::task::spawn_blocking(move || store.unpack(&image)).await.map_err(std::io::Error::other)??;
        Ok(Prepared { digest, layers, config })
    }

    /// Starts the task's container anew, with a fresh writable layer; ends when its program runs.
    async fn start_container(
        &self,
        assignment: &TaskAssignment,
        spec: &ServiceSpec,
        prepared: Prepared,
    ) -> Result<(), ContainerError> {
        let task = assignment.task_id.clone();
        let paths = self.paths.clone();
        let (data, folder) = (paths.data_folder(&task), paths.run_folder(&task));
        let Prepared { layers, config, .. } = prepared;
        let root = if self.overlay {
            Root::Overlay { lower: layers.clone(), upper: data.join("upper"), work: data.join("work") }
        } else {
            Root::Folder(data.join("root"))
        };
        let places = Places {
            root,
            groups: paths.cgroups(&task),
            log: paths.log(&task),
            runtime: self.runtime.path().to_owned(),
        };
        let translate::Container { order, spec } =
            translate::container(assignment, spec, &config, &self.node, &self.offers, places)?;
        let runtime = Arc::clone(&self.runtime);
        let started = tokio::task::spawn_blocking(move || {
            paths.clean(&task);
            match &order.root {
                Root::Overlay { upper, work, .. } => {
                    fs_err::create_dir_all(upper)?;
                    fs_err::create_dir_all(work)?;
                }
                Root::Folder(root) => copy_layers(&layers, root)?,
            }
            let started = flota_runtime::start(&runtime, &folder, &order, spec);
            if started.is_err() {
                // What hung may still be there.
                let _ = paths.cgroups(&task).sweep();
            }
            Ok(started.map(drop)?)
        });
        started.await.map_err(std::io::Error::other)?
    }

    /// How long ago the task's container was started.
    fn age(&self, task: &str) -> Option<Duration> {
        State::load(&self.paths.run_folder(task)).ok().flatten()?.age()
    }

    /// A connection to the supervisor of the task's container, if it is there.
    fn supervisor(&self, task: &str) -> Option<AsyncFd<ContainerEvents>> {
        let events = self.client(task).ok()?.watch().ok()?;
        AsyncFd::with_interest(events, Interest::READABLE).ok()
    }

    /// Waits until the container has ended.
    async fn wait(&self, task: &str, supervisor: AsyncFd<ContainerEvents>) -> ExitStatus {
        loop {
            let next = supervisor.async_io(Interest::READABLE, ContainerEvents::next_event).await;
            match next {
                Ok(Some(ContainerEvent::Exited(status))) => return status,
                Ok(Some(ContainerEvent::OutOfMemory)) => {
                    tracing::info!(task.id = task, "a container ran out of memory");
                }
                // The supervisor was killed, or ended just before the connection was made.
                Ok(None) | Err(_) => break,
            }
        }
        let until = tokio::time::Instant::now() + END_WAIT;
        while tokio::time::Instant::now() < until {
            if let Some(status) = self.ended(task) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A start that came to nothing leaves neither.
        let _ = self.paths.cgroups(task).sweep();
        self.killed()
    }

    fn killed(&self) -> ExitStatus {
        ExitStatus { code: 137, out_of_memory: false, at: self.clock.now().0 }
    }

    /// Sends the container a signal; one that has gone needs none.
    fn signal(&self, task: &str, signal: i32) {
        if let Ok(mut client) = self.client(task) {
            let _ = client.kill(signal);
        }
    }
}

impl Executor for ContainerExecutor {
    fn sweep(&self, known: &BTreeSet<String>) {
        for task in self.paths.leftovers().difference(known) {
            tracing::info!(task.id = task, "removing what is left of a task that is not known");
            self.signal(task, nix::libc::SIGKILL);
            self.paths.remove(task);
        }
    }

    fn accept(&self, assignment: &TaskAssignment) {
        let name = task_name(&assignment.service_name, assignment.slot);
        self.names.lock().expect("no holder panics").insert(assignment.task_id.clone(), name);
    }

    fn prepare<'a>(
        &'a self,
        assignment: &'a TaskAssignment,
        pinned: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Prepared, ExecutorError>> {
        Box::pin(async move { Ok(self.prepare_image(assignment, pinned).await?) })
    }

    fn start<'a>(
        &'a self,
        assignment: &'a TaskAssignment,
        spec: &'a ServiceSpec,
        prepared: Prepared,
    ) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(self.start_container(assignment, spec, prepared).await?) })
    }

    /// The container may have ended, but its end is not recorded before the supervisor goes.
    fn attach<'a>(&'a self, task: &'a str) -> Option<Running<'a>> {
        let supervisor = self.supervisor(task)?;
        let age = self.age(task).unwrap_or_default();
        Some(Running { age, end: Box::pin(self.wait(task, supervisor)) })
    }

    fn ended(&self, task: &str) -> Option<ExitStatus> {
        let folder = self.paths.run_folder(task);
        if let Ok(Some(status)) = ExitStatus::load(&folder) {
            return Some(status);
        }
        let state = State::load(&folder).ok().flatten()?;
        if ContainerClient::connect(&folder).is_ok() {
            return None;
        }
        // The supervisor may have written the status between the first look and its end.
        if let Ok(Some(status)) = ExitStatus::load(&folder) {
            return Some(status);
        }
        if state.is_alive() {
            // Nobody keeps its output or could stop it.
            tracing::warn!(task.id = task, "the container's supervisor is gone: the container is killed");
            let _ = self.paths.cgroups(task).sweep();
        }
        Some(self.killed())
    }

    fn stop(&self, task: &str, spec: &ServiceSpec, digest: Option<&str>) {
        let image = digest.and_then(|digest| self.images.store.image(digest).ok());
        let config = image.map(|image| image.config).unwrap_or_default();
        self.signal(task, stop_signal(spec, &config));
    }

    fn kill(&self, task: &str) {
        self.signal(task, nix::libc::SIGKILL);
    }

    fn clean<'a>(&'a self, task: &'a str) -> BoxFuture<'a, ()> {
        let (paths, task) = (self.paths.clone(), task.to_owned());
        Box::pin(async move { drop(tokio::task::spawn_blocking(move || paths.clean(&task)).await) })
    }

    fn remove<'a>(&'a self, task: &'a str) -> BoxFuture<'a, ()> {
        let (paths, id) = (self.paths.clone(), task.to_owned());
        Box::pin(async move {
            drop(tokio::task::spawn_blocking(move || paths.remove(&id)).await);
            self.names.lock().expect("no holder panics").remove(task);
        })
    }
}

/// Where overlayfs can't write: copies the layers, lowest first, into one folder and applies their whiteouts.
fn copy_layers(layers: &[PathBuf], root: &Path) -> Result<(), ContainerError> {
    fs_err::create_dir_all(root)?;
    for layer in layers.iter().rev() {
        flota_image::copy_layer(layer, root)?;
    }
    Ok(())
}
