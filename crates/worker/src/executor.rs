//! Acts on containers for a task: prepare, start, wait, stop, remove. Each may be called again after a crash of the
//! daemon between two of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use flota_api::model::ServiceSpec;
use flota_api::proto::dispatcher::TaskAssignment;
use flota_image::{Image, ImageConfig, ImageError};
use flota_runtime::cgroup::{Groups, Hierarchy};
use flota_runtime::{ContainerClient, ExitStatus, Program, Root, State};

use crate::images::{FetchError, Images};
use crate::offers::NodeOffers;
use crate::translate::{self, NodeNames, Places};

/// A supervisor that has closed its connection has written how the container ended, or never will.
const END_WAIT: Duration = Duration::from_secs(5);

fn now() -> u64 {
    flota_api::version::Timestamp::from_system(std::time::SystemTime::now()).0
}

/// Why a container could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// Its image can't be had.
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
    /// The machine would not.
    #[error("failed to prepare the task's folder: {0}")]
    Io(#[from] std::io::Error),
}

/// What all tasks of this node share.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) node: NodeNames,
    pub(crate) images: Images,
    pub(crate) runtime: Program,
    /// On disk: what a container writes, and its output.
    pub(crate) data_dir: PathBuf,
    /// In memory: specs, states, sockets. Gone after a boot, as the containers are.
    pub(crate) run_dir: PathBuf,
    pub(crate) hierarchies: Vec<Hierarchy>,
    pub(crate) cgroup_parent: PathBuf,
    pub(crate) offers: Arc<NodeOffers>,
    /// Whether containers can be mounted from layers here.
    pub(crate) overlay: bool,
    /// Service and slot of the tasks here, for people.
    pub(crate) known: std::sync::Mutex<std::collections::HashMap<String, (String, u64)>>,
}

impl Executor {
    fn run_folder(&self, task: &str) -> PathBuf {
        self.run_dir.join("tasks").join(task)
    }

    fn data_folder(&self, task: &str) -> PathBuf {
        self.data_dir.join("tasks").join(task)
    }

    /// Where the task's output is.
    pub(crate) fn log(&self, task: &str) -> PathBuf {
        self.data_folder(task).join("log")
    }

    pub(crate) fn cgroups(&self, task: &str) -> Groups {
        Groups::below(&self.hierarchies, &self.cgroup_parent, task)
    }

    /// Has the image here, unpacked; its digest, layers and config.
    pub(crate) async fn prepare(
        &self,
        assignment: &TaskAssignment,
        pinned: Option<&str>,
    ) -> Result<(String, Vec<PathBuf>, ImageConfig), PrepareError> {
        let image: Image = self.images.ensure(assignment, pinned).await?;
        let (store, digest, config) = (self.images.store.clone(), image.digest.clone(), image.config.clone());
        let layers =
            tokio::task::spawn_blocking(move || store.unpack(&image)).await.map_err(std::io::Error::other)??;
        Ok((digest, layers, config))
    }

    /// How the image wants to be run, if it is here.
    pub(crate) fn config(&self, digest: &str) -> Option<ImageConfig> {
        self.images.store.image(digest).ok().map(|image| image.config)
    }

    /// How long ago the task's container was started.
    pub(crate) fn age(&self, task: &str) -> Option<Duration> {
        State::load(&self.run_folder(task)).ok().flatten()?.age()
    }

    /// Starts the task's container anew, with a fresh writable layer; ends when its program runs.
    pub(crate) async fn start(
        self: &Arc<Self>,
        assignment: &TaskAssignment,
        spec: &ServiceSpec,
        layers: Vec<PathBuf>,
        config: &ImageConfig,
    ) -> Result<(), PrepareError> {
        let task = assignment.task_id.clone();
        let (data, folder) = (self.data_folder(&task), self.run_folder(&task));
        let root = if self.overlay {
            Root::Overlay { lower: layers.clone(), upper: data.join("upper"), work: data.join("work") }
        } else {
            Root::Folder(data.join("root"))
        };
        let places =
            Places { root, groups: self.cgroups(&task), log: self.log(&task), runtime: self.runtime.path().to_owned() };
        let translate::Container { order, spec } =
            translate::container(assignment, spec, config, &self.node, &self.offers, places)?;
        let executor = Arc::clone(self);
        let started = tokio::task::spawn_blocking(move || {
            executor.clean(&task);
            match &order.root {
                Root::Overlay { upper, work, .. } => {
                    fs_err::create_dir_all(upper)?;
                    fs_err::create_dir_all(work)?;
                }
                Root::Folder(root) => copy_layers(&layers, root)?,
            }
            let started = flota_runtime::start(&executor.runtime, &folder, &order, spec).map_err(PrepareError::Run);
            if started.is_err() {
                // What hung may still be there.
                let _ = executor.cgroups(&task).sweep();
            }
            started
        });
        started.await.map_err(std::io::Error::other)?
    }

