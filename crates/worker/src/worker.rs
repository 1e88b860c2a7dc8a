//! The worker as the daemon uses it: started with an identity, asked for images, and stopped. It connects the logic of
//! `agent_handle.rs` to containers, files and the image store.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::{Clock, Random};
use flota_api::image_ref::ImageRef;
use flota_api::model::{Platform, RegistryCredentials, Role};
use flota_api::proto::images::image_store_server::ImageStoreServer;
use flota_api::seal::Sealer;
use flota_identity::{Dialer, Identity};
use flota_image::{Image, ImageError, ImageStore, PullError, Registries};
use flota_network::{Namespace, SocketThread};
use flota_runtime::cgroup;

use crate::agent_handle::{AgentHandle, AgentOptions, start_reporting_to};
use crate::app_armor;
use crate::cdi::CdiWatch;
use crate::describe::describe;
use crate::disk_thread::DiskThread;
use crate::executor::{ContainerExecutor, ContainerOptions, TaskPaths};
use crate::gpus;
use crate::health::HealthBoard;
use crate::images::{Added, Images, ImagesService};
use crate::networks::{LinuxKernel, LinuxOptions, NamespaceFolder, NetworkRecord, Networks};
use crate::offers::NodeOffers;
use crate::records::{FileRecords, QueuedRecords};
use crate::registry::of_image;
use crate::reporter::Reporter;
use crate::services::ContainerServices;
use crate::starts::StartStatistics;
use crate::translate::NodeNames;
use crate::volumes::Volumes;
use crate::worker_state::FileState;

/// The parameters of a worker.
#[derive(Debug)]
pub struct WorkerOptions {
    /// The node's certificate and key.
    pub identity: Identity,
    /// Connects to managers and to other nodes.
    pub dialer: Dialer,
    /// Folder on disk for images, tasks and their database.
    pub data_dir: PathBuf,
    /// Folder in memory for what need not survive a boot.
    pub run_dir: PathBuf,
    /// Encrypts the records of tasks on disk.
    pub sealer: Sealer,
    /// Path of the program `flota-runtime`.
    pub runtime: PathBuf,
    /// Managers to begin with, if none are stored on disk.
    pub managers: Vec<String>,
    /// `host:port` where other nodes reach this one.
    pub address: String,
    /// How this node reaches registries.
    pub registries: Registries,
    /// The runtimes, devices and rights that its owner offers to tasks; detected GPUs are added.
    pub offers: NodeOffers,
    /// Gets the digest of the CAs that the node is to trust, each time that a leader tells it.
    pub trusts: watch::Sender<Option<String>>,
    /// The wall clock.
    pub clock: Clock,
    /// Draws the pauses between connections.
    pub random: Random,
}

/// Why a worker can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder can't be created or opened.
    #[error("failed to prepare the worker's folders")]
    Folders(#[from] io::Error),
    /// The control groups of tasks can't be created.
    #[error("failed to prepare the control groups: {0}")]
    Cgroups(String),
}

/// A running worker. Dropping it leaves its tasks running.
#[derive(Debug)]
pub struct Worker {
    agent: AgentHandle,
    images: Images,
    networks: Networks,
}

impl Worker {
    /// Finds the containers of an earlier daemon and begins to look for a leader.
    ///
    /// # Errors
    /// Folders, cgroups or the task database can't be prepared.
    pub fn start(options: WorkerOptions, shutdown: CancellationToken) -> Result<Self, StartError> {
        let mut description = describe();
        let offers = Arc::new(options.offers.with_devices(gpus::find()));
        description.app_armor = app_armor::profile(offers.app_armor.as_deref());
        let overlay = prepare_folders(&options.data_dir, &options.run_dir)?;
        let runtime = Arc::new(flota_runtime::Program::open(options.runtime));
        description.user_namespaces = user_namespaces_work(&runtime, &options.data_dir, overlay);
        let paths = task_paths(&options.data_dir, options.run_dir, options.identity.node_id.as_str())?;
        let reporter = Reporter::default();
        let store = ImageStore::open(&options.data_dir.join("images"), overlay)?;
        let images =
            Images::new(store, options.dialer.clone(), options.registries, reporter.clone(), options.clock.clone());
        images.sweep();
        let disk = Arc::new(DiskThread::start()?);
        let address: Option<SocketAddr> = options.address.parse().ok();
        let kernel = LinuxKernel::start(LinuxOptions {
            node: options.identity.node_id.clone(),
            host: Namespace::own(),
            address: address.map(|it| it.ip()),
            guarded_ports: address.iter().map(SocketAddr::port).collect(),
            folder: NamespaceFolder::at(paths.namespaces()),
            group: paths.unified_group(),
            balancer: offers.balancer,
            keys: options.data_dir.join("tunnel-keys"),
            key_life: offers.tunnel_key_life,
            clock: options.clock.clone(),
        })?;
        let record = NetworkRecord::new(&options.data_dir, options.sealer.clone(), Arc::clone(&disk));
        let networks = Networks::start(kernel, record)?;
        let executor = Arc::new(ContainerExecutor::new(ContainerOptions {
            node: NodeNames { id: options.identity.node_id.to_string(), hostname: description.hostname.clone() },
            app_armor: description.app_armor.clone(),
            images: images.clone(),
            volumes: Volumes::new(options.data_dir.join("volumes"), images.store.clone()),
            networks: networks.clone(),
            sockets: SocketThread::start()?,
            runtime,
            paths,
            offers: Arc::clone(&offers),
            overlay,
            clock: options.clock.clone(),
        }));
        let records = FileRecords::open(&options.data_dir.join("task-db"), options.sealer)?;
        let health = HealthBoard::default();
        let agent = AgentOptions {
            node_id: options.identity.node_id.to_string(),
            description,
            address: options.address,
            dialer: options.dialer,
            managers: options.managers,
            services: Arc::new(ContainerServices { executor: Arc::clone(&executor), health: health.clone() }),
            executor,
            health,
            networks: Arc::new(networks.clone()),
            records: Arc::new(QueuedRecords::new(records, Arc::clone(&disk))),
            state: Arc::new(FileState::new(&options.data_dir, disk)),
            cdi_devices: CdiWatch::start(offers.cdi_folders.clone()),
            offers,
            trusts: options.trusts,
            clock: options.clock,
            random: options.random,
        };
        let agent = start_reporting_to(agent, reporter, shutdown);
        networks.begin();
        Ok(Self { agent, images, networks })
    }

