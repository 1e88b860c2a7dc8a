//! The worker as the daemon sees it: started with an identity, asked for images, told to stop.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::proto::images::image_store_server::ImageStoreServer;
use flota_api::seal::Sealer;
use flota_identity::{Dialer, Identity};
use flota_image::{Credentials, Image, ImageError, ImageStore, PullError};
use flota_runtime::cgroup;

use crate::agent::Agent;
use crate::assignments::Newest;
use crate::describe::describe;
use crate::executor::Executor;
use crate::gpus;
use crate::images::{Images, ImagesService};
use crate::managers::KnownManagers;
use crate::offers::NodeOffers;
use crate::reporter::Reporter;
use crate::task_db::TaskDb;
use crate::task_pool::TaskPool;
use crate::task_runner::{Contact, Shared};
use crate::translate::NodeNames;

/// What a worker is started with.
#[derive(Debug)]
pub struct WorkerOptions {
    /// Who it is.
    pub identity: Identity,
    /// Its connections.
    pub dialer: Dialer,
    /// On disk.
    pub data_dir: PathBuf,
    /// In memory.
    pub run_dir: PathBuf,
    /// Of everything that it keeps on disk about tasks.
    pub sealer: Sealer,
    /// The program `flota-runtime`.
    pub runtime: PathBuf,
    /// Managers that are known beside those on disk.
    pub managers: Vec<String>,
    /// `host:port` where other nodes reach this one.
    pub address: String,
    /// What its owner gives to tasks; GPUs that are found here are added.
    pub offers: NodeOffers,
}