    /// The supervisor of the task's container, if it is there. The container may have ended, but its end is not
    /// written down before the supervisor goes.
    pub(crate) fn find(&self, task: &str) -> Option<UnixStream> {
        let stream = ContainerClient::connect(&self.run_folder(task)).ok()?.into_stream();
        stream.set_nonblocking(true).ok()?;
        UnixStream::from_std(stream).ok()
    }

    /// How the task's container ended, if it was started and did.
    pub(crate) fn ended(&self, task: &str) -> Option<ExitStatus> {
        let folder = self.run_folder(task);
        if let Ok(Some(status)) = ExitStatus::load(&folder) {
            return Some(status);
        }
        let state = State::load(&folder).ok().flatten()?;
        if ContainerClient::connect(&folder).is_ok() {
            return None;
        }
        // No supervisor and, at a second look, no word of its: it was killed.
        if let Ok(Some(status)) = ExitStatus::load(&folder) {
            return Some(status);
        }
        if state.is_alive() {
            // Nobody keeps its output or could stop it.
            tracing::warn!(task.id = task, "the container's supervisor is gone: the container is killed");
            let _ = self.cgroups(task).sweep();
        }
        Some(ExitStatus { code: 137, out_of_memory: false, at: now() })
    }

    /// Until the container has ended.
    pub(crate) async fn wait(&self, task: &str, stream: &mut UnixStream) -> ExitStatus {
        // The supervisor closes the connection when it has written how it ended.
        let mut buffer = [0; 256];
        while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
        let until = tokio::time::Instant::now() + END_WAIT;
        while tokio::time::Instant::now() < until {
            if let Some(status) = self.ended(task) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A start that came to nothing leaves neither.
        let _ = self.cgroups(task).sweep();
        ExitStatus { code: 137, out_of_memory: false, at: now() }
    }

    /// Sends the container a signal; one that has gone needs none.
    pub(crate) fn signal(&self, task: &str, signal: i32) {
        if let Ok(mut client) = ContainerClient::connect(&self.run_folder(task)) {
            let _ = client.kill(signal);
        }
    }

    /// Connects to the task's supervisor.
    pub(crate) fn client(&self, task: &str) -> std::io::Result<ContainerClient> {
        ContainerClient::connect(&self.run_folder(task))
    }

    /// Removes what an ended container leaves, but its output.
    pub(crate) fn clean(&self, task: &str) {
        let data = self.data_folder(task);
        let _ = std::fs::remove_dir_all(self.run_folder(task));
        for name in ["upper", "work", "merged", "root"] {
            let _ = std::fs::remove_dir_all(data.join(name));
        }
    }

    /// Removes everything of a task whose container has ended. Again and again, until it is gone.
    pub(crate) fn remove(&self, task: &str) {
        let _ = self.cgroups(task).sweep();
        self.clean(task);
        let _ = std::fs::remove_dir_all(self.data_folder(task));
    }

    /// Tasks of which something is here.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let cgroups = self.hierarchies.iter().map(|it| it.root.join(&self.cgroup_parent));
        let folders = [self.run_dir.join("tasks"), self.data_dir.join("tasks")].into_iter().chain(cgroups);
        let names = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok())
        };
        let found: std::collections::BTreeSet<String> =
            folders.flat_map(names).filter(|it| flota_api::id::is_id(it)).collect();
        found.into_iter().collect()
    }
}

/// Where overlayfs can't write: the layers, lowest first, copied into one folder, with their marks obeyed.
fn copy_layers(layers: &[PathBuf], root: &Path) -> Result<(), PrepareError> {
    fs_err::create_dir_all(root)?;
    for layer in layers.iter().rev() {
        flota_image::copy_layer(layer, root)?;
    }
    Ok(())
}