    /// Returns the service that sends images to other nodes.
    pub fn image_server(&self) -> ImageStoreServer<ImagesService> {
        ImagesService::server(self.images.clone())
    }

    /// Becomes true when the cluster has removed this node.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.agent.removed()
    }

    /// Returns the time since the node had a session with the leader; `None` if it has one.
    pub fn lost(&self) -> Option<Duration> {
        self.agent.pool.lost()
    }

    /// Returns the number of tasks that have not ended.
    pub fn live_tasks(&self) -> usize {
        self.agent.pool.live_tasks()
    }

    /// Returns what starting containers has taken.
    pub fn start_statistics(&self) -> StartStatistics {
        self.agent.pool.start_statistics()
    }

    /// Returns the number of images that are complete on this node.
    pub async fn count_images(&self) -> usize {
        let store = self.images.store.clone();
        tokio::task::spawn_blocking(move || store.images().len()).await.unwrap_or_default()
    }

    /// The role that the cluster gives this node, as the leader said last; `None` before the first session.
    pub fn role(&self) -> watch::Receiver<Option<Role>> {
        self.agent.role()
    }

    /// Imports an archive as an image. Returns it with the given name, or else the names in the archive, made whole.
    ///
    /// # Errors
    /// The archive is not a valid image, has no name, or can't be stored.
    pub async fn import(
        &self,
        archive: impl io::Read + Send + 'static,
        reference: &str,
    ) -> Result<(Image, Vec<String>), ImageError> {
        let images = self.images.clone();
        let import = move |store: &ImageStore| {
            // Once nothing is added any more, what a refused archive has left goes.
            images.sweep();
            flota_image::import(store, archive)
        };
        let Added { value: (image, mut names), _adds } = self.images.add(import).await?;
        if !reference.is_empty() {
            names = vec![reference.to_owned()];
        }
        if names.is_empty() {
            return Err(ImageError::Archive("it gives the image no name; give one with --tag".into()));
        }
        let parsed = names.iter().map(|name| ImageRef::parse(name).map(|it| it.to_string()));
        let references = parsed.collect::<Result<_, _>>();
        let references =
            references.map_err(|error| ImageError::Archive(format!("its name: {error}; give one with --tag")))?;
        self.images.added(&image);
        Ok((image, references))
    }

    /// Creates an image of a static program.
    ///
    /// # Errors
    /// The program is not static, or the image can't be stored.
    pub async fn pack(&self, name: &str, program: Vec<u8>) -> Result<Image, ImageError> {
        let name = name.to_owned();
        let Added { value: image, _adds } =
            self.images.add(move |store| flota_image::pack(store, &name, &program)).await?;
        self.images.added(&image);
        Ok(image)
    }

    /// Pulls an image from its registry.
    ///
    /// # Errors
    /// The registry does not send the image, or the image is invalid.
    pub async fn pull(&self, reference: &ImageRef, login: Option<&RegistryCredentials>) -> Result<Image, PullError> {
        self.images.pull(reference, login).await
    }

    /// Returns the platforms that an image of this node is made for; none if it does not say.
    ///
    /// # Errors
    /// A document of the image is missing or malformed.
    pub async fn platforms(&self, image: &Image) -> Result<Vec<Platform>, ImageError> {
        let (store, image) = (self.images.store.clone(), image.clone());
        let named = tokio::task::spawn_blocking(move || store.platforms(&image)).await.map_err(join)??;
        Ok(of_image(&named))
    }

    /// Makes the worker know only this manager from now on: the others are not part of the cluster any more.
    pub fn follow_only(&self, manager: &str) {
        self.agent.follow_only(manager);
    }

    /// Makes the worker look for a leader at these addresses first, because those that it knows may be of no use any more.
    pub fn also_try(&self, managers: &[String]) {
        self.agent.also_try(managers);
    }

    /// Stops every task within its grace period, because the machine goes down, and tells the leader.
    pub async fn stop_tasks(&self) {
        self.agent.stop_tasks().await;
    }

    /// Stops and removes every task, because the node leaves its cluster.
    pub async fn remove_tasks(&self) {
        self.agent.remove_tasks().await;
        self.networks.leave().await;
    }

    /// Tells the leader that the daemon stops and will return, and leaves the containers running.
    pub async fn stop(&self) {
        self.agent.stop().await;
    }
}

