//! Runs tasks in containers on this machine, with Flota's runtime. Blocking work (disk, kernel) runs outside the async
//! threads, except for single accesses to files in memory.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use flota_api::clock::Clock;
use flota_api::id::{NetworkId, TaskId};
use flota_api::model::{Assignment, HealthCheck, HealthTest, Measured, ServiceSpec};
use flota_api::naming::task_name;
use flota_image::{Image, ImageError};
use flota_network::SocketThread;
use flota_runtime::{ContainerClient, ContainerEvents, ContainerState, Program};

use super::{
    Cause, CheckEnd, Control, Counters, Draft, Executor, ExecutorError, Found, NodeCounters, PrepareStep, Running,
    TaskPaths,
};
use crate::cdi::{self, CdiError};
use crate::images::{FetchError, Images};
use crate::locks::KeyedLocks;
use crate::mounts::{BindError, BindSources};
use crate::networks::{CheckPlan, Networks};
use crate::offers::NodeOffers;
use crate::translate::{self, NodeNames, Places, stop_signal};
use crate::volumes::{VolumeError, Volumes};

mod check;
mod counters;
mod mounted_images;
mod network;
mod node_counters;
mod requests;
mod steps;
mod supervisor;
mod user_namespace;
mod values;
mod volumes;

pub(crate) use check::exit_code;
use mounted_images::MountedImagesStep;
use network::NetworkStep;
use steps::{ImageStep, RunFolder, WritableLayer};
use supervisor::{Located, Place, Supervisor, blocking, is_gone};
use user_namespace::UserNamespaceStep;
use values::{ValueError, ValueStep};
use volumes::VolumeStep;

/// Number of tries to read the image of a container that runs, and the pause between them.
const IMAGE_TRIES: u32 = 3;
const IMAGE_PAUSE: Duration = Duration::from_millis(500);
/// Longest time in which the sources of mounts are found.
const SOURCES_WAIT: Duration = Duration::from_secs(55);
/// Number of tasks whose sources are looked for at once.
const LOOKUPS: usize = 32;