/// Why a worker can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder.
    #[error("failed to prepare the worker's folders")]
    Folders(#[from] io::Error),
    /// Control groups.
    #[error("failed to prepare the control groups: {0}")]
    Cgroups(String),
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    pool: TaskPool,
    images: Images,
    leaving: watch::Sender<Option<bool>>,
    removed: watch::Receiver<bool>,
    /// Until it is waited for.
    agent: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Worker {
    /// Finds its containers again, and begins to look for a leader.
    ///
    /// # Errors
    /// Folders or cgroups can't be prepared.
    pub fn start(options: WorkerOptions, shutdown: CancellationToken) -> Result<Self, StartError> {
        let offers = Arc::new(options.offers.with_devices(gpus::find()));
        let hierarchies = cgroup::hierarchies()?;
        let cgroup_parent = Path::new("flota").join(options.identity.node_id.as_str());
        cgroup::prepare(&hierarchies, &cgroup_parent).map_err(|error| StartError::Cgroups(error.to_string()))?;
        fs_err::create_dir_all(options.data_dir.join("tasks"))?;
        fs_err::create_dir_all(options.run_dir.join("tasks"))?;
        // Specs hold environments, containers' files may be set-user-id: neither is for this machine's other users.
        for dir in [options.data_dir.join("tasks"), options.run_dir.join("tasks")] {
            fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        }
        let overlay = overlay_works(&options.data_dir);
        if !overlay {
            tracing::warn!(path = %options.data_dir.display(), "overlayfs can't write here: layers are copied for each task");
        }
        let reporter = Reporter::default();
        let images = Images {
            store: ImageStore::open(&options.data_dir.join("images"), overlay)?,
            dialer: options.dialer.clone(),
            reporter: reporter.clone(),
            grant_key: Arc::default(),
            fetching: Arc::default(),
            changing: Arc::default(),
            unwanted: Arc::default(),
        };
        images.sweep();
        let node = NodeNames { id: options.identity.node_id.to_string(), hostname: describe().hostname };
        let executor = Arc::new(Executor {
            node,
            images: images.clone(),
            runtime: flota_runtime::Program::open(options.runtime),
            data_dir: options.data_dir.clone(),
            run_dir: options.run_dir,
            hierarchies,
            cgroup_parent,
            offers: Arc::clone(&offers),
            overlay,
            known: Mutex::default(),
        });
        let (contact, contact_receiver) = watch::channel(Contact { lost: Some(tokio::time::Instant::now()) });
        let pool = TaskPool::start(Shared {
            executor: Arc::clone(&executor),
            db: TaskDb::open(&options.data_dir.join("task-db"), options.sealer)?,
            reporter: reporter.clone(),
            contact: contact_receiver,
            live: Arc::default(),
            ended: Arc::default(),
        });
        let (leaving, leaving_receiver) = watch::channel(None);
        let (removed_sender, removed) = watch::channel(false);
        let agent = Agent {
            node_id: options.identity.node_id.to_string(),
            listen: options.address,
            offers: Arc::clone(&offers),
            dialer: options.dialer,
            managers: KnownManagers::load(&options.data_dir.join("managers"), options.managers),
            pool: pool.clone(),
            reporter,
            executor,
            contact,
            leaving: leaving_receiver,
            removed: removed_sender,
            newest: Newest::load(&options.data_dir.join("newest")),
            parts: None,
        };
        let agent = tokio::spawn(agent.run(shutdown));
        Ok(Self { pool, images, leaving, removed, agent: tokio::sync::Mutex::new(Some(agent)) })
    }

    /// What serves images to other nodes.
    pub fn image_server(&self) -> ImageStoreServer<ImagesService> {
        ImagesService::server(self.images.clone())
    }

    /// Becomes true when the cluster has removed this node.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.removed.clone()
    }

    /// Takes an archive as an image; named as given, else as the archive says.
    ///
    /// # Errors
    /// It is refused.
    pub async fn import(
        &self,
        archive: impl io::Read + Send + 'static,
        reference: &str,
    ) -> Result<(Image, String), ImageError> {
        let _adds = self.images.changing.read().await;
        self.images.sweep();
        let store = self.images.store.clone();
        let imported = tokio::task::spawn_blocking(move || flota_image::import(&store, archive));
        let (image, name) = imported.await.map_err(join)??;
        let name = if reference.is_empty() { name.unwrap_or_default() } else { reference.to_owned() };
        let parsed = flota_api::image_ref::ImageRef::parse(&name);
        let reference =
            parsed.map_err(|error| ImageError::Archive(format!("its name: {error}; give one with --tag")))?.to_string();
        self.images.named(&image, &reference);
        Ok((image, reference))
    }

    /// Makes an image of a static program.
    ///
    /// # Errors
    /// It is refused.
    pub async fn pack(&self, name: &str, program: Vec<u8>, reference: &str) -> Result<Image, ImageError> {
        let _adds = self.images.changing.read().await;
        let (store, name) = (self.images.store.clone(), name.to_owned());
        let packed = tokio::task::spawn_blocking(move || flota_image::pack(&store, &name, &program));
        let image = packed.await.map_err(join)??;
        self.images.named(&image, reference);
        Ok(image)
    }

    /// Pulls an image from its registry.
    ///
    /// # Errors
    /// The registry would not, or it is refused.
    pub async fn pull(&self, reference: &str, credentials: Option<Credentials>) -> Result<Image, PullError> {
        self.images.pull(reference, credentials).await
    }

    /// The machine goes down: stops every task within its grace, and says so.
    pub async fn stop_tasks(&self) {
        self.pool.stop_all().await;
        self.leaving.send_replace(Some(true));
    }

    /// The node leaves its cluster: stops and removes every task.
    pub async fn remove_tasks(&self) {
        self.pool.remove_all().await;
    }

    /// The daemon stops: says that it will be back, and leaves the containers running.
    pub async fn stop(&self) {
        self.leaving.send_if_modified(|leaving| {
            let silent = leaving.is_none();
            leaving.get_or_insert(false);
            silent
        });
        // A leader that does not answer is not waited for.
        if let Some(agent) = self.agent.lock().await.take() {
            let _ = tokio::time::timeout(std::time::Duration::from_secs(3), agent).await;
        }
    }
}

fn join(error: tokio::task::JoinError) -> ImageError {
    ImageError::Io { act: "handle the image", source: io::Error::other(error) }
}

/// Whether this folder can be an overlay's upper layer: tried, because no table of file systems is complete.
fn overlay_works(data_dir: &Path) -> bool {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let probe = data_dir.join("overlay-probe");
    let made = ["lower", "upper", "work", "merged"].iter().all(|name| fs_err::create_dir_all(probe.join(name)).is_ok());
    let path = |name: &str| probe.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
    let merged = probe.join("merged");
    let mounted = mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).is_ok();
    if mounted {
        let _ = umount2(&merged, MntFlags::MNT_DETACH);
    }
    let _ = std::fs::remove_dir_all(&probe);
    made && mounted
}