/// Creates the folders of tasks. Returns whether containers can be mounted from layers there.
fn prepare_folders(data_dir: &Path, run_dir: &Path) -> io::Result<bool> {
    // Specs contain environments, and files of containers may be set-user-id, so other users of this machine must see
    // neither.
    for dir in [data_dir.join("tasks"), data_dir.join("volumes"), run_dir.join("tasks")] {
        fs_err::create_dir_all(&dir)?;
        fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    let overlay = overlay_works(data_dir);
    if !overlay {
        tracing::warn!(path = %data_dir.display(), "overlayfs can't write here: layers are copied for each task");
    }
    Ok(overlay)
}

fn task_paths(data_dir: &Path, run_dir: PathBuf, node: &str) -> Result<TaskPaths, StartError> {
    let mut hierarchies = cgroup::hierarchies()?;
    let cgroup_parent = cgroup::delegate(&mut hierarchies).join("flota").join(node);
    cgroup::prepare(&hierarchies, &cgroup_parent).map_err(|error| StartError::Cgroups(error.to_string()))?;
    Ok(TaskPaths { data_dir: data_dir.to_owned(), run_dir, hierarchies, cgroup_parent })
}

fn join(error: tokio::task::JoinError) -> ImageError {
    ImageError::Io { act: "handle the image", source: io::Error::other(error) }
}

/// Returns whether tasks whose files are in this folder can have ids of their own. This is tested as well, because it depends
/// on the kernel, its settings, and the file system.
fn user_namespaces_work(runtime: &flota_runtime::Program, data_dir: &Path, overlay: bool) -> bool {
    let probe = data_dir.join("ids-probe");
    let tried = runtime.try_ids(&probe, overlay);
    let _ = flota_image::remove_folder(&probe);
    match tried {
        Ok(None) => true,
        Ok(Some(why)) => {
            tracing::info!(path = %data_dir.display(), why, "tasks can't have user namespaces here");
            false
        }
        // As with overlayfs: what fails now fails when a task starts, if it still does, and says why.
        Err(error) => {
            tracing::warn!(path = %data_dir.display(), %error, "failed to test user namespaces; assuming that they work");
            true
        }
    }
}

/// Returns whether this folder can be an overlay's upper layer. This is tested by mounting, because no list of file
/// systems is complete. If the test can't be made, as on a full disk, the answer is yes: a disk without room for an
/// empty folder has none for copies of layers.
fn overlay_works(data_dir: &Path) -> bool {
    let probe = data_dir.join("overlay-probe");
    let works = try_overlay(&probe);
    let _ = flota_image::remove_folder(&probe);
    works.unwrap_or_else(|error| {
        tracing::warn!(path = %data_dir.display(), %error, "failed to test overlayfs; assuming that it can write here");
        true
    })
}

/// Mounts an overlay in a folder. Returns whether the kernel can do that there.
fn try_overlay(probe: &Path) -> io::Result<bool> {
    use nix::errno::Errno;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    for name in ["lower", "upper", "work", "merged"] {
        fs_err::create_dir_all(probe.join(name))?;
    }
    let path = |name: &str| probe.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
    let merged = probe.join("merged");
    match mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())) {
        Ok(()) => umount2(&merged, MntFlags::MNT_DETACH).map(|()| true).map_err(Into::into),
        Err(Errno::EINVAL | Errno::ENODEV | Errno::EPERM | Errno::EOPNOTSUPP | Errno::EREMOTE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_on_which_overlayfs_can_not_be_tested_counts_as_one_where_it_works() {
        let dir = tempfile::tempdir().unwrap();
        // No folder can be made under this name, as on a full disk.
        std::fs::write(dir.path().join("overlay-probe"), "").unwrap();
        assert!(overlay_works(dir.path()));
    }
}