/// Why a container can't be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// Its image can't be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Its image is refused, or this machine can't provide it now.
    #[error("{act}: {0}", act = if .0.is_of_machine() { "failed to provide the image" } else { "the image is refused" })]
    Image(#[from] ImageError),
    /// An image that it mounts can't be provided.
    #[error("failed to provide the image `{reference}`, which the task mounts")]
    MountedImage {
        /// Reference of the image.
        reference: String,
        /// The cause.
        #[source]
        source: Box<ContainerError>,
    },
    /// Its spec can't be translated for this node.
    #[error(transparent)]
    Translate(#[from] translate::TranslateError),
    /// Its volumes can't be provided.
    #[error(transparent)]
    Volume(VolumeError),
    /// Its secrets and configs can't be provided.
    #[error(transparent)]
    Value(ValueError),
    /// The sources of its bind mounts were not found in time.
    #[error("failed to find the sources of its mounts within {SOURCES_WAIT:?}")]
    Sources,
    /// Newer versions of them can't be put in their place.
    #[error("failed to replace the secrets and configs by their newest versions")]
    Values(#[source] io::Error),
    /// The source of a bind mount can't be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A CDI device can't be given.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// It failed to start.
    #[error(transparent)]
    Run(#[from] flota_runtime::RunError),
    /// It can't get ids of its own.
    #[error("failed to give the task ids of its own: {0}")]
    Ids(#[source] io::Error),
    /// An I/O error.
    #[error("failed to prepare the task's folder: {0}")]
    Io(#[from] io::Error),
    /// The connection to its supervisor can't be used.
    #[error("failed to watch the container: {0}")]
    Watch(#[source] io::Error),
}

impl ContainerError {
    /// Returns whether another try on this node fails in the same way.
    fn is_final(&self) -> bool {
        match self {
            Self::MountedImage { source, .. } => source.is_final(),
            Self::Image(image) => !image.is_of_machine(),
            // Programs write these files while a machine boots.
            Self::Cdi(CdiError::Unknown { .. }) => false,
            Self::Translate(_) | Self::Bind(_) | Self::Cdi(_) => true,
            Self::Value(ValueError::NoText(..) | ValueError::Template(..)) => true,
            Self::Volume(volume) => volume.is_final(),
            // The program itself is the cause.
            Self::Run(run) => run.code.is_some(),
            // The launcher may be busy, and disks, memory and descriptors become available again.
            Self::Fetch(_) | Self::Value(_) | Self::Values(_) | Self::Sources => false,
            Self::Ids(_) | Self::Io(_) | Self::Watch(_) => false,
        }
    }

    /// Returns whether a registry has not sent an image.
    fn is_unfetched(&self) -> bool {
        match self {
            Self::MountedImage { source, .. } => source.is_unfetched(),
            Self::Fetch(error) => matches!(error, FetchError::Pull(_) | FetchError::Nowhere { .. }),
            _ => false,
        }
    }
}

impl From<ContainerError> for ExecutorError {
    fn from(error: ContainerError) -> Self {
        match &error {
            _ if error.is_final() => Self::Final(Box::new(error)),
            _ if error.is_unfetched() => Self::Unfetched(Box::new(error)),
            _ => Self::Transient(Box::new(error)),
        }
    }
}

/// The dependencies of a [`ContainerExecutor`].
#[derive(Debug)]
pub(crate) struct ContainerOptions {
    pub(crate) node: NodeNames,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) networks: Networks,
    pub(crate) sockets: SocketThread,
    pub(crate) runtime: Arc<Program>,
    pub(crate) paths: TaskPaths,
    pub(crate) offers: Arc<NodeOffers>,
    /// Whether containers can be mounted from layers on this machine.
    pub(crate) overlay: bool,
    /// Profile of AppArmor for tasks.
    pub(crate) app_armor: Option<String>,
    pub(crate) clock: Clock,
}

/// Containers of this node.
#[derive(Debug)]
pub(crate) struct ContainerExecutor {
    pub(crate) node: NodeNames,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) paths: TaskPaths,
    sockets: SocketThread,
    runtime: Arc<Program>,
    offers: Arc<NodeOffers>,
    app_armor: Option<String>,
    clock: Clock,
    network: NetworkStep,
    layer: WritableLayer,
    values: ValueStep,
    steps: Vec<Arc<dyn PrepareStep>>,
    /// Bounds how many threads look for the sources of mounts at once.
    lookups: Arc<Semaphore>,
    known: Mutex<HashMap<TaskId, KnownTask>>,
}

/// What is known of a task without its assignment.
#[derive(Clone, Debug, Default)]
struct KnownTask {
    /// Its name as users know it.
    name: String,
    /// Whether its output is dropped.
    has_no_log: bool,
}

impl ContainerExecutor {
    pub(crate) fn new(options: ContainerOptions) -> Self {
        let ContainerOptions {
            node,
            images,
            volumes,
            networks,
            sockets,
            runtime,
            paths,
            offers,
            overlay,
            app_armor,
            clock,
        } = options;
        let network = NetworkStep::new(networks);
        let layer = WritableLayer { paths: paths.clone(), overlay, busy: KeyedLocks::default() };
        let busy = KeyedLocks::default();
        let mounted = MountedImagesStep { images: images.clone(), paths: paths.clone(), overlay, busy };
        let values = ValueStep::new(paths.values(), paths.ids(), node.clone());
        let steps: Vec<Arc<dyn PrepareStep>> = vec![
            Arc::new(ImageStep { images: images.clone() }),
            Arc::new(mounted),
            Arc::new(layer.clone()),
            Arc::new(UserNamespaceStep {
                paths: paths.clone(),
                runtime: Arc::clone(&runtime),
                busy: KeyedLocks::default(),
            }),
            Arc::new(VolumeStep { volumes: volumes.clone(), paths: paths.clone() }),
            Arc::new(values.clone()),
            Arc::new(network.clone()),
            Arc::new(RunFolder { paths: paths.clone() }),
        ];
        let known = Mutex::default();
        Self {
            node,
            images,
            volumes,
            paths,
            sockets,
            runtime,
            offers,
            app_armor,
            clock,
            network,
            layer,
            values,
            steps,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            known,
        }
    }

    /// Returns the task's name as users know it, or its id if the task is unknown.
    pub(crate) fn name(&self, task: &TaskId) -> String {
        let known = self.known.lock().expect("no holder panics");
        known.get(task).map_or_else(|| task.to_string(), |it| it.name.clone())
    }

    /// Returns whether the task's output is dropped.
    pub(crate) fn has_no_log(&self, task: &TaskId) -> bool {
        self.known.lock().expect("no holder panics").get(task).is_some_and(|it| it.has_no_log)
    }

    /// Opens a connection to the task's supervisor, for one request.
    pub(crate) fn client(&self, task: &TaskId) -> io::Result<ContainerClient> {
        ContainerClient::connect(&self.paths.run_folder(task))
    }

    /// Reads an image of this node; `None` if it is not there.
    async fn image(&self, digest: Option<&str>) -> Option<Image> {
        let digest = digest?;
        for tries in 0..IMAGE_TRIES {
            if tries > 0 {
                // Descriptors may have been short.
                tokio::time::sleep(IMAGE_PAUSE).await;
            }
            let (store, wanted) = (self.images.store.clone(), digest.to_owned());
            match tokio::task::spawn_blocking(move || store.image(&wanted)).await.ok()? {
                Ok(image) => return Some(image),
                Err(error) => tracing::warn!(image = digest, %error, "failed to read the image of a task"),
            }
        }
        None
    }

    fn place(&self, task: &TaskId) -> Place {
        Place { paths: self.paths.clone(), clock: self.clock.clone(), task: task.clone() }
    }

    /// Plans the check of a network; `None` if the worker ends.
    pub(crate) async fn plan_check(&self, network: &NetworkId) -> Option<CheckPlan> {
        self.network.networks.plan_check(network).await
    }

    async fn start_container(&self, assignment: &Assignment, draft: &Draft) -> Result<Running, ContainerError> {
        let task = &assignment.task_id;
        // A version that has come since the files were written is there from the start: the program could not yet handle a
        // signal.
        self.values.renew(assignment, None).map_err(ContainerError::Values)?;
        let (wanted, offers) = (assignment.clone(), Arc::clone(&self.offers));
        let lookups = Arc::clone(&self.lookups);
        let found = async move {
            // One that hangs keeps its thread, and must not take those of everything else.
            let permit = lookups.acquire_owned().await.map_err(io::Error::other)?;
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let binds = BindSources::find(&wanted.mounts(), &offers.bind_roots)?;
                Ok::<_, ContainerError>((binds, cdi::of_task(&wanted, &offers.cdi_folders)?))
            })
            .await
            .map_err(io::Error::other)
        };
        // A server that does not answer holds up whoever looks for its files.
        let found = tokio::time::timeout(SOURCES_WAIT, found).await.map_err(|_| ContainerError::Sources)?;
        let (binds, cdi) = found??;
        let places = Places {
            root: self.layer.root(task, &draft.layers),
            groups: self.paths.cgroups(task),
            log: self.paths.log(task),
            runtime: self.runtime.path().to_owned(),
            volumes: draft.volumes.clone(),
            file_systems: draft.file_systems.clone(),
            images: draft.images.clone(),
            values: draft.values.clone(),
            variables: draft.variables.clone(),
            binds,
            cdi,
            ids: draft.ids.clone(),
            app_armor: self.app_armor.clone(),
        };
        let translate::Container { order, spec } =
            translate::container(assignment, &draft.config, &draft.network, &self.node, &self.offers, places)?;
        let (runtime, folder) = (Arc::clone(&self.runtime), self.paths.run_folder(task));
        let kept = self.network.take_sockets(task);
        let started = tokio::task::spawn_blocking(move || flota_runtime::start(&runtime, &folder, &order, spec, &kept));
        let events = started.await.map_err(io::Error::other)??;
        self.running(task, Duration::ZERO, events).map_err(ContainerError::Watch)
    }

    fn running(&self, task: &TaskId, age: Duration, events: ContainerEvents) -> io::Result<Running> {
        let supervisor = Supervisor::new(self.place(task), events)?;
        Ok(Running { age, end: Box::pin(supervisor.clone().end()), control: Box::new(supervisor) })
    }

    async fn find_container(&self, task: &TaskId) -> io::Result<Option<Found>> {
        let (located, age, kept) = blocking(&self.place(task), |place| {
            let folder = place.paths.run_folder(&place.task);
            // This comes first, because a supervisor that still starts its container answers only then.
            let kept = match ContainerClient::connect(&folder).and_then(ContainerClient::kept) {
                Err(error) if is_gone(&error) => Vec::new(),
                kept => kept?,
            };
            let (state, located) = (ContainerState::load(&folder).ok().flatten(), place.find());
            Ok::<_, io::Error>((located, state.and_then(|it| it.age()).unwrap_or_default(), kept))
        })
        .await??;
        if !kept.is_empty() {
            self.network.networks.adopt(task, kept);
        }
        Ok(match located? {
            Some(Located::Runs(events)) => Some(Found::Runs(self.running(task, age, events)?)),
            Some(Located::Ended(status)) => Some(Found::Ended(status)),
            None => None,
        })
    }
}

impl Executor for ContainerExecutor {
    fn leftovers(&self) -> BoxFuture<'_, BTreeSet<TaskId>> {
        let paths = self.paths.clone();
        Box::pin(async move {
            // Without the list nothing is removed; the next daemon tries again.
            tokio::task::spawn_blocking(move || paths.leftovers()).await.unwrap_or_default()
        })
    }

    fn accept(&self, assignment: &Assignment) {
        let name = task_name(&assignment.service_name, assignment.slot);
        let known = KnownTask { name, has_no_log: assignment.spec.log.bytes().is_none() };
        self.known.lock().expect("no holder panics").insert(assignment.task_id.clone(), known);
        self.images.uses.accept(assignment);
        self.volumes.accept(assignment);
        self.network.networks.accept(assignment);
    }

    fn renew_values(&self, assignment: &Assignment, control: &dyn Control) -> io::Result<()> {
        self.values.renew(assignment, Some(control))
    }

    fn steps(&self) -> Vec<Arc<dyn PrepareStep>> {
        self.steps.clone()
    }

    fn start<'a>(
        &'a self,
        assignment: &'a Assignment,
        draft: &'a Draft,
    ) -> BoxFuture<'a, Result<Running, ExecutorError>> {
        Box::pin(async move { Ok(self.start_container(assignment, draft).await?) })
    }

    fn find<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, io::Result<Option<Found>>> {
        Box::pin(self.find_container(task))
    }

    fn stop_signal<'a>(&'a self, spec: &'a ServiceSpec, digest: Option<&'a str>) -> BoxFuture<'a, i32> {
        Box::pin(async move {
            let image = self.image(digest).await;
            stop_signal(spec, &image.map(|image| image.config).unwrap_or_default())
        })
    }

    fn health_check<'a>(
        &'a self,
        spec: &'a ServiceSpec,
        digest: Option<&'a str>,
    ) -> BoxFuture<'a, Option<HealthCheck>> {
        Box::pin(async move {
            let image = self.image(digest).await.map(|image| image.healthcheck).unwrap_or_default();
            let check = spec.healthcheck.check(&check::of_image(&image))?;
            Some(check::with_shell(check, image.shell))
        })
    }

    fn check_health(&self, task: &TaskId, test: &HealthTest) -> BoxFuture<'static, CheckEnd> {
        Box::pin(check::check(self.sockets.clone(), self.paths.run_folder(task), test.clone()))
    }

    fn counters<'a>(&'a self, task: &'a TaskId, measured: &'a Measured) -> BoxFuture<'a, Option<Counters>> {
        Box::pin(counters::read(&self.sockets, self.place(task), measured))
    }

    fn node_counters(&self) -> Option<NodeCounters> {
        node_counters::read()
    }

    fn kill_all<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        let place = self.place(task);
        Box::pin(async move { Ok(blocking(&place, |place| place.paths.cgroups(&place.task).sweep()).await??) })
    }

    fn flush<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, ()> {
        Box::pin(self.network.networks.flush(task))
    }

    fn release(&self, task: &TaskId) {
        self.images.uses.remove(task);
        self.volumes.release(task);
        self.network.networks.forget(task);
    }

    fn remove<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        let folder = self.paths.data_folder(task);
        self.release(task);
        Box::pin(async move {
            self.known.lock().expect("no holder panics").remove(task);
            Ok(tokio::task::spawn_blocking(move || flota_image::remove_folder(&folder)).await??)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_tried_again_where_the_disk_was_full_and_not_where_its_image_is_damaged() {
        let full = || io::Error::from(nix::errno::Errno::ENOSPC);
        let damaged = || ImageError::Archive("it is empty".into());
        let errors = || [ImageError::Io { act: "make a folder", source: full() }, damaged()];
        let is_final = |error| matches!(ExecutorError::from(error), ExecutorError::Final(_));
        let mounted = |error| ContainerError::MountedImage { reference: "data".into(), source: Box::new(error) };
        for (error, expected) in errors().into_iter().zip([false, true]) {
            assert_eq!(is_final(ContainerError::Image(error)), expected);
        }
        assert_eq!(errors().map(|error| is_final(mounted(ContainerError::Image(error)))), [false, true]);
    }
}
